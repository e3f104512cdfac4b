"""kernels/ is the package selavi.kernels, and the backend's functions are all in it."""

import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from selavi.ops._library import Primitives

ROOT = Path(__file__).parents[2]


def test_every_package_is_installed():
    """They are listed, because one of them lies elsewhere; a new one has to be added."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("selavi/**/__init__.py")
    }
    assert set(listed) == found | {"selavi.kernels"}


def test_the_folder_is_no_module_of_its_own():
    command = [sys.executable, "-c", "import kernels"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "this folder is the package selavi.kernels" in done.stderr


def test_the_module_has_the_primitives_with_their_arguments():
    pytest.importorskip("triton")
    from selavi import kernels

    names = [name for name, _ in inspect.getmembers(Primitives, inspect.isfunction)]
    for name in [name for name in names if not name.startswith("_")]:
        theirs = list(inspect.signature(getattr(Primitives, name)).parameters)
        schema = getattr(kernels, name)._opoverload._schema
        assert [argument.name for argument in schema.arguments] == theirs[1:]
