"""Average log-probabilities over modalities and augmentations into a store of all samples."""

from collections.abc import Sequence

import torch
from torch import Tensor

from selavi.ops._library import Backend, primitives


def accumulate_log_softmax_(
    store: Tensor,
    logits: Sequence[Tensor],
    index: Tensor,
    weight: Tensor | None = None,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """store[h, index[b], :] += sum_m weight[m, b] * log_softmax(logits[m][h, b, :]), in place.

    With one term for each view (transformation, modality) of a sample and weights that sum to 1
    this is the single-labelling average of SeLaVi, eq. 5.

    Args:
        store: (H, N, K) float32 or float64, H heads; any strides.
        logits: M tensors (H, B, K) of any floating dtypes and strides.
        index: (B,) int64, the samples' rows in the store, each at most once.
        weight: (M, B) floating, or None for 1/M. A weight of 0 skips that view of that sample,
            whatever its logits hold, NaN included: so a missing modality is left out.
        backend: as in `selavi.ops.sinkhorn`.

    Returns:
        store.

    Raises:
        ValueError: shapes that do not match, no logits, an index outside the store or repeated, a
            store whose entries overlap or that shares memory with logits. In compiled code the
            arguments are not checked.
        TypeError: a wrong dtype.
        RuntimeError: logits or store require a gradient, which this in-place sum does not pass on.
    """
    if not torch.compiler.is_compiling():
        _check(store, logits, index, weight)
    if weight is not None:
        weight = weight.to(device=store.device, dtype=torch.float64).contiguous()
    primitives(backend, store).accumulate_log_softmax_(
        store, list(logits), index.contiguous(), weight
    )
    return store


def _check(store: Tensor, logits: Sequence[Tensor], index: Tensor, weight: Tensor | None) -> None:
    if store.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"store has dtype {store.dtype}; expected float32 or float64")
    if store.ndim != 3:
        raise ValueError(f"store has shape {tuple(store.shape)}; expected (H, N, K)")
    if any(stride == 0 and n > 1 for stride, n in zip(store.stride(), store.shape, strict=True)):
        raise ValueError(
            f"store has strides {store.stride()}; expected entries that do not overlap"
        )
    if index.dtype != torch.int64:
        raise TypeError(f"index has dtype {index.dtype}; expected int64")
    if index.ndim != 1:
        raise ValueError(f"index has shape {tuple(index.shape)}; expected (B,)")
    if len(logits) == 0:
        raise ValueError("logits is empty; expected at least one tensor (H, B, K)")
    expected = (store.shape[0], index.shape[0], store.shape[2])
    for m, view in enumerate(logits):
        if not view.is_floating_point():
            raise TypeError(f"logits[{m}] has dtype {view.dtype}; expected a floating dtype")
        if view.untyped_storage().data_ptr() == store.untyped_storage().data_ptr():
            raise ValueError(f"logits[{m}] shares memory with the store; pass a copy")
        if view.shape != expected:
            raise ValueError(
                f"logits[{m}] has shape {tuple(view.shape)}; expected (H, B, K) = {expected}"
            )
    if weight is not None:
        if not weight.is_floating_point():
            raise TypeError(f"weight has dtype {weight.dtype}; expected a floating dtype")
        if weight.shape != (len(logits), index.shape[0]):
            raise ValueError(
                f"weight has shape {tuple(weight.shape)}; expected (M, B) = "
                f"{(len(logits), index.shape[0])}"
            )
    if index.numel() > 0:
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= store.shape[1]:
            raise ValueError(
                f"index holds {low if low < 0 else high}; expected rows 0 to {store.shape[1] - 1} "
                "of the store"
            )
        if index.unique().numel() != index.numel():
            raise ValueError("index repeats a row; expected each row at most once")
    if torch.is_grad_enabled() and any(t.requires_grad for t in (store, *logits)):
        raise RuntimeError(
            "accumulate_log_softmax_ passes no gradient on; call it under torch.no_grad()"
        )
