"""Every test of the drop-ins runs on every backend that can run here."""

import pytest
import torch


@pytest.fixture
def backend(backend: str) -> str:
    if backend == "cpu" and not hasattr(torch.ops.selavi, "sinkhorn_plan"):
        pytest.skip("the extension that was built has no sinkhorn_plan; build it again")
    return backend
