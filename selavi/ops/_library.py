"""Loads the compiled operators, gives them fake kernels, and picks a backend for a call."""

from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol, cast

import torch
from torch import Tensor

from selavi.ops import _definition

Backend = Literal["auto", "torch", "cpu", "numpy"]


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
_NUMPY_BUILT = find_spec("selavi.ops._numpy") is not None  # neither is imported here
_HAS_NUMPY = find_spec("numpy") is not None


def backends() -> dict[str, str]:
    """Every backend's name and "available", or why it cannot be used."""
    missing = "not built: install selavi with a C++ compiler, or run setup.py build_ext --inplace"
    numpy = "available" if _HAS_NUMPY else "not usable: NumPy is not installed"
    return {
        "torch": "available",
        "cpu": "available" if _BUILT else missing,
        "numpy": numpy if _NUMPY_BUILT else missing,
    }


def primitives(backend: str, tensor: Tensor) -> Primitives:
    """The primitives of `backend` for `tensor`.

    "auto" takes "cpu" for a CPU tensor if the extension is built and "torch" otherwise. A backend
    that is named and cannot run raises RuntimeError. "numpy" runs on the CPU.
    """
    if backend == "auto":
        backend = "cpu" if _BUILT and tensor.device.type == "cpu" else "torch"
    states = backends()
    if backend not in states:
        raise ValueError(f"backend={backend!r} is not one of auto, {', '.join(states)}")
    if states[backend] != "available":
        raise RuntimeError(f"backend={backend!r} is {states[backend]}")
    if backend == "torch":
        return _definition
    if tensor.device.type != ("cpu" if backend == "numpy" else backend):
        raise RuntimeError(
            f"backend={backend!r} got a tensor on {tensor.device}; move it, or use backend='auto'"
        )
    if backend == "numpy":
        from selavi.ops import _numpy_backend

        return _numpy_backend
    return cast(Primitives, torch.ops.selavi)
