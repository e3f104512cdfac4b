"""log_p mapped from a file, solved by a process that may not hold it."""

import subprocess
import sys

import pytest
import torch

from selavi.ops import sinkhorn

ROWS, COLUMNS = 400_000, 128  # 205 MB in float32
ALLOWED = 64 << 20  # a sample of the rows is an eighth of the matrix, the labels' share is less

# RLIMIT_DATA counts private writable memory: the heap, but not pages of a file mapped for reading.
SOLVE = """
import resource, sys, warnings
import numpy as np
import torch
from selavi.ops import sinkhorn

kind, path, output, dtype, allowed = sys.argv[1:]
torch.set_num_threads(1)
warnings.simplefilter("ignore")  # a tensor over a file that may not be written
shape = tuple(map(int, open(path + ".shape").read().split()))
sinkhorn(torch.zeros(600, 2), permute=True)  # so that all that is loaded late is
if kind == "from_file":
    count = shape[0] * shape[1]
    log_p = torch.from_file(path, shared=True, size=count, dtype=getattr(torch, dtype)).view(shape)
else:
    log_p = torch.from_numpy(np.memmap(path, dtype, "r", shape=shape))
used = [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")]
limit = (used[0] << 10) + int(allowed)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    log_p + 1
    raise SystemExit("a copy of the matrix fits: the limit says nothing")
except RuntimeError:
    pass
result = sinkhorn(log_p, lam=5.0, permute=True, col_marginal=torch.arange(1.0, shape[1] + 1))
torch.save((result.labels, result.col_potential, result.converged, result.n_passes), output)
"""


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    path = tmp_path_factory.mktemp("mapped") / "log_p"
    generator = torch.Generator().manual_seed(0)
    log_p = torch.randn(ROWS, COLUMNS, generator=generator).log_softmax(-1)
    log_p.numpy().tofile(path)
    path.with_suffix(".shape").write_text(f"{ROWS} {COLUMNS}")
    return path, log_p


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA limits mapped memory on Linux")
@pytest.mark.parametrize("kind", ["memmap", "from_file"])
@pytest.mark.usefixtures("compiled")
def test_a_mapped_file_larger_than_memory(matrix, kind, tmp_path):
    path, log_p = matrix
    output = tmp_path / "result.pt"
    command = [sys.executable, "-P", "-c", SOLVE, kind, path, output, "float32", str(ALLOWED)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    labels, v, converged, passes = torch.load(output)
    whole = sinkhorn(log_p, lam=5.0, permute=True, col_marginal=torch.arange(1.0, COLUMNS + 1))
    assert converged and passes == whole.n_passes
    assert torch.equal(labels, whole.labels)
    # Not to the last bit: the process has one thread, and matrix products may sum by threads.
    torch.testing.assert_close(v, whole.col_potential, rtol=0, atol=1e-6)
