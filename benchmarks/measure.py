"""Times and peak memory of one process, and what is written down of a benchmark."""

import ctypes
import gc
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from floors import Work

Job = Callable[[], Any]
_ROTATED_BYTES = 200e6  # several times the L2 cache of a GPU
_WARM_UP_SECONDS = 0.3  # until a GPU's clocks have risen
_ROUNDS = (5, 200)  # at least and at most; on a CPU times say nothing: one


def record(
    benchmark: Any, section: str, case: str, method: str, work: Work | None = None, **info: Any
) -> None:
    """The last step of a benchmark: without it, results.py drops the time."""
    benchmark.group = f"{section}: {case}"
    if work is not None:
        info |= {"bytes_read": work.read, "bytes_written": work.written}
        info["exponentials"] = work.exponentials
    benchmark.extra_info.update(section=section, case=case, method=method, **info, verified=True)


class Timing(NamedTuple):
    """Seconds of one job, by round; the first job's output in the last round."""

    seconds: list[float]
    output: Any
    runs: int  # of each job, those to warm up included
    peak_extra_bytes: int | None


def time_jobs(
    jobs: Sequence[Job],
    device: str,
    *,
    graph: bool = False,
    seconds: float = 1.0,
    warm_up: bool = True,
) -> Timing:
    """Runs the jobs one after another, round by round; on a CPU once after warming up.

    Args:
        jobs: the same work on different inputs, see `copies`.
        graph: on a GPU, capture a round in a CUDA graph and time its replays.
        seconds: what all rounds may take together.
        warm_up: False for one round and nothing before: the job takes long.
    """
    times = _event_times if device == "cuda" else _wall_times
    memory = PeakMemory(device)

    def run() -> Any:
        first = jobs[0]()
        for job in jobs[1:]:
            job()
        return first

    runs, rounds = 1, 1
    taken, output = times(run, 1)
    peak = memory.extra()
    if warm_up:
        if device == "cuda":
            run = _captured(run) if graph else run
            until = time.perf_counter() + _WARM_UP_SECONDS
            while time.perf_counter() < until:
                taken, output = times(run, 1)
                runs += 1
            rounds = max(_ROUNDS[0], min(_ROUNDS[1], int(seconds / taken[0])))
        taken, output = times(run, rounds)
        runs += rounds
    return Timing([each / len(jobs) for each in taken], output, runs, peak)


def _wall_times(run: Job, rounds: int) -> tuple[list[float], Any]:
    taken, output = [], None
    for _ in range(rounds):
        begin = time.perf_counter()
        output = run()
        taken.append(time.perf_counter() - begin)
    return taken, output


def _event_times(run: Job, rounds: int) -> tuple[list[float], Any]:
    """Between events on the GPU; the rounds are queued, so that it does not wait for launches."""
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
    output = None
    for begin, end in events:
        begin.record()
        output = run()
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) / 1e3 for begin, end in events], output


def _captured(run: Job) -> Job:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()

    def replay() -> Any:
        graph.replay()
        return output

    return replay


def copies(input_bytes: float) -> int:
    """How many sets of inputs to rotate among, so that none is read from a cache."""
    return max(1, min(8, math.ceil(_ROTATED_BYTES / input_bytes)))


def fewest_iterations(most: int, target: float, error: Callable[[int], float]) -> int:
    """The fewest iterations, in steps of a quarter, whose error is at most the target.

    Where `most` do not reach it, the fewest that come within 10% of the least error: what more
    iterations do not improve shall not be timed.
    """
    tried, count = [], 1
    while not tried or (tried[-1][0] > target and count <= most):
        found = error(count)
        tried.append((math.inf if math.isnan(found) else found, count))
        count = max(count + 1, count * 5 // 4)
    enough = max(target, 1.1 * min(tried)[0])
    return next(count for found, count in tried if found <= enough)


class PeakMemory:
    """What memory rises to above its start: torch's on a GPU, else what the process resides in.

    The latter on Linux only: else None.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device, self.start = device, None
        gc.collect()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
        elif sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)  # so that free memory in the heap hides nothing
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
            self.start = _status("VmRSS")

    def extra(self) -> int | None:
        if self.start is None:
            return None
        peak = torch.cuda.max_memory_allocated if self.device == "cuda" else _peak_resident
        return max(0, peak() - self.start)


def _peak_resident() -> int:
    return _status("VmHWM")


def _status(key: str) -> int:
    """Bytes of VmRSS or VmHWM."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def iterations_within(
    seconds: float, most: int, prepare: Callable[[int], Callable[[], Any]], device: str = "cpu"
) -> int:
    """How many iterations, from 10 to `most`, fit in about so many seconds: by a run of 10."""
    ten = prepare(10)
    ten()  # to warm up
    taken, _ = (_event_times if device == "cuda" else _wall_times)(ten, 1)
    return max(10, min(most, int(10 * seconds / taken[0])))
