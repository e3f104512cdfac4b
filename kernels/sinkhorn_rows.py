"""What is computed for each row by itself: its label, and its share of the plan."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from selavi.kernels._launch import ceil_div, column_blocks, fits, launch, power_above, row_tiles
from selavi.kernels._logsumexp import row_logsumexp
from selavi.kernels._potential import split_potential
from selavi.kernels._tiles import (
    LOG2_E,
    columns_of,
    finite_shift,
    load_known,
    load_potential,
    load_rows,
    load_tiles,
    merge,
    place_of,
    share_of,
    shares,
    softmax,
    widen,
)


@triton.jit
def labels_kernel(
    log_p, stride_b, stride_n, stride_k, v, lam, labels, logsumexp, confidence,
    N, K, parts, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The exponents are float64 whatever log_p is, rounded as the definition rounds them."""
    wide: tl.constexpr = log_p.dtype.element_ty == tl.float64
    b = (tl.program_id(0) // parts).to(tl.int64)
    rows = (tl.program_id(0) % parts).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = log_p + b * stride_b + rows * stride_n
    scale = tl.load(lam + b)
    label = tl.zeros((BLOCK_M,), tl.int64)
    shift = tl.full((BLOCK_M,), float("-inf"), tl.float64)
    total = tl.zeros((BLOCK_M,), tl.float64)
    for start in range(0, K, BLOCK_K):
        columns = start + tl.arange(0, BLOCK_K)
        potential = tl.load(v + b * K + columns, mask=columns < K, other=float("-inf"))
        stored = load_tiles(row, (columns,), K, stride_k, rows < N, 0.0)
        # The product is rounded before the sum: an fma with 0 that no compiler merges into one.
        wide_tile = stored[0].to(tl.float64)
        zeros = tl.zeros((BLOCK_M, BLOCK_K), tl.float64)
        x = tl.fma(wide_tile, zeros + scale, zeros) + potential[None, :]
        top, where = tl.max(x, 1, return_indices=True, return_indices_tie_break_left=True)
        label = tl.where(top > shift, start + where.to(tl.int64), label)
        anchor = finite_shift(top)
        part = tl.sum(exponential(x - anchor[:, None], wide), 1).to(tl.float64)
        total, shift = merge(total, shift, part, top, True)
    tl.store(labels + b * N + rows, label, mask=rows < N)
    tl.store(logsumexp + b * N + rows, shift + tl.log(total), mask=rows < N)
    share = tl.where(total > 0, 1.0 / total, float("nan"))
    tl.store(confidence + b * N + rows, share, mask=rows < N)


@triton.jit
def exponential(x, wide: tl.constexpr):
    if wide:
        exponentials = tl.exp(x)
    else:
        exponentials = tl.exp2((x * LOG2_E).to(tl.float32))
    return exponentials


@triton.jit
def store_plan(row, columns, K, rows_kept, tiles, factor):
    for i in tl.static_range(len(tiles)):
        mask = rows_kept[:, None] & (columns[i] < K)[None, :]
        share = (tiles[i] * factor[:, None]).to(row.dtype.element_ty)
        tl.store(row[:, None] + columns[i][None, :], share, mask=mask)


@triton.jit
def whole_rows_plan_kernel(
    log_p, stride_b, stride_n, stride_k, hi, lo, scales, weight, plan,
    N, K, parts, BLOCK_M: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(0) // parts).to(tl.int64)
    rows = (tl.program_id(0) % parts).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    log_p += b * stride_b
    weight += b * N
    columns = columns_of(FIRST, SECOND)
    potential = load_potential(hi, lo, scales, b, columns, K)
    c, stored = load_rows(log_p, stride_n, stride_k, weight, rows, rows < N, columns, K)
    exponentials, total, _ = softmax(widen(stored), potential)
    share = share_of(c, total)
    store_plan(plan + (b * N + rows) * K, columns, K, rows < N, exponentials, share)


@triton.jit
def block_plan_kernel(
    log_p, stride_b, stride_n, stride_k, hi, lo, scales, weight, logsumexp, plan,
    N, K, chunk, chunks, blocks, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A block of columns over a chunk of rows whose logsumexp is known, from the last to the first.

    The rows that were read last for their logsumexp are in the level-2 cache.
    """
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    b, _part, first, last, columns = place_of(program, N, chunk, chunks, blocks, BLOCK_K)
    log_p += b * stride_b
    weight += b * N
    logsumexp += b * N
    potential = load_potential(hi, lo, scales, b, columns, K)
    rows = last - BLOCK_M + tl.arange(0, BLOCK_M)
    c, z, stored = load_known(
        log_p, stride_n, stride_k, weight, logsumexp, rows, rows >= first, columns, K
    )
    for _ in tl.range(first, last, BLOCK_M, disable_licm=True):  # see block_masses_kernel
        row, kept = plan + (b * N + rows) * K, rows >= first
        rows -= BLOCK_M
        ahead = load_known(
            log_p, stride_n, stride_k, weight, logsumexp, rows, rows >= first, columns, K
        )
        exponentials, factor = shares(widen(stored), potential, z)
        share = (c * factor).to(hi.dtype.element_ty)
        store_plan(row, columns, K, kept, exponentials, share)
        c, z, stored = ahead


@triton_op("selavi_triton::sinkhorn_labels", mutates_args=())
def sinkhorn_labels(log_p: Tensor, v: Tensor, lam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """argmax_k x (ties to the lowest k) int64, Z and max_k pi, each (B, N), for v (B, K)."""
    problems, rows, columns = log_p.shape
    labels = v.new_empty(problems, rows, dtype=torch.int64)
    logsumexp, confidence = v.new_empty(problems, rows), v.new_empty(problems, rows)
    # 8 float64 numbers a thread.
    block_k = min(1024, max(16, power_above(columns)))
    block_m = max(1, 256 // block_k)
    parts = ceil_div(rows, block_m)
    launch(
        labels_kernel, problems * parts,
        log_p, *log_p.stride(), v, lam, labels, logsumexp, confidence, rows, columns, parts,
        BLOCK_M=block_m, BLOCK_K=block_k, num_warps=max(1, block_k // 256),
    )  # fmt: skip
    return labels, logsumexp, confidence


@triton_op("selavi_triton::sinkhorn_plan", mutates_args=())
def sinkhorn_plan(
    log_p: Tensor, v: Tensor, row_marginal: Tensor, lam: Tensor, dtype: torch.dtype
) -> Tensor:
    """Q_ik = c_i pi_ik (B, N, K) in dtype, for v (B, K): one write, and the reads of a pass."""
    problems, rows, columns = log_p.shape
    double = log_p.dtype == torch.float64
    plan = v.new_empty(problems, rows, columns, dtype=dtype)
    potential = split_potential(v[:, None], lam, log_p.dtype)
    arguments = (log_p, *log_p.stride(), *potential)
    if fits(columns, double):
        tiles = row_tiles(columns, double)
        parts = ceil_div(rows, tiles.block_m)
        launch(
            whole_rows_plan_kernel, problems * parts,
            *arguments, row_marginal, plan, rows, columns, parts, **tiles.options(),
        )  # fmt: skip
    else:
        logsumexp, _ = row_logsumexp(log_p, potential, row_marginal)
        blocks = column_blocks(log_p, 1)
        launch(
            block_plan_kernel, problems * blocks.programs,
            *arguments, row_marginal, logsumexp, plan,
            rows, columns, *blocks.scalars(), **blocks.options(),
        )  # fmt: skip
    return plan
