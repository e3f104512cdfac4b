"""`geomloss.ot.solve` of GeomLoss 0.3.1 (kernel-operations.io): balanced, with a dense cost.

    from selavi.ops.compat import geomloss as ot
    solution = ot.solve(C, reg=0.01, a=a, b=b)
    solution.plan, solution.value, solution.potential_a

Differences from the original: it converges to `tol` and warns where it does not, while GeomLoss
anneals over exactly max_iter steps; max_iter and tol may be left out; C decides dtype and device;
the gradient of `value` with respect to C is its derivative, P, while GeomLoss's is twice that.
"""

import warnings

import torch
from torch import Tensor

from selavi.ops._library import Backend, primitives
from selavi.ops.compat._arrays import Array, Library, negated_cost, weights
from selavi.ops.compat._balanced import Balanced, least_tol, solve_balanced

_MAX_ITER = 1000
_TOL = 1e-9


class OTResult:
    """A balanced solution. With f, g the potentials, P_ij = a_i b_j exp((f_i + g_j - C_ij) / reg).

    f and g are determined up to a constant; here sum_i a_i f_i = sum_j b_j g_j. They are finite,
    where a or b is 0 too. Arrays are of C's kind, dtype and device.

    Attributes:
        potential_a: (N,), f, in the units of C.
        potential_b: (M,), g, in the units of C.
        value: scalar, sum_i a_i f_i + sum_j b_j g_j; at convergence
            <P, C> + reg sum_ij P_ij log(P_ij / (a_i b_j)). Where C requires a gradient it has one:
            P. Nothing else here has.
        converged: the marginal that is not exact was within tol.
    """

    def __init__(
        self,
        log_p: Tensor,
        reg: float,
        a: Tensor,
        b: Tensor,
        f: Tensor,
        g: Tensor,
        value: Tensor,
        solved: Balanced,
        backend: Backend,
        library: Library,
    ) -> None:
        self._log_p, self._reg, self._a, self._b, self._f, self._g = log_p, reg, a, b, f, g
        self._solved, self._backend, self._library = solved, backend, library
        self.potential_a: Array = library.export(f)
        self.potential_b: Array = library.export(g)
        self.value: Array = library.export(value)
        self.converged = bool(solved.converged.all())

    @property
    def density(self) -> Array:
        """(N, M), P_ij / (a_i b_j). Computed at each call."""
        f, g = self._f[:, None], self._g
        density = torch.add(f, self._log_p.double()).add_(g).div_(self._reg).exp_()
        return self._library.export(density)

    @property
    def plan(self) -> Array:
        """(N, M), P. Computed at each call, in one read of C and one write."""
        return self._library.export(self._plan(self._library.dtype))

    @property
    def marginal_a(self) -> Array:
        """(N,), P 1. Computed at each call."""
        return self._library.export(self._plan(torch.float64).sum(1))

    @property
    def marginal_b(self) -> Array:
        """(M,), P^T 1. Computed at each call."""
        return self._library.export(self._plan(torch.float64).sum(0))

    def _plan(self, dtype: torch.dtype) -> Tensor:
        if self._solved.rows_exact[0]:
            return self._normalized_rows(self._log_p, self._solved.log_v, self._a, dtype)
        return self._normalized_rows(self._log_p.mT, self._solved.log_u, self._b, dtype).mT

    def _normalized_rows(
        self, log_p: Tensor, v: Tensor, weight: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """Rows weight_i softmax_j(log_p_ij / reg + v_j), for v (1, columns)."""
        lam = torch.full_like(v[:, 0], 1.0 / self._reg)
        ours = primitives(self._backend, log_p)
        return ours.sinkhorn_plan(log_p[None], v, weight[None], lam, dtype)[0]


def solve(
    C: Array,
    *,
    reg: float,
    a: Array | None = None,
    b: Array | None = None,
    unbalanced: None = None,
    unbalanced_type: str = "KL",
    method: str = "auto",
    max_iter: int | None = None,
    tol: float | None = None,
    backend: Backend = "auto",
) -> OTResult:
    """Entropic transport: min <P, C> + reg KL(P, a b^T) over P >= 0 with P 1 = a, P^T 1 = b.

    Args:
        C: (N, M) costs, tensor, array or nested list; finite or +inf.
        reg: epsilon > 0, in the units of C.
        a: (N,) non-negative weights; None is uniform and sums to 1.
        b: (M,) likewise; its sum may differ from a's by 0.1 percent as in GeomLoss, and is scaled
            to it.
        unbalanced: None only.
        unbalanced_type: "KL" only; not used.
        method: "auto" only.
        max_iter: reads of C at most; None is 1000.
        tol: on the L1 error of a marginal as a share of the mass; None is 1e-9. Less than 1e-12
            for a float64 C, or 1e-6 for another dtype, is taken as that.
        backend: as in `selavi.ops.sinkhorn`.

    Raises:
        ValueError: a wrong shape, a negative weight, different masses, reg <= 0, and what
            `selavi.ops.sinkhorn` raises for log_p = -C.
        NotImplementedError: unbalanced transport or another method.
        RuntimeError: a or b requires a gradient.
    """
    if unbalanced is not None or unbalanced_type != "KL":
        raise NotImplementedError(
            "only balanced transport is solved here; leave unbalanced out, or use geomloss itself"
        )
    if method != "auto":
        raise NotImplementedError(f"method={method!r}; only 'auto' is known here and in geomloss")
    reg = float(reg)
    if not 0 < reg < float("inf"):
        raise ValueError(f"reg={reg}; expected a finite number above 0")
    if max_iter is not None and max_iter < 1:
        raise ValueError(f"max_iter={max_iter}; expected at least 1")
    log_p, library = negated_cost("C", C)
    source = weights("a", a, log_p.shape[:1], library)
    target = weights("b", b, log_p.shape[1:], library)
    mass, other = source.sum(), target.sum()
    if (mass - other).abs() > 1e-3 * (mass + other):
        raise ValueError(
            f"a sums to {float(mass):.6g} and b to {float(other):.6g}; scale them to the same sum, "
            "or use geomloss itself for unbalanced transport"
        )
    target = target * (mass / other)

    wanted = max(_TOL if tol is None else tol, least_tol(log_p.dtype))
    limit = _MAX_ITER if max_iter is None else max_iter
    solved = solve_balanced(log_p, 1.0 / reg, source, target[None], wanted, limit, None, backend)
    if not solved.converged.all():
        warnings.warn(
            f"solve did not converge: error {float(solved.error.max()):.1e} after "
            f"{solved.n_passes} reads of C, {wanted:.1e} wanted; raise max_iter or reg.",
            stacklevel=2,
        )
    log_p = log_p.detach()
    f, g = _potentials(log_p, 1.0 / reg, source, target, solved.log_u[0], solved.log_v[0])
    value = reg * mass * (solved.dual[0] - mass.log())
    gap = 0.5 * ((source * f).sum() - (target * g).sum()) / mass
    f, g = reg * (f - gap), reg * (g + gap)
    return OTResult(log_p, reg, source, target, f, g, value, solved, backend, library)


def _potentials(
    log_p: Tensor, lam: float, a: Tensor, b: Tensor, log_u: Tensor, log_v: Tensor
) -> tuple[Tensor, Tensor]:
    """f / reg (N,) and g / reg (M,), whose sum counts; where a weight is 0, from the other side."""
    mass = a.sum()
    f = log_u - a.log()
    g = log_v - (b / mass).log()
    rows, columns = a == 0, b == 0
    if rows.any():
        x = lam * log_p[rows].double() + log_v
        f[rows] = -_finite(x.logsumexp(1)) - mass.log()
    if columns.any():
        x = lam * log_p[:, columns].double() + log_u[:, None]
        g[columns] = -_finite(x.logsumexp(0))
    return f, g


def _finite(logsumexp: Tensor) -> Tensor:
    """0 where all costs are infinite: any potential will do there."""
    return logsumexp.masked_fill(logsumexp.isneginf(), 0.0)
