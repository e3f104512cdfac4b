"""Heads that start from groups of similar clips instead of from random outputs."""

import torch
import torch.nn.functional as F
from torch import Tensor

from selavi.labelling.assignment import assign
from selavi.labelling.config import LabellingConfig

#: Steps of the clustering, and the inverse temperature of its cosine similarities.
STEPS = 5
SHARPNESS = 10.0
#: Logits of a typical clip reach about this, so that the first softmax is neither flat nor hard.
LOGIT_SCALE = 5.0


def prototype_outputs(
    hidden: dict[str, Tensor],
    present: dict[str, Tensor],
    prior: Tensor,
    config: LabellingConfig,
    seed: int,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Output layers whose clusters are groups of clips with similar hidden features.

    Spherical k-means on both modalities' centred hidden features side by side, with cluster sizes
    held to the prior by optimal transport. Every head has its own features and starts from its own
    random clips. The two modalities share the groups, so their outputs are aligned from the start.

    Args:
        hidden: modality -> (H, N, D) features before the output layer.
        present: modality -> (N,) bool.

    Returns:
        modality -> weight (H, D, K) and bias (H, K).
    """
    centered = {m: _center(hidden[m], present[m]) for m in hidden}
    points = torch.cat([F.normalize(x, dim=-1) for x, _ in centered.values()], -1)
    points = F.normalize(points, dim=-1)
    num_heads, num_clips, num_clusters = *points.shape[:2], config.num_clusters
    generator = torch.Generator().manual_seed(seed)
    first = torch.stack(
        [torch.randperm(num_clips, generator=generator)[:num_clusters] for _ in range(num_heads)]
    ).to(points.device)
    means = points.take_along_dim(first[..., None], 1)
    for _ in range(STEPS):
        similarity = points @ F.normalize(means, dim=-1).transpose(1, 2)
        labels = assign((SHARPNESS * similarity).log_softmax(-1), prior, config).labels
        members = F.one_hot(labels, num_clusters).to(points.dtype)
        grouped = members.transpose(1, 2) @ points / members.sum(1).clamp_min(1)[..., None]
        means = torch.where(members.sum(1)[..., None] > 0, grouped, means)
    outputs = {}
    sizes = [x.shape[-1] for x, _ in centered.values()]
    for (modality, (x, mean)), part in zip(
        centered.items(), means.split(sizes, dim=-1), strict=True
    ):
        scale = LOGIT_SCALE / x.norm(dim=-1).mean(1)
        weight = scale[:, None, None] * F.normalize(part, dim=-1).transpose(1, 2)
        outputs[modality] = weight, -torch.einsum("hd,hdk->hk", mean, weight)
    return outputs


def _center(features: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Features (H, N, D) less their mean (H, D) over the clips that have them, others 0."""
    mean = features[:, present].mean(1)
    return torch.where(present[:, None], features - mean[:, None], 0.0), mean
