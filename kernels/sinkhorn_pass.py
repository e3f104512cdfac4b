"""Column masses and mean logsumexp at a potential: one read of log_p where rows fit a program.

A program takes a chunk of rows of one problem, sums each candidate's masses over it in float32 (in
float64 for float64) and leaves a part; a second kernel sums the parts in float64. Several
candidates take turns with the chunk, which is small then: all but the first find it in a cache.
Rows that do not fit are read twice: for their logsumexp, then for the masses.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from selavi.kernels._launch import ceil_div, fits, launch, power_above, row_tiles, rows_a_chunk
from selavi.kernels._tiles import (
    LOG2_E,
    add_weighted,
    any_weight,
    columns_of,
    is_untried,
    load_potential,
    load_tiles,
    logsumexp_of,
    online_logsumexp,
    round_to,
    share_of,
    shares,
    softmax,
    store_sums,
    widen,
    zero_tiles,
)

_MOST_ROWS = 512  # summed in float32 by one program, in 512 / BLOCK_M terms and then BLOCK_M
_CACHED_BYTES = 32768  # a chunk's, where candidates take turns: two or more fit a level-1 cache


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


@triton.jit
def whole_rows_kernel(
    log_p, stride_b, stride_n, stride_k, hi, lo, scales, weight, mass_parts, value_parts,
    N, K, candidates, chunk, chunks,
    BLOCK_M: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(0) // chunks).to(tl.int64)
    part = tl.program_id(0) % chunks
    log_p += b * stride_b
    weight += b * N
    first = part * chunk
    last = tl.minimum(first + chunk, N)
    if not any_weight(weight, first, last):
        last = first
    columns = columns_of(FIRST, SECOND)
    for s in range(candidates):
        problem = b * candidates + s
        end = tl.where(is_untried(hi, problem, K), first, last)
        potential = load_potential(hi, lo, scales, problem, columns, K)
        masses = zero_tiles(columns, BLOCK_M, hi.dtype.element_ty)
        values = tl.zeros((BLOCK_M,), tl.float64)
        rows = first + tl.arange(0, BLOCK_M)
        c = tl.load(weight + rows, mask=rows < end, other=0.0)
        row = log_p + rows.to(tl.int64) * stride_n
        stored = load_tiles(row, columns, K, stride_k, c != 0, 0.0)
        for _ in tl.range(first, end, BLOCK_M, disable_licm=FIRST > 4096):
            rows += BLOCK_M
            row = log_p + rows.to(tl.int64) * stride_n
            next_c = tl.load(weight + rows, mask=rows < end, other=0.0)
            ahead = load_tiles(row, columns, K, stride_k, next_c != 0, 0.0)
            exponentials, total, shift = softmax(widen(stored), potential)
            share = share_of(c, total)
            masses = add_weighted(masses, exponentials, share)
            logsumexp = logsumexp_of(total, shift)
            values += tl.where(c != 0, c * logsumexp, 0.0)
            c = next_c
            stored = ahead
        store_sums(mass_parts + (problem * chunks + part) * K, masses, columns, K)
        tl.store(value_parts + problem * chunks + part, tl.sum(values, 0))


@triton.jit
def row_logsumexp_kernel(
    log_p, stride_b, stride_n, stride_k, hi, lo, scales, weight, logsumexp, value_parts,
    N, K, candidates, parts, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Z (B, S, N) of the rows that have weight, and sum_i c_i Z_i of the program's."""
    b = (tl.program_id(0) // parts).to(tl.int64)
    part = tl.program_id(0) % parts
    rows = part * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.load(weight + b * N + rows, mask=rows < N, other=0.0)
    row = log_p + b * stride_b + rows.to(tl.int64) * stride_n
    count = tl.sum((c != 0).to(tl.int32), 0)
    for s in range(candidates):
        problem = b * candidates + s
        value = tl.zeros((BLOCK_M,), tl.float64)
        if tl.where(is_untried(hi, problem, K), 0, count) > 0:
            z = online_logsumexp(row, hi, lo, scales, problem, K, stride_k, c != 0, BLOCK_K)
            tl.store(logsumexp + problem * N + rows, z, mask=rows < N)
            value = tl.where(c != 0, c * z, 0.0)
        tl.store(value_parts + problem * parts + part, tl.sum(value, 0))


@triton.jit
def column_blocks_kernel(
    log_p, stride_b, stride_n, stride_k, hi, lo, scales, weight, logsumexp, mass_parts,
    N, K, candidates, chunk, chunks, blocks, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The masses of a block of columns over a chunk of rows whose logsumexp is known."""
    block = tl.program_id(0) % blocks
    part = tl.program_id(0) // blocks % chunks
    b = (tl.program_id(0) // blocks // chunks).to(tl.int64)
    log_p += b * stride_b
    weight += b * N
    first = part * chunk
    last = tl.minimum(first + chunk, N)
    if not any_weight(weight, first, last):
        last = first
    columns = (block * BLOCK_K + tl.arange(0, BLOCK_K),)
    for s in range(candidates):
        problem = b * candidates + s
        end = tl.where(is_untried(hi, problem, K), first, last)
        potential = load_potential(hi, lo, scales, problem, columns, K)
        masses = zero_tiles(columns, BLOCK_M, hi.dtype.element_ty)
        for start in range(first, end, BLOCK_M):
            rows = start + tl.arange(0, BLOCK_M)
            c = tl.load(weight + rows, mask=rows < end, other=0.0)
            row = log_p + rows.to(tl.int64) * stride_n
            tiles = widen(load_tiles(row, columns, K, stride_k, c != 0, float("-inf")))
            z = tl.load(logsumexp + problem * N + rows, mask=c != 0, other=0.0)
            exponentials, factor = shares(tiles, potential, z)
            share = tl.where(c != 0, c * factor, 0.0).to(hi.dtype.element_ty)
            masses = add_weighted(masses, exponentials, share)
        store_sums(mass_parts + (problem * chunks + part) * K, masses, columns, K)


@triton.jit
def sum_parts_kernel(
    mass_parts, value_parts, v, log_target, mass, value, next_v,
    K, mass_count, value_count, blocks,
    UPDATE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sums of the parts in float64, NaN for what was not tried; next_v = v + log r - log m."""
    problem = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    columns = block * BLOCK_K + tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_P, BLOCK_K), tl.float64)
    for start in range(0, mass_count, BLOCK_P):
        parts = start + tl.arange(0, BLOCK_P)
        pointer = mass_parts + (problem * mass_count + parts)[:, None] * K + columns[None, :]
        mask = (parts < mass_count)[:, None] & (columns < K)[None, :]
        total += tl.load(pointer, mask=mask, other=0.0).to(tl.float64)
    untried = is_untried(v, problem, K)
    masses = tl.where(untried, float("nan"), tl.sum(total, 0))
    where = problem * K + columns
    tl.store(mass + where, masses, mask=columns < K)
    if UPDATE:
        target = tl.load(log_target + where, mask=columns < K, other=0.0)
        least: tl.constexpr = 2.2250738585072014e-308
        # A column without mass takes the largest finite step. Not maximum: it may pass NaN over.
        step = target - tl.log(tl.where(masses < least, least, masses))
        tl.store(next_v + where, tl.load(v + where, mask=columns < K) + step, mask=columns < K)
    if block == 0:
        values = tl.zeros((1024,), tl.float64)
        for start in range(0, value_count, 1024):
            parts = start + tl.arange(0, 1024)
            pointer = value_parts + problem * value_count + parts
            values += tl.load(pointer, mask=parts < value_count, other=0.0)
        tl.store(value + problem, tl.where(untried, float("nan"), tl.sum(values, 0)))


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


def row_logsumexp(
    log_p: Tensor, potential: Potential, row_marginal: Tensor
) -> tuple[Tensor, Tensor]:
    """Z (B, S, N), undefined where c is 0, and parts (B, S, P) of sum_i c_i Z_i."""
    (problems, rows, columns), candidates = log_p.shape, potential.hi.shape[1]
    # 16 numbers a thread, 8 in float64.
    a_warp = 256 if log_p.dtype == torch.float64 else 512
    block_k = min(4 * a_warp, power_above(columns))
    block_m = max(1, a_warp // block_k)
    parts = ceil_div(rows, block_m)
    logsumexp = row_marginal.new_empty(problems, candidates, rows)
    value_parts = row_marginal.new_empty(problems, candidates, parts)
    launch(
        row_logsumexp_kernel, problems * parts,
        log_p, *log_p.stride(), *potential, row_marginal, logsumexp, value_parts,
        rows, columns, candidates, parts,
        BLOCK_M=block_m, BLOCK_K=block_k, num_warps=max(1, block_k // a_warp),
    )  # fmt: skip
    return logsumexp, value_parts


def _parts(log_p: Tensor, potential: Potential, row_marginal: Tensor) -> tuple[Tensor, Tensor]:
    """Parts of the masses (B, S, P, K), of log_p's arithmetic, and of sum_i c_i Z_i (B, S, P')."""
    (problems, rows, columns), candidates = log_p.shape, potential.hi.shape[1]
    double = log_p.dtype == torch.float64
    scalars = (rows, columns, candidates)
    if fits(columns, double):
        tiles = row_tiles(columns, double)
        most = _MOST_ROWS
        if candidates > 1:
            most = max(4 * tiles.block_m, _CACHED_BYTES // (columns * log_p.element_size()))
        chunk = rows_a_chunk(rows, problems, tiles.block_m, min(most, _MOST_ROWS))
        chunks = ceil_div(rows, chunk)
        mass_parts = potential.hi.new_empty(problems, candidates, chunks, columns)
        value_parts = row_marginal.new_empty(problems, candidates, chunks)
        launch(
            whole_rows_kernel, problems * chunks,
            log_p, *log_p.stride(), *potential, row_marginal, mass_parts, value_parts,
            *scalars, chunk, chunks, **tiles.options(),
        )  # fmt: skip
        return mass_parts, value_parts
    logsumexp, value_parts = row_logsumexp(log_p, potential, row_marginal)
    # Two rows of 512 columns a warp; 16 numbers a thread, and the sums as many.
    blocks, block_m = ceil_div(columns, 512), 2 if not double else 1
    chunk = rows_a_chunk(rows, problems * blocks, block_m, _MOST_ROWS)
    chunks = ceil_div(rows, chunk)
    mass_parts = potential.hi.new_empty(problems, candidates, chunks, columns)
    launch(
        column_blocks_kernel, problems * chunks * blocks,
        log_p, *log_p.stride(), *potential, row_marginal, logsumexp, mass_parts,
        *scalars, chunk, chunks, blocks, BLOCK_M=block_m, BLOCK_K=512, num_warps=2,
    )  # fmt: skip
    return mass_parts, value_parts


def _evaluate(
    log_p: Tensor, v: Tensor, row_marginal: Tensor, lam: Tensor, log_target: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """mass (B, S, K) and mean logsumexp (B, S) at v; with log_target (B, K) the next v, for S = 1.

    Without it the third is the first.
    """
    problems, candidates, columns = v.shape
    mass, value = torch.empty_like(v), v.new_empty(problems, candidates)
    next_v = mass if log_target is None else torch.empty_like(v)
    parts = _parts(log_p, split_potential(v, lam, log_p.dtype), row_marginal)
    block_k = 32 if columns <= 2048 else 256  # narrow where problems are few, for more programs
    blocks = ceil_div(columns, block_k)
    launch(
        sum_parts_kernel, problems * candidates * blocks,
        *parts, v, v if log_target is None else log_target, mass, value, next_v,
        columns, parts[0].shape[2], parts[1].shape[2], blocks,
        UPDATE=log_target is not None, BLOCK_P=2048 // block_k, BLOCK_K=block_k, num_warps=4,
    )  # fmt: skip
    return mass, value, next_v


@triton_op("selavi_triton::sinkhorn_pass", mutates_args=())
def sinkhorn_pass(
    log_p: Tensor, v: Tensor, row_marginal: Tensor, lam: Tensor
) -> tuple[Tensor, Tensor]:
    """Column masses (B, S, K) and sum_i c_i Z_i (B, S) at v (B, S, K); NaN where v[b, s, 0] is."""
    mass, value, _ = _evaluate(log_p, v, row_marginal, lam)
    return mass, value


@triton_op("selavi_triton::sinkhorn_iterations", mutates_args=())
def sinkhorn_iterations(
    log_p: Tensor, v: Tensor, row_marginal: Tensor, col_marginal: Tensor, lam: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`count` evaluations from v (B, K), an update v += log r - log m between two: v, m and value.

    Launches without a wait: a CUDA graph can capture it.
    """
    v, log_target = v[:, None].clone(), col_marginal.log()
    for _ in range(1, count):
        _, _, v = _evaluate(log_p, v, row_marginal, lam, log_target)
    mass, value, _ = _evaluate(log_p, v, row_marginal, lam)
    return v[:, 0].clone(), mass[:, 0].clone(), value[:, 0].clone()
