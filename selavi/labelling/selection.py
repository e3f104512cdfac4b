"""Which head is reported: chosen without any ground truth."""

import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor


def head_agreement(labels: Tensor) -> Tensor:
    """Mean NMI of each head's labels (H, N) with the other heads': (H,) float64.

    One head agrees with itself: 1.
    """
    num_heads = labels.shape[0]
    if num_heads == 1:
        return torch.ones(1, dtype=torch.float64)
    rows = labels.cpu().numpy()
    nmi = torch.zeros(num_heads, num_heads, dtype=torch.float64)
    for i in range(num_heads):
        for j in range(i):
            nmi[i, j] = nmi[j, i] = normalized_mutual_info_score(rows[i], rows[j])
    return nmi.sum(1) / (num_heads - 1)
