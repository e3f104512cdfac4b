"""A Triton kernel that only reads: how fast can memory be read at all?"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 8192  # float32 entries


@triton.jit
def _maximum(x_ptr, out_ptr, rounds, BLOCK: tl.constexpr):
    """out[program] = the largest of `rounds` blocks that lie a grid apart."""
    program, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    for i in range(rounds):
        start = (i * programs + program) * BLOCK
        largest = tl.maximum(largest, tl.load(x_ptr + start + tl.arange(0, BLOCK)))
    tl.store(out_ptr + program, tl.max(largest, 0))


def read(x: Tensor, out: Tensor) -> None:
    """Reads x, flat float32, of which len(out) programs take 8,192 entries a round."""
    rounds = x.numel() // (len(out) * _BLOCK)
    assert rounds * len(out) * _BLOCK == x.numel()
    _maximum[(len(out),)](x, out, rounds, BLOCK=_BLOCK, num_warps=8)


def entries(device: torch.device | str, about: int) -> tuple[int, int]:
    """Of x and of out: whole rounds of two programs for each multiprocessor's room for threads."""
    properties = torch.cuda.get_device_properties(device)
    programs = properties.multi_processor_count * 8
    return max(1, about // (programs * _BLOCK)) * programs * _BLOCK, programs
