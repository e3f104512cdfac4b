"""Heads that start from groups of similar clips instead of from random outputs."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from selavi.labelling.assignment import assign
from selavi.labelling.config import LabellingConfig

#: Steps of the clustering, and the inverse temperature of its cosine similarities.
STEPS = 5
SHARPNESS = 10.0
#: Logits of a typical clip reach about this, so that the first softmax is neither flat nor hard.
LOGIT_SCALE = 5.0


@dataclass(frozen=True)
class HiddenFeatures:
    """What the heads' output layers see of N clips of one modality.

    Attributes:
        center, augmented: (H, N, D) float32, of the centre views and of augmented ones.
        present: (N,) bool; rows of clips that lack the modality mean nothing.
    """

    center: Tensor
    augmented: Tensor
    present: Tensor


def prototype_outputs(
    hidden: dict[str, HiddenFeatures], prior: Tensor, config: LabellingConfig, seed: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Output layers whose clusters are groups of clips with similar hidden features.

    Each modality is grouped on its own. The groups that change least when the clips are augmented,
    by mean NMI over the heads, serve both modalities: their outputs are aligned from the start,
    and a modality that means little to a random encoder does not blur the other's groups.

    Returns:
        modality -> weight (H, D, K) and bias (H, K).
    """
    features = {m: _normalize(h.center, h.present) for m, h in hidden.items()}
    groups, stability = {}, {}
    for modality, (points, mean) in features.items():
        present = hidden[modality].present
        labels, means = _spherical_k_means(points[:, present], prior, config, seed)
        augmented = F.normalize(hidden[modality].augmented[:, present] - mean[:, None], dim=-1)
        again = (augmented @ means.transpose(1, 2)).argmax(-1)
        groups[modality] = labels
        stability[modality] = sum(map(_nmi, labels, again))
    best = max(stability, key=stability.__getitem__)

    outputs = {}
    members = _members(groups[best], hidden[best].present, config.num_clusters)
    for modality, (points, mean) in features.items():
        means = F.normalize(members @ points, dim=-1)
        length = (hidden[modality].center - mean[:, None])[:, hidden[modality].present].norm(dim=-1)
        weight = (LOGIT_SCALE / length.mean(1))[:, None, None] * means.transpose(1, 2)
        outputs[modality] = weight, -torch.einsum("hd,hdk->hk", mean, weight)
    return outputs


def _normalize(features: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Centred features (H, N, D) of unit length, 0 where absent, and their mean (H, D)."""
    mean = features[:, present].mean(1)
    points = F.normalize(features - mean[:, None], dim=-1)
    return torch.where(present[:, None], points, 0.0), mean


def _spherical_k_means(
    points: Tensor, prior: Tensor, config: LabellingConfig, seed: int
) -> tuple[Tensor, Tensor]:
    """Labels (H, N) with cluster sizes held to the prior, and means (H, K, D) of unit length.

    Every head starts from its own random clips.
    """
    generator = torch.Generator().manual_seed(seed)
    num_heads, num_clips, _ = points.shape
    first = torch.stack([torch.randperm(num_clips, generator=generator) for _ in range(num_heads)])[
        :, : config.num_clusters
    ]
    means = points.take_along_dim(first.to(points.device)[..., None], 1)
    everyone = torch.ones(num_clips, dtype=torch.bool, device=points.device)
    for _ in range(STEPS):
        similarity = SHARPNESS * points @ means.transpose(1, 2)
        labels = assign(similarity.log_softmax(-1), prior, config).labels
        grouped = _members(labels, everyone, config.num_clusters) @ points
        empty = (grouped == 0).all(-1, keepdim=True)
        means = torch.where(empty, means, F.normalize(grouped, dim=-1))
    return labels, means


def _members(labels: Tensor, present: Tensor, num_clusters: int) -> Tensor:
    """(H, K, N) float32: 1 where a clip that is present is in a cluster."""
    members = torch.zeros(len(labels), len(present), num_clusters, device=labels.device)
    members[:, present] = F.one_hot(labels, num_clusters).float()
    return members.transpose(1, 2)


def _nmi(first: Tensor, second: Tensor) -> float:
    return normalized_mutual_info_score(first.cpu().numpy(), second.cpu().numpy())
