"""A potential in the form that load_potential reads: see _tiles.py."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from selavi.kernels._launch import launch, power_above
from selavi.kernels._tiles import LOG2_E, round_to


@triton.jit
def split_potential_kernel(v, lam, hi, lo, scales, candidates, K, BLOCK_K: tl.constexpr):
    """hi, lo (float32) and scale_hi, scale_lo, quantum of problem program // candidates."""
    problem = tl.program_id(0).to(tl.int64)
    v += problem * K
    scale = tl.load(lam + problem // candidates) * LOG2_E
    largest = 64.0 * scale
    for start in range(0, K, BLOCK_K):
        columns = start + tl.arange(0, BLOCK_K)
        size = tl.abs(tl.load(v + columns, mask=columns < K, other=0.0)) * LOG2_E
        largest = tl.maximum(largest, tl.max(tl.where(size < float("inf"), size, 0.0), 0))
    # The power of two above max(largest, 1), times 2^-23, made of a float64's bits.
    bits = tl.maximum(largest, 1.0).to(tl.int64, bitcast=True)
    exponent = ((bits + ((1 << 52) - 1)) >> 52) - 23
    quantum = (exponent << 52).to(tl.float64, bitcast=True)
    # 24 bits of the scale, so that the rest is not negative.
    bits = scale.to(tl.int64, bitcast=True)
    scale_hi = ((bits >> 29) << 29).to(tl.float64, bitcast=True)
    tl.store(scales + 3 * problem, scale_hi)
    tl.store(scales + 3 * problem + 1, tl.maximum(scale - scale_hi, 1e-30))
    tl.store(scales + 3 * problem + 2, quantum)
    for start in range(0, K, BLOCK_K):
        columns = start + tl.arange(0, BLOCK_K)
        value = tl.load(v + columns, mask=columns < K, other=0.0) * LOG2_E
        high = round_to(value, quantum)
        low = tl.where(tl.abs(high) < float("inf"), value - high, 0.0)
        tl.store(hi + problem * K + columns, high.to(tl.float32), mask=columns < K)
        tl.store(lo + problem * K + columns, low.to(tl.float32), mask=columns < K)


class Potential(NamedTuple):
    """What load_potential reads: hi, lo (B, S, K), scales (B, S, 3); or v twice and lam (B, S)."""

    hi: Tensor
    lo: Tensor
    scales: Tensor


def split_potential(v: Tensor, lam: Tensor, dtype: torch.dtype) -> Potential:
    """Of v (B, S, K) for log_p of `dtype`."""
    problems, candidates, columns = v.shape
    if dtype == torch.float64:
        return Potential(v, v, lam[:, None].expand(problems, candidates).contiguous())
    hi = torch.empty_like(v, dtype=torch.float32)
    lo, scales = torch.empty_like(hi), v.new_empty(problems, candidates, 3)
    block = min(1024, power_above(columns))
    launch(
        split_potential_kernel, problems * candidates,
        v, lam, hi, lo, scales, candidates, columns, BLOCK_K=block, num_warps=4,
    )  # fmt: skip
    return Potential(hi, lo, scales)
