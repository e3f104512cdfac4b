"""The emulated CUDA kernels, compiled once a session."""

import platform
import shutil

import pytest

from selavi.ops import backends
from tests.cuda import emulated
from tests.ops.conftest import dtype, layout, poisoned_memory  # noqa: F401


@pytest.fixture(scope="session")
def emulator() -> None:
    if backends()["cpu"] != "available":
        pytest.skip(f"the extension, whose schemas are needed, is {backends()['cpu']}")
    if platform.machine() != "x86_64" or shutil.which("g++") is None:
        pytest.skip("the emulator needs g++ on x86-64")
    emulated.load(emulated.ROOT / "build" / "emulated")
