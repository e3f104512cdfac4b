"""A whole solve as one operator, so that torch.compile and torch.export take it as it is."""

from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from selavi.ops import _inputs
from selavi.ops._fixed_point import solve_anderson, solve_sinkhorn
from selavi.ops._library import primitives
from selavi.ops._newton import continue_newton, solve_newton, under_way
from selavi.ops._problem import Problem, State, check_finite, is_captured, start

DEFAULT_TOL = 2e-6
# Newton's method pays for K^2 N + K^3 operations an iteration, Anderson's for N K: "auto" begins
# with Newton's where K is small or the rows are many.
_SMALL_COLUMNS = 64
_COLUMNS = 1024
_ROWS_A_COLUMN = 16
# Elsewhere Anderson's begins, and what it did not solve goes to Newton's, unless its few K x K
# float64 matrices were too large.
_MOST_COLUMNS = 4096
# Anderson's has so many reads for it, or K / 4: an iteration of Newton's is worth the more of them.
_PATIENCE = 60
_COLUMNS_A_READ = 4


class Solution(NamedTuple):
    """What `solve` computes for B problems; the potentials, marginals and sums are float64."""

    labels: Tensor  # (B, N) int64
    logsumexp: Tensor  # (B, N), of lam log_p + v
    confidence: Tensor  # (B, N)
    row_marginal: Tensor  # (B, N), as used
    col_potential: Tensor  # (B, K)
    col_marginal: Tensor  # (B, K), as used
    n_passes: Tensor  # (B,) int64
    error: Tensor  # (B,)
    value: Tensor  # (B,)


class Options(NamedTuple):
    """The arguments of `sinkhorn` that are not tensors."""

    lam: float
    permute: bool
    tol: float | None
    max_iterations: int
    solver: str
    backend: str


def solve(
    matrix: Tensor,
    row_marginal: Tensor | None,
    col_marginal: Tensor | None,
    init: Tensor | None,
    options: Options,
    first_row: int,
    total_rows: int,
    group: dist.ProcessGroup | None,
) -> Solution:
    """matrix is log_p (B, N, K), or this rank's rows of it; marginals and init as in `sinkhorn`."""
    ours, checked = primitives(options.backend, matrix), options.tol is not None
    if is_captured(matrix):  # no value can be looked at
        checked = False
        if options.solver != "sinkhorn" and options.tol is not None:
            raise RuntimeError(
                f"solver={options.solver!r} cannot be captured in a CUDA graph; solver='sinkhorn' "
                "can, and tol=None"
            )
    c = _inputs.row_weights(row_marginal, matrix, total_rows, checked, group)
    r = _inputs.column_weights(col_marginal, matrix, checked, group)
    # Once: what has passed is remembered.
    check = lru_cache(maxsize=1)(lambda: _inputs.check_entries(matrix, c, first_row, group))
    problem = Problem(
        primitives=ours,
        log_p=matrix,
        row_marginal=c,
        col_marginal=r,
        lam=torch.full_like(r[:, 0], options.lam),
        check=check,
        total_rows=total_rows,
        first_row=first_row,
        group=group,
    )
    if options.permute:
        state = start(problem, torch.zeros_like(r), torch.zeros_like(r[:, 0]))
        if checked:
            check_finite(problem, state)
        problem = replace(problem, col_marginal=ours.permute_prior(r, state.mass))
    v = torch.zeros_like(r)
    if init is not None:
        v = _inputs.potential(init, problem.col_marginal, matrix, checked)
    state = _run(problem, v, init is None, options)
    labels, logsumexp, confidence = ours.sinkhorn_labels(matrix, state.v, problem.lam)
    broken = logsumexp.isnan() | logsumexp.isposinf()  # in a row without weight
    if checked and _inputs.on_any_rank(broken.any(), group):
        check()
    nowhere = (c == 0) & ~(logsumexp > -torch.inf)  # NaN or -inf: the row is -inf throughout
    confidence = confidence.masked_fill(nowhere, 1.0 / matrix.shape[-1])
    return Solution(
        labels=labels,
        logsumexp=logsumexp,
        confidence=confidence,
        row_marginal=c,
        col_potential=state.v,
        col_marginal=problem.col_marginal,
        n_passes=(state.reads + int(options.permute)).ceil().long(),
        error=state.error,
        value=state.value,
    )


def _run(problem: Problem, v: Tensor, cold: bool, options: Options) -> State:
    tol, solver = options.tol, options.solver
    columns = v.shape[-1]
    if tol is None:
        return solve_sinkhorn(problem, v, None, options.max_iterations)
    limit = max(1, options.max_iterations - int(options.permute))  # permute has read once
    if solver == "sinkhorn":
        return solve_sinkhorn(problem, v, tol, limit)
    if solver == "auto" and (
        columns <= _SMALL_COLUMNS
        or (columns <= _COLUMNS and problem.total_rows >= _ROWS_A_COLUMN * columns)
    ):
        solver = "newton"
    if solver == "newton":
        return solve_newton(problem, v, cold, tol, limit)
    if solver == "anderson" or columns > _MOST_COLUMNS:
        return solve_anderson(problem, v, tol, limit)
    patience = max(_PATIENCE, columns // _COLUMNS_A_READ)
    state = solve_anderson(problem, v, tol, min(patience, (limit + 1) // 2))
    lost = (state.error > tol) & (state.reads < limit) & ~under_way(problem, state)
    at = replace(state)
    mass, value = problem.evaluate(v[:, None], lost)  # Newton's starts where Anderson's did
    at.accept(problem, lost, v, mass[:, 0], value[:, 0])
    at.reads += lost
    state.improve(problem, continue_newton(problem, at, tol, limit))
    state.reads = at.reads
    return state


def _solve_alone(
    log_p: Tensor,
    row_marginal: Tensor | None,
    col_marginal: Tensor | None,
    init: Tensor | None,
    lam: float,
    permute: bool,
    tol: float | None,
    max_iterations: int,
    solver: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`solve` without a group, in the form that an operator needs."""
    options = Options(lam, permute, tol, max_iterations, solver, backend)
    return solve(log_p, row_marginal, col_marginal, init, options, 0, log_p.shape[1], None)


def _fake(
    log_p: Tensor,
    row_marginal: Tensor | None,
    col_marginal: Tensor | None,
    init: Tensor | None,
    *options: object,
) -> Solution:
    b, n, k = log_p.shape

    def empty(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return log_p.new_empty(shape, dtype=dtype)

    return Solution(
        labels=empty(b, n, dtype=torch.int64),
        logsumexp=empty(b, n),
        confidence=empty(b, n),
        row_marginal=empty(b, n),
        col_potential=empty(b, k),
        col_marginal=empty(b, k),
        n_passes=empty(b, dtype=torch.int64),
        error=empty(b),
        value=empty(b),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    solution = Solution(*output)
    ctx.lam, ctx.backend = inputs[4], inputs[9]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(inputs[0], solution.row_marginal, solution.col_potential)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """The envelope theorem: at the maximum f changes with log_p alone, by -lam Q."""
    log_p, c, v = ctx.saved_tensors
    of = Solution(*grads)  # type: ignore[arg-type]
    if any(grad is not None for grad in of[:-1]):
        raise RuntimeError(
            "sinkhorn: only `value` has a gradient; detach the other parts of its result"
        )
    if of.value is None:
        return (None,) * 10
    gradient = _ValueGradient.apply(  # type: ignore[no-untyped-call]
        log_p, v, c, of.value, ctx.lam, ctx.backend
    )
    return (gradient, *(None,) * 9)


class _ValueGradient(torch.autograd.Function):
    """-lam Q, times the incoming gradient (B,). It has no gradient: v would have to move."""

    @staticmethod
    def forward(
        log_p: Tensor, v: Tensor, c: Tensor, incoming: Tensor, lam: float, backend: str
    ) -> Tensor:
        lams = torch.full_like(incoming, lam)
        wide = torch.float64 if log_p.dtype == torch.float64 else torch.float32
        plan = primitives(backend, log_p).sinkhorn_plan(log_p, v, c, lams, wide)
        return (plan * (-lam * incoming[:, None, None]).to(wide)).to(log_p.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(
            "sinkhorn: `value` has a first gradient only; detach it to differentiate further"
        )


# Not by torch.library.custom_op, which imports the compiler (half a second) at the first call.
torch.library.define("selavi::solve", torch.library.infer_schema(_solve_alone, mutates_args=()))
torch.library.impl("selavi::solve", "default", _solve_alone)
torch.library.register_fake("selavi::solve", _fake)
torch.library.register_autograd("selavi::solve", _backward, setup_context=_setup_context)
solve_op = torch.ops.selavi.solve
