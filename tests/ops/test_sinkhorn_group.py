"""Rows sharded over a process group: one to four ranks, with gloo."""

import os
import subprocess
import sys

import pytest
import torch

from selavi.ops import sinkhorn
from tests.ops import sinkhorn_rank

WORLDS = (1, 2, 3, 4)


@pytest.fixture(scope="module", params=WORLDS)
def ranks(request, tmp_path_factory):
    """Every rank's results and errors, of one run of all cases. No rank may wait for ever."""
    world, folder = request.param, tmp_path_factory.mktemp("ranks")
    command = [sys.executable, sinkhorn_rank.__file__, folder / "store"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    levels = [environment, environment | {"ATEN_CPU_CAPABILITY": "default"}]  # they round unlike
    processes = [
        subprocess.Popen([*command, str(r), str(world), folder / f"{r}.pt"], env=levels[r % 2])
        for r in range(world)
    ]
    try:
        assert [process.wait(150) for process in processes] == [0] * world
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"{r}.pt") for r in range(world)]


def alone(case):
    return sinkhorn(**{name: value for name, value in case.items() if name != "split"})


@pytest.fixture(scope="module")
def references():
    return {name: alone(case) for name, case in sinkhorn_rank.cases().items()}


@pytest.mark.parametrize("name", list(sinkhorn_rank.cases()))
def test_ranks_agree_with_each_other_and_with_one_process(ranks, references, name):
    parts, reference = [results[name] for results, _ in ranks], references[name]
    for part in parts[1:]:
        for field in ("col_potential", "col_marginal", "error", "n_passes", "value", "converged"):
            assert torch.equal(part[field], parts[0][field]), field
    if name != "fixed":
        assert parts[0]["converged"].all() and (parts[0]["warm_passes"] == WARM.get(name, 1)).all()
    assert torch.equal(torch.cat([part["labels"] for part in parts], -1), reference.labels)
    plan = torch.cat([part["plan"] for part in parts], -2)
    torch.testing.assert_close(plan, reference.plan(), rtol=0, atol=4e-6)
    error = (plan.sum(-2) - parts[0]["col_marginal"]).abs().sum(-1)
    torch.testing.assert_close(parts[0]["error"], error, rtol=1e-4, atol=3e-7)
    assert torch.equal(parts[0]["col_marginal"], reference.col_marginal)
    torch.testing.assert_close(parts[0]["value"], reference.value, rtol=1e-6, atol=1e-6)


WARM = {name: 2 for name, case in sinkhorn_rank.cases().items() if case.get("permute")}

MESSAGES = {
    "nan": "holds NaN",
    "nan, few rows": "holds NaN",
    "nan, permuted": "holds NaN",
    "nan without weight": "holds NaN",
    "dead row": "throughout row 5999",
    "dead column": "throughout column 3",
    "negative weight": "least entry -1",
    "no weight": "is zero throughout",
    "bad prior": "least entry 0",
    "no rows": "no rows on any rank",
    "gradient": "no gradient over a group",
    "shape": "row_marginal has shape (5,)",
    "dtype": "log_p's dtype differs between the ranks",
}


@pytest.mark.parametrize("name", list(MESSAGES))
def test_every_rank_raises_what_is_wrong_on_one(ranks, name):
    expected = "none" if name == "dtype" and len(ranks) == 1 else MESSAGES[name]
    for _, errors in ranks:
        assert expected in errors[name]
