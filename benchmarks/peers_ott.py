"""OTT-JAX, on whatever device JAX takes."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np
import torch
from ott.geometry.geometry import Geometry
from ott.solvers import linear
from ott.solvers.linear.acceleration import AndersonAcceleration

from families import Problem
from peers import Peer, Solution


def ott(problem: Problem, dtype: str, anderson: bool) -> Peer:
    """OTT-JAX on a dense cost, compiled ahead; Anderson with a memory of 5 or its default.

    Of memories 2 (its default) and 5, the latter took fewer iterations. A float32 run aims at 0.8
    of the error, as ours does, because its own measure of the error is in float32.
    """
    wide = dtype == "float64"
    reg = 1 / problem.lam
    target = problem.target if wide else 0.8 * problem.target
    with _jax_precision(wide):
        cost = jax.numpy.asarray((-problem.log_p).cpu().numpy().astype(dtype))

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
        return Solution((torch.from_numpy(g) / reg).to(problem.log_p.device), iterations)

    return Peer(dtype, compiled, solution)


def _jax_precision(wide: bool) -> AbstractContextManager[Any]:
    return jax.enable_x64(True) if wide else nullcontext()
