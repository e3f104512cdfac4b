"""Balanced transport with zero weights on either side: what pot and geomloss share."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from selavi.ops import sinkhorn
from selavi.ops._library import Backend

# Newton's method keeps a dozen K x K matrices a problem: histograms are solved together up to this.
_MATRIX_ENTRIES = 2**22


def least_tol(dtype: torch.dtype) -> float:
    """The least column error to ask for: backends read float32 and below in float32 arithmetic."""
    return 1e-12 if dtype == torch.float64 else 1e-6


@dataclass(frozen=True)
class Balanced:
    """H problems with one cost: plans exp(lam log_p + log_u + log_v) of total mass 1.

    Attributes:
        log_u: (H, N) float64, -inf where a is 0.
        log_v: (H, M) float64, -inf where b is 0.
        dual: (H,) float64, sum_i a_i log_u_i + sum_j b_j log_v_j - sum_i a_i log a_i - sum_j b_j
            log b_j, for a and b that sum to 1. Its gradient in log_p is -lam times the plan.
        rows_exact: (H,) bool, the plan's row sums are a exactly; else its column sums are b.
        error: (H,) float64, the L1 error of the other marginal.
        converged: (H,) bool, error <= tol.
        n_passes: reads of log_p, the largest of the problems.
    """

    log_u: Tensor
    log_v: Tensor
    dual: Tensor
    rows_exact: Tensor
    error: Tensor
    converged: Tensor
    n_passes: int


def solve_balanced(
    log_p: Tensor,
    lam: float,
    a: Tensor,
    b: Tensor,
    tol: float,
    max_iterations: int,
    init: tuple[Tensor, Tensor] | None,
    backend: Backend,
) -> Balanced:
    """Transport a (N,) to each row of b (H, M); weights are normalised, zeros take no part.

    init is (log_u (H, N), log_v (H, M)) to start from.
    """
    parts: list[Balanced] = []
    for group in _groups(b > 0, max(1, _MATRIX_ENTRIES // min(log_p.shape) ** 2)):
        start = None if init is None else (init[0][group], init[1][group])
        parts.append(_solve_group(log_p, lam, a, b[group], tol, max_iterations, start, backend))
    return Balanced(
        log_u=torch.cat([part.log_u for part in parts]),
        log_v=torch.cat([part.log_v for part in parts]),
        dual=torch.cat([part.dual for part in parts]),
        rows_exact=torch.cat([part.rows_exact for part in parts]),
        error=torch.cat([part.error for part in parts]),
        converged=torch.cat([part.converged for part in parts]),
        n_passes=max(part.n_passes for part in parts),
    )


def _groups(positive: Tensor, most: int) -> list[slice]:
    """Runs of at most `most` rows of positive (H, M) that are equal."""
    edges = [0]
    for h in range(1, len(positive)):
        if h - edges[-1] >= most or not torch.equal(positive[h], positive[edges[-1]]):
            edges.append(h)
    return [slice(first, last) for first, last in pairwise([*edges, len(positive)])]


def _solve_group(
    log_p: Tensor,
    lam: float,
    a: Tensor,
    b: Tensor,
    tol: float,
    max_iterations: int,
    init: tuple[Tensor, Tensor] | None,
    backend: Backend,
) -> Balanced:
    rows, columns = a > 0, b[0] > 0
    matrix = log_p if rows.all() and columns.all() else log_p[rows][:, columns]
    c, r = a[rows].expand(len(b), -1), b[:, columns]
    start = None if init is None else init[1][:, columns]
    swapped = matrix.shape[1] > matrix.shape[0]  # the solver's state is a number per column
    if swapped:
        matrix, c, r = matrix.mT.contiguous(), r, c
        start = None if init is None else init[0][:, rows]
    if start is not None and not start.isfinite().all():
        raise ValueError(
            "the potentials to start from hold entries that are not finite where the weight is "
            "positive; start from another solution, or from none"
        )
    result = sinkhorn(
        matrix.expand(len(b), *matrix.shape),
        lam=lam,
        row_marginal=c,
        col_marginal=r,
        tol=tol,
        max_iterations=max_iterations,
        init=start,
        backend=backend,
    )
    u, v = result.row_potential.detach(), result.col_potential.detach()
    column_share = result.col_marginal.detach()
    log_u = torch.full_like(a.expand(len(b), -1), -torch.inf)
    log_v = torch.full_like(b, -torch.inf)
    log_u[:, rows], log_v[:, columns] = (v, u) if swapped else (u, v)
    return Balanced(
        log_u=log_u,
        log_v=log_v,
        dual=result.value - torch.special.xlogy(column_share, column_share).sum(-1),
        rows_exact=torch.full_like(result.converged, not swapped),
        error=result.error.detach(),
        converged=result.converged,
        n_passes=int(result.n_passes.max()),
    )
