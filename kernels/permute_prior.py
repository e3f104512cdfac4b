"""The prior's entries in the order of the clusters' masses: a sort by counting."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from selavi.kernels._launch import ceil_div, launch, power_above


@triton.jit
def rank_kernel(
    prior, mass, sorted_prior, rank, K, blocks, BLOCK: tl.constexpr, BLOCK_OTHER: tl.constexpr
):
    """How many entries stand before each in descending order; prior is written to its place.

    Each entry is compared with all others: K^2 comparisons, but no host and no scratch memory.
    """
    base = (tl.program_id(0) // blocks).to(tl.int64) * K
    k = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    own_prior = tl.load(prior + base + k, mask=k < K, other=0.0)
    own_mass = tl.load(mass + base + k, mask=k < K, other=0.0)
    prior_rank = tl.zeros((BLOCK,), tl.int64)
    mass_rank = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, K, BLOCK_OTHER):
        other = start + tl.arange(0, BLOCK_OTHER)
        earlier = other[None, :] < k[:, None]  # goes first among equals
        theirs = tl.load(prior + base + other, mask=other < K, other=float("-inf"))[None, :]
        before = (theirs > own_prior[:, None]) | ((theirs == own_prior[:, None]) & earlier)
        prior_rank += tl.sum((before & (other < K)[None, :]).to(tl.int32), 1)
        theirs = tl.load(mass + base + other, mask=other < K, other=float("-inf"))[None, :]
        before = (theirs > own_mass[:, None]) | ((theirs == own_mass[:, None]) & earlier)
        mass_rank += tl.sum((before & (other < K)[None, :]).to(tl.int32), 1)
    tl.store(sorted_prior + base + prior_rank, own_prior, mask=k < K)
    tl.store(rank + base + k, mass_rank, mask=k < K)


@triton_op("selavi_triton::permute_prior", mutates_args=())
def permute_prior(prior: Tensor, mass: Tensor) -> Tensor:
    """prior (B, K) rearranged so that its largest entry stands where mass (B, K) is largest.

    Both are contiguous float64 without NaN; ties go to the lowest k. Costs K^2 comparisons.
    """
    problems, columns = mass.shape
    sorted_prior = torch.empty_like(prior)
    rank = torch.empty_like(mass, dtype=torch.int64)
    block = min(32, power_above(columns))
    blocks = ceil_div(columns, block)
    launch(
        rank_kernel, problems * blocks,
        prior, mass, sorted_prior, rank, columns, blocks,
        BLOCK=block, BLOCK_OTHER=64, num_warps=4,
    )  # fmt: skip
    return sorted_prior.gather(-1, rank)
