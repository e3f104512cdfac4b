"""Damped Newton on the semi-dual: tens of reads where Sinkhorn's iteration needs thousands."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from selavi.ops._problem import Lookahead, Problem, State, check_finite, may_hold, start

# Several steps are tried in one read of the matrix, and the best is kept: factors of the damping,
# and shares of the step, as in a gap between rows the curvature says nothing of how far to go. The
# third number is the effort from which on one is tried: each makes the read a dearer one.
_TRIALS = (
    (0.1, 1.0, 0),
    (1.0, 1.0, 0),
    (0.1, 0.25, 1),
    (10.0, 1.0, 1),
    (0.1, 0.5, 2),
    (0.1, 0.125, 2),
    (1.0, 0.5, 2),
)
# A problem's effort is the number of these that its last step did not shrink the error below; all
# where no step served.
_EFFORTS = (0.25, 0.5)
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
_SAMPLES = (64, 6)  # one row in so many, but not more than
_SAMPLE_ROWS = 65_536  # of which a copy is held
_ROWS_A_COLUMN = 16  # a smaller sample would say little
_SAMPLE_LIMIT = 64.0  # reads of the sample
_SAMPLE_NOISE = 0.3  # of the sample's standard error, sqrt(K / n)
# Above this column error the last sample's Hessian serves as well, for a sixth of the work, while
# its steps shrink the error to less than this share.
_FAR = 3e-3
_USEFUL = 0.85


@dataclass
class Pace:
    """How each problem steps (B,), as learned so far.

    `sharpness` is that of the softmaxes in its Hessian, `by_sample` whether those may be of the
    rows of `sample`, where there is one.
    """

    damping: Tensor
    sharpness: Tensor
    effort: Tensor
    by_sample: Tensor
    sample: Problem | None = None

    @classmethod
    def first(cls, state: State, sharpness: Tensor | None = None) -> "Pace":
        rough = state.error > _ROUGH_ERROR
        if sharpness is None:
            sharpness = torch.where(rough, _FIRST_SHARPNESS, 1.0).to(state.error)
        return cls(
            damping=torch.full_like(state.error, _FIRST_DAMPING),
            sharpness=sharpness,
            effort=torch.full_like(state.error, len(_EFFORTS)),
            by_sample=torch.ones_like(rough),
        )

    def forget(self, chosen: Tensor, state: State) -> None:
        first = Pace.first(state)
        self.damping = torch.where(chosen, first.damping, self.damping)
        self.sharpness = torch.where(chosen, first.sharpness, self.sharpness)
        self.effort = torch.where(chosen, first.effort, self.effort)


def solve_newton(problem: Problem, v: Tensor, cold: bool, tol: float, limit: int) -> State:
    """From v (B, K), within `limit` reads. A cold start begins on samples of the rows."""
    reads, sharpness, sample = torch.zeros_like(v[:, 0]), None, None
    if cold:
        v, reads, sharpness, sample = _start_on_samples(problem, v, limit)
    state = start(problem, v, reads)
    check_finite(problem, state)
    pace = Pace.first(state, sharpness)
    pace.sample = sample
    state.improve(problem, continue_newton(problem, state, tol, limit, pace))
    return state


def continue_newton(
    problem: Problem, state: State, tol: float, limit: float, pace: Pace | None = None
) -> State:
    """Newton from the state; problems that do not get under way take the way through small lam.

    Returns the state of least error that was met; the objective is highest at the last.
    """
    best, pace = replace(state), pace or Pace.first(state)
    first_try = torch.minimum(state.reads + _FIRST_TRY, _full(state, limit))
    _iterate(problem, state, tol, first_try, pace, best)
    late = ~under_way(problem, state) & (state.reads + _FIRST_TRY <= limit)
    for b in late.nonzero()[:, 0].tolist():
        one = problem.select(b)
        state.put(b, _by_continuation(one, state.select(b), limit))
    pace.forget(late, state)
    best.improve(problem, state)
    _iterate(problem, state, tol, _full(state, limit), pace, best)
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
        _iterate(at, state, _ROUGH_ERROR, _full(state, min(until, last)), Pace.first(state))
        state.v = state.v / share
        return state

    share, v = 1.0, state.v
    for _ in range(_MAX_STAGES):
        share /= _RAISE
        state = try_at(share, v, state.reads, float(state.reads) + _FIRST_TRY)
        if under_way(problem, state).all() or state.reads + 1 > last:
            break
    while share < 1.0:
        share = 1.0 if state.reads + 1 > last else min(share * _RAISE, 1.0)
        state = try_at(share, state.v, state.reads, last)
    return state


def under_way(problem: Problem, state: State) -> Tensor:
    """Whether each problem (B,) is where Newton's method does well."""
    starved = (state.mass < _STARVED * problem.col_marginal).any(-1)
    return (state.error <= _UNDER_WAY) & ~starved


def _full(state: State, limit: float) -> Tensor:
    return torch.full_like(state.reads, limit)


def _start_on_samples(
    problem: Problem, v: Tensor, limit: int
) -> tuple[Tensor, Tensor, Tensor | None, Problem | None]:
    """v (B, K), its cost in reads of the whole matrix (B,), the sharpness and the last sample."""
    rows, columns = problem.total_rows, v.shape[-1]
    reads, sharpness, sample = torch.zeros_like(v[:, 0]), None, None
    for size in sorted({min(rows // share, _SAMPLE_ROWS) for share in _SAMPLES}):
        cost = (1 + _SAMPLE_LIMIT) * size / rows  # at most; the 1 is for drawing the sample
        if size < _ROWS_A_COLUMN * columns or (reads + cost > limit - 1).any():
            continue
        sample = None  # one is held at a time
        sample = problem.sample(size)
        if sample is None:
            continue
        state = start(sample, v, torch.zeros_like(reads))
        check_finite(sample, state)
        pace = Pace.first(state, sharpness)
        noise = _SAMPLE_NOISE * (columns / size) ** 0.5
        continue_newton(sample, state, noise, _SAMPLE_LIMIT, pace)
        v = torch.where(state.mass < _STARVED * problem.col_marginal, v, state.v)
        v = problem.agree(v)
        reads = problem.agree(reads + (1 + state.reads) * (size / rows))
        sharpness = problem.agree(pace.sharpness)
    return v, reads, sharpness, sample


def _iterate(
    problem: Problem,
    state: State,
    tol: float,
    limit: Tensor,
    pace: Pace,
    best: State | None = None,
) -> None:
    """Newton steps until every error is at most tol or `limit` (B,) reads are spent.

    The objective rises at each, the error need not fall: `best` keeps the least.
    """
    lookahead = Lookahead()
    stale = torch.ones_like(state.error, dtype=torch.bool)
    laplacian = state.v.new_zeros(*state.v.shape, state.v.shape[-1])
    exponentials = 1e-13 if problem.log_p.dtype == torch.float64 else 1e-8  # their noise in f
    least_effort = state.error.new_tensor([effort for _, _, effort in _TRIALS])
    efforts = state.error.new_tensor(_EFFORTS)
    while True:
        active = (state.error > tol) & (state.reads + stale.double() + 1 <= limit)
        if not lookahead.any(active):
            return
        laplacian = _refresh(problem, state, pace, laplacian, stale & active)
        steps, dampings = _candidates(problem, state, laplacian, pace.damping)
        steps = problem.agree(steps)
        v = state.v[:, None] + steps
        v -= (v * problem.col_marginal[:, None]).sum(-1, keepdim=True)  # f ignores a constant
        tried = pace.effort[:, None] >= least_effort
        v = torch.where(tried[..., None], v, torch.nan)  # NaN is not tried
        mass, value = problem.evaluate(v, active)
        state.reads += active

        residual = problem.col_marginal[:, None] - mass
        noise = (exponentials + 1e-15 * state.value.abs())[:, None]
        usable = _rises(problem, state, steps, residual, value, 100 * noise)
        value = torch.where(usable, value, -torch.inf)
        error = residual.abs().sum(-1)
        ranked = torch.where(value >= value.amax(-1, keepdim=True) - noise, error, torch.inf)
        each, choice = torch.arange(len(error), device=error.device), ranked.argmin(-1)
        moved = active & usable.any(-1)
        new_v, shrunk = v[each, choice], error[each, choice] / state.error
        shrunk = torch.where(moved, shrunk, torch.inf)
        change = (problem.col_marginal * (new_v - state.v) ** 2).sum(-1).sqrt()
        state.accept(problem, moved, new_v, mass[each, choice], value[each, choice])
        if best is not None:
            best.improve(problem, state)

        damping = torch.where(moved, dampings[each, choice], _RAISE_DAMPING * pace.damping)
        pace.damping = torch.where(active, damping.clamp_min(_LEAST_DAMPING), pace.damping)
        pace.effort = torch.where(active, (shrunk[:, None] >= efforts).sum(-1), pace.effort)
        pace.by_sample &= (shrunk < _USEFUL) | ~active
        ahead = change * shrunk.clamp(0, 1).sqrt()  # the next step's likely size
        wanted = torch.where(moved, 1 / ahead, pace.sharpness / 4).clamp(_LEAST_SHARPNESS, 1.0)
        as_before = (wanted == 1) & (pace.sharpness == 1)
        used = (moved & ~(as_before & (shrunk < _VERY_GOOD))) | (wanted != pace.sharpness)
        stale = torch.where(active, used, stale)
        pace.sharpness = torch.where(active, wanted, pace.sharpness)


def _rises(
    problem: Problem,
    state: State,
    steps: Tensor,
    residual: Tensor,
    value: Tensor,
    noise: Tensor,
) -> Tensor:
    """Whether f is higher after each step (B, S), given r - m (B, S, K) and f (B, S) there.

    f is concave: where it still rises at a step's end, it has risen all the way. Where it falls
    there, but not steeply, its value tells, up to noise (B, 1).
    """
    slope = torch.einsum("bsk,bk->bs", steps, problem.col_marginal - state.mass)
    end = (residual * steps).sum(-1)
    higher = value >= state.value[:, None] - noise
    return (slope > 0) & ((end >= 0) | ((end >= -0.5 * slope) & higher))


def _refresh(
    problem: Problem, state: State, pace: Pace, laplacian: Tensor, stale: Tensor
) -> Tensor:
    """The Laplacians (B, K, K), those of stale problems anew; state.reads grows by what it took."""
    roughly = stale & pace.by_sample & (state.error > _FAR) & (pace.sample is not None)
    for source, chosen in ((pace.sample, roughly), (problem, stale & ~roughly)):
        if source is not None and may_hold(chosen):
            fresh = source.laplacian(state.v, pace.sharpness, chosen)
            laplacian = torch.where(chosen[:, None, None], fresh, laplacian)
            state.reads += chosen.double() * (source.total_rows / problem.total_rows)
    return laplacian


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
    whole = {}
    for factor in sorted({factor for factor, _, _ in _TRIALS}):
        mu = damping * factor
        whole[factor] = _solve(laplacian + torch.diag_embed(mu[:, None] * scale + w), residual)
    steps = torch.stack([share * whole[factor] for factor, share, _ in _TRIALS], 1)
    return steps, torch.stack([damping * factor for factor, _, _ in _TRIALS], 1)


def _solve(matrix: Tensor, residual: Tensor) -> Tensor:
    """matrix^-1 residual for positive definite (B, K, K), scaled to a unit diagonal; else 0."""
    scale = matrix.diagonal(dim1=-2, dim2=-1).rsqrt()
    factor, info = torch.linalg.cholesky_ex(scale[:, :, None] * matrix * scale[:, None, :])
    step = scale * torch.cholesky_solve((scale * residual)[..., None], factor)[..., 0]
    good = (info == 0) & step.isfinite().all(-1)
    return torch.where(good[:, None], step, 0.0)
