"""The operators for tests whose tensors are on the CPU: a GPU backend's are moved there and back.

Import `sinkhorn` and the others from here instead of from selavi.ops. For a backend of the CPU they
are the operators themselves. Layouts move as they are, gaps included, and gradients pass through.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import selavi.ops
from selavi.ops import _library
from selavi.ops.compat import dino, swav

device_of = _library._device_of


def move(value: Any, device: str) -> Any:
    """Tensors, in lists and tuples too, on the device; all else as it is."""
    if isinstance(value, (list, tuple)):
        return type(value)(move(each, device) for each in value)
    if isinstance(value, Result):
        return value.there
    if not isinstance(value, Tensor) or value.device.type == device:
        return value
    spans = [(n - 1) * stride for n, stride in zip(value.shape, value.stride(), strict=True)]
    length = value.storage_offset() + sum(spans) + 1 if value.numel() else 0
    flat = value.as_strided((length,), (1,), 0).to(device)
    return flat.as_strided(value.shape, value.stride(), value.storage_offset())


class Result:
    """A SinkhornResult whose tensors come to the CPU as they are read."""

    def __init__(self, there: selavi.ops.SinkhornResult) -> None:
        self.there = there

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.there, name)
        if callable(value) and not isinstance(value, Tensor):
            return lambda *arguments: move(value(*arguments), "cpu")
        return move(value, "cpu")


class Moved:
    """A backend's primitives, likewise."""

    def __init__(self, name: str) -> None:
        self.name, self.device = name, device_of(name)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(_library.primitives(self.name, torch.empty(0, device=self.device)), name)
        return lambda *arguments: move(function(*move(arguments, self.device)), "cpu")


def _on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, backend: str = "auto", **options: Any) -> Any:
        device = device_of(backend)
        if device == "cpu":
            return function(*arguments, backend=backend, **options)
        options = {name: move(value, device) for name, value in options.items()}
        out = function(*move(arguments, device), backend=backend, **options)
        return Result(out) if isinstance(out, selavi.ops.SinkhornResult) else move(out, "cpu")

    return call


def accumulate_log_softmax_(
    store: Tensor,
    logits: Sequence[Tensor],
    index: Tensor,
    weight: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """In place: what it wrote on the device is copied back into store."""
    there, *rest = move([store, logits, index, weight], device_of(backend))
    written = selavi.ops.accumulate_log_softmax_(there, *rest, backend=backend)
    assert written is there
    return store if there is store else store.copy_(there)


sinkhorn = _on_device(selavi.ops.sinkhorn)
permute_prior = _on_device(selavi.ops.permute_prior)
distributed_sinkhorn = _on_device(swav.distributed_sinkhorn)
sinkhorn_knopp_teacher = _on_device(dino.sinkhorn_knopp_teacher)
ibot_sinkhorn_knopp_teacher = _on_device(dino.ibot_sinkhorn_knopp_teacher)
