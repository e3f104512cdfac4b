"""Shared by the operators' tests: every layout and dtype, and every backend that can run here."""

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from selavi.ops import backends
from tests.ops.on_device import Moved, device_of

# Before cuBLAS starts: `poisoned_memory` lets torch's own products run only so.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
CPU_BACKENDS, GPU_BACKENDS = ("torch", "cpu", "numpy"), ("cuda", "triton")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _transposed(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT


def _strided(x: Tensor) -> Tensor:
    """Every other element of rows whose gaps hold NaN: reading between elements shows."""
    wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan)
    wide[..., ::2] = x
    return wide[..., ::2]


def _padded_rows(x: Tensor) -> Tensor:
    wide = x.new_full((*x.shape[:-1], x.shape[-1] + 3), torch.nan)
    wide[..., : x.shape[-1]] = x
    return wide[..., : x.shape[-1]]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "transposed": _transposed,
    "strided": _strided,
    "padded rows": _padded_rows,
}


def _usable(request: pytest.FixtureRequest) -> str:
    """The backend of a parameter; where it cannot run here, the test is skipped and says why."""
    state = backends()[request.param]
    if state != "available":
        pytest.skip(f"backend {request.param} is {state}")
    numpy = request.param == "numpy" and "dtype" in request.fixturenames
    if numpy and request.getfixturevalue("dtype") == torch.bfloat16:
        pytest.skip("NumPy has no bfloat16")
    return str(request.param)


@pytest.fixture(params=[*CPU_BACKENDS, *GPU_BACKENDS])
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend; tests/ops/on_device.py takes tensors to where it runs."""
    return _usable(request)


@pytest.fixture(params=CPU_BACKENDS)
def cpu_backend(request: pytest.FixtureRequest) -> str:
    return _usable(request)


@pytest.fixture(params=GPU_BACKENDS)
def gpu_backend(request: pytest.FixtureRequest) -> str:
    """For tests of what only a GPU can show."""
    name = _usable(request)
    if device_of(name) != "cuda":
        pytest.skip(f"backend {name} runs in an interpreter")
    return name


@pytest.fixture(scope="session", params=["cpu", *GPU_BACKENDS])
def library(request: pytest.FixtureRequest) -> Moved:
    """The primitives of a compiled backend, for tensors on the CPU."""
    return Moved(_usable(request))


@pytest.fixture(autouse=True)
def healthy_gpu() -> Iterator[None]:
    """What fails on the GPU fails in its own test. After an illegal access nothing can run there.

    Then this process ends: pytest-xdist starts another one for the tests that are left.
    """
    yield
    if torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            if "PYTEST_XDIST_WORKER" in os.environ:
                os._exit(1)
            pytest.exit(f"the GPU's context is lost: {error}", returncode=1)


@pytest.fixture
def compiled() -> None:
    if backends()["cpu"] != "available":
        pytest.skip(f"the extension is {backends()['cpu']}")


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=LAYOUTS.values(), ids=list(LAYOUTS))
def layout(request: pytest.FixtureRequest) -> Callable[[Tensor], Tensor]:
    return request.param


@pytest.fixture
def poisoned_memory():
    """Fresh uninitialized tensors hold NaN, so an element that is never written shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
