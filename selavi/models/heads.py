"""H clustering heads as one module."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MultiHeads(nn.Module):
    """H independent two-layer MLPs, run in two matrix products whatever H is.

    Each head is Dropout, Linear(D, hidden) without bias, BatchNorm, ReLU, Dropout,
    Linear(hidden, K), drawn as `nn.Linear` draws its own. The dropout mask on the embedding is
    the same for all heads; the one on the hidden layer is not.

    Args:
        dimension: D, of the embeddings.
        num_heads: H.
        num_clusters: K.
        hidden: width of each head's hidden layer.
        dropout: probability of both dropouts.
    """

    def __init__(
        self, dimension: int, num_heads: int, num_clusters: int, *, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = nn.Dropout(dropout)
        self.expand = nn.Linear(dimension, num_heads * hidden, bias=False)
        self.norm = nn.BatchNorm1d(num_heads * hidden)
        self.weight = nn.Parameter(torch.empty(num_heads, hidden, num_clusters))
        self.bias = nn.Parameter(torch.empty(num_heads, num_clusters))
        bound = 1 / math.sqrt(hidden)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits (H, B, K) of embeddings (B, D), in the parameters' dtype under autocast too."""
        hidden = self.dropout(F.relu(self.norm(self.expand(self.dropout(embeddings)))))
        by_head = hidden.unflatten(1, (self.num_heads, -1)).transpose(0, 1)
        return torch.baddbmm(self.bias[:, None], by_head, self.weight).to(self.weight.dtype)

    @torch.no_grad()
    def permute_outputs(self, permutation: Tensor) -> None:
        """Reorder every head's outputs in place: new output k of head h is old output
        `permutation[h, k]`.

        Args:
            permutation: (H, K) int64, each row a permutation of 0..K-1.

        Raises:
            ValueError: a row is not a permutation.
        """
        identity = torch.arange(self.bias.shape[1], device=permutation.device)
        if permutation.shape != self.bias.shape or (permutation.sort(1).values != identity).any():
            raise ValueError(f"permutation must hold one permutation a head, {self.bias.shape}")
        permutation = permutation.to(self.bias.device)
        self.weight.copy_(self.weight.take_along_dim(permutation[:, None], 2))
        self.bias.copy_(self.bias.take_along_dim(permutation, 1))
