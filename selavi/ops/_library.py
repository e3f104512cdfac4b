"""Loads the compiled operators, gives them fake kernels, and picks a backend for a call."""

import os
from collections.abc import Sequence
from functools import lru_cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor

from selavi.ops import _definition
from selavi.ops._choice import choose

Backend = Literal["auto", "torch", "cpu", "numpy", "cuda", "triton"]


class Primitives(Protocol):
    """What a backend provides; selavi.ops._definition says what each function computes."""

    def sinkhorn_pass(
        self, log_p: Tensor, v: Tensor, row_marginal: Tensor, lam: Tensor
    ) -> tuple[Tensor, Tensor]: ...
    def sinkhorn_iterations(
        self,
        log_p: Tensor,
        v: Tensor,
        row_marginal: Tensor,
        col_marginal: Tensor,
        lam: Tensor,
        count: int,
    ) -> tuple[Tensor, Tensor, Tensor]: ...
    def sinkhorn_overlap(
        self, log_p: Tensor, v: Tensor, row_marginal: Tensor, lam: Tensor
    ) -> Tensor: ...
    def sinkhorn_labels(
        self, log_p: Tensor, v: Tensor, lam: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]: ...
    def sinkhorn_plan(
        self, log_p: Tensor, v: Tensor, row_marginal: Tensor, lam: Tensor, dtype: torch.dtype
    ) -> Tensor: ...
    def sinkhorn_column_logsumexp(self, log_p: Tensor, u: Tensor, lam: Tensor) -> Tensor: ...
    def permute_prior(self, prior: Tensor, mass: Tensor) -> Tensor: ...
    def accumulate_log_softmax_(
        self, store: Tensor, logits: Sequence[Tensor], index: Tensor, weight: Tensor | None
    ) -> None: ...


def _load() -> bool:
    """Load selavi/_C if it was built. One that is there and does not load is an error."""
    libraries = sorted(Path(__file__).parent.parent.glob("_C.*"))
    if not libraries:
        return False
    try:
        torch.ops.load_library(libraries[0])
    except OSError as error:
        raise ImportError(
            f"{libraries[0].name} was built but torch {torch.__version__} cannot load it "
            f"({error}); reinstall selavi, or delete the file to use the PyTorch definition"
        ) from error
    _register_fakes()
    torch.library.impl("selavi::sinkhorn_iterations", "CPU")(
        partial(_definition.repeat_pass, torch.ops.selavi.sinkhorn_pass)
    )
    return True


def _register_fakes() -> None:
    @torch.library.register_fake("selavi::sinkhorn_pass")
    def _(log_p: Tensor, v: Tensor, row_marginal: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
        return torch.empty_like(v), v.new_empty(v.shape[:2])

    @torch.library.register_fake("selavi::sinkhorn_iterations")
    def _(
        log_p: Tensor,
        v: Tensor,
        row_marginal: Tensor,
        col_marginal: Tensor,
        lam: Tensor,
        count: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return torch.empty_like(v), torch.empty_like(v), v.new_empty(v.shape[:1])

    @torch.library.register_fake("selavi::sinkhorn_overlap")
    def _(log_p: Tensor, v: Tensor, row_marginal: Tensor, lam: Tensor) -> Tensor:
        return v.new_empty(*v.shape, v.shape[-1])

    @torch.library.register_fake("selavi::sinkhorn_labels")
    def _(log_p: Tensor, v: Tensor, lam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = log_p.shape[:2]
        return v.new_empty(rows, dtype=torch.int64), v.new_empty(rows), v.new_empty(rows)

    @torch.library.register_fake("selavi::sinkhorn_plan")
    def _(
        log_p: Tensor, v: Tensor, row_marginal: Tensor, lam: Tensor, dtype: torch.dtype
    ) -> Tensor:
        return v.new_empty(log_p.shape, dtype=dtype)

    @torch.library.register_fake("selavi::sinkhorn_column_logsumexp")
    def _(log_p: Tensor, u: Tensor, lam: Tensor) -> Tensor:
        return u.new_empty(log_p.shape[0], log_p.shape[2])

    @torch.library.register_fake("selavi::permute_prior")
    def _(prior: Tensor, mass: Tensor) -> Tensor:
        return torch.empty_like(mass)

    @torch.library.register_fake("selavi::accumulate_log_softmax_")
    def _(store: Tensor, logits: Sequence[Tensor], index: Tensor, weight: Tensor | None) -> None:
        return None


_BUILT = _load()
# Neither NumPy nor Triton nor what needs them is imported here.
_NUMPY_BUILT = find_spec("selavi.ops._numpy") is not None
_HAS_NUMPY, _HAS_TRITON = find_spec("numpy") is not None, find_spec("triton") is not None
_GPU_BACKENDS = ("cuda", "triton")
_NAMES = ("torch", "cpu", "numpy", *_GPU_BACKENDS)


def backends() -> dict[str, str]:
    """Every backend's name and "available", or why it cannot be used."""
    return {name: _state(name) for name in _NAMES}


def _state(backend: str) -> str:
    if backend == "torch":
        return "available"
    if backend == "triton":
        if not _HAS_TRITON:
            return "not usable: Triton is not installed"
        return "available" if is_interpreted() or torch.cuda.is_available() else _NO_GPU
    if not (_NUMPY_BUILT if backend == "numpy" else _BUILT):
        return "not built: install selavi with a C++ compiler, or run setup.py build_ext --inplace"
    if backend == "numpy" and not _HAS_NUMPY:
        return "not usable: NumPy is not installed"
    if backend == "cuda":
        if not torch._C._dispatch_has_kernel_for_dispatch_key("selavi::sinkhorn_pass", "CUDA"):
            return "not built: install selavi with nvcc and SELAVI_BUILD_CUDA=1"
        return "available" if torch.cuda.is_available() and not torch.version.hip else _NO_GPU
    return "available"


_NO_GPU = "not usable: torch finds no GPU of its kind"


def is_interpreted() -> bool:
    """Whether Triton runs its kernels on the CPU, slowly, to be looked at."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def primitives(backend: str, tensor: Tensor) -> Primitives:
    """The primitives of `backend` for `tensor`, whose last dimension is K.

    "auto" takes, for a CPU tensor, "cpu" if it was built, and for a GPU tensor each primitive from
    "cuda" or "triton", whichever was measured as the faster (selavi.ops._choice), or from the one
    that can run; where none can, "torch". A backend that is named and cannot run raises
    RuntimeError. "numpy" runs on the CPU.
    """
    device = tensor.device.type
    if backend == "auto":
        return _fastest(tensor)
    if backend not in _NAMES:
        raise ValueError(f"backend={backend!r} is not one of auto, {', '.join(_NAMES)}")
    if (state := _state(backend)) != "available":
        raise RuntimeError(f"backend={backend!r} is {state}")
    if backend != "torch" and device != _device_of(backend):
        raise RuntimeError(
            f"backend={backend!r} got a tensor on {tensor.device}; move it, or use backend='auto'"
        )
    return _named(backend)


def _device_of(backend: str) -> str:
    on_gpu = backend == "cuda" or (backend == "triton" and not is_interpreted())
    return "cuda" if on_gpu else "cpu"


def _named(backend: str) -> Primitives:
    modules = {"numpy": "selavi.ops._numpy_backend", "triton": "selavi.kernels"}
    if backend in modules:
        return cast(Primitives, import_module(modules[backend]))
    return _definition if backend == "torch" else cast(Primitives, torch.ops.selavi)


def _fastest(tensor: Tensor) -> Primitives:
    if tensor.device.type == "cpu":
        return _named("cpu") if _BUILT else _definition
    usable = usable_on_gpu() if tensor.device.type == "cuda" else []
    if len(usable) < 2:
        return _named(usable[0]) if usable else _definition
    return cast(Primitives, _Measured(tensor.shape[-1], tensor.dtype))


@lru_cache(maxsize=1)
def usable_on_gpu() -> list[str]:
    """The GPU backends that can run; neither the build nor the machine changes meanwhile."""
    return [name for name in _GPU_BACKENDS if _state(name) == "available"]


class _Measured:
    """Each primitive from the GPU backend that was measured as the faster on K columns of dtype."""

    def __init__(self, columns: int, dtype: torch.dtype) -> None:
        self._columns, self._dtype = columns, dtype

    def __getattr__(self, primitive: str) -> Any:
        backend = choose(primitive, self._columns, self._dtype)
        return getattr(_named(backend), primitive)
