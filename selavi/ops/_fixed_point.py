"""Sinkhorn's iteration v <- g(v) = v + log r - log m, plain or mixed by Anderson's method.

One read and, over a group, one all-reduce an iteration; nothing of size K x K.
"""

from dataclasses import replace

import torch
from torch import Tensor

from selavi.ops._definition import sinkhorn_update
from selavi.ops._problem import Lookahead, Problem, State, check_finite, is_captured, repeat, start

_MEMORY = 10  # iterates that Anderson's method mixes
_RIDGE = 1e-10  # relative, of its least-squares problem
# Mixing is left for a plain step where the error grows by more than this.
_GROWTH = 2.0


def _update(problem: Problem, mass: Tensor) -> Tensor:
    """g(v) - v"""
    return sinkhorn_update(mass, problem.col_marginal)


def solve_sinkhorn(problem: Problem, v: Tensor, tol: float | None, limit: int) -> State:
    """The alternating iteration; without tol exactly `limit` reads and no look at the results."""
    if tol is None and problem.group is None:
        return repeat(problem, v, limit)
    state = start(problem, v, torch.zeros_like(v[:, 0]))
    if tol is not None and not is_captured(v):
        check_finite(problem, state)
    lookahead = Lookahead()
    for _ in range(1, limit):
        active = torch.ones_like(state.reads, dtype=torch.bool)
        if tol is not None:
            active = state.error > tol
            if not lookahead.any(active):
                break
        v = problem.agree(state.v + _update(problem, state.mass))
        v = torch.where(active[:, None], v, state.v)
        mass, value = problem.evaluate(v[:, None], active)
        state.accept(problem, active, v, mass[:, 0], value[:, 0])
        state.reads += active
    return state


def solve_anderson(problem: Problem, v: Tensor, tol: float, limit: int) -> State:
    """Anderson mixing (type II) of the last iterates, left for a plain step where it fails.

    The state is the best that was met.
    """
    state = start(problem, v, torch.zeros_like(v[:, 0]))
    check_finite(problem, state)
    best = replace(state)
    points, updates = [state.v], [_update(problem, state.mass)]
    fresh = torch.zeros_like(state.reads)  # iterates since a problem's last failure
    lookahead = Lookahead()
    for _ in range(1, limit):
        active = best.error > tol
        if not lookahead.any(active):
            break
        v = problem.agree(_mix(points, updates, fresh))
        v = v - (v * problem.col_marginal).sum(-1, keepdim=True)  # f ignores a constant
        v = torch.where(active[:, None], v, state.v)
        mass, value = problem.evaluate(v[:, None], active)
        error = (mass[:, 0] - problem.col_marginal).abs().sum(-1)
        good = active & ((fresh == 0) | (error <= _GROWTH * state.error))
        state.accept(problem, good, v, mass[:, 0], value[:, 0])
        best.improve(problem, state)
        best.reads += active
        fresh = torch.where(good, fresh + 1, 0.0)
        points = [*points, state.v][-_MEMORY:]
        updates = [*updates, _update(problem, state.mass)][-_MEMORY:]
    return best


def _mix(points: list[Tensor], updates: list[Tensor], fresh: Tensor) -> Tensor:
    """The next iterate from the last: weights that sum to 1 and make the mixed update least."""
    v, update = points[-1], updates[-1]
    if len(points) == 1:
        return v + update
    steps = torch.stack([v - point for point in points[:-1]], -1)  # (B, K, M)
    bends = torch.stack([update - other for other in updates[:-1]], -1)
    age = torch.arange(len(points) - 1, 0, -1, device=v.device)
    known = (age <= fresh[:, None])[:, None]  # iterates from before a failure do not count
    steps, bends = steps * known, bends * known
    gram = bends.mT @ bends
    own = gram.diagonal(dim1=-2, dim2=-1)
    ridge = torch.where(own > 0, _RIDGE * own.amax(-1, keepdim=True), 1.0)
    system = gram + torch.diag_embed(ridge)
    weights = torch.linalg.solve_ex(system, bends.mT @ update[..., None])[0]  # asks no GPU
    weights = torch.where(weights.isfinite().all(-2, keepdim=True), weights, 0.0)
    return v + update - ((steps + bends) @ weights)[..., 0]
