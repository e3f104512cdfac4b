"""From pytest-benchmark's JSON to ours: the machine, every case, and the rows with their goals.

results.py [--folder FOLDER] [--commit COMMIT] [--steps FILE] RAW.json ... writes
results/cpu-COMMIT.json, or <GPU>-COMMIT.json, and prints its path. The commit is Git's unless it is
given; the lines of FILE say how gpu.sh's steps went.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from floors import EXPONENTIALS_A_CLOCK
from rows import GPU_ROWS, MORE_IS_BETTER, ROWS, Row

Case = dict[str, Any]
QUANTILES = ("min", "q1", "median", "q3", "max", "rounds")


_VALUES: dict[str, Callable[[Case, Case], float]] = {
    "time": lambda ours, theirs: theirs["median"] / ours["median"],
    "slowdown": lambda ours, theirs: ours["median"] / theirs["median"],
    "memory": lambda ours, theirs: ours["peak_extra_bytes"] / theirs["peak_extra_bytes"],
    "passes": lambda ours, theirs: ours["passes"],
    "warm": lambda ours, theirs: ours["passes"] / theirs["passes"],
    "floor": lambda ours, theirs: ours["floor_bytes"] / ours["median"],
    "seconds": lambda ours, theirs: ours["median"],
    "peak": lambda ours, theirs: 1 + ours["peak_extra_bytes"] / ours["matrix_bytes"],
}
# Without these a case has no such quantity.
_NEEDED = {"memory": "peak_extra_bytes", "floor": "floor_bytes", "peak": "matrix_bytes"}


def steps(case: Case) -> int | None:
    return case.get("passes", case.get("iterations"))


def unconverged(case: Case) -> bool:
    return case.get("target") is not None and case["error"] > case["target"]


def _best(cases: Iterable[Case]) -> Case | None:
    """Of a peer's variants: the fastest that reached the target, else the nearest to it."""
    return min(
        cases,
        key=lambda case: (case["error"], 0) if unconverged(case) else (0, case["median"]),
        default=None,
    )


def _pairs(row: Row, cases: list[Case]) -> Iterable[tuple[Case, Case]]:
    section = [case for case in cases if case["section"] == row.section]
    for ours in section:
        if ours["method"] != row.ours or not ours["case"].startswith(row.cases):
            continue
        name = row.other_case or ours["case"]
        method = row.theirs or row.ours
        theirs = _best(c for c in section if c["method"] == method and c["case"] == name)
        if theirs is not None and theirs.get(_NEEDED.get(row.quantity, "case")):
            yield ours, theirs


def _missing(row: Row, cases: list[Case]) -> list[str]:
    """The cases that the peer was run on and ours has no verified time for."""
    if row.other_case is not None or row.theirs is None:
        return []
    found: dict[str, set[str]] = {row.ours: set(), row.theirs: set()}
    for case in cases:
        if case["section"] == row.section and case["case"].startswith(row.cases):
            found.setdefault(case["method"], set()).add(case["case"])
    return sorted(found[row.theirs] - found[row.ours])


def evaluate(row: Row, cases: list[Case], versions: dict[str, str]) -> dict[str, Any]:
    """The row, its value in every case, the worst and the best, and whether the worst meets it.

    A row is not met where ours has no verified time in a case that the peer was run on.
    """
    pairs = list(_pairs(row, cases))
    values = {ours["case"]: _VALUES[row.quantity](ours, theirs) for ours, theirs in pairs}
    least, most = min(values.values(), default=None), max(values.values(), default=None)
    more_is_better = row.quantity in MORE_IS_BETTER
    worst, best = (least, most) if more_is_better else (most, least)
    missing = _missing(row, cases)
    met = None
    if worst is not None:
        met = not missing and (worst >= row.goal if more_is_better else worst <= row.goal)
    counts = [count for _, theirs in pairs if (count := steps(theirs)) is not None]
    errors = [theirs["error"] for _, theirs in pairs if unconverged(theirs)]
    return asdict(row) | {
        "values": values,
        "worst": worst,
        "best": best,
        "met": met,
        "missing": missing,
        "absent": row.package is not None and versions.get(row.package) == "not installed",
        "floors": [[ours["floor_bytes"], ours["floor_exponentials"]] for ours, _ in pairs]
        if all("floor_bytes" in ours for ours, _ in pairs)
        else [],
        "medians": [ours["median"] for ours, _ in pairs],
        "peer_steps": [min(counts), max(counts)] if counts else None,
        "peer_unconverged": len(errors),
        "peer_error": max(errors, default=None),
    }


def condense(raw: list[dict[str, Any]], commit: str | None = None) -> dict[str, Any]:
    """One JSON of the runs of one commit on one machine; a later run's case replaces an earlier's.

    Raises ValueError where the runs differ in commit, size, threads, kernels or GPU.
    """
    machine = raw[-1]["machine_info"]
    said = [
        (run["commit_info"]["id"], info["size"], info["threads"], info["kernel_hash"], _gpu(info))
        for run in raw
        for info in [run["machine_info"]]
    ]
    if len(set(said)) > 1:
        raise ValueError(f"runs of different commits, sizes, threads or kernels: {said}")
    cases: dict[str, Case] = {}
    for benchmark in (benchmark for run in raw for benchmark in run["benchmarks"]):
        info = dict(benchmark["extra_info"])
        if info.pop("verified", False):
            stats = {key: benchmark["stats"][key] for key in QUANTILES}
            if "seconds" in info:  # of events on a GPU
                stats = quantiles(info.pop("seconds"))
            if count := steps(info):
                info["seconds_per_iteration"] = stats["median"] / count
            cases[benchmark["name"]] = info | stats
    found = list(cases.values())
    bandwidth = _add_floors(found, machine["gpu"]) if "gpu" in machine else None
    keys = ("cores", "threads", "compiler", "versions", "python_version", "system", "release")
    return {
        "commit": commit or raw[-1]["commit_info"]["id"],
        "dirty": any(run["commit_info"]["dirty"] for run in raw),
        "date": raw[-1]["datetime"],
        "size": machine["size"],
        "kernel_hash": machine["kernel_hash"],
        "machine": {"cpu": machine["cpu"]["brand_raw"], "gpu": machine.get("gpu")}
        | {key: machine[key] for key in keys},
        "bandwidth": bandwidth,
        "rows": [
            evaluate(row, found, machine["versions"])
            for row in (GPU_ROWS if "gpu" in machine else ROWS)
        ],
        "cases": found,
    }


def quantiles(seconds: list[float]) -> dict[str, float]:
    q1, median, q3 = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
    values = (min(seconds), q1, median, q3, max(seconds), len(seconds))
    return dict(zip(QUANTILES, values, strict=True))


def _gpu(machine: dict[str, Any]) -> str:
    return machine["gpu"]["name"] if "gpu" in machine else ""


def _add_floors(cases: list[Case], gpu: dict[str, Any]) -> dict[str, float]:
    """Adds each case's two floors in seconds; returns the measured bandwidths in bytes a second.

    What is written is counted at the copy's bandwidth, with as much that is read; the rest that is
    read at that of reading.
    """
    best: dict[str, float] = {}
    for case in cases:
        if case["section"] == "bandwidth":
            bandwidth = (case["bytes_read"] + case["bytes_written"]) / case["median"]
            best[case["case"]] = max(bandwidth, best.get(case["case"], 0.0))
    clock = gpu["clocks.max.sm"]  # "1980 MHz", or that it is not told
    clock = 1e6 * float(clock.split()[0]) if clock.endswith("MHz") else math.nan
    rate = EXPONENTIALS_A_CLOCK * gpu["multiprocessors"] * clock
    for case in cases:
        if "bytes_read" in case and {"copy", "read"} <= best.keys():
            both = 2 * min(case["bytes_read"], case["bytes_written"])
            one = case["bytes_read"] + case["bytes_written"] - both
            case["floor_bytes"] = both / best["copy"] + one / best["read"]
            case["floor_exponentials"] = case["exponentials"] / rate
    return best


def name(results: dict[str, Any]) -> str:
    """cpu-COMMIT or, for a GPU, its first word with a digit (NVIDIA H100 80GB: h100)-COMMIT."""
    gpu = results["machine"]["gpu"]
    kind = "cpu"
    if gpu:
        words = gpu["name"].replace("NVIDIA", "").split()
        kind = next((word for word in words if any(map(str.isdigit, word))), words[0]).lower()
    suffix = "" if results["size"] == "full" else f"-{results['size']}"
    return f"{kind}-{results['commit'][:7]}{suffix}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--commit")
    parser.add_argument("--steps", type=Path)
    parser.add_argument("raw", type=Path, nargs="+")
    options = parser.parse_args()
    texts = [source.read_text() for source in options.raw]  # empty where no benchmark was run
    results = condense([json.loads(text) for text in texts if text], options.commit)
    results["steps"] = options.steps.read_text().splitlines() if options.steps else []
    target = options.folder / f"{name(results)}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(results, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main()
