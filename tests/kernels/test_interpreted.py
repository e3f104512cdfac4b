"""The kernels' arithmetic without a GPU: interpreted/ in a process where Triton interprets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
HERE = Path(__file__).parent
# By name: no test of theirs runs in a process where Triton compiles.
FILES = ("sinkhorn", "permute_prior", "accumulate_log_softmax", "operators")


def test_kernels_match_the_definition_in_the_interpreter():
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *(HERE / "interpreted" / f"{name}.py" for name in FILES)],
        cwd=HERE.parents[1],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    print(done.stdout[-8000:], done.stderr[-2000:])
    assert done.returncode == 0
