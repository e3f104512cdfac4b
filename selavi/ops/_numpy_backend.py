"""The primitives of backend="numpy": tensors shown to selavi.ops._numpy as arrays, without a copy.

Needs NumPy and the extension, so it is imported where the backend is asked for.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selavi.ops import _definition, _numpy


def _array(tensor: Tensor) -> NDArray[Any]:
    if tensor.dtype == torch.bfloat16:
        raise TypeError("backend='numpy' got a tensor of torch.bfloat16, which NumPy does not have")
    array: NDArray[Any] = tensor.detach().numpy()
    return array


def sinkhorn_pass(
    log_p: Tensor, v: Tensor, row_marginal: Tensor, lam: Tensor
) -> tuple[Tensor, Tensor]:
    mass, value = _numpy.sinkhorn_pass(_array(log_p), _array(v), _array(row_marginal), _array(lam))
    return torch.from_numpy(mass), torch.from_numpy(value)


sinkhorn_iterations = partial(_definition.repeat_pass, sinkhorn_pass)


def sinkhorn_overlap(log_p: Tensor, v: Tensor, row_marginal: Tensor, lam: Tensor) -> Tensor:
    overlap = _numpy.sinkhorn_overlap(_array(log_p), _array(v), _array(row_marginal), _array(lam))
    return torch.from_numpy(overlap)


def sinkhorn_labels(log_p: Tensor, v: Tensor, lam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    labels, logsumexp, confidence = _numpy.sinkhorn_labels(_array(log_p), _array(v), _array(lam))
    return torch.from_numpy(labels), torch.from_numpy(logsumexp), torch.from_numpy(confidence)


def sinkhorn_plan(
    log_p: Tensor, v: Tensor, row_marginal: Tensor, lam: Tensor, dtype: torch.dtype
) -> Tensor:
    written = torch.float32 if dtype == torch.bfloat16 else dtype
    plan = _numpy.sinkhorn_plan(
        _array(log_p),
        _array(v),
        _array(row_marginal),
        _array(lam),
        _array(torch.empty(0, dtype=written)).dtype,
    )
    return torch.from_numpy(plan).to(dtype)


def sinkhorn_column_logsumexp(log_p: Tensor, u: Tensor, lam: Tensor) -> Tensor:
    return torch.from_numpy(_numpy.sinkhorn_column_logsumexp(_array(log_p), _array(u), _array(lam)))


def permute_prior(prior: Tensor, mass: Tensor) -> Tensor:
    heaviest = np.argsort(-_array(mass), axis=-1, kind="stable")
    permuted = np.empty_like(_array(prior))
    np.put_along_axis(permuted, heaviest, -np.sort(-_array(prior), axis=-1), axis=-1)
    return torch.from_numpy(permuted)


def accumulate_log_softmax_(
    store: Tensor, logits: Sequence[Tensor], index: Tensor, weight: Tensor | None
) -> None:
    heads, _, columns = store.shape
    total = np.zeros((heads, len(index), columns))
    for m, view in enumerate(map(_array, logits)):
        w = np.full(len(index), 1 / len(logits)) if weight is None else _array(weight[m])
        _, logsumexp, _ = _numpy.sinkhorn_labels(view, np.zeros((heads, columns)), np.ones(heads))
        kept = w != 0  # a skipped sample may hold anything
        term = view[:, kept].astype(np.float64) - logsumexp[:, kept, None]
        total[:, kept] += w[kept, None] * term
    _array(store)[:, _array(index)] += total
