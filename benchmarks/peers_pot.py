"""POT, on torch tensors."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import ot
from ot.backend import TorchBackend
from torch import Tensor

from families import Problem
from peers import Peer, Solution


def _stop_at_l1() -> AbstractContextManager[Any]:
    """POT stops on the Euclidean norm of the column residual: make it the L1 norm, as for all."""
    return mock.patch.object(TorchBackend, "norm", lambda self, a: a.abs().sum())


def _pot(
    problem: Problem, solver: Callable[..., Any], v: Callable[[dict[str, Tensor]], Tensor]
) -> Peer:
    n = len(problem.log_p)
    cost = -problem.log_p.double()
    row_marginal = cost.new_full((n,), 1 / n)

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
