"""Solvers of the assignment problem's semi-dual, written once against the primitives.

f(v) = sum_k r_k v_k - sum_i c_i logsumexp_k(lam log_p_ik + v_k) is concave in K numbers. Its
gradient is r - m with m the column masses, so its maximum is where they meet the column marginal.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from selavi.ops._library import Primitives

# Every iteration of Newton's method costs one Hessian, which is worth several evaluations, so it
# tries several dampings in one read of the matrix and keeps the best.
_DAMPINGS = (0.1, 1.0, 10.0)
_FIRST_DAMPING = 1e-3
_LEAST_DAMPING = 1e-15
# A problem is under way once its column error is below this and no column has less than this share
# of its due: from there Newton's method sees every column.
_ROUGH_ERROR = 0.3
_STARVED = 1e-6
# Where that is not so after a first try, solve at smaller lam and raise it step by step.
_FIRST_TRY = 16  # passes
_RAISE = 4.0
_MAX_STAGES = 16


@dataclass
class Problem:
    """B problems of one shape: log_p (B, N, K), c (B, N) and r (B, K), both summing to 1."""

    primitives: Primitives
    log_p: Tensor
    row_marginal: Tensor
    col_marginal: Tensor
    lam: float

    def evaluate(self, v: Tensor, lam: float, active: Tensor) -> tuple[Tensor, Tensor]:
        """Column masses (B, S, K) and f (B, S) at v (B, S, K); inactive problems weigh nothing."""
        weight = self.row_marginal * active[:, None]
        mass, mean_logsumexp = self.primitives.sinkhorn_pass(self.log_p, v, weight, self._lam(lam))
        return mass, (v * self.col_marginal[:, None]).sum(-1) - mean_logsumexp

    def _lam(self, lam: float) -> Tensor:
        return torch.full_like(self.col_marginal[:, 0], lam)

    def overlap(self, v: Tensor, lam: float, active: Tensor) -> Tensor:
        weight = self.row_marginal * active[:, None]
        return self.primitives.sinkhorn_overlap(self.log_p, v, weight, self._lam(lam))


@dataclass
class State:
    """Where each problem stands: v and m (B, K), f, sum_k |m_k - r_k| and reads of log_p (B,)."""

    v: Tensor
    mass: Tensor
    value: Tensor
    error: Tensor
    n_passes: Tensor


def start(problem: Problem, v: Tensor, lam: float, n_passes: Tensor) -> State:
    """The state at v, which costs every problem one pass."""
    active = torch.ones_like(n_passes, dtype=torch.bool)
    mass, value = problem.evaluate(v[:, None], lam, active)
    error = (mass[:, 0] - problem.col_marginal).abs().sum(-1)
    return State(v, mass[:, 0], value[:, 0], error, n_passes + 1)


def solve_sinkhorn(problem: Problem, v: Tensor, tol: float, max_iterations: int) -> State:
    """Sinkhorn's alternating iteration: v_k += log r_k - log m_k."""
    state = start(problem, v, problem.lam, torch.zeros_like(v[:, 0], dtype=torch.int64))
    tiny = torch.finfo(v.dtype).tiny
    for _ in range(1, max_iterations):
        active = state.error > tol
        if not active.any():
            break
        step = problem.col_marginal.log() - state.mass.clamp_min(tiny).log()
        v = torch.where(active[:, None], state.v + step, state.v)
        mass, value = problem.evaluate(v[:, None], problem.lam, active)
        _accept(state, problem, active, v, mass[:, 0], value[:, 0])
        state.n_passes += active
    return state


def solve_newton(problem: Problem, v: Tensor, tol: float, max_iterations: int) -> State:
    """Damped Newton on the semi-dual, by continuation in lam where it does not get under way."""

    def try_at(lam: float, v: Tensor, n_passes: Tensor, limit: int) -> tuple[State, bool]:
        state = start(problem, v * (lam / problem.lam), lam, n_passes)
        _newton_stage(problem, state, lam, None, limit)
        return state, bool(_under_way(problem, state).all())

    lam, last = problem.lam, max_iterations - 1  # one pass is kept for the return to problem.lam
    n_passes = torch.zeros_like(v[:, 0], dtype=torch.int64)
    state, good = try_at(lam, v, n_passes, min(_FIRST_TRY, max_iterations))
    for _ in range(_MAX_STAGES):
        if good or (spent := int(state.n_passes.max())) >= last:
            break
        lam /= _RAISE
        state, good = try_at(lam, v, state.n_passes, min(spent + _FIRST_TRY, last))
    while lam < problem.lam:
        scaled = state.v * (problem.lam / lam)
        lam = problem.lam if state.n_passes.max() >= last else min(lam * _RAISE, problem.lam)
        state, _ = try_at(lam, scaled, state.n_passes, last)
    _newton_stage(problem, state, lam, tol, max_iterations)
    return state


def _under_way(problem: Problem, state: State) -> Tensor:
    starved = (state.mass < _STARVED * problem.col_marginal).any(-1)
    return (state.error <= _ROUGH_ERROR) & ~starved


def _newton_stage(
    problem: Problem, state: State, lam: float, tol: float | None, limit: int
) -> None:
    """Newton steps at one lam until every error is at most tol, or, without tol, is under way."""
    damping = torch.full_like(state.error, _FIRST_DAMPING)
    moved = torch.ones_like(state.error, dtype=torch.bool)
    overlap = state.v.new_zeros(*state.v.shape, state.v.shape[-1])
    noise = 1e-13 if problem.log_p.dtype == torch.float64 else 1e-8  # of f, from its exponentials
    while True:
        done = _under_way(problem, state) if tol is None else state.error <= tol
        active = ~done & (state.n_passes < limit)
        if not active.any():
            return
        if (moved & active).any():
            fresh = problem.overlap(state.v, lam, moved & active)
            overlap = torch.where((moved & active)[:, None, None], fresh, overlap)
        steps, dampings = _candidates(problem, state, overlap, damping)
        v = state.v[:, None] + steps
        v -= (v * problem.col_marginal[:, None]).sum(-1, keepdim=True)  # f ignores a constant
        mass, value = problem.evaluate(v, lam, active)
        state.n_passes += active

        # f is concave: a slope that is not far below zero at the step's end means that f rose.
        residual = problem.col_marginal[:, None] - mass
        slope = torch.einsum("bsk,bk->bs", steps, problem.col_marginal - state.mass)
        usable = (slope > 0) & ((residual * steps).sum(-1) >= -0.5 * slope)
        value = torch.where(usable, value, -torch.inf)
        error = residual.abs().sum(-1)
        error = torch.where(value >= value.amax(-1, keepdim=True) - noise, error, torch.inf)
        best = error.argmin(-1)
        moved = active & usable.any(-1)
        rows = torch.arange(len(best), device=best.device)
        _accept(state, problem, moved, v[rows, best], mass[rows, best], value[rows, best])
        raised = dampings.amax(-1) * 5
        damping = torch.where(moved, dampings[rows, best], raised).clamp_min(_LEAST_DAMPING)


def _candidates(
    problem: Problem, state: State, overlap: Tensor, damping: Tensor
) -> tuple[Tensor, Tensor]:
    """Steps (B, S, K) and their dampings (B, S); a step that has no solution is 0.

    Each solves (L + diag(mu r + w)) d = r - m, where -L is the Hessian. L is the Laplacian of a
    graph with the overlaps as weights, so its diagonal is a sum of positive numbers and nothing
    cancels. w = 0 is Levenberg's step. A column that shares no row with another has m ~ exp(v), and
    its own equation is solved by v += log(r / m): w makes the diagonal the logarithmic mean of r
    and m where that is the larger, which bounds the step as Sinkhorn's is bounded.
    """
    r, m = problem.col_marginal, state.mass
    weights = overlap - torch.diag_embed(overlap.diagonal(dim1=-2, dim2=-1))
    laplacian = torch.diag_embed(weights.sum(-1)) - weights
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


def _accept(
    state: State, problem: Problem, chosen: Tensor, v: Tensor, mass: Tensor, value: Tensor
) -> None:
    """Move the chosen problems (B,) to v and what was measured there."""
    state.v = torch.where(chosen[:, None], v, state.v)
    state.mass = torch.where(chosen[:, None], mass, state.mass)
    state.value = torch.where(chosen, value, state.value)
    error = (mass - problem.col_marginal).abs().sum(-1)
    state.error = torch.where(chosen, error, state.error)
