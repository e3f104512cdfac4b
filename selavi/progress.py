"""Progress with a remaining time: a bar on a terminal, now and then a line in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from selavi import distributed

#: Seconds between two lines of a task whose output is not a terminal.
LINE_INTERVAL = 20.0

Advance = Callable[..., None]
console = Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """One line for the user, from the main process only."""
    if distributed.is_main():
        console.print(message, soft_wrap=True, markup=False)


@contextmanager
def task(description: str, total: int) -> Iterator[Advance]:
    """Show the progress of `total` items; the value is advance(count=1). Tasks may nest."""
    if not distributed.is_main():
        yield lambda count=1: None
    elif console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task(description, total=total)
            yield lambda count=1: progress.update(bar, advance=count)
    else:
        yield _lines(description, total)


def _lines(description: str, total: int) -> Advance:
    start = last = time.monotonic()
    done = 0

    def advance(count: int = 1) -> None:
        nonlocal last, done
        done += count
        now = time.monotonic()
        if now - last >= LINE_INTERVAL or (done >= total and now - start >= LINE_INTERVAL):
            last = now
            left = (now - start) / max(done, 1) * (total - done)
            print(f"{description}: {done}/{total}, {left:.0f} s left", file=sys.stderr)

    return advance


@contextmanager
def counted(description: str) -> Iterator[Callable[[int, int], None]]:
    """For jobs that call back with (items done, items in all): shows a task once they do."""
    with ExitStack() as stack:
        advance: Advance | None = None
        last = 0

        def on_progress(done: int, total: int) -> None:
            nonlocal advance, last
            if advance is None:
                advance = stack.enter_context(task(description, total))
            advance(done - last)
            last = done

        yield on_progress
