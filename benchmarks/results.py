"""From pytest-benchmark's JSON to ours: the machine, every case, and the rows with their goals.

results.py RAW.json ... writes results/cpu-COMMIT.json and prints its path.
"""

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Case = dict[str, Any]
QUANTILES = ("min", "q1", "median", "q3", "max", "rounds")


@dataclass(frozen=True)
class Row:
    """One line of the table: a quantity of every case that both methods were run on.

    Attributes:
        quantity: "time" (theirs / ours), "slowdown" (ours / theirs), "memory" (ours / theirs),
            "passes" (ours), "warm" (passes, ours / theirs).
        goal: at least, for "time"; at most, for the others.
        cases: which of the section's cases, by how their names begin.
        other_case: theirs is not of the same case but of this one.
    """

    title: str
    peer: str
    quantity: str
    goal: float
    section: str
    theirs: str
    ours: str = "selavi"
    cases: str = ""
    other_case: str | None = None


_ASSIGN = "labels, {} family, column error 2e-6"
_POT = "labels, both families, uniform prior"
_PLAIN = "plain (the reference)"
_FIXED = "3 iterations, plan written"
ROWS = (
    Row(_ASSIGN.format("hard"), "the reference", "time", 20, "labels", "reference", cases="hard"),
    Row(_ASSIGN.format("hard"), "the reference", "memory", 0.55, "labels", "reference", cases="h"),
    Row(_ASSIGN.format("easy"), "the reference", "time", 50, "labels", "reference", cases="easy"),
    Row(_POT, "POT, log domain", "time", 30, "labels", "pot_log"),
    Row(_POT, "POT, kernel domain", "time", 20, "labels", "pot"),
    Row("one pass, float32", "x.sum()", "slowdown", 2.0, "pass", "sum", cases="float32"),
    Row(
        "one pass, bfloat16",
        "x.sum() in float32",
        "slowdown",
        1.3,
        "pass",
        "sum",
        cases="bfloat16",
        other_case="float32",
    ),
    Row("one pass, bfloat16", "x.sum() in bfloat16", "slowdown", 1.3, "pass", "sum", cases="bf"),
    Row("dense cost, error 1e-6", "POT, log domain", "time", 10, "dense", "pot_log"),
    Row("dense cost, error 1e-6", "OTT-JAX", "time", 3, "dense", "ott"),
    Row("dense cost, error 1e-6", "OTT-JAX, Anderson", "time", 3, "dense", "ott_anderson"),
    Row("dense cost, error 1e-6", "geomloss", "time", 10, "dense", "geomloss"),
    Row(_FIXED, "SwAV/DINO, eager", "time", 5, "fixed iterations", "eager"),
    Row(_FIXED, "SwAV/DINO, compiled", "time", 2, "fixed iterations", "compiled"),
    Row("passes, trained run's logits", "plain", "passes", 12, "trained", "plain"),
    Row(
        "passes, hard family",
        _PLAIN,
        "passes",
        40,
        "labels",
        "reference",
        cases="hard",
    ),
    Row(
        "passes, easy family",
        _PLAIN,
        "passes",
        12,
        "labels",
        "reference",
        cases="easy",
    ),
    Row("passes after a 10% change", "cold", "warm", 0.4, "warm start", "cold", "warm"),
)
_VALUES: dict[str, Callable[[Case, Case], float]] = {
    "time": lambda ours, theirs: theirs["median"] / ours["median"],
    "slowdown": lambda ours, theirs: ours["median"] / theirs["median"],
    "memory": lambda ours, theirs: ours["peak_extra_bytes"] / theirs["peak_extra_bytes"],
    "passes": lambda ours, theirs: ours["passes"],
    "warm": lambda ours, theirs: ours["passes"] / theirs["passes"],
}


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
        theirs = _best(c for c in section if c["method"] == row.theirs and c["case"] == name)
        if theirs is not None and (row.quantity != "memory" or theirs["peak_extra_bytes"]):
            yield ours, theirs


def _missing(row: Row, cases: list[Case]) -> list[str]:
    """The cases that the peer was run on and ours has no verified time for."""
    if row.other_case is not None:
        return []
    found: dict[str, set[str]] = {row.ours: set(), row.theirs: set()}
    for case in cases:
        if case["section"] == row.section and case["case"].startswith(row.cases):
            found.setdefault(case["method"], set()).add(case["case"])
    return sorted(found[row.theirs] - found[row.ours])


def evaluate(row: Row, cases: list[Case]) -> dict[str, Any]:
    """The row, its value in every case, the worst and the best, and whether the worst meets it.

    A row is not met where ours has no verified time in a case that the peer was run on.
    """
    pairs = list(_pairs(row, cases))
    values = {ours["case"]: _VALUES[row.quantity](ours, theirs) for ours, theirs in pairs}
    least, most = min(values.values(), default=None), max(values.values(), default=None)
    more_is_better = row.quantity == "time"
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
        "peer_steps": [min(counts), max(counts)] if counts else None,
        "peer_unconverged": len(errors),
        "peer_error": max(errors, default=None),
    }


def condense(raw: list[dict[str, Any]]) -> dict[str, Any]:
    """One JSON of the runs of one commit on one machine; a later run's case replaces an earlier's.

    Raises ValueError where the runs differ in commit, size or threads.
    """
    said = [
        (r["commit_info"]["id"], *(r["machine_info"][key] for key in ("size", "threads")))
        for r in raw
    ]
    if len(set(said)) > 1:
        raise ValueError(f"runs of different commits, sizes or threads: {said}")
    cases: dict[str, Case] = {}
    for benchmark in (benchmark for run in raw for benchmark in run["benchmarks"]):
        info = dict(benchmark["extra_info"])
        if info.pop("verified", False):
            stats = {key: benchmark["stats"][key] for key in QUANTILES}
            if count := steps(info):
                info["seconds_per_iteration"] = stats["median"] / count
            cases[benchmark["name"]] = info | stats
    machine = raw[-1]["machine_info"]
    keys = ("cores", "threads", "compiler", "versions", "python_version", "system", "release")
    return {
        "commit": raw[-1]["commit_info"]["id"],
        "dirty": any(run["commit_info"]["dirty"] for run in raw),
        "date": raw[-1]["datetime"],
        "size": machine["size"],
        "machine": {"cpu": machine["cpu"]["brand_raw"]} | {key: machine[key] for key in keys},
        "rows": [evaluate(row, list(cases.values())) for row in ROWS],
        "cases": list(cases.values()),
    }


def main(arguments: list[str]) -> None:
    results = condense([json.loads(Path(source).read_text()) for source in arguments])
    suffix = "" if results["size"] == "full" else f"-{results['size']}"
    target = Path(__file__).parent / "results" / f"cpu-{results['commit'][:7]}{suffix}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(results, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main(sys.argv[1:])
