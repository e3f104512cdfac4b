"""Run a function over many items in processes that may crash or hang without harm.

Video files come from anywhere, and decoders are native code: one file may abort the process or
never return. Each item therefore runs in a worker process; if that dies or is late, the item
becomes a `Failure`, the worker is replaced, and the rest goes on.

Workers are plain new interpreters, not started through multiprocessing: that would import the
caller's main module (and torch with it) into each of them, or fork a threaded process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

from selavi.errors import SelaviError

# The parent's path and nothing else: the current folder may hold anything, an `av.py` too.
_WORKER = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from selavi.data.workers import serve; serve(int(sys.argv[1]))"
)
_PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])


@dataclass(frozen=True)
class Failure:
    """Stands in for the result of an item that gave none."""

    reason: Literal["error", "crashed", "timed_out"]
    message: str


def isolated_map(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    *,
    workers: int,
    timeout: float = 60.0,
    lookahead: int = 64,
) -> Generator[Any, None, None]:
    """Yield `function(item)` or a `Failure` for each item, in order.

    Args:
        function: importable by name; its module is imported in the workers.
        items: picklable; taken as needed, at most `lookahead` for each worker ahead of the output.
        workers: number of processes; 0 runs in this process, where a crash is everyone's.
        timeout: seconds an item may take (workers > 0 only).
        lookahead: bounds the results that wait for an earlier one.

    Raises:
        SelaviError: `workers` is negative.
    """
    check_workers(workers)
    if workers == 0:
        return (_call(function, item) for item in items)
    return _map_in_workers(function, items, workers, timeout, lookahead)


def check_workers(workers: int) -> None:
    """Raise SelaviError for a number of processes that cannot be had."""
    if workers < 0:
        raise SelaviError(f"workers is {workers}: give 0 or more")


def _map_in_workers(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    workers: int,
    timeout: float,
    lookahead: int,
) -> Generator[Any, None, None]:
    queue = enumerate(items)
    pending = next(queue, None)
    pool: list[_Worker] = []
    done: dict[int, Any] = {}
    emitted = 0
    try:
        while True:
            while pending is not None and pending[0] < emitted + lookahead * workers:
                worker = next((w for w in pool if w.index is None), None)
                if worker is None and len(pool) == workers:
                    break
                if worker is None:
                    pool.append(worker := _Worker())
                worker.start(function, *pending, timeout)
                pending = next(queue, None)
            while emitted in done:
                yield done.pop(emitted)
                emitted += 1
            if not (busy := [w for w in pool if w.index is not None]):
                if pending is None:
                    return
                continue
            patience = max(0.0, min(w.deadline for w in busy) - time.monotonic())
            ready = wait([w.connection for w in busy], patience)
            for worker in busy:
                if worker.connection in ready:
                    result = worker.finish()
                elif time.monotonic() >= worker.deadline:
                    result = Failure("timed_out", f"no answer in {timeout:g} seconds")
                    worker.stop()
                else:
                    continue
                done[worker.index] = result
                worker.index = None
            pool = [w for w in pool if w.alive]
    finally:
        for worker in pool:
            worker.stop()


@dataclass
class _Worker:
    """One process and the parent's end of the pipe to it."""

    index: Any = None  # of the item it works on, None when idle
    deadline: float = 0.0
    alive: bool = True
    connection: Connection = field(init=False)
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.connection, theirs = Pipe()
        path = [p for p in sys.path if p]
        if _PACKAGE_PARENT not in path:  # found through the current folder, or by an import hook
            path.append(_PACKAGE_PARENT)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _WORKER, str(theirs.fileno()), *path],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        theirs.close()

    def start(self, function: Callable[[Any], Any], index: int, item: Any, timeout: float) -> None:
        self.index, self.deadline = index, time.monotonic() + timeout
        with suppress(BrokenPipeError):  # it died: `finish` meets the end of the pipe
            self.connection.send((function, item))

    def finish(self) -> Any:
        """The result that has arrived, or a Failure when the process has ended instead."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.stop()
            return Failure("crashed", f"the decoder crashed (exit code {self.process.returncode})")

    def stop(self) -> None:
        self.alive = False
        self.connection.close()
        try:  # an idle or crashed worker ends by itself when the pipe closes
            self.process.wait(timeout=0.0 if self.index is not None else 1.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    try:
        return function(item)
    except Exception as error:  # whatever a hostile file provokes is that file's result
        return Failure("error", f"{type(error).__name__}: {error}")


def serve(descriptor: int) -> None:
    """Answer items until the parent goes away: what a worker process runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    connection = Connection(descriptor)
    while True:
        try:
            function, item = connection.recv()
        except (EOFError, OSError):
            return
        except Exception as error:  # the function could not be imported here
            connection.send(Failure("error", f"{type(error).__name__}: {error}"))
            continue
        try:
            connection.send(_call(function, item))
        except (BrokenPipeError, ConnectionResetError):
            return
