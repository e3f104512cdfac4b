"""The CPU emulator of CUDA: right results, and an end to the program where a kernel is wrong."""

import subprocess
import sys

import pytest
import torch

from tests.cuda import emulated


@pytest.mark.usefixtures("emulator")
def test_sums_over_lanes_blocks_clusters_and_the_grid():
    out = torch.ops.selavi_emulated.check_emulator(torch.zeros(1), 0)
    assert out[[0, 1, 3]].tolist() == [32 * 33 / 2, 64 * 65 + 1000, 15]
    assert out[2].isnan()  # shared memory that was never written


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (1, "threads wait at a barrier that others have not reached"),
        (2, "lanes of a warp meet in"),
        (3, ""),
    ],
)
def test_mistakes_end_the_program(mistake, message):
    program = (
        "import torch, selavi.ops; from tests.cuda import emulated;"
        "emulated.load(emulated.ROOT / 'build' / 'emulated');"
        f"torch.ops.selavi_emulated.check_emulator(torch.zeros(1), {mistake})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=emulated.ROOT, capture_output=True, text=True
    )
    assert done.returncode < 0 and message in done.stderr
