"""The logsumexp over each column: the half of an iteration that updates the other potential."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from selavi.kernels._launch import ceil_div, launch, power_above, rows_a_chunk
from selavi.kernels._tiles import LOG2_E, finite_shift, load_tiles


@triton.jit
def column_logsumexp_kernel(
    log_p, stride_b, stride_n, stride_k, u, lam, parts_out,
    N, K, chunk, chunks, blocks, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Of a chunk of rows and a block of columns. Exponents are float64 whatever log_p is."""
    wide: tl.constexpr = log_p.dtype.element_ty == tl.float64
    block = tl.program_id(0) % blocks
    part = tl.program_id(0) // blocks % chunks
    b = (tl.program_id(0) // blocks // chunks).to(tl.int64)
    scale = tl.load(lam + b)
    first = part * chunk
    last = tl.minimum(first + chunk, N)
    columns = block * BLOCK_K + tl.arange(0, BLOCK_K)
    shift = tl.full((BLOCK_K,), float("-inf"), tl.float64)
    total = tl.zeros((BLOCK_K,), tl.float64)
    for start in range(first, last, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        offset = tl.load(u + b * N + rows, mask=rows < last, other=float("-inf"))
        kept = offset != float("-inf")  # the entries of a row that is skipped are 0
        row = log_p + b * stride_b + rows.to(tl.int64) * stride_n
        stored = load_tiles(row, (columns,), K, stride_k, kept, 0.0)
        x = stored[0].to(tl.float64) * scale + offset[:, None]
        top = tl.maximum(shift, tl.max(x, 0))
        anchor = finite_shift(top)
        if wide:
            part_sum = tl.sum(tl.exp(x - anchor[None, :]), 0)
        else:
            exponent = ((x - anchor[None, :]) * LOG2_E).to(tl.float32)
            part_sum = tl.sum(tl.exp2(exponent), 0).to(tl.float64)
        total = total * tl.exp(shift - anchor) + part_sum
        shift = top
    where = (b * chunks + part) * K + columns
    tl.store(parts_out + where, shift + tl.log(total), mask=columns < K)


@triton_op("selavi_triton::sinkhorn_column_logsumexp", mutates_args=())
def sinkhorn_column_logsumexp(log_p: Tensor, u: Tensor, lam: Tensor) -> Tensor:
    """logsumexp_i(lam log_p_ik + u_i) (B, K) for u (B, N); rows with u_i = -inf are skipped."""
    problems, rows, columns = log_p.shape
    # 16 float64 numbers a thread, 4 warps; the sums' float64 exponential is one in BLOCK_M.
    block_k = min(128, max(16, power_above(columns)))
    block_m = 2048 // block_k
    blocks = ceil_div(columns, block_k)
    chunk = rows_a_chunk(rows, problems * blocks, block_m, 4096)
    chunks = ceil_div(rows, chunk)
    parts = u.new_empty(problems, chunks, columns)
    launch(
        column_logsumexp_kernel, problems * chunks * blocks,
        log_p, *log_p.stride(), u, lam, parts, rows, columns, chunk, chunks, blocks,
        BLOCK_M=block_m, BLOCK_K=block_k, num_warps=4,
    )  # fmt: skip
    return torch.logsumexp(parts, 1)
