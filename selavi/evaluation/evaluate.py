"""Compare a finished run with known classes."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa

from selavi.errors import SelaviError
from selavi.evaluation.metrics import cluster_metrics
from selavi.progress import say
from selavi.report.run_folder import RunFolder

Metrics = dict[str, dict[str, float]]


def evaluate_run(
    run: RunFolder, truth: Path, others: dict[str, np.ndarray] | None = None
) -> Metrics:
    """Metrics of the run's labellings, also written to its metrics.json as "evaluation".

    Args:
        run: a finished run.
        truth: CSV with columns path and label; clips that it lacks are left out, and said so.
        others: name -> (N,) labels of the same clips to compare with, such as baselines.

    Returns:
        Labelling -> metric -> value. "joint" is what the run reports; "video" and "audio" are the
        labels from one modality; "best head (oracle)" is chosen with the known classes.
    """
    table = run.read_labels()
    classes = match_paths(table["path"].to_pylist(), read_truth(truth))
    known = np.array([c is not None for c in classes])
    if not known.any():
        raise SelaviError(f"{truth} names none of the clips in {run.path}: are its paths relative?")
    if not known.all():
        say(f"{(~known).sum()} of {len(known)} clips have no label in {truth} and are left out")

    columns = {"joint": "cluster", "video": "cluster_video", "audio": "cluster_audio"}
    labellings = {name: _numbers(table[column]) for name, column in columns.items()}
    labellings |= others or {}
    heads = [_numbers(table[n]) for n in table.column_names if n.startswith("head_")]

    def score(labels: np.ndarray) -> dict[str, float] | None:
        used = known & ~np.isnan(labels)
        if not used.any():
            return None
        return cluster_metrics(labels[used], [classes[i] for i in np.flatnonzero(used)])

    scored = {name: score(labels) for name, labels in labellings.items()}
    result = {name: metrics for name, metrics in scored.items() if metrics}
    if scored_heads := [metrics for head in heads if (metrics := score(head))]:
        result["best head (oracle)"] = max(scored_heads, key=lambda metrics: metrics["nmi"])
    run.write_metrics("evaluation", result)
    return result


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """A column of labels, NaN for none."""
    return column.to_numpy().astype(float)


def read_truth(path: Path) -> dict[str, str]:
    """path -> label of a CSV with these two columns.

    Raises SelaviError where the file is missing, or lacks a column.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise SelaviError(f"cannot read {path}: {error}; give a CSV of path and label") from None
    if not rows or not {"path", "label"} <= set(rows[0]):
        raise SelaviError(f"{path} needs columns path and label and at least one row")
    return {row["path"]: row["label"] for row in rows}


def match_paths(paths: list[str], truth: dict[str, str]) -> list[str | None]:
    """The class of each clip, None where unknown.

    Paths match as they are, or else by their last part where that is unambiguous on both sides,
    so that a run on a subfolder finds the labels of the whole.
    """
    by_name = _unambiguous(truth)
    counts = Counter(Path(path).name for path in paths)
    return [
        truth.get(path, by_name.get(Path(path).name) if counts[Path(path).name] == 1 else None)
        for path in paths
    ]


def _unambiguous(truth: dict[str, str]) -> dict[str, str]:
    counts = Counter(Path(path).name for path in truth)
    return {Path(p).name: label for p, label in truth.items() if counts[Path(p).name] == 1}


def print_metrics(metrics: Metrics) -> None:
    """A table, a row a labelling, on standard output."""
    titles = {
        "nmi": "NMI",
        "ami": "AMI",
        "ari": "ARI",
        "accuracy": "Acc",
        "mean_entropy": "<H>",
        "mean_max_purity": "<p_max>",
    }
    width = max(len(name) for name in metrics)
    print(" " * width + "".join(f"{title:>9}" for title in titles.values()))
    for name, values in metrics.items():
        print(f"{name:<{width}}" + "".join(f"{values[key]:9.3f}" for key in titles))
