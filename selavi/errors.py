"""The one exception that a user is meant to read."""

from collections.abc import Mapping


class SelaviError(Exception):
    """A mistake in the input or the environment, told in one line.

    The message names the offending value and the remedy. The command line prints it without a
    traceback and exits with code 2.
    """


def check_ranges(section: str, settings: object, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Raise SelaviError for the first of the named settings that lies outside its range."""
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            range_ = f"{low} or more" if high == float("inf") else f"a number from {low} to {high}"
            raise SelaviError(f"{section}.{name} is {value}: give {range_}")
