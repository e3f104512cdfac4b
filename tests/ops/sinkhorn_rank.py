"""One rank of tests/ops/test_sinkhorn_group.py: solves its rows of every case.

python sinkhorn_rank.py STORE RANK WORLD_SIZE OUTPUT
"""

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.append(str(Path(__file__).parents[2]))  # last: an installed selavi comes first

from selavi.ops import sinkhorn
from tests.ops.problems import hard_log_p, random_log_p, zipf


def bounds(rows: int, world: int, kind: str) -> list[int]:
    """Where each rank's rows begin: equal, unequal, or none on the second and the last rank."""
    if kind == "equal" or world == 1:
        return [rows * rank // world for rank in range(world + 1)]
    cut = [0] + [int(rows * (rank / world) ** 2) for rank in range(1, world)] + [rows]
    if kind == "empty":
        cut[2], cut[-2] = cut[1], rows
    return sorted(cut)


def cases() -> dict[str, dict]:
    """Name: log_p, the split and the options. Large ones begin on samples of the rows."""
    weight = torch.rand(700, generator=torch.Generator().manual_seed(0))
    weight[::5] = 0.0
    small, batch = random_log_p(700, 8), random_log_p(3, 700, 8, scale=1.0)
    prior = {"col_marginal": zipf(8), "permute": True}
    return {
        "newton": {"log_p": small, "solver": "newton"},
        "anderson": {"log_p": small, "lam": 3.0, "solver": "anderson", "split": "empty"},
        "sinkhorn": {"log_p": batch, "lam": 1.0, "solver": "sinkhorn", "split": "unequal"},
        "weighted": {"log_p": small, "row_marginal": weight, "split": "unequal", **prior},
        "empty ranks": {"log_p": batch, "row_marginal": weight, "split": "empty", **prior},
        "double": {"log_p": small.double(), "tol": 1e-11, "split": "unequal"},
        "definition": {"log_p": small, "backend": "torch", "split": "unequal"},
        "half": {"log_p": batch.bfloat16(), "lam": 2.0, "split": "empty"},
        "sampled": {"log_p": hard_log_p(6000, 8, 8.0, 2.0), "split": "unequal"},
        "sampled, sharded in order": {"log_p": random_log_p(6000, 8).sort(0).values, **prior},
        "sampled, empty ranks": {"log_p": hard_log_p(6000, 8, 8.0, 2.0), "split": "empty"},
        "fixed": {"log_p": small, "tol": None, "max_iterations": 4, "split": "empty"},
        "few rows": {"log_p": random_log_p(2, 5), "lam": 1.0, "split": "empty"},
        "more columns than rows": {"log_p": random_log_p(20, 300), "lam": 1.0, "split": "unequal"},
    }


def bad_cases() -> dict[str, dict]:
    """Each is wrong in the last row alone, or in a column; every rank raises the same error."""
    log_p = random_log_p(6000, 6)
    nan, dead_row, dead_column = log_p.clone(), log_p.clone(), log_p.clone()
    nan[-1, 2], dead_row[-1], dead_column[:, 3] = torch.nan, -torch.inf, -torch.inf
    negative, without = torch.ones(6000), torch.ones(6000)
    negative[-1], without[-1] = -1.0, 0.0
    return {
        "nan": {"log_p": nan},
        "nan, few rows": {"log_p": nan[-7:], "solver": "anderson", "lam": 2.0},
        "nan, permuted": {"log_p": nan, "permute": True},
        "nan without weight": {"log_p": nan, "row_marginal": without},
        "dead row": {"log_p": dead_row, "split": "unequal"},
        "dead column": {"log_p": dead_column, "split": "empty"},
        "negative weight": {"log_p": log_p, "row_marginal": negative},
        "no weight": {"log_p": log_p, "row_marginal": 0 * negative, "split": "empty"},
        "bad prior": {"log_p": log_p, "col_marginal": torch.arange(6.0)},
        "no rows": {"log_p": log_p[:0]},
    }


def solve(world: int, rank: int, log_p, split="equal", row_marginal=None, **options):
    cut = bounds(log_p.shape[-2], world, split)
    mine = slice(cut[rank], cut[rank + 1])
    if row_marginal is not None:
        row_marginal = row_marginal[mine]
    group = dist.group.WORLD
    return sinkhorn(log_p[..., mine, :], row_marginal=row_marginal, group=group, **options)


def main() -> None:
    store, rank, world, output = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    results, errors = {}, {}
    for name, case in cases().items():
        result = solve(world, rank, **case)
        again = solve(world, rank, **{"solver": "auto"} | case, init=result)
        fields = ("col_potential", "col_marginal", "error", "n_passes", "converged", "value")
        results[name] = {field: getattr(result, field) for field in fields}
        results[name] |= {"labels": result.labels, "row_potential": result.row_potential}
        results[name] |= {"plan": result.plan(), "warm_passes": again.n_passes}
    for name, case in bad_cases().items():
        try:
            solve(world, rank, **case)
            errors[name] = "none"
        except ValueError as error:
            errors[name] = str(error)
    last, group = rank == world - 1, dist.group.WORLD
    try:  # what only the last rank can see
        sinkhorn(torch.zeros(4, 2, requires_grad=last), group=group)
    except RuntimeError as error:
        errors["gradient"] = str(error)
    try:
        sinkhorn(torch.zeros(4, 2), row_marginal=torch.ones(5 if last else 4), group=group)
    except ValueError as error:
        errors["shape"] = str(error)
    try:
        sinkhorn(torch.zeros(4, 2, dtype=torch.float64 if last else torch.float32), group=group)
        errors["dtype"] = "none"
    except ValueError as error:
        errors["dtype"] = str(error)
    torch.save((results, errors), output)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
