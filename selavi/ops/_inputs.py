"""The arguments of `sinkhorn`: checked once, with messages that name them, and brought to one form.

Here matrix is log_p as (B, N, K). Over a group every rank sees the same verdict, so that none waits
for another that has raised. `checked` is False where nothing may wait for a value (tol=None).
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_CHUNK = 16384  # rows that are copied at once
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


# Between these, lam and what is made of it are floats of full precision.
LEAST_LAM, MOST_LAM = 1e-20, 1e20


def check_number(name: str, value: float, least: float, most: float) -> None:
    if value is None or isinstance(value, torch.Tensor | str | complex):
        raise TypeError(f"{name} is a {type(value).__name__}; expected a number")
    if not least <= value <= most:
        raise ValueError(f"{name}={value}; expected a number from {least:g} to {most:g}")


def check_log_p(log_p: Tensor, empty: bool) -> None:
    """`empty`: N may be 0, as on a rank without rows."""
    if not isinstance(log_p, torch.Tensor):
        raise TypeError(
            f"log_p is a {type(log_p).__name__}; expected a Tensor (selavi.ops.numpy takes arrays)"
        )
    if log_p.dtype not in DTYPES:
        raise TypeError(
            f"log_p has dtype {log_p.dtype}; expected float32, float64, bfloat16 or float16"
        )
    if log_p.ndim < 2 or log_p.shape[-1] == 0 or (log_p.shape[-2] == 0 and not empty):
        raise ValueError(
            f"log_p has shape {tuple(log_p.shape)}; expected (..., N, K) with N, K >= 1"
        )


def check_vector(name: str, vector: Tensor | None, batch: torch.Size, size: int) -> None:
    if vector is None:
        return
    if not isinstance(vector, torch.Tensor):
        raise TypeError(f"{name} is a {type(vector).__name__}; expected a Tensor")
    if not vector.is_floating_point():
        raise TypeError(f"{name} has dtype {vector.dtype}; expected a floating dtype")
    if vector.shape not in ((size,), (*batch, size)):
        either = f"{(size,)} or {(*batch, size)}" if batch else f"{(size,)}"
        raise ValueError(f"{name} has shape {tuple(vector.shape)}; expected {either}")


def row_weights(
    marginal: Tensor | None,
    log_p: Tensor,
    total_rows: int,
    checked: bool,
    group: dist.ProcessGroup | None,
) -> Tensor:
    """c as (B, N) float64 that sums to 1 over all ranks; may hold zeros."""
    batch, rows = log_p.shape[:-2], log_p.shape[-2]
    if marginal is None:
        return log_p.new_full((batch.numel(), rows), 1.0 / total_rows, dtype=torch.float64)
    if checked and not (least := _least(marginal, log_p, group)) >= 0:
        raise ValueError(
            f"row_marginal of shape {tuple(marginal.shape)} has least entry {least:g}; expected "
            "finite numbers of at least 0"
        )
    c = marginal.to(device=log_p.device, dtype=torch.float64).expand(*batch, rows)
    c = c.reshape(batch.numel(), rows)
    total = c.sum(-1, keepdim=True)
    if group is not None:
        dist.all_reduce(total, group=group)
    if checked and not ((total > 0) & total.isfinite()).all():
        raise ValueError(
            f"row_marginal of shape {tuple(marginal.shape)} is zero throughout or its sum overflows"
        )
    return c / total


def column_weights(
    marginal: Tensor | None, log_p: Tensor, checked: bool, group: dist.ProcessGroup | None
) -> Tensor:
    """r as (B, K) float64, positive, that sums to 1; every rank gives the same."""
    batch, columns = log_p.shape[:-2], log_p.shape[-1]
    if marginal is None:
        return log_p.new_full((batch.numel(), columns), 1.0 / columns, dtype=torch.float64)
    if checked and not (least := _least(marginal, log_p, group)) > 0:
        raise ValueError(
            f"col_marginal of shape {tuple(marginal.shape)} has least entry {least:g}; expected "
            "finite numbers above 0"
        )
    r = marginal.to(device=log_p.device, dtype=torch.float64).expand(*batch, columns)
    total = r.sum(-1, keepdim=True)
    if checked and not total.isfinite().all():
        raise ValueError(f"col_marginal of shape {tuple(marginal.shape)} has a sum that overflows")
    return (r / total).reshape(batch.numel(), columns)


def _least(marginal: Tensor, log_p: Tensor, group: dist.ProcessGroup | None) -> float:
    """The least entry on any rank; NaN if one is not finite."""
    least = torch.full((), torch.inf, dtype=torch.float64, device=log_p.device)
    if marginal.numel():
        least = torch.where(marginal.isfinite().all(), marginal.min().double(), torch.nan)
        least = least.to(log_p.device)
    if group is not None:
        broken = least.isnan().double()
        dist.all_reduce(broken, dist.ReduceOp.MAX, group=group)
        least = least.nan_to_num(nan=torch.inf)
        dist.all_reduce(least, dist.ReduceOp.MIN, group=group)
        least = torch.where(broken > 0, torch.nan, least)
    return float(least)


def potential(init: Tensor, r: Tensor, log_p: Tensor, checked: bool) -> Tensor:
    """init as v (B, K) float64 with sum_k r_k v_k = 0."""
    if checked and not init.isfinite().all():
        raise ValueError(f"init of shape {tuple(init.shape)} holds entries that are not finite")
    v = init.to(device=log_p.device, dtype=torch.float64)
    v = v.expand(*log_p.shape[:-2], log_p.shape[-1]).reshape(r.shape)
    return v - (v * r).sum(-1, keepdim=True)


def on_any_rank(condition: Tensor, group: dist.ProcessGroup | None) -> bool:
    count = condition.long()
    if group is not None:
        dist.all_reduce(count, dist.ReduceOp.MAX, group=group)
    return bool(count)


def agree(
    group: dist.ProcessGroup, rows: int, facts: dict[str, object], error: Exception | None
) -> tuple[tuple[int, int], dict[str, object]]:
    """Raise one rank's error, or that `facts` differ, on every rank. None is an unknown fact.

    Returns the index of this rank's first row among all and their number, and the common facts.
    """
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, (rows, facts, error), group=group)
    for _, _, theirs in everyone:
        if theirs is not None:
            raise theirs
    common = {}
    for name in facts:
        values = [theirs[name] for _, theirs, _ in everyone if theirs[name] is not None]
        if any(value != values[0] for value in values):
            raise ValueError(f"{name} differs between the ranks of the group: {values}")
        common[name] = values[0] if values else None
    counts = [count for count, _, _ in everyone]
    if sum(counts) == 0:
        raise ValueError("log_p has no rows on any rank of the group; expected N >= 1 in all")
    return (sum(counts[: dist.get_rank(group)]), sum(counts)), common


def check_entries(
    matrix: Tensor, c: Tensor, first_row: int, group: dist.ProcessGroup | None
) -> None:
    """No NaN or +inf; no weighted row and no column that is -inf throughout. Two reads.

    Called only where a result is suspicious.
    """
    row_max = matrix.amax(-1)
    broken = (row_max.isnan() | row_max.isposinf()).any().long()
    dead_rows = (row_max.isneginf() & (c > 0)).any(0).nonzero()[:, 0]
    never = torch.iinfo(torch.int64).max
    dead_row = dead_rows[0] + first_row if len(dead_rows) else torch.tensor(never)
    column_max = matrix.new_full((len(matrix), matrix.shape[-1]), -torch.inf)
    for rows, weight in zip(matrix.split(_CHUNK, 1), c.split(_CHUNK, 1), strict=True):
        if rows.shape[1]:
            weighty = rows.masked_fill((weight == 0)[..., None], -torch.inf)
            column_max = torch.maximum(column_max, weighty.amax(-2))
    if group is not None:
        dead_row = dead_row.to(matrix.device)
        dist.all_reduce(broken, dist.ReduceOp.MAX, group=group)
        dist.all_reduce(dead_row, dist.ReduceOp.MIN, group=group)
        dist.all_reduce(column_max, dist.ReduceOp.MAX, group=group)
    if broken:
        raise ValueError(
            f"log_p of shape {tuple(matrix.shape)} holds NaN or +inf; expected entries below +inf"
        )
    if dead_row != never:
        raise ValueError(
            f"log_p is -inf throughout row {int(dead_row)}; "
            "give the row weight 0 in row_marginal, or a finite entry"
        )
    dead_columns = column_max.isneginf().nonzero()
    if len(dead_columns):
        raise ValueError(
            f"log_p is -inf throughout column {int(dead_columns[0, 1])} (rows of weight 0 aside); "
            "no mass can reach it: drop the column"
        )
