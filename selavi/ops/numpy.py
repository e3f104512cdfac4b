"""`selavi.ops.sinkhorn` for NumPy arrays, on the extension selavi.ops._numpy.

from selavi.ops.numpy import sinkhorn
labels = sinkhorn(log_p, lam=20.0).labels
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from selavi.ops._solve import DEFAULT_TOL
from selavi.ops.sinkhorn import SinkhornResult, Solver
from selavi.ops.sinkhorn import sinkhorn as sinkhorn_of_tensors

__all__ = ["NumpySinkhornResult", "sinkhorn"]


_TORCH_DTYPES = {
    np.dtype(np.float32): torch.float32,
    np.dtype(np.float64): torch.float64,
    np.dtype(np.float16): torch.float16,
}


@dataclass(frozen=True)
class NumpySinkhornResult:
    """`selavi.ops.SinkhornResult` in arrays; see there for what each of them is."""

    labels: NDArray[np.int64]
    confidence: NDArray[np.float64]
    row_potential: NDArray[np.float64]
    col_potential: NDArray[np.float64]
    row_marginal: NDArray[np.float64]
    col_marginal: NDArray[np.float64]
    n_passes: NDArray[np.int64]
    error: NDArray[np.float64]
    converged: NDArray[np.bool_]
    value: NDArray[np.float64]
    _result: SinkhornResult = field(repr=False)

    def log_plan(self) -> NDArray[np.float64]:
        """log Q, (..., N, K) float64. Computed at each call."""
        log_plan: NDArray[np.float64] = self._result.log_plan().numpy()
        return log_plan

    def plan(self, dtype: DTypeLike = np.float64) -> NDArray[Any]:
        """Q, (..., N, K). Computed at each call, directly in a dtype that log_p may have."""
        wanted = np.dtype(dtype)
        written = _TORCH_DTYPES.get(wanted, torch.float64)
        plan: NDArray[Any] = self._result.plan(written).numpy()
        return plan.astype(wanted, copy=False)


def sinkhorn(
    log_p: NDArray[Any],
    *,
    lam: float = 20.0,
    row_marginal: NDArray[Any] | None = None,
    col_marginal: NDArray[Any] | None = None,
    permute: bool = False,
    tol: float | None = DEFAULT_TOL,
    max_iterations: int = 200,
    solver: Solver = "auto",
    init: NDArray[Any] | NumpySinkhornResult | None = None,
) -> NumpySinkhornResult:
    """`selavi.ops.sinkhorn` on arrays of float32, float64 or float16, with its errors.

    log_p is read where it lies, read-only and memory-mapped arrays included, whatever its strides;
    only negative strides, foreign byte order and unaligned elements cost a copy. The passes over
    log_p run on one thread, without the GIL. init may be an earlier result of this function. There
    are no gradients and no groups. Without the extension this raises RuntimeError.
    """
    start = init.col_potential if isinstance(init, NumpySinkhornResult) else init
    result = sinkhorn_of_tensors(
        _tensor("log_p", log_p),
        lam=lam,
        row_marginal=None if row_marginal is None else _tensor("row_marginal", row_marginal),
        col_marginal=None if col_marginal is None else _tensor("col_marginal", col_marginal),
        permute=permute,
        tol=tol,
        max_iterations=max_iterations,
        solver=solver,
        init=None if start is None else _tensor("init", start),
        backend="numpy",
    )
    return NumpySinkhornResult(
        labels=result.labels.numpy(),
        confidence=result.confidence.numpy(),
        row_potential=result.row_potential.numpy(),
        col_potential=result.col_potential.numpy(),
        row_marginal=result.row_marginal.numpy(),
        col_marginal=result.col_marginal.numpy(),
        n_passes=result.n_passes.numpy(),
        error=result.error.numpy(),
        converged=result.converged.numpy(),
        value=result.value.numpy(),
        _result=result,
    )


class _Unlocked:
    """An array's memory without its read-only flag, which torch warns of. Nothing writes to it."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array  # keeps the memory alive
        interface = dict(array.__array_interface__)
        self.__array_interface__ = interface | {"data": (interface["data"][0], False)}


def _tensor(name: str, values: NDArray[Any]) -> torch.Tensor:
    array = np.asarray(values)
    if array.dtype.newbyteorder("=") not in _TORCH_DTYPES:
        raise TypeError(f"{name} has dtype {array.dtype}; expected float32, float64 or float16")
    steps = [stride for stride, size in zip(array.strides, array.shape, strict=True) if size > 1]
    plain = all(stride >= 0 and stride % array.itemsize == 0 for stride in steps)
    if not (plain and array.dtype.isnative and array.flags.aligned):
        array = array.astype(array.dtype.newbyteorder("="), order="C")
    if not array.flags.writeable:
        array = np.asarray(_Unlocked(array))
    return torch.from_numpy(array)
