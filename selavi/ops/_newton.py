"""Damped Newton on the semi-dual: tens of reads where Sinkhorn's iteration needs thousands."""

from dataclasses import replace

import torch
from torch import Tensor

from selavi.ops._problem import Lookahead, Problem, State, check_finite, may_hold, start

Trials = dict[float, tuple[float, ...]]
# Several steps are tried in one read of the matrix, and the best is kept: for each factor of the
# damping the whole step and shares of it. In a gap between rows the curvature says nothing of how
# far a step should go.
_TRIALS: Trials = {0.1: (1.0, 0.5, 0.25, 0.125), 1.0: (1.0, 0.5), 10.0: (1.0,)}
# While a problem's steps shrink its error well, it tries fewer: that makes its read a cheaper one.
_FEW_TRIALS: Trials = {0.1: (1.0,), 1.0: (1.0,)}
_GOOD = 0.25
# And where it shrinks it very well, the next step does without a Hessian of its own.
_VERY_GOOD = 0.1
_FIRST_DAMPING = 1e-3
_LEAST_DAMPING = 1e-15
_RAISE_DAMPING = 50.0  # where no step serves
# A sharp problem's Hessian counts the few rows between two clusters just now. A step that moves v
# by d sweeps over all rows within d, so it is better judged by softmaxes 1 / d times as sharp.
_FIRST_SHARPNESS = 0.1
_LEAST_SHARPNESS = 1e-6
_ROUGH_ERROR = 0.05  # above this nothing is known of the size of the first step
# A problem is under way once its column error is below this and no column is starved, that is, has
# less than this share of its due. Where it is not after a first try, lam is made small and raised.
_UNDER_WAY = 0.3
_STARVED = 1e-6
_FIRST_TRY = 32.0  # reads
_RAISE = 4.0
_MAX_STAGES = 16
# A solution on a sample of the rows is a good start. It is exact up to its own noise.
_SAMPLES = (64, 8)  # one row in so many, but not more than
_SAMPLE_ROWS = 65_536  # of which a copy is held
_ROWS_A_COLUMN = 8  # a smaller sample would say little
_SAMPLE_LIMIT = 64.0  # reads of the sample
_SAMPLE_NOISE = 0.3  # of the sample's standard error, sqrt(K / n)


def solve_newton(problem: Problem, v: Tensor, cold: bool, tol: float, limit: int) -> State:
    """From v (B, K), within `limit` reads. A cold start begins on samples of the rows."""
    reads = torch.zeros_like(v[:, 0])
    if cold:
        v, reads = _start_on_samples(problem, v, limit)
    state = start(problem, v, reads)
    check_finite(problem, state)
    state.improve(problem, continue_newton(problem, state, tol, limit))
    return state


def continue_newton(problem: Problem, state: State, tol: float, limit: float) -> State:
    """Newton from the state; problems that do not get under way take the way through small lam.

    Returns the state of least error that was met; the objective is highest at the last.
    """
    best = replace(state)
    first_try = torch.minimum(state.reads + _FIRST_TRY, _full(state, limit))
    _iterate(problem, state, tol, first_try, best)
    late = ~_under_way(problem, state) & (state.reads + _FIRST_TRY <= limit)
    for b in late.nonzero()[:, 0].tolist():
        one = problem.select(b)
        state.put(b, _by_continuation(one, state.select(b), limit))
    best.improve(problem, state)
    _iterate(problem, state, tol, _full(state, limit), best)
    return best


def _by_continuation(problem: Problem, state: State, limit: float) -> State:
    """One problem, under way at its lam or as near as `limit` reads bring it.

    Where rows are nearly one-hot, columns do not see each other but at small lam; the solution
    there, scaled up, is a start for a larger one.
    """
    lam, last = problem.lam, limit - 1  # one read is kept for the return to lam

    def try_at(share: float, v: Tensor, reads: Tensor, until: float) -> State:
        at = replace(problem, lam=share * lam)
        state = start(at, share * v, reads)
        _iterate(at, state, _ROUGH_ERROR, _full(state, min(until, last)))
        state.v = state.v / share
        return state

    share, v = 1.0, state.v
    for _ in range(_MAX_STAGES):
        share /= _RAISE
        state = try_at(share, v, state.reads, float(state.reads) + _FIRST_TRY)
        if _under_way(problem, state).all() or state.reads + 1 > last:
            break
    while share < 1.0:
        share = 1.0 if state.reads + 1 > last else min(share * _RAISE, 1.0)
        state = try_at(share, state.v, state.reads, last)
    return state


def _under_way(problem: Problem, state: State) -> Tensor:
    starved = (state.mass < _STARVED * problem.col_marginal).any(-1)
    return (state.error <= _UNDER_WAY) & ~starved


def _full(state: State, limit: float) -> Tensor:
    return torch.full_like(state.reads, limit)


def _start_on_samples(problem: Problem, v: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """v (B, K) and what it cost in reads of the whole matrix (B,)."""
    rows, columns = problem.total_rows, v.shape[-1]
    reads = torch.zeros_like(v[:, 0])
    for share in _SAMPLES:
        size = min(rows // share, _SAMPLE_ROWS)
        cost = (1 + _SAMPLE_LIMIT) * size / rows  # at most; the 1 is for drawing the sample
        sample = problem.sample(size) if size >= _ROWS_A_COLUMN * columns else None
        if sample is None or (reads + cost > limit - 1).any():
            continue
        state = start(sample, v, torch.zeros_like(reads))
        check_finite(problem, state)
        continue_newton(sample, state, _SAMPLE_NOISE * (columns / size) ** 0.5, _SAMPLE_LIMIT)
        v = torch.where(state.mass < _STARVED * problem.col_marginal, v, state.v)
        v = problem.agree(v)
        reads = problem.agree(reads + (1 + state.reads) * (size / rows))
    return v, reads


def _iterate(
    problem: Problem, state: State, tol: float, limit: Tensor, best: State | None = None
) -> None:
    """Newton steps until every error is at most tol or `limit` (B,) reads are spent.

    The objective rises at each, the error need not fall: `best` keeps the least.
    """
    lookahead = Lookahead()
    damping = torch.full_like(state.error, _FIRST_DAMPING)
    sharpness = torch.where(state.error > _ROUGH_ERROR, _FIRST_SHARPNESS, 1.0)
    stale = torch.ones_like(state.error, dtype=torch.bool)
    laplacian = state.v.new_zeros(*state.v.shape, state.v.shape[-1])
    noise = 1e-13 if problem.log_p.dtype == torch.float64 else 1e-8  # of f, from its exponentials
    modest = torch.zeros_like(stale)  # whether a problem tries few steps
    few = stale.new_tensor(
        [share in _FEW_TRIALS.get(factor, ()) for factor in _TRIALS for share in _TRIALS[factor]]
    )
    while True:
        active = (state.error > tol) & (state.reads + stale.double() + 1 <= limit)
        if not lookahead.any(active):
            return
        stale &= active
        if may_hold(stale):
            fresh = problem.laplacian(state.v, sharpness, stale)
            laplacian = torch.where(stale[:, None, None], fresh, laplacian)
        state.reads += stale
        steps, dampings = _candidates(problem, state, laplacian, damping)
        steps = problem.agree(steps)
        v = state.v[:, None] + steps
        v -= (v * problem.col_marginal[:, None]).sum(-1, keepdim=True)  # f ignores a constant
        v = torch.where((few | ~modest[:, None])[..., None], v, torch.nan)  # else it is not tried
        mass, value = problem.evaluate(v, active)
        state.reads += active

        # f is concave: a slope that is not far below zero at the step's end means that f rose.
        residual = problem.col_marginal[:, None] - mass
        slope = torch.einsum("bsk,bk->bs", steps, problem.col_marginal - state.mass)
        usable = (slope > 0) & ((residual * steps).sum(-1) >= -0.5 * slope)  # never NaN
        value = torch.where(usable, value, -torch.inf)
        error = residual.abs().sum(-1)
        ranked = torch.where(value >= value.amax(-1, keepdim=True) - noise, error, torch.inf)
        each, choice = torch.arange(len(error), device=error.device), ranked.argmin(-1)
        moved = active & usable.any(-1)
        new_v, shrunk = v[each, choice], error[each, choice] / state.error
        change = (problem.col_marginal * (new_v - state.v) ** 2).sum(-1).sqrt()
        state.accept(problem, moved, new_v, mass[each, choice], value[each, choice])
        if best is not None:
            best.improve(problem, state)

        damping = torch.where(moved, dampings[each, choice], _RAISE_DAMPING * damping)
        damping = damping.clamp_min(_LEAST_DAMPING)
        modest = shrunk < _GOOD
        ahead = change * shrunk.clamp(0, 1).sqrt()  # the next step's likely size
        wanted = torch.where(moved, 1 / ahead, sharpness / 4).clamp(_LEAST_SHARPNESS, 1.0)
        as_before = (wanted == 1) & (sharpness == 1)
        stale = (moved & ~(as_before & (shrunk < _VERY_GOOD))) | (wanted != sharpness)
        sharpness = torch.where(active, wanted, sharpness)


def _candidates(
    problem: Problem, state: State, laplacian: Tensor, damping: Tensor
) -> tuple[Tensor, Tensor]:
    """Steps (B, S, K) and their dampings (B, S); a step that has no solution is 0.

    Each is a share of Levenberg's: (L + diag(mu r + w)) d = r - m, where -L is the Hessian. w is
    for columns with far less mass than their due. Theirs grows like exp(v), so that alone they
    would be solved by v += log(r / m): the logarithmic mean of r and m in the diagonal says that.
    """
    r, m = problem.col_marginal, state.mass
    residual = r - m
    # Its sum is 0 but for m's rounding, which L, singular there, would make a huge step of.
    residual = residual - r * residual.sum(-1, keepdim=True)
    ratio = r.log() - m.clamp_min(torch.finfo(m.dtype).tiny).log()
    w = torch.where(ratio > 1, (r - m) / ratio - m, 0.0)
    scale = torch.where(m * _STARVED > r, m, r)  # a column far above a tiny due would go too far
    steps, dampings = [], []
    for factor, shares in _TRIALS.items():
        mu = damping * factor
        step = _solve(laplacian + torch.diag_embed(mu[:, None] * scale + w), residual)
        for share in shares:
            steps.append(share * step)
            dampings.append(mu)
    return torch.stack(steps, 1), torch.stack(dampings, 1)


def _solve(matrix: Tensor, residual: Tensor) -> Tensor:
    """matrix^-1 residual for positive definite (B, K, K), scaled to a unit diagonal; else 0."""
    scale = matrix.diagonal(dim1=-2, dim2=-1).rsqrt()
    factor, info = torch.linalg.cholesky_ex(scale[:, :, None] * matrix * scale[:, None, :])
    step = scale * torch.cholesky_solve((scale * residual)[..., None], factor)[..., 0]
    good = (info == 0) & step.isfinite().all(-1)
    return torch.where(good[:, None], step, 0.0)
