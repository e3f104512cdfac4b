"""Shared by the operators' tests: every layout and dtype, and every backend that can run here."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from selavi.ops import backends

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


@pytest.fixture(params=["torch", "cpu", "numpy"])
def backend(request: pytest.FixtureRequest) -> str:
    state = backends()[request.param]
    if state != "available":
        pytest.skip(f"backend {request.param} is {state}")
    dtype = request.getfixturevalue("dtype") if "dtype" in request.fixturenames else None
    if request.param == "numpy" and dtype == torch.bfloat16:
        pytest.skip("NumPy has no bfloat16")
    return str(request.param)


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
