"""Which kernels a GPU result was measured on. `python kernel_hash.py` says what became stale."""

import hashlib
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
_SOURCES = ("csrc/cuda", "csrc/include", "kernels")


def kernel_hash(root: Path = ROOT) -> str:
    """Of the names and contents of every source that GPU kernels are made from."""
    paths = [path for folder in _SOURCES for path in (root / folder).rglob("*")]
    digest = hashlib.sha256()
    for path in sorted(path for path in paths if path.suffix in (".cu", ".cuh", ".h", ".py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def newest_gpu_result(folder: Path = RESULTS) -> tuple[Path, dict[str, Any]] | None:
    """The full-size one that was measured last."""
    found = [(path, json.loads(path.read_text())) for path in folder.glob("*.json")]
    found = [(path, said) for path, said in found if said["machine"].get("gpu")]
    full = [(path, said) for path, said in found if said["size"] == "full"]
    return max(full, key=lambda pair: pair[1]["date"], default=None)


def state() -> str:
    newest = newest_gpu_result()
    if newest is None:
        return "No GPU result is committed."
    path, said = newest
    if said["kernel_hash"] == kernel_hash():
        return f"{path.name} was measured on these kernels."
    return f"GPU result stale: {path.name} was measured on other kernels than these."


if __name__ == "__main__":
    print(state())
