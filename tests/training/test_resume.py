"""A run that is stopped and resumed ends with the labels of an uninterrupted one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from selavi.report.run_folder import RunFolder
from selavi.training.checkpoint import load_checkpoint

#: Runs `selavi label`, with a piece of code that breaks in at a chosen point.
DRIVER = """
import os, signal, sys
from selavi import cli
from selavi.training import trainer

def count_calls(owner, name, number, action):
    original, calls = getattr(owner, name), 0
    def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == number:
            action()
        return original(*args, **kwargs)
    setattr(owner, name, counted)

def kill(number):
    os.kill(os.getpid(), number)

{breaks_in}
sys.argv = ["selavi", *sys.argv[1:]]
cli.main()
"""
BREAKS = {
    "between rounds": (
        "count_calls(trainer.Trainer, '_train_step', 14, lambda: kill(signal.SIGKILL))",
        -9,
    ),
    "inside the first round": (
        "count_calls(trainer, 'predictions', 2, lambda: kill(signal.SIGKILL))",
        -9,
    ),
    "inside a later round": (
        "count_calls(trainer, 'predictions', 8, lambda: kill(signal.SIGKILL))",
        -9,
    ),
    "while writing a checkpoint": (
        "count_calls(os, 'fsync', 14, lambda: kill(signal.SIGKILL))",
        -9,
    ),
    "asked by SIGTERM": (
        "count_calls(trainer.Trainer, '_train_step', 14, lambda: kill(signal.SIGTERM))",
        75,
    ),
    "asked by SIGTERM during preparation": (
        "count_calls(trainer, 'predictions', 1, lambda: kill(signal.SIGTERM))",
        75,
    ),
    "asked by SIGUSR1 inside a round": (
        "count_calls(trainer, 'predictions', 8, lambda: kill(signal.SIGUSR1))",
        75,
    ),
}
SETTINGS = ["training.epochs=6", "training.batch_size=40", "labelling.rounds=6", "model.hidden=32"]


def run(features: Path, out: Path, breaks_in: str = "", *extra: str) -> subprocess.CompletedProcess:
    options = ["-k", "5", "--heads", "4", "-o", str(out), *extra]
    for setting in SETTINGS:
        options += ["--set", setting]
    script = DRIVER.format(breaks_in=breaks_in)
    return subprocess.run(
        [sys.executable, "-P", "-c", script, "label", str(features), *options],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return {}


@pytest.mark.parametrize("name", BREAKS)
def test_resumed_labels_equal_uninterrupted(
    name: str, feature_file: Path, tmp_path: Path, uninterrupted: dict
) -> None:
    if not uninterrupted:
        done = run(feature_file, tmp_path / "whole")
        assert done.returncode == 0, done.stderr
        uninterrupted["labels"] = RunFolder(tmp_path / "whole").read_labels()
    breaks_in, exit_code = BREAKS[name]
    out = tmp_path / "broken"
    stopped = run(feature_file, out, breaks_in)
    assert stopped.returncode == exit_code, stopped.stderr
    assert not RunFolder(out).labels_parquet.exists()
    if RunFolder(out).checkpoint.exists():
        load_checkpoint(RunFolder(out).checkpoint)  # whole, whenever the kill came

    resumed = run(feature_file, out, "", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert RunFolder(out).read_labels().equals(uninterrupted["labels"])


def test_existing_run_is_not_lost(feature_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(feature_file, out).returncode == 0
    before = (out / "checkpoint.pt").read_bytes()
    for extra in ([], ["--resume", "--seed", "7"], ["--resume", "-k", "6"]):
        again = run(feature_file, out, "", *extra)
        assert again.returncode == 2
        assert "Traceback" not in again.stderr
        assert len(again.stderr.strip().splitlines()) == 1
    assert (out / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("step", [14, 18])  # 18 is an epoch's last: its loss is still finite
def test_divergence_keeps_last_good_checkpoint(
    step: int, feature_file: Path, tmp_path: Path
) -> None:
    breaks_in = f"""
def spoil():
    trainer.Trainer._learning_rate = lambda self: float('nan')
count_calls(trainer.Trainer, '_train_step', {step}, spoil)
"""
    done = run(feature_file, tmp_path / "run", breaks_in)
    assert done.returncode == 2
    assert "diverged" in done.stderr and "Traceback" not in done.stderr
    content = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert all(t.isfinite().all() for t in content["model"].values())
    assert 0 < content["step"] < step


@pytest.mark.parametrize(
    ("change", "what"),
    [("order", "clips"), ("prior", "prior")],
)
def test_resuming_something_else_is_refused(
    change: str, what: str, feature_file: Path, tmp_path: Path
) -> None:
    sizes = tmp_path / "sizes.txt"
    sizes.write_text("1 2 3 4 5")
    options = ("--prior", str(sizes))
    assert run(feature_file, tmp_path / "run", "", *options).returncode == 0
    before = (tmp_path / "run" / "labels.csv").read_bytes()
    if change == "order":
        arrays = dict(np.load(feature_file))
        np.savez(feature_file, **{name: rows[::-1] for name, rows in arrays.items()})
    else:
        sizes.write_text("5 5 5 5 6")
    again = run(feature_file, tmp_path / "run", "", "--resume", *options)
    assert again.returncode == 2 and f"other {what}" in again.stderr
    assert (tmp_path / "run" / "labels.csv").read_bytes() == before
