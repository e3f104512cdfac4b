"""How kernels are launched, and in what shapes. No autotuning: sizes are reasoned, beside each."""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from torch.library import wrap_triton

# Programs that fill any of today's GPUs several times over, so that the last wave is a small share
# and skipped problems leave room to others. A constant, so that results do not depend on the GPU.
PROGRAMS = 4096
_MOST_ROWS = 512  # summed in float32 by one program, in 512 / BLOCK_M terms and then BLOCK_M
_CACHED_BYTES = 32768  # of a chunk, where candidates take turns: two or more fit a level-1 cache


def launch(kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
    """Run `programs` programs; the first argument is a tensor of the device to run on."""
    if programs == 0:
        return
    if isinstance(kernel, triton.JITFunction):  # not in the interpreter, which cannot be wrapped
        kernel = wrap_triton(kernel)
    if arguments[0].is_cuda and torch.cuda.is_initialized():  # a trace may do without a GPU
        with torch.cuda.device(arguments[0].device):
            kernel[(programs,)](*arguments, **options)
    else:
        kernel[(programs,)](*arguments, **options)


def ceil_div(size: int, block: int) -> int:
    return -(-size // block)


def power_above(size: int) -> int:
    """The least power of two that is at least `size` >= 1."""
    return 1 << (size - 1).bit_length()


def rows_a_chunk(rows: int, problems: int, block: int, most: int) -> int:
    """Rows that one program sums: `block` times a power of two, enough programs, at most `most`."""
    chunk = block
    while 2 * chunk <= most and problems * ceil_div(rows, 2 * chunk) >= PROGRAMS:
        chunk *= 2
    return chunk


def rows_a_program(log_p: Tensor, candidates: int, programs: int, block: int, width: int) -> int:
    """`rows_a_chunk` of rows of `width` columns, each in the same number of programs.

    Several candidates take turns with a chunk, which all but the first find in a cache.
    """
    most = _MOST_ROWS
    if candidates > 1:
        most = min(most, max(4 * block, _CACHED_BYTES // (width * log_p.element_size())))
    return rows_a_chunk(log_p.shape[1], programs, block, most)


@dataclass(frozen=True)
class RowTiles:
    """A row of K numbers in one or two tiles side by side, of which a program holds `block_m`."""

    first: int
    second: int  # columns of the second tile, 0 for none
    block_m: int
    num_warps: int

    def options(self) -> dict[str, int]:
        return {
            "FIRST": self.first,
            "SECOND": self.second,
            "BLOCK_M": self.block_m,
            "num_warps": self.num_warps,
        }


def fits(columns: int, double: bool) -> bool:
    """Whether a row, the next one, its sums and its potential fit in a program's registers."""
    return columns <= (6144 if double else 8192)


def row_tiles(columns: int, double: bool) -> RowTiles:
    """Tiles for rows that fit.

    A thread holds 8 to 24 numbers of a tile, the next tile, the sums and the two halves of the
    potential: 100 to 170 registers, so 12 to 16 warps a multiprocessor. Rows of up to 512 columns
    are a warp's, whose sums need no shared memory. A second tile saves exponentials on padding, of
    which an H100 does only 16 a clock and multiprocessor: 309 columns take 256 + 64 of them and
    not 512. Its width is a whole number of warps, as the first's is.

    The longest rows would spill from the registers of 16 warps. 8 warps have twice as many a
    thread, and fewer that do not hold a row.
    """
    a_warp = 256 if double or columns > 512 else 512
    padded = max(16, power_above(columns))
    first, second = padded, 0
    if padded > columns and padded > 64:
        half = padded // 2
        warps = max(1, half // a_warp)
        rest = max(power_above(columns - half), 32 * warps)
        if rest < half:
            first, second = half, rest
    most = 8 if columns > (4096 if double else 6144) else 16
    return RowTiles(first, second, max(1, a_warp // first), max(1, min(most, first // a_warp)))


@dataclass(frozen=True)
class ColumnBlocks:
    """Blocks of columns and chunks of rows: a program has one of each, `block_m` rows at a time."""

    width: int
    blocks: int
    chunk: int
    chunks: int
    block_m: int
    num_warps: int

    @property
    def programs(self) -> int:
        return self.blocks * self.chunks

    def scalars(self) -> tuple[int, int, int]:
        return self.chunk, self.chunks, self.blocks

    def options(self) -> dict[str, int]:
        return {"BLOCK_M": self.block_m, "BLOCK_K": self.width, "num_warps": self.num_warps}


def column_blocks(log_p: Tensor, candidates: int) -> ColumnBlocks:
    """For rows of any length: 16 numbers a thread, 8 in float64, and up to 512 columns a block."""
    problems, rows, columns = log_p.shape
    a_warp = 256 if log_p.dtype == torch.float64 else 512
    width = min(512, power_above(columns))
    blocks, block_m = ceil_div(columns, width), max(1, a_warp // width)
    chunk = rows_a_program(log_p, candidates, problems * blocks, block_m, width)
    chunks = ceil_div(rows, chunk)
    return ColumnBlocks(width, blocks, chunk, chunks, block_m, max(1, width // a_warp))
