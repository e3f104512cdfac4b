"""The baselines in torch alone, and what a Peer is.

Each prepares its inputs in its own layout and type, untimed. peers_*.py hold those that need a
package.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

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
        beta = plan.new_full((n,), 1 / n)
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
