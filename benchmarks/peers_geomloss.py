"""GeomLoss, on torch tensors."""

from typing import Any

import geomloss.ot

from families import Problem
from peers import Peer, Solution


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
