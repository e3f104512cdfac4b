"""One float64 judge of every solution. A time counts only after it."""

import math
from functools import lru_cache

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 1 << 22  # of float64 temporaries


def _parts(matrix: Tensor) -> list[slice]:
    rows, step = len(matrix), max(1, _CHUNK_ELEMENTS // matrix.shape[1])
    return [slice(first, min(first + step, rows)) for first in range(0, rows, step)]


def column_masses(log_p: Tensor, lam: float, v: Tensor) -> Tensor:
    """Column sums (K,) of the plan whose column potential is v (K,) and whose rows are exact.

    The plan is Q_ik = softmax_k(lam log_p_ik + v_k) / N; v has no unit, and a constant added to it
    changes nothing.
    """
    v = v.double()
    mass = torch.zeros_like(v)
    for part in _parts(log_p):
        mass += (lam * log_p[part].double() + v).softmax(-1).sum(0)
    return mass / len(log_p)


def column_error(log_p: Tensor, lam: float, col_marginal: Tensor, v: Tensor) -> float:
    """sum_k |column sum - marginal|, in [0, 2]; 2 where v is no solution at all (not finite)."""
    if not v.isfinite().all():
        return 2.0
    return float((column_masses(log_p, lam, v) - col_marginal).abs().sum())


def label_agreement(log_p: Tensor, lam: float, v: Tensor, labels: Tensor) -> float:
    """The share of labels (N,) that are argmax_k(lam log_p_ik + v_k)."""
    v = v.double()
    same = [(lam * log_p[part].double() + v).argmax(-1) == labels[part] for part in _parts(log_p)]
    return float(torch.cat(same).double().mean())


def fixed_iterations_error(scores: Tensor, epsilon: float, iterations: int, plan: Tensor) -> float:
    """L1 distance, in [0, 2], of plan / B to that of exactly so many iterations, in float64.

    Args:
        scores: (B, K). The kernel is exp(scores / epsilon).
        plan: (B, K) whose rows sum to 1, as SwAV's distributed_sinkhorn returns it.
    """
    u, v = _fixed_potentials(scores, epsilon, iterations)
    error = 0.0
    for part in _parts(scores):
        exact = (scores[part].double() / epsilon + u[part, None] + v).exp_()
        error += float((exact - plan[part].double() / len(scores)).abs_().sum())
    return error


@lru_cache(maxsize=1)
def _fixed_potentials(scores: Tensor, epsilon: float, iterations: int) -> tuple[Tensor, Tensor]:
    """Columns to 1/K, then rows to 1/B, so many times, from u = 0."""
    batch, prototypes = scores.shape
    u = torch.zeros(batch, dtype=torch.float64, device=scores.device)
    for _ in range(iterations):
        total = u.new_full((prototypes,), -torch.inf)
        for part in _parts(scores):
            x = scores[part].double() / epsilon + u[part, None]
            total = torch.logaddexp(total, x.logsumexp(0))
        v = -math.log(prototypes) - total
        for part in _parts(scores):
            x = scores[part].double() / epsilon + v
            u[part] = -math.log(batch) - x.logsumexp(1)
    return u, v
