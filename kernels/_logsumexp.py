"""The logsumexp of rows, in one read of log_p: of every block of columns, then of the blocks.

A program keeps its block of the potential in registers for a chunk of rows. One that took whole
rows would load a potential of eight bytes a column for each, more than a row in 16 bits.
"""

import triton
import triton.language as tl
from torch import Tensor

from selavi.kernels._launch import ceil_div, column_blocks, launch, power_above
from selavi.kernels._potential import Potential
from selavi.kernels._tiles import (
    finite_shift,
    is_untried,
    load_potential,
    load_rows,
    logsumexp_of,
    merge,
    place_of,
    softmax,
    weighted_end,
    widen,
)


@triton.jit
def block_logsumexp_kernel(
    log_p, stride_b, stride_n, stride_k, hi, lo, scales, weight, block_z,
    N, K, candidates, chunk, chunks, blocks, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Z of a block of columns over a chunk of rows; a row that has no weight is not read."""
    program = tl.program_id(0)
    b, _part, first, last, columns = place_of(program, N, chunk, chunks, blocks, BLOCK_K)
    log_p += b * stride_b
    weight += b * N
    last = weighted_end(weight, first, last)
    for s in range(candidates):
        problem = b * candidates + s
        end = tl.where(is_untried(hi, problem, K), first, last)
        potential = load_potential(hi, lo, scales, problem, columns, K)
        rows = first + tl.arange(0, BLOCK_M)
        _c, stored = load_rows(log_p, stride_n, stride_k, weight, rows, rows < end, columns, K)
        for _ in range(first, end, BLOCK_M):
            here = block_z + (problem * blocks + program % blocks) * N + rows
            inside = rows < end
            rows += BLOCK_M
            ahead = load_rows(log_p, stride_n, stride_k, weight, rows, rows < end, columns, K)
            _, total, shift = softmax(widen(stored), potential)
            tl.store(here, logsumexp_of(total, shift), mask=inside)
            _c, stored = ahead


@triton.jit
def join_blocks_kernel(
    block_z, hi, weight, logsumexp, value_parts, N, K, candidates, parts, blocks,
    BLOCK_M: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Z (B, S, N) of the rows that have weight, and sum_i c_i Z_i of the program's."""
    problem = (tl.program_id(0) // parts).to(tl.int64)
    part = tl.program_id(0) % parts
    rows = part * BLOCK_M + tl.arange(0, BLOCK_M)
    last = tl.where(is_untried(hi, problem, K), 0, N)
    c = tl.load(weight + problem // candidates * N + rows, mask=rows < last, other=0.0)
    kept = c != 0
    total = tl.zeros((BLOCK_M,), tl.float64)
    shift = tl.full((BLOCK_M,), float("-inf"), tl.float64)
    for start in range(0, blocks, BLOCK_P):
        block = start + tl.arange(0, BLOCK_P)
        pointer = block_z + (problem * blocks + block)[:, None] * N + rows[None, :]
        mask = (block < blocks)[:, None] & kept[None, :]
        z = tl.load(pointer, mask=mask, other=float("-inf"))
        top = tl.max(z, 0)
        part_sum = tl.sum(tl.exp(z - finite_shift(top)[None, :]), 0)
        total, shift = merge(total, shift, part_sum, top, True)
    z = shift + tl.log(total)
    tl.store(logsumexp + problem * N + rows, z, mask=kept)
    tl.store(value_parts + problem * parts + part, tl.sum(tl.where(kept, c * z, 0.0), 0))


def row_logsumexp(
    log_p: Tensor, potential: Potential, row_marginal: Tensor
) -> tuple[Tensor, Tensor]:
    """Z (B, S, N), undefined where c is 0, and parts (B, S, P) of sum_i c_i Z_i."""
    (problems, rows, columns), candidates = log_p.shape, potential.hi.shape[1]
    blocks = column_blocks(log_p, candidates)
    block_z = row_marginal.new_empty(problems, candidates, blocks.blocks, rows)
    launch(
        block_logsumexp_kernel, problems * blocks.programs,
        log_p, *log_p.stride(), *potential, row_marginal, block_z,
        rows, columns, candidates, *blocks.scalars(), **blocks.options(),
    )  # fmt: skip
    block_p = min(64, power_above(blocks.blocks))  # 8 numbers a thread
    block_m = 1024 // block_p
    parts = ceil_div(rows, block_m)
    logsumexp = row_marginal.new_empty(problems, candidates, rows)
    value_parts = row_marginal.new_empty(problems, candidates, parts)
    launch(
        join_blocks_kernel, problems * candidates * parts,
        block_z, potential.hi, row_marginal, logsumexp, value_parts,
        rows, columns, candidates, parts, blocks.blocks,
        BLOCK_M=block_m, BLOCK_P=block_p, num_warps=4,
    )  # fmt: skip
    return logsumexp, value_parts
