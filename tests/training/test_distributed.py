"""The same command under torchrun, with gloo on CPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from selavi import distributed
from selavi.evaluation.evaluate import evaluate_run
from selavi.report.run_folder import RunFolder


@pytest.mark.parametrize("processes", [2, 3])
def test_torchrun_labels(processes: int, feature_file: Path, tmp_path: Path) -> None:
    settings = [
        "training.epochs=15",
        "training.batch_size=20",
        "labelling.rounds=8",
        "model.hidden=64",
    ]
    options = [part for setting in settings for part in ("--set", setting)]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *(f"--nproc-per-node={processes}", "--no-python", "selavi", "label", str(feature_file)),
        *("-k", "5", "--heads", "2", "-o", str(tmp_path / "run"), *options),
    ]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=180,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PATH": path},
    )
    assert done.returncode == 0, done.stderr
    metrics = evaluate_run(RunFolder(tmp_path / "run"), tmp_path / "labels.csv")
    assert metrics["joint"]["nmi"] > 0.8


def _gather(rank: int, world: int, num_items: int, file: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=world
    )
    whole = torch.arange(2 * num_items * 3).view(2, num_items, 3)
    local = whole[:, distributed.shard(num_items)]
    assert torch.equal(distributed.gather_shards(local, num_items, dim=1), whole)
    assert distributed.any_rank(rank == 1, torch.device("cpu"))
    assert not distributed.any_rank(False, torch.device("cpu"))
    distributed.shutdown()


@pytest.mark.parametrize("num_items", [1, 3, 4, 7])
def test_gather_undoes_shard(num_items: int, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_gather, (3, num_items, str(tmp_path / "rendezvous")), nprocs=3)
