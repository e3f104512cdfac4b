"""The labels that a user gets: from one head's log-probabilities and the solved potentials."""

from dataclasses import dataclass

import torch
from torch import Tensor

from selavi.labelling.assignment import Assignment, assign
from selavi.labelling.config import LabellingConfig

JOINT = "joint"


@dataclass(frozen=True)
class ClipLabels:
    """One row a clip, N clips.

    Attributes:
        cluster: (N,) int64; -1 where a clip has no modality that could be read.
        confidence: (N,) float32 in [1/K, 1], softmax_k(log p_ik + v_k / lambda) at the cluster;
            NaN where there is none.
        agreement: (N,) float32 in [0, 1], sum_k min(p_video, p_audio); NaN where a clip lacks one.
        by_modality: modality -> (N,) int64 labels from it alone; -1 where a clip lacks it.
    """

    cluster: Tensor
    confidence: Tensor
    agreement: Tensor
    by_modality: dict[str, Tensor]


def joint_log_p(log_p: dict[str, Tensor], present: dict[str, Tensor]) -> Tensor:
    """Mean over the modalities that each clip has (paper eq. 5): (N, K) float32.

    Args:
        log_p: modality -> (N, K) log-probabilities; rows of absent modalities are ignored.
        present: modality -> (N,) bool.
    """
    total = sum(torch.where(present[m][:, None], log_p[m], 0.0) for m in log_p)
    return total / sum(present[m].float() for m in log_p).clamp_min(1)[:, None]


def solve_labellings(
    log_p: dict[str, Tensor], present: dict[str, Tensor], prior: Tensor, config: LabellingConfig
) -> dict[str, Assignment]:
    """The joint assignment, and one from each modality that any clip has; each of one head."""
    problems = {JOINT: joint_log_p(log_p, present)}
    problems |= {m: log_p[m][present[m]] for m in log_p if present[m].any()}
    return {name: assign(matrix[None], prior, config) for name, matrix in problems.items()}


def label_clips(
    log_p: dict[str, Tensor],
    present: dict[str, Tensor],
    potentials: dict[str, Tensor],
    lam: float,
) -> ClipLabels:
    """argmax_k(lambda log p_ik + v_k) of the joint predictions and of each modality's own.

    Args:
        log_p, present: as in `joint_log_p`.
        potentials: v (K,) of the joint labelling and of modalities, from `solve_labellings`.
        lam: lambda.
    """
    posterior = (joint_log_p(log_p, present) + potentials[JOINT].float() / lam).softmax(-1)
    confidence, cluster = posterior.max(-1)
    known = torch.stack(list(present.values())).any(0)
    confidence = confidence.where(known, torch.nan)
    cluster = cluster.where(known, -1)
    by_modality = {}
    for modality, values in log_p.items():
        if modality in potentials:
            labels = (values + potentials[modality].float() / lam).argmax(-1)
            by_modality[modality] = torch.where(present[modality], labels, -1)
    agreement = torch.full_like(confidence, float("nan"))
    if len(log_p) == 2:
        first, second = (values.exp() for values in log_p.values())
        both = torch.stack(list(present.values())).all(0)
        agreement[both] = torch.minimum(first, second).sum(-1)[both]
    return ClipLabels(cluster, confidence, agreement, by_modality)
