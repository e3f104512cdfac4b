"""Which GPU backend "auto" takes: the faster as measured, from backend_choice.json.

benchmarks/choose_backends.py writes that table:

    {"measured": the results file that it was made of, or null where nothing was measured yet,
     "default": the backend of all that is not below,
     "faster": {primitive: {size of an entry in bytes: {most columns or "more": backend}}}}
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

PATH = Path(__file__).parent / "backend_choice.json"
PRIMITIVES = (
    "sinkhorn_pass",
    "sinkhorn_iterations",
    "sinkhorn_overlap",
    "sinkhorn_labels",
    "sinkhorn_plan",
    "sinkhorn_column_logsumexp",
    "permute_prior",
    "accumulate_log_softmax_",
)
_RANGES = (64, 1024)  # of columns; "more" is what lies above


def columns_range(k: int) -> str:
    """The name of the range that k columns are in."""
    return next((str(most) for most in _RANGES if k <= most), "more")


def choose(primitive: str, k: int, dtype: torch.dtype) -> str:
    """The backend of a primitive on k columns of dtype; the default where nothing was measured."""
    known = table()
    sizes = known["faster"].get(primitive, {})
    chosen: str = sizes.get(str(dtype.itemsize), {}).get(columns_range(k), known["default"])
    return chosen


@lru_cache(maxsize=1)
def table() -> dict[str, Any]:
    """backend_choice.json"""
    stored: dict[str, Any] = json.loads(PATH.read_text())
    return stored
