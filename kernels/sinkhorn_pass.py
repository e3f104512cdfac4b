"""Column masses and mean logsumexp at a potential: one read of log_p where rows fit a program.

A program takes a chunk of rows of one problem, sums each candidate's masses over it in float32 (in
float64 for float64) and leaves a part; a second kernel sums the parts in float64. Several
candidates take turns with the chunk, which is small then: all but the first find it in a cache.

Rows that do not fit (more than 8,192 columns, 6,144 in float64) are read twice from memory, block
by block of columns: for their logsumexp, then for the masses. The second goes from the last row to
the first, so that what the first read last, as much as the level-2 cache holds, comes from there.
One read would need programs that wait for each other: a row's program cannot keep the masses as
well, and as parts of a few rows each they would be more bytes than a read.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from selavi.kernels._launch import ceil_div, column_blocks, fits, launch, row_tiles, rows_a_program
from selavi.kernels._logsumexp import row_logsumexp
from selavi.kernels._potential import Potential, split_potential
from selavi.kernels._tiles import (
    add_weighted,
    columns_of,
    is_untried,
    load_known,
    load_potential,
    load_rows,
    logsumexp_of,
    place_of,
    share_of,
    shares,
    softmax,
    store_sums,
    weighted_end,
    widen,
    zero_tiles,
)


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
    last = weighted_end(weight, first, last)
    columns = columns_of(FIRST, SECOND)
    for s in range(candidates):
        problem = b * candidates + s
        end = tl.where(is_untried(hi, problem, K), first, last)
        potential = load_potential(hi, lo, scales, problem, columns, K)
        masses = zero_tiles(columns, BLOCK_M, hi.dtype.element_ty)
        values = tl.zeros((BLOCK_M,), tl.float64)
        rows = first + tl.arange(0, BLOCK_M)
        c, stored = load_rows(log_p, stride_n, stride_k, weight, rows, rows < end, columns, K)
        # Hoisted out of the loop, invariants of its rare branch would take registers from the row.
        for _ in tl.range(first, end, BLOCK_M, disable_licm=FIRST > 4096):
            rows += BLOCK_M
            ahead = load_rows(log_p, stride_n, stride_k, weight, rows, rows < end, columns, K)
            exponentials, total, shift = softmax(widen(stored), potential)
            masses = add_weighted(masses, exponentials, share_of(c, total))
            values += tl.where(c != 0, c * logsumexp_of(total, shift), 0.0)
            c, stored = ahead
        store_sums(mass_parts + (problem * chunks + part) * K, masses, columns, K)
        tl.store(value_parts + problem * chunks + part, tl.sum(values, 0))


@triton.jit
def block_masses_kernel(
    log_p, stride_b, stride_n, stride_k, hi, lo, scales, weight, logsumexp, mass_parts,
    N, K, candidates, chunk, chunks, blocks, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The masses of a block of columns over a chunk of rows whose logsumexp is known."""
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    b, part, first, last, columns = place_of(program, N, chunk, chunks, blocks, BLOCK_K)
    log_p += b * stride_b
    weight += b * N
    last = weighted_end(weight, first, last)
    for s in range(candidates):
        problem = b * candidates + s
        end = tl.where(is_untried(hi, problem, K), first, last)
        potential = load_potential(hi, lo, scales, problem, columns, K)
        masses = zero_tiles(columns, BLOCK_M, hi.dtype.element_ty)
        z_at = logsumexp + problem * N
        rows = end - BLOCK_M + tl.arange(0, BLOCK_M)
        c, z, stored = load_known(
            log_p, stride_n, stride_k, weight, z_at, rows, rows >= first, columns, K
        )
        # Invariants of the rare branch are not hoisted here either: 16 warps fit, else 12.
        for _ in tl.range(first, end, BLOCK_M, disable_licm=True):
            rows -= BLOCK_M
            ahead = load_known(
                log_p, stride_n, stride_k, weight, z_at, rows, rows >= first, columns, K
            )
            exponentials, factor = shares(widen(stored), potential, z)
            share = tl.where(c != 0, c * factor, 0.0).to(hi.dtype.element_ty)
            masses = add_weighted(masses, exponentials, share)
            c, z, stored = ahead
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


def _parts(log_p: Tensor, potential: Potential, row_marginal: Tensor) -> tuple[Tensor, Tensor]:
    """Parts of the masses (B, S, P, K), of log_p's arithmetic, and of sum_i c_i Z_i (B, S, P')."""
    (problems, rows, columns), candidates = log_p.shape, potential.hi.shape[1]
    double = log_p.dtype == torch.float64
    scalars = (rows, columns, candidates)
    if fits(columns, double):
        tiles = row_tiles(columns, double)
        chunk = rows_a_program(log_p, candidates, problems, tiles.block_m, columns)
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
    blocks = column_blocks(log_p, candidates)
    mass_parts = potential.hi.new_empty(problems, candidates, blocks.chunks, columns)
    launch(
        block_masses_kernel, problems * blocks.programs,
        log_p, *log_p.stride(), *potential, row_marginal, logsumexp, mass_parts,
        *scalars, *blocks.scalars(), **blocks.options(),
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
