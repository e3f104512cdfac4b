"""Damped Newton on the semi-dual: tens of reads where Sinkhorn's iteration needs thousands."""

import torch
from torch import Tensor

from selavi.ops._problem import Problem, State, check_finite, start

# Several dampings are tried in one read of the matrix, and the best is kept.
_DAMPINGS = (0.1, 1.0, 10.0)
_FIRST_DAMPING = 1e-3
_LEAST_DAMPING = 1e-15
# A sharp problem's Hessian counts the few rows between two clusters just now. A step that moves v
# by d sweeps over all rows within d, so it is better judged by softmaxes 1 / d times as sharp.
_FIRST_SHARPNESS = 0.1
_LEAST_SHARPNESS = 1e-6
_ROUGH_ERROR = 0.05  # above this nothing is known of the size of the first step
# A solution on a sample of the rows is a good start. It is exact up to its own noise.
_SAMPLES = (64, 8)  # one row in so many
_ROWS_A_COLUMN = 8  # a smaller sample would say little
_SAMPLE_LIMIT = 30.0  # reads of the sample
_SAMPLE_NOISE = 0.1  # of the sample's standard error, sqrt(K / n)
_STARVED = 1e-6  # a column with less of its due was not in the sample


def solve_newton(problem: Problem, v: Tensor, cold: bool, tol: float, limit: int) -> State:
    """From v (B, K), within `limit` reads. A cold start begins on samples of the rows."""
    reads = torch.zeros_like(v[:, 0])
    if cold:
        v, reads = _start_on_samples(problem, v, limit)
    state = start(problem, v, reads)
    check_finite(problem, state)
    _iterate(problem, state, tol, limit)
    return state


def _start_on_samples(problem: Problem, v: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """v (B, K) and what it cost in reads of the whole matrix (B,)."""
    rows, columns = problem.total_rows, v.shape[-1]
    reads = torch.zeros_like(v[:, 0])
    for share in _SAMPLES:
        size = rows // share
        cost = (1 + _SAMPLE_LIMIT) / share  # at most; the 1 is for drawing the sample
        sample = problem.sample(size) if size >= _ROWS_A_COLUMN * columns else None
        if sample is None or (reads + cost > limit - 1).any():
            continue
        state = start(sample, v, torch.zeros_like(reads))
        check_finite(problem, state)
        _iterate(sample, state, _SAMPLE_NOISE * (columns / size) ** 0.5, _SAMPLE_LIMIT)
        v = torch.where(state.mass < _STARVED * problem.col_marginal, v, state.v)
        reads = reads + (1 + state.reads) / share
    return v, reads


def _iterate(problem: Problem, state: State, tol: float, limit: float) -> None:
    """Newton steps until every error is at most tol or `limit` reads are spent."""
    damping = torch.full_like(state.error, _FIRST_DAMPING)
    sharpness = torch.where(state.error > _ROUGH_ERROR, _FIRST_SHARPNESS, 1.0)
    stale = torch.ones_like(state.error, dtype=torch.bool)
    laplacian = state.v.new_zeros(*state.v.shape, state.v.shape[-1])
    noise = 1e-13 if problem.log_p.dtype == torch.float64 else 1e-8  # of f, from its exponentials
    while True:
        active = (state.error > tol) & (state.reads + stale.double() + 1 <= limit)
        if not active.any():
            return
        stale &= active
        if stale.any():
            fresh = problem.laplacian(state.v, sharpness, stale)
            laplacian = torch.where(stale[:, None, None], fresh, laplacian)
        state.reads += stale
        steps, dampings = _candidates(problem, state, laplacian, damping)
        v = state.v[:, None] + steps
        v -= (v * problem.col_marginal[:, None]).sum(-1, keepdim=True)  # f ignores a constant
        mass, value = problem.evaluate(v, active)
        state.reads += active

        # f is concave: a slope that is not far below zero at the step's end means that f rose.
        residual = problem.col_marginal[:, None] - mass
        slope = torch.einsum("bsk,bk->bs", steps, problem.col_marginal - state.mass)
        usable = (slope > 0) & ((residual * steps).sum(-1) >= -0.5 * slope)
        value = torch.where(usable, value, -torch.inf)
        error = residual.abs().sum(-1)
        ranked = torch.where(value >= value.amax(-1, keepdim=True) - noise, error, torch.inf)
        each, best = torch.arange(len(error), device=error.device), ranked.argmin(-1)
        moved = active & usable.any(-1)
        new_v, new_error, old_error = v[each, best], error[each, best], state.error
        change = (problem.col_marginal * (new_v - state.v) ** 2).sum(-1).sqrt()
        state.accept(problem, moved, new_v, mass[each, best], value[each, best])

        raised = dampings.amax(-1) * 5
        damping = torch.where(moved, dampings[each, best], raised).clamp_min(_LEAST_DAMPING)
        ahead = change * (new_error / old_error).clamp(0, 1).sqrt()  # the next step's likely size
        wanted = torch.where(moved, 1 / ahead, sharpness / 4).clamp(_LEAST_SHARPNESS, 1.0)
        stale = moved | (wanted != sharpness)
        sharpness = torch.where(active, wanted, sharpness)


def _candidates(
    problem: Problem, state: State, laplacian: Tensor, damping: Tensor
) -> tuple[Tensor, Tensor]:
    """Steps (B, S, K) and their dampings (B, S); a step that has no solution is 0.

    Each solves (L + diag(mu r + w)) d = r - m, where -L is the Hessian. w = 0 is Levenberg's step.
    A column that shares no row with another has m ~ exp(v), and its own equation is solved by
    v += log(r / m): w makes the diagonal the logarithmic mean of r and m where that is the larger,
    which bounds the step as Sinkhorn's is bounded.
    """
    r, m = problem.col_marginal, state.mass
    ratio = r.log() - m.clamp_min(torch.finfo(m.dtype).tiny).log()
    log_mean = torch.where(ratio.abs() < 1e-6, m, (r - m) / ratio)
    bound = (log_mean - m).clamp_min(0.0)
    steps, dampings = [], []
    for w in (torch.zeros_like(bound), bound):
        for factor in _DAMPINGS:
            mu = damping * factor
            matrix = laplacian + torch.diag_embed(mu[:, None] * r + w)
            steps.append(_solve(matrix, r - m))
            dampings.append(mu)
    return torch.stack(steps, 1), torch.stack(dampings, 1)


def _solve(matrix: Tensor, residual: Tensor) -> Tensor:
    """matrix^-1 residual for positive definite (B, K, K), scaled to a unit diagonal; else 0."""
    scale = matrix.diagonal(dim1=-2, dim2=-1).rsqrt()
    factor, info = torch.linalg.cholesky_ex(scale[:, :, None] * matrix * scale[:, None, :])
    step = scale * torch.cholesky_solve((scale * residual)[..., None], factor)[..., 0]
    good = (info == 0) & step.isfinite().all(-1)
    return torch.where(good[:, None], step, 0.0)
