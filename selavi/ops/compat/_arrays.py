"""Tensors in, tensors out; NumPy arrays, or what becomes one, in, NumPy arrays out."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

# A tensor, or anything that numpy.asarray takes.
Array: TypeAlias = Any


@dataclass(frozen=True)
class Library:
    """What the results of a call must be: the cost's kind, dtype and device."""

    numpy: bool
    dtype: torch.dtype
    device: torch.device

    def export(self, x: Tensor) -> Array:
        """x as the caller's kind of array; without dimensions, a tensor or a NumPy scalar."""
        x = x.to(self.dtype)
        return x.numpy()[()] if self.numpy else x


def negated_cost(name: str, cost: Array) -> tuple[Tensor, Library]:
    """-cost (N, M) as a tensor of its own, integers as floating point, and its library."""
    if isinstance(cost, Tensor):
        floating = cost if cost.is_floating_point() else cost.to(torch.get_default_dtype())
        negated = -floating
    else:
        import numpy as np

        array = np.asarray(cost)
        kind = array.dtype if array.dtype.kind == "f" else np.dtype(np.float64)
        negated = torch.from_numpy(np.ascontiguousarray(np.negative(array, dtype=kind)))
    if negated.ndim != 2 or 0 in negated.shape:
        raise ValueError(f"{name} has shape {tuple(negated.shape)}; expected (N, M), N, M >= 1")
    return negated, Library(not isinstance(cost, Tensor), negated.dtype, negated.device)


def weights(name: str, values: Array | None, shape: tuple[int, ...], library: Library) -> Tensor:
    """Weights as float64 on the cost's device; None or an empty array is uniform and sums to 1.

    shape is (size,), or (size, -1) where histograms in columns are welcome too.
    """
    if values is not None and not isinstance(values, Tensor):
        import numpy as np

        values = torch.from_numpy(np.array(values, dtype=np.float64))
    if values is None or values.shape[:1] == (0,):
        return torch.full(shape[:1], 1.0 / shape[0], dtype=torch.float64, device=library.device)
    if values.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(f"no gradient reaches {name}; pass {name}.detach()")
    columns = len(shape) == 2 and values.ndim == 2
    if values.shape[0:1] != shape[:1] or not (values.ndim == 1 or columns) or not values.numel():
        expected = f"({shape[0]},)" + (f" or ({shape[0]}, histograms)" if len(shape) == 2 else "")
        raise ValueError(f"{name} has shape {tuple(values.shape)}; expected {expected}")
    wide = values.to(device=library.device, dtype=torch.float64)
    if not (wide.isfinite().all() and (wide >= 0).all() and (wide.sum(0) > 0).all()):
        raise ValueError(f"{name} must hold finite numbers of at least 0, and not only zeros")
    return wide
