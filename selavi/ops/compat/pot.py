"""`ot.sinkhorn` and `ot.sinkhorn2` of POT 0.9.7 (pythonot.github.io): same arguments and results.

    from selavi.ops.compat import pot as ot
    plan = ot.sinkhorn(a, b, M, reg)

All methods of POT compute the same plan, so all names run the same solver, `selavi.ops.sinkhorn`:
damped Newton on the dual in the log domain. Where this shows:

- numItermax caps the reads of M. A plan that did not converge is the solver's best so far and not
  what so many plain iterations give.
- stopThr bounds the L1 error of a marginal, while the other is exact. POT compares it to an L2 norm
  (greenkhorn: a maximum, epsilon scaling: a squared norm), which is no larger. Less than 1e-12 of
  the mass for a float64 M, or 1e-6 for another dtype, is taken as that: arithmetic does not reach
  further, and POT would run to numItermax.
- log["err"] has one entry, the L2 error of the plan as returned, on the side where it is larger;
  log["niter"] (and n_iter, where POT calls it that) counts reads of M.
- Potentials are determined up to a constant added to log u and taken from log v; here both have the
  same maximum, so that u and v overflow last.
- No gradient is defined. Options that POT ignores silently are an error.
"""

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from selavi.ops._library import Backend
from selavi.ops.compat._arrays import Array, Library, negated_cost, weights
from selavi.ops.compat._balanced import Balanced, least_tol, solve_balanced

_METHODS = (
    "sinkhorn",
    "sinkhorn_log",
    "greenkhorn",
    "sinkhorn_stabilized",
    "sinkhorn_epsilon_scaling",
)
_SCALED_POTENTIALS = ("sinkhorn_stabilized", "sinkhorn_epsilon_scaling")  # alpha = reg * log u
# Options of POT's iterations, which do not change what they converge to.
_ITERATION_OPTIONS = ("tau", "print_period", "epsilon0", "numInnerItermax")


def sinkhorn(
    a: Array,
    b: Array,
    M: Array,
    reg: float,
    method: str = "sinkhorn",
    numItermax: int = 1000,
    stopThr: float = 1e-9,
    verbose: bool = False,
    log: bool = False,
    warn: bool = True,
    warmstart: Any = None,
    *,
    backend: Backend = "auto",
    **kwargs: Any,
) -> Any:
    """The plan P >= 0 with P 1 = a, P^T 1 = b that minimises <P, M> + reg sum P log P.

    Args:
        a: (n,) non-negative weights; [] is uniform. Rows of weight 0 are 0 in P.
        b: (m,) likewise, with the sum of a; [] is uniform. Or (m, h), h histograms: the result is
            then the h losses <P, M>.
        M: (n, m) costs, tensor or array, finite or +inf; it decides dtype, device and kind of the
            results. Integers count as floating point.
        reg: > 0, in the units of M.
        method: sinkhorn, sinkhorn_log, greenkhorn, sinkhorn_stabilized or sinkhorn_epsilon_scaling;
            decides the keys of the log and the meaning of warmstart. The last and greenkhorn take
            one histogram.
        numItermax: reads of M at most.
        stopThr: on the L1 error of a marginal of P.
        verbose: print the number of reads and the error.
        log: return (result, dict) with POT's keys for the method: err, niter, u, v for sinkhorn;
            those, log_u and log_v for sinkhorn_log; n_iter, u, v for greenkhorn; err, n_iter, logu,
            logv, alpha, beta, warmstart for sinkhorn_stabilized; err, niter, alpha, beta, warmstart
            for sinkhorn_epsilon_scaling. P = diag(u) exp(-M / reg) diag(v), alpha = reg log u.
            With h histograms u is (n, h) and v (m, h), and the errors are one Frobenius norm.
        warn: warn where it did not converge or where a and b have different sums.
        warmstart: (log u, log v) of an earlier solution; (alpha, beta) for sinkhorn_stabilized and
            sinkhorn_epsilon_scaling; for sinkhorn_log with h histograms, h pairs.
        backend: as in `selavi.ops.sinkhorn`.
        kwargs: tau, print_period, epsilon0, numInnerItermax are accepted and not needed.

    Returns:
        P (n, m), or losses (h,); with log=True, and the dict.

    Raises:
        ValueError: a wrong shape, a negative weight, reg <= 0, an unknown method, and what
            `selavi.ops.sinkhorn` raises for log_p = -M.
        TypeError: an unknown option.
        RuntimeError: M, a or b requires a gradient.
    """
    solution = _Solution(
        a, b, M, reg, method, numItermax, stopThr, verbose, warn, warmstart, backend, kwargs
    )
    result = solution.losses if solution.batched else solution.library.export(solution.plan)
    return (result, solution.log()) if log else result


def sinkhorn2(
    a: Array,
    b: Array,
    M: Array,
    reg: float,
    method: str = "sinkhorn",
    numItermax: int = 1000,
    stopThr: float = 1e-9,
    verbose: bool = False,
    log: bool = False,
    warn: bool = False,
    warmstart: Any = None,
    *,
    backend: Backend = "auto",
    **kwargs: Any,
) -> Any:
    """The loss <P, M>, without the entropy, for the P of `sinkhorn`; same arguments.

    A scalar for b (m,), (h,) for b (m, h). Only warn has another default, as in POT.
    """
    solution = _Solution(
        a, b, M, reg, method, numItermax, stopThr, verbose, warn, warmstart, backend, kwargs
    )
    result = solution.losses if solution.batched else solution.losses[0]
    return (result, solution.log()) if log else result


class _Solution:
    """One call: the solver's result in POT's terms. Of the plan one histogram's is held."""

    def __init__(
        self,
        a: Array,
        b: Array,
        M: Array,
        reg: float,
        method: str,
        numItermax: int,
        stopThr: float,
        verbose: bool,
        warn: bool,
        warmstart: Any,
        backend: Backend,
        options: dict[str, Any],
    ) -> None:
        self.method, self.reg = method.lower(), float(reg)
        _check_arguments(self.method, self.reg, numItermax, stopThr, options)
        if isinstance(M, Tensor) and M.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "no gradient is defined here; pass M.detach(), or differentiate the dual value "
                "instead of the plan"
            )
        log_p, self.library = negated_cost("M", M)
        n, m = log_p.shape
        source = weights("a", a, (n,), self.library)
        targets = weights("b", b, (m, -1), self.library)
        self.batched = targets.ndim == 2
        if self.batched and self.method in ("greenkhorn", "sinkhorn_epsilon_scaling"):
            raise ValueError(f"method={method!r} takes one histogram b; use method='sinkhorn'")
        targets = targets.T if self.batched else targets[None]

        mass, floor = float(source.sum()), least_tol(log_p.dtype)
        tol = max(stopThr / mass, floor)
        init = None if warmstart is None else self._init(warmstart, n, m, len(targets))
        lam = 1.0 / self.reg
        solved = solve_balanced(log_p, lam, source, targets, tol, numItermax, init, backend)
        self.log_u, self.log_v = _balance(solved, mass)
        self.niter = solved.n_passes

        losses, errors = [], []
        for log_u, log_v, target in zip(self.log_u, self.log_v, targets, strict=True):
            plan = torch.mul(log_p.double(), lam).add_(log_u[:, None]).add_(log_v).exp_()
            losses.append(-(plan * log_p.masked_fill(plan == 0, 0.0)).sum())
            rows, columns = plan.sum(1) - source, plan.sum(0) - target
            errors.append(torch.maximum(rows.norm(), columns.norm()))
        self.plan = plan
        self.losses = self.library.export(torch.stack(losses))
        self.error = torch.stack(errors).norm()
        if verbose:
            print(f"{self.niter} reads of M, error {float(self.error):e}")
        if warn:
            _warn(solved, source, targets, mass * tol)

    def _init(self, warmstart: Any, n: int, m: int, count: int) -> tuple[Tensor, Tensor]:
        """log u (h, n) and log v (h, m) from what the method calls a warm start."""
        pairs = warmstart if self.batched and self.method == "sinkhorn_log" else None
        if pairs is not None and len(pairs) != count:
            raise ValueError(f"warmstart has {len(pairs)} pairs for {count} histograms")
        sides = []
        for side, size in ((0, n), (1, m)):
            if pairs is not None:
                x = torch.stack([_tensor(pair[side], self.library) for pair in pairs])
            else:
                x = _tensor(warmstart[side], self.library)
                x = x.T if x.ndim == 2 else x[None]
            if x.ndim != 2 or len(x) not in (1, count) or x.shape[1] != size:
                raise ValueError(
                    f"warmstart[{side}] has the wrong shape for {size} weights and {count} "
                    "histogram(s)"
                )
            scale = self.reg if self.method in _SCALED_POTENTIALS else 1.0
            sides.append(x.expand(count, size) / scale)
        return sides[0], sides[1]

    def log(self) -> dict[str, Any]:
        """POT's dictionary for the method."""
        log_u, log_v = (self._export(x) for x in (self.log_u, self.log_v))
        u, v = (self._export(x.exp()) for x in (self.log_u, self.log_v))
        alpha, beta = (self._export(self.reg * x) for x in (self.log_u, self.log_v))
        error = [self.library.export(self.error)]
        scaled = {"alpha": alpha, "beta": beta, "warmstart": (alpha, beta)}
        if self.method == "sinkhorn":
            return {"err": error, "niter": self.niter, "u": u, "v": v}
        if self.method == "sinkhorn_log":
            logs = {"log_u": log_u, "log_v": log_v}
            return {"err": error, "niter": self.niter, **logs, "u": u, "v": v}
        if self.method == "greenkhorn":
            return {"u": u, "v": v, "n_iter": self.niter}
        if self.method == "sinkhorn_stabilized":
            return {"err": error, "n_iter": self.niter, "logu": log_u, "logv": log_v, **scaled}
        return {"err": error, **scaled, "niter": self.niter}

    def _export(self, x: Tensor) -> Array:
        """(h, size) as POT has it: (size, h), or (size,) for a single b."""
        return self.library.export(x.T if self.batched else x[0])


def _check_arguments(
    method: str, reg: float, numItermax: int, stopThr: float, options: dict[str, Any]
) -> None:
    if method not in _METHODS:
        raise ValueError(
            f"method={method!r} is not one of {', '.join(_METHODS)}; they give the same plan, so "
            "any of them will do"
        )
    if unknown := sorted(set(options) - set(_ITERATION_OPTIONS)):
        raise TypeError(f"unknown option(s): {', '.join(unknown)}; leave them out")
    if not 0 < reg < float("inf"):
        raise ValueError(f"reg={reg}; expected a finite number above 0")
    if numItermax < 1:
        raise ValueError(f"numItermax={numItermax}; expected at least 1")
    if not stopThr >= 0:
        raise ValueError(f"stopThr={stopThr}; expected at least 0")


def _tensor(values: Array, library: Library) -> Tensor:
    if not isinstance(values, Tensor):
        import numpy as np

        values = torch.from_numpy(np.array(values, dtype=np.float64))
    tensor: Tensor = values.detach().to(device=library.device, dtype=torch.float64)
    return tensor


def _balance(solved: Balanced, mass: float) -> tuple[Tensor, Tensor]:
    """log u and log v for plans of this mass, with equal maxima."""
    log_u = solved.log_u + math.log(mass)
    shift = 0.5 * (log_u.amax(-1, keepdim=True) - solved.log_v.amax(-1, keepdim=True))
    return log_u - shift, solved.log_v + shift


def _warn(solved: Balanced, source: Tensor, targets: Tensor, tol: float) -> None:
    advice = "raise numItermax or reg, or lower the demand with stopThr"
    mass, others = source.sum(), targets.sum(1)
    if not solved.converged.all():
        error = float(solved.error.max() * mass)
        reason = f"error {error:.1e} after {solved.n_passes} reads of M, {tol:.1e} wanted; {advice}"
    elif ((mass - others).abs() > tol).any():
        reason = (
            f"a sums to {float(mass):.9g} and b to {others.tolist()}, so the plan's columns are "
            "only proportional to b; scale a and b to the same sum"
        )
    else:
        return
    warnings.warn(f"Sinkhorn did not converge: {reason}.", stacklevel=4)
