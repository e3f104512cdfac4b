"""Writes the table that backend="auto" reads: choose_backends.py RESULTS.json [TABLE.json].

For each primitive, range of columns and size of the dtype, the backend whose verified time was
less. What was not measured on both keeps to the default.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from selavi.ops._choice import PATH, columns_range


def table(results: dict[str, Any], name: str) -> dict[str, Any]:
    measured: dict[tuple[str, str, str], dict[str, float]] = {}
    for case in results["cases"]:
        if case["section"] == "choice":
            size = str(getattr(torch, case["dtype"]).itemsize)
            key = case["primitive"], size, columns_range(case["columns"])
            measured.setdefault(key, {})[case["method"]] = case["median"]
    faster: dict[str, Any] = {}
    for (primitive, size, columns), times in sorted(measured.items()):
        if len(times) == 2:
            best = min(times, key=lambda backend: times[backend])
            faster.setdefault(primitive, {}).setdefault(size, {})[columns] = best
    return {"measured": name if faster else None, "default": "cuda", "faster": faster}


def main(source: Path, target: Path = PATH) -> None:
    results = json.loads(source.read_text())
    if not results["machine"]["gpu"]:
        sys.exit(f"{source.name} was not measured on a GPU")
    chosen = table(results, source.stem)
    target.write_text(json.dumps(chosen, indent=1) + "\n")
    print(f"{target.name}: made of {chosen['measured'] or 'nothing: no GPU was measured'}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
