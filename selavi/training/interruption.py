"""Leave when the machine asks for it, with the work saved."""

import signal
from types import FrameType

#: Exit code of a run that a signal interrupted and `--resume` continues (EX_TEMPFAIL).
EXIT_INTERRUPTED = 75


class Interrupted(Exception):
    """The run was asked to stop; its state is saved."""


class InterruptionFlag:
    """Set by SIGTERM or SIGUSR1 while the context is entered; read between steps."""

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.is_set = False

    def __enter__(self) -> "InterruptionFlag":
        self._previous = {s: signal.signal(s, self._set) for s in self.SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True
