"""Entropic optimal transport of N samples to K clusters, in the log domain."""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from selavi.ops import _inputs
from selavi.ops._library import Backend, primitives
from selavi.ops._solve import DEFAULT_TOL, Options, Solution, solve, solve_op

Solver = Literal["auto", "newton", "anderson", "sinkhorn"]
_SOLVERS = ("auto", "newton", "anderson", "sinkhorn")


@dataclass(frozen=True)
class SinkhornResult:
    """The solution of `sinkhorn` for each problem (...). Nothing of size N x K is held but log_p.

    Where log_p requires a gradient, `value` has one, and what has none says so when it is read
    (labels, plan) or differentiated (the rest).

    Attributes:
        labels: (..., N) int64, argmax_k of the plan's row; ties go to the lowest k.
        confidence: (..., N) float64 in [1/K, 1], the share of the row's mass that its label gets.
        row_potential: (..., N) float64, u; -inf where the row's weight is 0.
        col_potential: (..., K) float64, v; pass it as `init` for a warm start.
        row_marginal: (..., N) float64, c as used: normalised.
        col_marginal: (..., K) float64, r as used: normalised and permuted.
        n_passes: (...) int64, reads of log_p until v was found, rounded up: evaluations, Hessians,
            the read that `permute` costs, and reads of a part of the rows as that part. The labels
            are one read more.
        error: (...) float64, sum_k |column sum of the plan - col_marginal|, measured at v.
        converged: (...) bool, error <= tol.
        value: (...) float64, the semi-dual sum_k r_k v_k - sum_i c_i logsumexp_k(lam log_p + v); at
            convergence it is lam * <Q, -log_p> - entropy(Q) - sum_i c_i log c_i, negated. Its
            gradient is -lam Q.
    """

    confidence: Tensor
    row_potential: Tensor
    col_potential: Tensor
    row_marginal: Tensor
    col_marginal: Tensor
    n_passes: Tensor
    error: Tensor
    converged: Tensor
    value: Tensor
    _labels: Tensor = field(repr=False)
    _log_p: Tensor = field(repr=False)
    _lam: float = field(repr=False)
    _backend: str = field(repr=False)

    @property
    def labels(self) -> Tensor:
        self._refuse_gradient("labels")
        return self._labels

    def log_plan(self) -> Tensor:
        """log Q = lam log_p + u + v, (..., N, K) float64. Computed at each call."""
        self._refuse_gradient("log_plan()")
        scaled = self._lam * self._log_p.double()
        return scaled + self.row_potential[..., None] + self.col_potential[..., None, :]

    def plan(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Q, (..., N, K) in dtype. Computed at each call, in one read of log_p and one write.

        Rows sum to row_marginal, columns to col_marginal but for `error`.
        """
        self._refuse_gradient("plan()")
        n, k = self._log_p.shape[-2:]
        problems = self.value.numel()
        plan = primitives(self._backend, self._log_p).sinkhorn_plan(
            self._log_p.reshape(problems, n, k),
            self.col_potential.reshape(problems, k),
            self.row_marginal.reshape(problems, n),
            self.value.new_full((problems,), self._lam),
            dtype,
        )
        return plan.reshape(self._log_p.shape)

    def _refuse_gradient(self, what: str) -> None:
        if self.value.requires_grad:
            raise RuntimeError(
                f"{what} of sinkhorn has no gradient; call sinkhorn on log_p.detach() for it "
                "(`value` has one)"
            )


def sinkhorn(
    log_p: Tensor,
    *,
    lam: float = 20.0,
    row_marginal: Tensor | None = None,
    col_marginal: Tensor | None = None,
    permute: bool = False,
    tol: float | None = DEFAULT_TOL,
    max_iterations: int = 200,
    solver: Solver = "auto",
    init: Tensor | SinkhornResult | None = None,
    group: dist.ProcessGroup | None = None,
    backend: Backend = "auto",
) -> SinkhornResult:
    """Assign N samples to K clusters of prescribed sizes by entropic optimal transport.

    Minimises <Q, -log_p> + KL(Q || r c^T) / lam over plans Q with row sums c and column sums r
    (SeLaVi, eq. 2). The solution is Q_ik = exp(lam log_p_ik + u_i + v_k). Balanced problems only.

    Args:
        log_p: (..., N, K) log-probabilities or any negated cost; float32, float64, bfloat16 or
            float16, any strides, entries down to -inf; may be mapped from a file that is larger
            than memory. Leading dimensions are separate problems. Arithmetic is float64 for
            float64 and float32 with float64 sums for the others.
        lam: 1 / epsilon > 0; large is sharp.
        row_marginal: c, (N,) or (..., N), non-negative; None is uniform. Normalised here. A row of
            weight 0 takes no part but is labelled.
        col_marginal: r, (K,) or (..., K), positive; None is uniform. Normalised here.
        permute: match col_marginal to the clusters first: its largest entry goes to the cluster
            with most mass sum_i c_i softmax_k(lam log_p_ik), and so on (eq. 3-4).
        tol: on the column error sum_k |sum_i Q_ik - r_k|, which lies in [0, 2]. None runs exactly
            max_iterations of Sinkhorn's iteration, reads no result on the host (so that a CUDA
            graph can capture it) and does not check the values of the input; `converged` is then
            against 2e-6.
        max_iterations: reads of log_p after which the solver stops unconverged; `permute` takes one.
        solver: "newton" (damped, on the semi-dual; K x K numbers), "sinkhorn" (alternating, slow to
            converge), "anderson" (the same, mixed with its last iterates) or "auto": newton where K
            is small or N >= 16 K; else anderson, and newton for what it did not solve.
        init: v to start from, (K,) or (..., K), or an earlier result, whose col_potential is taken.
        group: a torch.distributed group over whose ranks the rows are sharded: log_p and
            row_marginal are this rank's rows, any number of them, K and all else the same on every
            rank. One all-reduce an iteration, of K numbers a problem (times six for newton, which
            reduces a K x K Hessian as well). Every rank gets the same potentials, and the labels of
            its rows. There is no gradient over a group.
        backend: "torch" (the definition, float64), "cpu" (compiled), "numpy" (compiled plainly, on
            one thread; no bfloat16), or "auto": "cpu" for a tensor on the CPU where it was built,
            else "torch". See `selavi.ops.backends`.

    Raises:
        ValueError: NaN or +inf in log_p, a row or column that is -inf throughout, a marginal of the
            wrong shape or sign, lam <= 0, an unknown solver or backend.
        TypeError: a wrong dtype.
        RuntimeError: a marginal requires a gradient, or log_p does over a group; the named backend
            cannot run.
    """
    _inputs.check_log_p(log_p, empty=group is not None)
    _inputs.check_positive("lam", lam)
    if tol is not None:
        _inputs.check_positive("tol", tol)
    elif solver not in ("auto", "sinkhorn"):
        raise ValueError(f"solver={solver!r} needs a tol; tol=None runs Sinkhorn's iteration")
    if max_iterations < 1:
        raise ValueError(f"max_iterations={max_iterations}; expected at least 1")
    if solver not in _SOLVERS:
        raise ValueError(f"solver={solver!r} is not one of {', '.join(_SOLVERS)}")
    batch, (n, k) = log_p.shape[:-2], log_p.shape[-2:]
    start = init.col_potential if isinstance(init, SinkhornResult) else init
    start = None if start is None else start.detach()
    _inputs.check_vector("row_marginal", row_marginal, batch, n)
    _inputs.check_vector("col_marginal", col_marginal, batch, k)
    _inputs.check_vector("init", start, batch, k)
    _check_gradients(log_p, row_marginal, col_marginal, group)

    matrix = log_p.reshape(batch.numel(), n, k) if log_p.ndim != 3 else log_p
    options = Options(lam, permute, tol, max_iterations, solver, backend)
    tensors = (matrix, row_marginal, col_marginal, start)
    if group is None:
        solution = Solution(*solve_op(*tensors, *options))
    else:
        solution = solve(*tensors, options, group)
    return _result(solution, log_p, options)


def _result(solution: Solution, log_p: Tensor, options: Options) -> SinkhornResult:
    batch, (n, k) = log_p.shape[:-2], log_p.shape[-2:]
    c = solution.row_marginal
    u = torch.where(c > 0, c.log() - solution.logsumexp, -torch.inf)
    tol = DEFAULT_TOL if options.tol is None else options.tol
    return SinkhornResult(
        confidence=solution.confidence.reshape(*batch, n),
        row_potential=u.reshape(*batch, n),
        col_potential=solution.col_potential.reshape(*batch, k),
        row_marginal=c.reshape(*batch, n),
        col_marginal=solution.col_marginal.reshape(*batch, k),
        n_passes=solution.n_passes.reshape(batch),
        error=solution.error.reshape(batch),
        converged=(solution.error <= tol).reshape(batch),
        value=solution.value.reshape(batch),
        _labels=solution.labels.reshape(*batch, n),
        _log_p=log_p,
        _lam=options.lam,
        _backend=options.backend,
    )


def _check_gradients(
    log_p: Tensor,
    row_marginal: Tensor | None,
    col_marginal: Tensor | None,
    group: dist.ProcessGroup | None,
) -> None:
    if not torch.is_grad_enabled():
        return
    for name, marginal in (("row_marginal", row_marginal), ("col_marginal", col_marginal)):
        if marginal is not None and marginal.requires_grad:
            raise RuntimeError(f"sinkhorn has no gradient for {name}; pass {name}.detach()")
    if group is not None and log_p.requires_grad:
        raise RuntimeError("sinkhorn has no gradient over a group; call it on log_p.detach()")
