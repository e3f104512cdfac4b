"""The folders in which scans and decoded clips are kept between runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selavi.errors import SelaviError


@contextmanager
def writing_cache(folder: Path) -> Iterator[None]:
    """Make `folder` for the block that writes into it.

    Raises:
        SelaviError: the file system refuses, here or in the block.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise SelaviError(
            f"cannot write the cache {folder}: {error.strerror or error}; set SELAVI_CACHE to a "
            "folder that can be written"
        ) from error
