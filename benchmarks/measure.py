"""Times and peak memory of one process."""

import ctypes
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _status(key: str) -> int:
    """Bytes of VmRSS or VmHWM."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


class PeakMemory:
    """What the process's resident memory rises to above its start. Linux only: else None."""

    def __init__(self) -> None:
        self.start = None
        if sys.platform == "linux":
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)  # so that free memory in the heap hides nothing
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
            self.start = _status("VmRSS")

    def extra(self) -> int | None:
        return None if self.start is None else max(0, _status("VmHWM") - self.start)


def iterations_within(
    seconds: float, most: int, prepare: Callable[[int], Callable[[], Any]]
) -> int:
    """How many iterations, from 10 to `most`, fit in about so many seconds: by a run of 10."""
    ten = prepare(10)
    ten()  # to warm up
    begin = time.perf_counter()
    ten()
    each = (time.perf_counter() - begin) / 10
    return max(10, min(most, int(seconds / each)))
