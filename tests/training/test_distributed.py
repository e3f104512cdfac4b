"""The same command under torchrun, with gloo on CPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from selavi.evaluation.evaluate import evaluate_run
from selavi.report.run_folder import RunFolder


def torchrun(processes: int, *command: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone",
         f"--nproc-per-node={processes}", *command],
        capture_output=True,
        text=True,
        timeout=180,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PATH": path},
    )  # fmt: skip


@pytest.mark.parametrize("processes", [2, 3])
def test_torchrun_labels(processes: int, feature_file: Path, tmp_path: Path) -> None:
    settings = [
        "training.epochs=15",
        "training.batch_size=20",
        "labelling.rounds=8",
        "model.hidden=64",
    ]
    options = [part for setting in settings for part in ("--set", setting)]
    command = ["--no-python", "selavi", "label", str(feature_file), "-k", "5", "--heads", "2"]
    done = torchrun(processes, *command, "-o", str(tmp_path / "run"), *options)
    assert done.returncode == 0, done.stderr
    metrics = evaluate_run(RunFolder(tmp_path / "run"), tmp_path / "labels.csv")
    assert metrics["joint"]["nmi"] > 0.8


GATHER = """
import sys
import torch
from selavi import distributed

distributed.initialize()
assert distributed.world_size() == 3
for num_items in (1, 3, 4, 7):
    whole = torch.arange(2 * num_items * 3).view(2, num_items, 3)
    local = whole[:, distributed.shard(num_items)]
    assert torch.equal(distributed.gather_shards(local, num_items, dim=1), whole)
assert distributed.any_rank(distributed.rank() == 1, torch.device("cpu"))
assert not distributed.any_rank(False, torch.device("cpu"))
assert distributed.from_main(lambda: {"rank": distributed.rank()}) == {"rank": 0}
distributed.shutdown()
"""


def test_collectives(tmp_path: Path) -> None:
    script = tmp_path / "collectives.py"
    script.write_text(GATHER)
    done = torchrun(3, str(script))
    assert done.returncode == 0, done.stderr
