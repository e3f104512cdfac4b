"""The baselines. Each prepares its inputs in its own layout and type, untimed, and gives a Peer."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest import mock

import geomloss.ot
import jax
import numpy as np
import ot
import torch
from ot.backend import TorchBackend
from ott.geometry.geometry import Geometry
from ott.solvers import linear
from ott.solvers.linear.acceleration import AndersonAcceleration
from torch import Tensor

from families import Problem


class Solution(NamedTuple):
    """v (K,) without unit, such that the plan is exp(lam log_p + u + v); labels (N,) if any."""

    v: Tensor
    iterations: int
    labels: Tensor | None = None


@dataclass(frozen=True)
class Peer:
    """A solver that is ready to run.

    Attributes:
        dtype: what it computes in.
        prepare: the job of at most so many iterations; what it returns is timed. Compiling is not.
        solution: reads a job's output.
    """

    dtype: str
    prepare: Callable[[int], Callable[[], Any]]
    solution: Callable[[Any], Solution]


def reference(problem: Problem) -> Peer:
    """The algorithm of SeLaVi's research code, restated: scaling in the kernel domain, float64.

    P = exp(lam log p), then two matrix-vector products an iteration until the samples' scaling
    changes by less than 0.1 in sum, or 2,000 iterations; then the plan and its labels. Each row is
    shifted by its maximum, which its scaling absorbs; entries below exp(-745) of it become 0.
    """
    n = len(problem.log_p)

    def solve(most: int) -> tuple[Tensor, Tensor, int]:
        plan = problem.log_p.double()
        plan -= plan.amax(1, keepdim=True)
        plan.mul_(problem.lam).exp_()
        beta = torch.full((n,), 1 / n, dtype=torch.float64)
        for iteration in range(1, most + 1):  # noqa: B007
            alpha = problem.col_marginal / (beta @ plan)
            scaled = (1 / n) / (plan @ alpha)
            change = (beta / scaled - 1).abs_().nansum()
            beta = scaled
            if change < 0.1:
                break
        plan *= alpha
        plan *= beta[:, None]
        return alpha, plan.argmax(1), iteration

    return Peer(
        "float64",
        lambda most: lambda: solve(min(most, 2000)),
        lambda out: Solution(out[0].log(), out[2], out[1]),
    )


def _stop_at_l1() -> AbstractContextManager[Any]:
    """POT stops on the Euclidean norm of the column residual: make it the L1 norm, as for all."""
    return mock.patch.object(TorchBackend, "norm", lambda self, a: a.abs().sum())


def _pot(
    problem: Problem, solver: Callable[..., Any], v: Callable[[dict[str, Tensor]], Tensor]
) -> Peer:
    n = len(problem.log_p)
    row_marginal = torch.full((n,), 1 / n, dtype=torch.float64)
    cost = -problem.log_p.double()

    def solve(most: int) -> tuple[Tensor, dict[str, Any]]:
        with _stop_at_l1():
            plan, log = solver(
                row_marginal,
                problem.col_marginal,
                cost,
                1 / problem.lam,
                numItermax=most,
                stopThr=problem.target,
                log=True,
            )
        return plan.argmax(1), log

    return Peer(
        "float64",
        lambda most: lambda: solve(most),
        lambda out: Solution(v(out[1]), out[1]["niter"] + 1, out[0]),
    )


def pot_log(problem: Problem) -> Peer:
    """POT's ot.bregman.sinkhorn_log on torch tensors, and its plan's labels.

    In float64: in float32 its exponentials become subnormal, which takes twice the time, and the
    error stalls above 2e-6.
    """
    return _pot(problem, ot.bregman.sinkhorn_log, lambda log: log["log_v"])


def pot(problem: Problem) -> Peer:
    """POT's ot.sinkhorn (kernel domain) on torch tensors, and its plan's labels.

    In float64: exp(-20 * 5.7), common in the easiest problem, is 0 in float32.
    """
    return _pot(problem, ot.sinkhorn, lambda log: log["v"].log())


def ott(problem: Problem, dtype: str, anderson: bool) -> Peer:
    """OTT-JAX on a dense cost, compiled ahead; Anderson with a memory of 5 or its default.

    Of memories 2 (its default) and 5, the latter took fewer iterations. A float32 run aims at 0.8
    of the error, as ours does, because its own measure of the error is in float32.
    """
    wide = dtype == "float64"
    reg = 1 / problem.lam
    target = problem.target if wide else 0.8 * problem.target
    with _jax_precision(wide):
        cost = jax.numpy.asarray((-problem.log_p).numpy().astype(dtype))

    def compiled(most: int) -> Callable[[], Any]:
        def solve(cost: jax.Array) -> Any:
            return linear.solve(
                Geometry(cost_matrix=cost, epsilon=reg),
                threshold=target,
                max_iterations=most,
                anderson=AndersonAcceleration(memory=5) if anderson else None,
            )

        with _jax_precision(wide):
            run = jax.jit(solve).lower(cost).compile()

        def job() -> Any:
            with _jax_precision(wide):
                return jax.block_until_ready(run(cost))

        return job

    def solution(out: Any) -> Solution:
        with _jax_precision(wide):
            g, iterations = np.array(out.g, dtype=np.float64), int(out.n_iters)
        return Solution(torch.from_numpy(g) / reg, iterations)

    return Peer(dtype, compiled, solution)


def _jax_precision(wide: bool) -> AbstractContextManager[Any]:
    return jax.enable_x64(True) if wide else nullcontext()


def geomloss_dense(problem: Problem) -> Peer:
    """geomloss.ot.solve on a dense cost, float32: it anneals, so more iterations bring it nearer.

    It has no stop rule (tol is not used), and its error falls as 1 / iterations, so that it ends
    far above what float32 resolves.
    """
    cost, reg = -problem.log_p, 1 / problem.lam

    def solution(out: tuple[Any, int]) -> Solution:
        result, most = out
        v = result.potential_b.double() / reg + problem.col_marginal.log()
        return Solution(v, most)

    return Peer(
        "float32",
        lambda most: lambda: (geomloss.ot.solve(cost, reg=reg, max_iter=most), most),
        solution,
    )


def swav_loop(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The loop of SwAV and DINO: (B, K) scores to (B, K) targets whose rows sum to 1."""
    batch, prototypes = scores.shape
    q = (scores / epsilon).exp().t()
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(dim=1, keepdim=True)
        q /= prototypes
        q /= q.sum(dim=0, keepdim=True)
        q /= batch
    q *= batch
    return q.t()
