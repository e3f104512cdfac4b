"""Entropic optimal transport of N samples to K clusters, in the log domain."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from selavi.ops._library import Backend, primitives
from selavi.ops._solvers import Problem, solve_newton, solve_sinkhorn
from selavi.ops.permute_prior import permute_prior

Solver = Literal["auto", "newton", "sinkhorn"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Newton's method holds a few K x K float64 matrices; above this K "auto" iterates plainly.
_NEWTON_MAX_COLUMNS = 2048


@dataclass(frozen=True)
class SinkhornResult:
    """The solution of `sinkhorn` for each problem (...). Nothing of size N x K is held but log_p.

    Attributes:
        labels: (..., N) int64, argmax_k of the plan's row; ties go to the lowest k.
        row_potential: (..., N) float64, u; -inf where the row's weight is 0.
        col_potential: (..., K) float64, v; pass it as `init` for a warm start.
        col_marginal: (..., K) float64, the column marginal as used: normalised and permuted.
        n_passes: (...) int64, reads of log_p by the solver's evaluations. Newton's Hessians, the
            check of the input and the labels are reads beside these.
        error: (...) float64, sum_k |column sum of the plan - col_marginal|, measured at v.
        converged: (...) bool, error <= tol.
        value: (...) float64, the semi-dual sum_k r_k v_k - sum_i c_i logsumexp_k(lam log_p + v); at
            convergence it is lam * <Q, -log_p> - entropy(Q) - sum_i c_i log c_i, negated.
    """

    labels: Tensor
    row_potential: Tensor
    col_potential: Tensor
    col_marginal: Tensor
    n_passes: Tensor
    error: Tensor
    converged: Tensor
    value: Tensor
    _confidence: Tensor = field(repr=False)
    _log_p: Tensor = field(repr=False)
    _lam: float = field(repr=False)

    @property
    def confidence(self) -> Tensor:
        """(..., N) float64 in [1/K, 1]: the share of the row's mass that its label gets."""
        return self._confidence

    def log_plan(self) -> Tensor:
        """log Q = lam log_p + u + v, (..., N, K) float64. Computed at each call."""
        scaled = self._lam * self._log_p.double()
        return scaled + self.row_potential[..., None] + self.col_potential[..., None, :]

    def plan(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Q, (..., N, K): rows sum to row_marginal, columns to col_marginal within `error`."""
        return self.log_plan().exp_().to(dtype)


def sinkhorn(
    log_p: Tensor,
    *,
    lam: float = 20.0,
    row_marginal: Tensor | None = None,
    col_marginal: Tensor | None = None,
    permute: bool = False,
    tol: float = 2e-6,
    max_iterations: int = 200,
    solver: Solver = "auto",
    init: Tensor | None = None,
    backend: Backend = "auto",
) -> SinkhornResult:
    """Assign N samples to K clusters of prescribed sizes by entropic optimal transport.

    Minimises <Q, -log_p> + KL(Q || r c^T) / lam over plans Q with row sums c and column sums r
    (SeLaVi, eq. 2). The solution is Q_ik = exp(lam log_p_ik + u_i + v_k). Balanced problems only.

    Args:
        log_p: (..., N, K) log-probabilities or any negated cost; float32, float64, bfloat16 or
            float16, any strides, entries down to -inf. Leading dimensions are separate problems.
        lam: 1 / epsilon > 0; large is sharp.
        row_marginal: c, (N,) or (..., N), non-negative; None is uniform. Normalised here. A row of
            weight 0 takes no part but is labelled.
        col_marginal: r, (K,) or (..., K), positive; None is uniform. Normalised here.
        permute: match col_marginal to the clusters first: its largest entry goes to the cluster
            with most mass sum_i c_i softmax_k(lam log_p_ik), and so on (eq. 3-4).
        tol: on the column error sum_k |sum_i Q_ik - r_k|, which lies in [0, 2].
        max_iterations: reads of log_p after which the solver stops unconverged.
        solver: "newton" (damped, on the semi-dual), "sinkhorn" (alternating, slow to converge) or
            "auto": newton up to K = 2048.
        init: v to start from, (K,) or (..., K), as in an earlier result's col_potential.
        backend: "torch" (the definition, float64), "cpu" (compiled), "numpy" (compiled plainly, on
            one thread; no bfloat16), or "auto": "cpu" for a tensor on the CPU where it was built,
            else "torch". See `selavi.ops.backends`.

    Raises:
        ValueError: NaN or +inf in log_p, a row or column that is -inf throughout, a marginal of the
            wrong shape or sign, lam <= 0, an unknown solver or backend.
        TypeError: a wrong dtype.
        RuntimeError: log_p requires a gradient, or the named backend cannot run.
    """
    _check_log_p(log_p)
    _check_positive("lam", lam)
    _check_positive("tol", tol)
    if max_iterations < 1:
        raise ValueError(f"max_iterations={max_iterations}; expected at least 1")
    if solver not in ("auto", "newton", "sinkhorn"):
        raise ValueError(f"solver={solver!r} is not one of auto, newton, sinkhorn")
    batch, (n, k) = log_p.shape[:-2], log_p.shape[-2:]
    matrix = log_p.reshape(-1, n, k) if log_p.ndim != 3 else log_p
    c = _marginal("row_marginal", row_marginal, log_p, n)
    r = _marginal("col_marginal", col_marginal, log_p, k)
    v = torch.zeros_like(r) if init is None else _potential(init, r, log_p)
    _check_entries(matrix, c)

    backend_primitives = primitives(backend, log_p)
    lam_each = torch.full_like(r[:, 0], lam)
    if permute:
        mass, _ = backend_primitives.sinkhorn_pass(
            matrix, torch.zeros_like(r)[:, None], c, lam_each
        )
        r = permute_prior(r, mass[:, 0], backend=backend)
    problem = Problem(backend_primitives, matrix, c, r, lam)
    newton = solver == "newton" or (solver == "auto" and k <= _NEWTON_MAX_COLUMNS)
    state = (solve_newton if newton else solve_sinkhorn)(problem, v, tol, max_iterations)
    labels, logsumexp, confidence = backend_primitives.sinkhorn_labels(matrix, state.v, lam_each)
    u = torch.where(c > 0, c.log() - logsumexp, -torch.inf)
    return SinkhornResult(
        labels=labels.reshape(*batch, n),
        row_potential=u.reshape(*batch, n),
        col_potential=state.v.reshape(*batch, k),
        col_marginal=r.reshape(*batch, k),
        n_passes=(state.n_passes + int(permute)).reshape(batch),
        error=state.error.reshape(batch),
        converged=(state.error <= tol).reshape(batch),
        value=state.value.reshape(batch),
        _confidence=confidence.reshape(*batch, n),
        _log_p=log_p,
        _lam=lam,
    )


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}={value}; expected a finite number above 0")


def _check_log_p(log_p: Tensor) -> None:
    if log_p.dtype not in _DTYPES:
        raise TypeError(
            f"log_p has dtype {log_p.dtype}; expected float32, float64, bfloat16 or float16"
        )
    if log_p.ndim < 2 or 0 in log_p.shape[-2:]:
        raise ValueError(
            f"log_p has shape {tuple(log_p.shape)}; expected (..., N, K) with N, K >= 1"
        )
    if log_p.requires_grad and torch.is_grad_enabled():
        raise RuntimeError("sinkhorn has no gradient; call it on log_p.detach()")


def _marginal(name: str, marginal: Tensor | None, log_p: Tensor, size: int) -> Tensor:
    """The marginal as (B, size) float64 that sums to 1; only row_marginal may hold zeros."""
    batch = log_p.shape[:-2]
    if marginal is None:
        return log_p.new_full((batch.numel(), size), 1.0 / size, dtype=torch.float64)
    _check_vector(name, marginal, batch, size)
    least = marginal.min() if marginal.numel() else marginal.new_ones(())
    zeros = name == "row_marginal"
    if not (marginal.isfinite().all() and (least >= 0 if zeros else least > 0)):
        raise ValueError(
            f"{name} of shape {tuple(marginal.shape)} has least entry {least.item():g}; expected "
            f"finite numbers {'of at least' if zeros else 'above'} 0"
        )
    wide = marginal.to(device=log_p.device, dtype=torch.float64).expand(*batch, size)
    total = wide.sum(-1, keepdim=True)
    if (total == 0).any():
        raise ValueError(f"{name} of shape {tuple(marginal.shape)} is zero throughout")
    return (wide / total).reshape(-1, size).contiguous()


def _check_vector(name: str, vector: Tensor, batch: torch.Size, size: int) -> None:
    if not vector.is_floating_point():
        raise TypeError(f"{name} has dtype {vector.dtype}; expected a floating dtype")
    if vector.shape not in ((size,), (*batch, size)):
        raise ValueError(
            f"{name} has shape {tuple(vector.shape)}; expected {(size,)} or {(*batch, size)}"
        )


def _potential(init: Tensor, r: Tensor, log_p: Tensor) -> Tensor:
    batch, k = log_p.shape[:-2], log_p.shape[-1]
    _check_vector("init", init, batch, k)
    if not init.isfinite().all():
        raise ValueError(f"init of shape {tuple(init.shape)} holds entries that are not finite")
    v = init.to(device=log_p.device, dtype=torch.float64).expand(*batch, k).reshape(-1, k)
    return v - (v * r).sum(-1, keepdim=True)


def _check_entries(matrix: Tensor, c: Tensor) -> None:
    """No NaN or +inf; no weighted row and no column that is -inf throughout. Two reads."""
    row_max = matrix.amax(-1)
    if (row_max.isnan() | row_max.isposinf()).any():
        raise ValueError(
            f"log_p of shape {tuple(matrix.shape)} holds NaN or +inf; expected entries below +inf"
        )
    dead_rows = row_max.isneginf() & (c > 0)
    if dead_rows.any():
        raise ValueError(
            f"log_p is -inf throughout row {int(dead_rows.nonzero()[0, 1])}; "
            "give the row weight 0 in row_marginal, or a finite entry"
        )
    dead_columns = matrix.amax(-2).isneginf()
    if dead_columns.any():
        raise ValueError(
            f"log_p is -inf throughout column {int(dead_columns.nonzero()[0, 1])}; "
            "no mass can reach it: drop the column"
        )
