"""FlashSinkhorn, on points: its cost is squared Euclidean, and never stored. A GPU only."""

from collections.abc import Callable

from flash_sinkhorn import SamplesLoss
from torch import Tensor

from families import Clouds
from peers import Peer, Solution


def flash_sinkhorn(clouds: Clouds, dtype: str) -> Peer:
    """Its alternating iteration at a fixed epsilon, products in "float32" or in "tf32".

    Potentials are float32. Its own stop rule looks at their change and reads it on the host; here
    the number of iterations is given.
    """
    problem = clouds.problem
    reg = 1 / problem.lam

    def prepare(most: int) -> Callable[[], tuple[Tensor, int]]:
        solve = SamplesLoss(
            backend="alternating",
            use_epsilon_scaling=False,
            eps=reg,
            n_iters=most,
            potentials=True,
            allow_tf32=dtype == "tf32",
        )
        return lambda: (solve(clouds.x, clouds.y)[1], most)

    def solution(out: tuple[Tensor, int]) -> Solution:
        g, most = out
        return Solution(g.double() / reg + problem.col_marginal.log(), most)

    return Peer(dtype, prepare, solution)
