"""Entropic optimal transport of N samples to K clusters, in the log domain."""

import operator
from dataclasses import dataclass, field
from typing import Literal, SupportsIndex, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import forward_ad

from selavi.ops import _inputs
from selavi.ops._library import Backend, primitives
from selavi.ops._solve import DEFAULT_TOL, Options, Solution, solve, solve_op

Solver = Literal["auto", "newton", "anderson", "sinkhorn"]


@dataclass(frozen=True, eq=False)
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
        if not dtype.is_floating_point:
            raise TypeError(f"plan() in {dtype}; expected a floating dtype")
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
            than memory. Leading dimensions are separate problems (several are copied where their
            strides do not let them be seen as one). Arithmetic is float64 for float64 and float32
            with float64 sums for the others.
        lam: 1 / epsilon, from 1e-20 to 1e20; large is sharp.
        row_marginal: c, (N,) or (..., N), non-negative; None is uniform. Normalised here. A row of
            weight 0 takes no part but is labelled.
        col_marginal: r, (K,) or (..., K), positive; None is uniform. Normalised here.
        permute: match col_marginal to the clusters first: its largest entry goes to the cluster
            with most mass sum_i c_i softmax_k(lam log_p_ik), and so on (eq. 3-4).
        tol: on the column error sum_k |sum_i Q_ik - r_k|, which lies in [0, 2]. None runs exactly
            max_iterations of Sinkhorn's iteration, reads no result on the host (so that a CUDA
            graph can capture it) and does not check the values of the input; `converged` is then
            against 2e-6. A CUDA graph can also capture solver="sinkhorn" with a tol: every problem
            then stops on the device, and the values of the input are not checked either.
        max_iterations: reads of log_p after which the solver stops unconverged. `permute` takes one
            of them, but for the last.
        solver: "newton" (damped, on the semi-dual; K x K numbers), "sinkhorn" (alternating, slow to
            converge), "anderson" (the same, mixed with its last iterates) or "auto": newton for
            K <= 64, and for K <= 1024 where N >= 16 K; else anderson, and where K <= 4096, after
            60 or K / 4 reads, newton for what it did not solve.
        init: v to start from, (K,) or (..., K), or an earlier result, whose col_potential is taken.
        group: a torch.distributed group over whose ranks the rows are sharded: log_p and
            row_marginal are this rank's rows, any number of them, K and all else the same on every
            rank. An iteration costs one broadcast and one all-reduce of K numbers a problem;
            newton's of up to 7 K, and an all-reduce of its K x K Hessian. Every rank gets the same
            potentials, and the labels of its rows. There is no gradient over a group.
        backend: "torch" (the definition, float64, anywhere), "cpu" (compiled), "numpy" (compiled
            plainly, on one thread; no bfloat16), "cuda", "triton" (a GPU's tensors), or "auto": the
            fastest that can run where log_p is. See `selavi.ops.backends`.

    Raises:
        ValueError: NaN or +inf in log_p, a row or column that is -inf throughout, a marginal of the
            wrong shape or sign, a number out of its range, an unknown solver or backend, arguments
            that differ between the ranks of a group.
        TypeError: a wrong type or dtype.
        RuntimeError: a marginal requires a gradient, or log_p does over a group or in forward mode;
            the named backend cannot run.
    """
    if isinstance(init, SinkhornResult):
        init = init.col_potential
    if isinstance(max_iterations, SupportsIndex):
        max_iterations = operator.index(max_iterations)
    options = Options(lam, permute, tol, max_iterations, solver, backend)
    tensors = (log_p, row_marginal, col_marginal, init)
    if not (group is None or isinstance(group, dist.ProcessGroup)):
        raise TypeError(f"group is a {type(group).__name__}; expected a torch.distributed group")
    if group is None:
        _check(tensors, options, None)
        solution = Solution(*solve_op(*_as_problems(tensors), *options))
    else:
        solution = _solve_sharded(tensors, options, group)
    return _result(solution, log_p, options)


Tensors = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


def _check(tensors: Tensors, options: Options, group: dist.ProcessGroup | None) -> None:
    """All that can be said without reading the tensors' values."""
    log_p, row_marginal, col_marginal, init = tensors
    _inputs.check_log_p(log_p, empty=group is not None)
    _inputs.check_number("lam", options.lam, _inputs.LEAST_LAM, _inputs.MOST_LAM)
    if options.solver not in get_args(Solver):
        raise ValueError(f"solver={options.solver!r} is not one of {', '.join(get_args(Solver))}")
    if options.tol is not None:
        _inputs.check_number("tol", options.tol, 1e-300, 2.0)
    elif options.solver not in ("auto", "sinkhorn"):
        raise ValueError(f"solver={options.solver!r} needs a tol; tol=None is Sinkhorn's iteration")
    if not isinstance(options.permute, bool):
        raise TypeError(f"permute is a {type(options.permute).__name__}; expected a bool")
    if not isinstance(options.max_iterations, int) or options.max_iterations < 1:
        raise ValueError(f"max_iterations={options.max_iterations}; expected an integer >= 1")
    batch, (n, k) = log_p.shape[:-2], log_p.shape[-2:]
    _inputs.check_vector("row_marginal", row_marginal, batch, n)
    _inputs.check_vector("col_marginal", col_marginal, batch, k)
    _inputs.check_vector("init", init, batch, k)
    primitives(options.backend, log_p)
    _check_gradients(log_p, row_marginal, col_marginal, group)


def _as_problems(tensors: Tensors) -> Tensors:
    log_p, row_marginal, col_marginal, init = tensors
    n, k = log_p.shape[-2:]
    matrix = log_p.reshape(log_p.shape[:-2].numel(), n, k) if log_p.ndim != 3 else log_p
    return matrix, row_marginal, col_marginal, None if init is None else init.detach()


def _solve_sharded(tensors: Tensors, options: Options, group: dist.ProcessGroup) -> Solution:
    """`solve` where every rank knows first that all are going to run it alike."""
    log_p, row_marginal, col_marginal, init = tensors
    rows = 0
    facts: dict[str, object] = {}
    error: Exception | None = None
    try:
        _check(tensors, options, group)
        rows = log_p.shape[-2]
        facts = {
            "the shape of log_p but for its rows": (*log_p.shape[:-2], log_p.shape[-1]),
            "log_p's dtype": log_p.dtype,
            "whether row_marginal is given": None if rows == 0 else row_marginal is not None,
            "whether col_marginal is given": col_marginal is not None,
            "whether init is given": init is not None,
            "an option": options._replace(backend=""),
        }
        if init is not None and not init.isfinite().all():
            raise ValueError(f"init of shape {tuple(init.shape)} holds entries that are not finite")
    except (TypeError, ValueError, RuntimeError) as raised:
        error = raised
    span, facts = _inputs.agree(group, rows, facts, error)
    if rows == 0 and facts["whether row_marginal is given"]:  # elsewhere: then here too
        row_marginal = log_p.new_empty(0, dtype=torch.float64)
    return solve(*_as_problems((log_p, row_marginal, col_marginal, init)), options, *span, group)


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
        _log_p=log_p if solution.value.requires_grad else log_p.detach(),
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
    if forward_ad.unpack_dual(log_p).tangent is not None:
        raise RuntimeError(
            "sinkhorn has no forward-mode derivative; use backward, or log_p.detach()"
        )
