"""Make both modalities' heads speak of the same clusters before the first labels are drawn."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from selavi import distributed


def alignment_cost(video_logits: Tensor, audio_logits: Tensor) -> Tensor:
    """L1 distances between columns of the two softmaxes, of a batch: (H, K, K) float64.

    Entry [h, j, k] is sum_i |p_video[h, i, j] - p_audio[h, i, k]|. Costs of batches add up.

    Args:
        video_logits, audio_logits: (H, B, K) of the same clips.
    """
    p_video = video_logits.float().softmax(-1).transpose(1, 2)
    p_audio = audio_logits.float().softmax(-1).transpose(1, 2)
    return torch.cdist(p_video, p_audio, p=1).double()


def align_modalities(cost: Tensor) -> Tensor:
    """The order of the audio outputs that agrees best with the video outputs, per head.

    The optimum of sum_k |p_video[:, k] - p_audio[:, order[k]]| is a linear assignment.

    Args:
        cost: (H, K, K), this rank's sum of `alignment_cost` over the clips that have both
            modalities; zero where there are none, which leaves the order as it is.

    Returns:
        (H, K) int64, the same on every rank: output k of the aligned audio head is its former
        output [h, k].
    """
    total = distributed.sum_over_ranks(cost).cpu()
    return torch.stack([torch.from_numpy(linear_sum_assignment(c)[1]) for c in total])
