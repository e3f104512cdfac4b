"""The columns' overlaps sum_i c_i pi_i pi_i^T: a matrix product whose factors are made on chip.

The rows' logsumexp is one read. Then a program takes a pair of column blocks and a part of the
rows, makes both blocks of sqrt(c_i) pi_i in bfloat16 (float64 for float64) and sums their product
in float32. Only pairs with i <= j are made. The parts are summed in float64.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from selavi.kernels._launch import ceil_div, launch, power_above
from selavi.kernels._logsumexp import row_logsumexp
from selavi.kernels._potential import split_potential
from selavi.kernels._tiles import (
    load_known,
    load_potential,
    load_tiles,
    shares,
    weighted_end,
    widen,
)

_PROGRAMS = 512  # at least, so that the parts (64 KB each) stay small and the GPU is full


@triton.jit
def factor(stored, potential, c, z):
    """sqrt(c_i) pi_ik of a block of columns."""
    exponentials, rest = shares(widen(stored), potential, z)
    root = tl.where(c != 0, tl.sqrt(c) * rest, 0.0).to(exponentials[0].dtype)
    product = exponentials[0] * root[:, None]
    if product.dtype != tl.float64:
        product = product.to(tl.bfloat16)
    return product


@triton.jit
def load_pair(log_p, stride_n, stride_k, weight, logsumexp, rows, last, left, right, K):
    """Rows' weights and logsumexp, and their entries in two blocks of columns."""
    c, z, stored_left = load_known(
        log_p, stride_n, stride_k, weight, logsumexp, rows, rows < last, left, K
    )
    row = log_p + rows.to(tl.int64) * stride_n
    return c, z, stored_left, load_tiles(row, right, K, stride_k, c != 0, float("-inf"))


# Were a single block known as such, both factors would be one value, which Triton 3.6 cannot
# multiply on compute capability 10.0.
@triton.jit(do_not_specialize=["blocks"])
def overlap_kernel(
    log_p, stride_b, stride_n, stride_k, hi, lo, scales, weight, logsumexp, products,
    N, K, chunk, chunks, blocks, BLOCK_M: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    j = program % blocks
    i = program // blocks % blocks
    part = program // (blocks * blocks) % chunks
    b = (program // (blocks * blocks) // chunks).to(tl.int64)
    if i <= j:
        accumulator: tl.constexpr = tl.float64 if hi.dtype.element_ty == tl.float64 else tl.float32
        log_p += b * stride_b
        weight += b * N
        logsumexp += b * N
        first = part * chunk
        last = tl.minimum(first + chunk, N)
        last = weighted_end(weight, first, last)
        k = tl.arange(0, WIDTH)
        left = (i * WIDTH + k,)
        right = (j * WIDTH + k,)
        left_potential = load_potential(hi, lo, scales, b, left, K)
        right_potential = load_potential(hi, lo, scales, b, right, K)
        total = tl.zeros((WIDTH, WIDTH), accumulator)
        rows = first + tl.arange(0, BLOCK_M)
        c, z, stored_left, stored_right = load_pair(
            log_p, stride_n, stride_k, weight, logsumexp, rows, last, left, right, K
        )
        for _ in range(first, last, BLOCK_M):
            rows += BLOCK_M
            ahead = load_pair(
                log_p, stride_n, stride_k, weight, logsumexp, rows, last, left, right, K
            )
            one = factor(stored_left, left_potential, c, z)
            other = one
            if i != j:
                other = factor(stored_right, right_potential, c, z)
            total = tl.dot(tl.trans(one), other, total, out_dtype=accumulator)
            c, z, stored_left, stored_right = ahead
        where = products + program.to(tl.int64) * (WIDTH * WIDTH)
        tl.store(where + k[:, None] * WIDTH + k[None, :], total)


@triton_op("selavi_triton::sinkhorn_overlap", mutates_args=())
def sinkhorn_overlap(log_p: Tensor, v: Tensor, row_marginal: Tensor, lam: Tensor) -> Tensor:
    """sum_i c_i pi_i pi_i^T (B, K, K) for v (B, K)."""
    problems, rows, columns = log_p.shape
    double = log_p.dtype == torch.float64
    potential = split_potential(v[:, None], lam, log_p.dtype)
    logsumexp, _ = row_logsumexp(log_p, potential, row_marginal)
    # Of 8 warps' threads, an accumulator of 128 x 128 is 64 registers, a factor of 16 x 128 is 8.
    width = min(32 if double else 128, max(16, power_above(columns)))
    block_m = 16
    blocks = ceil_div(columns, width)
    chunks = ceil_div(_PROGRAMS, max(1, problems * blocks * (blocks + 1) // 2))
    chunk = block_m * ceil_div(ceil_div(rows, chunks), block_m)
    chunks = ceil_div(rows, chunk) if rows else 0
    products = potential.hi.new_empty(problems, chunks, blocks, blocks, width, width)
    launch(
        overlap_kernel, problems * chunks * blocks * blocks,
        log_p, *log_p.stride(), *potential, row_marginal, logsumexp, products,
        rows, columns, chunk, chunks, blocks,
        BLOCK_M=block_m, WIDTH=width, num_warps=8 if width == 128 else 4,
    )  # fmt: skip
    total = products.sum(1, dtype=torch.float64).transpose(2, 3)
    padded = total.reshape(problems, blocks * width, blocks * width)
    upper = padded[:, :columns, :columns].triu()  # below are the pairs that were not made
    return upper + upper.triu(1).mT
