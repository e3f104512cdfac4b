"""Leave when the machine asks for it, with the work saved."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: Exit code of a run that a signal interrupted and `--resume` continues (EX_TEMPFAIL).
EXIT_INTERRUPTED = 75


class Interrupted(Exception):
    """The run was asked to stop; its state is saved."""


SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise Interrupted at once where a signal comes: for work that needs no saving."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    previous = {s: signal.signal(s, stop) for s in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class InterruptionFlag:
    """Set by a signal while the context is entered; read between steps, for an orderly save."""

    def __init__(self) -> None:
        self.is_set = False

    def __enter__(self) -> "InterruptionFlag":
        self._previous = {s: signal.signal(s, self._set) for s in SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True
