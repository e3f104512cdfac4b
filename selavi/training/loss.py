"""The training objective."""

import torch.nn.functional as F
from torch import Tensor


def multi_head_loss(
    logits: dict[str, Tensor], labels: Tensor, present: dict[str, Tensor]
) -> Tensor:
    """Mean over modalities, heads and clips of the cross-entropy against the labels (paper eq. 1).

    Args:
        logits: modality -> (H, B, K).
        labels: (H, B) int64.
        present: modality -> (B,) bool; a clip counts in the modalities that it has.
    """
    losses = []
    for modality, values in logits.items():
        mask = present[modality].to(values.dtype)
        loss = F.cross_entropy(values.float().flatten(0, 1), labels.flatten(), reduction="none")
        loss = loss.view_as(labels).mean(0)
        losses.append((loss * mask).sum() / mask.sum().clamp_min(1))
    return sum(losses) / len(losses)
