"""SwAV's assignment: a fixed number of Sinkhorn iterations, in the log domain."""

import torch
import torch.distributed as dist
from torch import Tensor

from selavi.ops._library import Backend, Primitives, primitives

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@torch.no_grad()
def assign(
    scores: Tensor,
    temperature: float,
    iterations: int,
    group: dist.ProcessGroup | None,
    dtype: torch.dtype,
    backend: Backend,
) -> Tensor:
    """Q (B, K) in dtype: exp(scores / temperature), normalised `iterations` times.

    An iteration divides each prototype by its sum over the samples of every process, then each
    sample by its sum over the prototypes. With x = scores / temperature, Q_ik = softmax_k(x + v):
    the first v is -logsumexp_i x, which is one read of `scores`; each further iteration reads the
    column sums m of Q at v and takes log m from v; the result is one more read. The constants 1 / K
    and 1 / B of the original are the same in all of v and cancel.

    m needs no guard against underflow: after a step a prototype's shares of its samples sum to 1
    before samples are normalised, and that divides them by K at most, so m_k >= 1 / (B K).
    """
    _check(scores, temperature, iterations)
    batch = scores.detach()[None]
    backend_primitives = primitives(backend, scores)
    lam = torch.full((1,), 1.0 / temperature, dtype=torch.float64, device=scores.device)
    v = -_known(_column_logsumexp(backend_primitives, batch, lam, group))
    weight = batch.new_ones(batch.shape[:2], dtype=torch.float64)
    # Between two iterations the processes add up their sums; one alone makes all in one operation.
    at_once = 1 if _distributed() else max(1, iterations - 1)
    for _ in range(1, iterations, at_once):
        v = _iterate(backend_primitives, batch, v, weight, lam, at_once, group)
    if not len(scores):  # only now: the other processes wait for this one's sums
        return scores.new_empty(scores.shape, dtype=dtype)
    return backend_primitives.sinkhorn_plan(batch, v, weight, lam, dtype)[0]


def _check(scores: Tensor, temperature: float, iterations: int) -> None:
    if scores.dtype not in _DTYPES:
        raise TypeError(
            f"the scores have dtype {scores.dtype}; expected float32, float64, bfloat16 or float16"
        )
    if scores.ndim != 2 or scores.shape[1] == 0:
        raise ValueError(
            f"the scores have shape {tuple(scores.shape)}; expected (samples, prototypes)"
        )
    if not 0 < temperature < float("inf"):
        raise ValueError(f"the temperature is {temperature}; expected a finite number above 0")
    if iterations < 1:
        raise ValueError(
            f"{iterations} iterations asked for; expected at least 1 (without one the samples "
            "would not be normalised)"
        )


def _known(log_sum: Tensor) -> Tensor:
    """0 for the prototypes that are -inf in every sample: they have no share, whatever v is."""
    return log_sum.masked_fill(log_sum.isneginf(), 0.0)


def _column_logsumexp(
    backend_primitives: Primitives, batch: Tensor, lam: Tensor, group: dist.ProcessGroup | None
) -> Tensor:
    """logsumexp_i x_ik (1, K) over the samples of every process, float64."""
    if batch.shape[1]:
        u = batch.new_zeros(batch.shape[:2], dtype=torch.float64)
        local = backend_primitives.sinkhorn_column_logsumexp(batch, u, lam)
    else:
        local = batch.new_full((1, batch.shape[2]), -torch.inf, dtype=torch.float64)
    if not _distributed():
        return local
    top = local.clone()
    dist.all_reduce(top, dist.ReduceOp.MAX, group)
    top = _known(top)
    total = (local - top).exp()
    dist.all_reduce(total, dist.ReduceOp.SUM, group)
    return top + total.log()


def _iterate(
    backend_primitives: Primitives,
    batch: Tensor,
    v: Tensor,
    weight: Tensor,
    lam: Tensor,
    count: int,
    group: dist.ProcessGroup | None,
) -> Tensor:
    """v (1, K) after `count` iterations, the last over the samples of every process."""
    mass = torch.zeros_like(v)
    if batch.shape[1]:
        ones = torch.ones_like(v)
        v, mass, total = backend_primitives.sinkhorn_iterations(batch, v, weight, ones, lam, count)
        # A sample that is -inf throughout has no shares: it makes all of them NaN, as 0 / 0 does.
        mass = torch.where(total.isfinite()[..., None], mass, torch.nan)
    if _distributed():
        dist.all_reduce(mass, dist.ReduceOp.SUM, group)
    return v - _known(mass.log())


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
