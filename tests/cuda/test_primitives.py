"""The CUDA kernels, in the CPU emulator, against the definition."""

import pytest
import torch

from selavi.ops import _definition
from tests.ops.test_primitives import primitive_arguments, tolerance

pytestmark = pytest.mark.usefixtures("emulator")
LIBRARY = torch.ops.selavi_emulated
# Columns at the edges of the kernels' shapes.
EDGES = (1, 7, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 192, 193, 256, 309, 320, 416, 417, 512, 513)
LONG = (768, 1000, 1024, 1025, 1536, 2048, 2049, 4096, 4097, 8192)


def assert_pass_matches(log_p, v, c, lam):
    ours = LIBRARY.sinkhorn_pass(log_p, v, c, lam)
    definition = _definition.sinkhorn_pass(log_p, v, c, lam)
    torch.testing.assert_close(ours, definition, **tolerance("sinkhorn_pass", log_p.dtype))
    return ours


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("candidates", [1, 2, 7])
@pytest.mark.parametrize("columns", EDGES)
def test_pass_at_every_shape(columns, candidates):
    log_p, v, c = primitive_arguments(2, 45, columns, candidates, columns)
    lam = torch.tensor([20.0, 0.5], dtype=torch.float64)
    assert_pass_matches(log_p, v, c, lam)
