"""One process or many: the few collective operations that the package needs.

Every function is a no-op or the identity in a single process, so callers have one code path.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def initialize() -> torch.device:
    """Join the process group that ``torchrun`` describes, if any; return this process's device."""
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    use_cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        # Both, because results are gathered on the CPU. Others wait while one process scans.
        backend = "cpu:gloo,cuda:nccl" if use_cuda else "gloo"
        dist.init_process_group(backend, timeout=timedelta(days=1))
    return device


def shutdown() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", 0))


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def shard(num_items: int) -> Tensor:
    """Indices of this rank's items: rank, rank + world size, ... (int64, ascending)."""
    return torch.arange(num_items)[rank() :: world_size()]


def gather_shards(local: Tensor, num_items: int, dim: int) -> Tensor:
    """Undo :func:`shard`: join every rank's slice of dimension `dim` into all `num_items`.

    The ranks' slices may differ in length by one. Every rank gets the whole tensor.
    """
    if world_size() == 1:
        return local
    local = local.movedim(dim, 0)
    length = -(-num_items // world_size())
    padded = local.new_zeros((length, *local.shape[1:]))
    padded[: local.shape[0]] = local
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    # Item i is number i // world of rank i % world.
    joined = torch.stack(parts, dim=1).flatten(0, 1)[:num_items]
    return joined.movedim(0, dim).contiguous()


def broadcast(tensor: Tensor) -> Tensor:
    """Overwrite `tensor` on every rank with rank 0's, and return it."""
    if world_size() > 1:
        dist.broadcast(tensor, src=0)
    return tensor


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Overwrite `tensor` on every rank with the sum over ranks, and return it."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def any_rank(flag: bool, device: torch.device) -> bool:
    """True on every rank if `flag` is true on one."""
    if world_size() == 1:
        return flag
    return bool(sum_over_ranks(torch.tensor(float(flag), device=device)) > 0)


def from_main(job: Callable[[], T]) -> T:
    """What `job` gives on rank 0, on every rank."""
    result = [job() if is_main() else None]
    if world_size() > 1:
        dist.broadcast_object_list(result)
    return result[0]  # type: ignore[return-value]


def main_first(job: Callable[[], T]) -> T:
    """Run `job` on rank 0, then on the others, which find what it left on disk."""
    if is_main():
        result = job()
    barrier()
    return result if is_main() else job()


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()
