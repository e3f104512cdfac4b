"""The assignment problem as its solvers see it: a concave function of K numbers a problem.

f(v) = sum_k r_k v_k - sum_i c_i logsumexp_k(lam log_p_ik + v_k). Its gradient is r - m with m the
column masses, so its maximum is where they meet the column marginal.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from selavi.ops._library import Primitives

_STEPS_AHEAD = 3


@dataclass(frozen=True)
class Problem:
    """B problems of one shape: log_p (B, N, K), c (B, N), r (B, K), lam (B,).

    r sums to 1, and c does over all ranks of `group`, each of which holds its own rows.
    `check` is called where a result is not finite, to name the entry that is at fault.
    """

    primitives: Primitives
    log_p: Tensor
    row_marginal: Tensor
    col_marginal: Tensor
    lam: Tensor
    check: Callable[[], None]
    total_rows: int
    first_row: int = 0
    group: dist.ProcessGroup | None = None

    def evaluate(self, v: Tensor, active: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Column masses (B, S, K) and f (B, S) at v (B, S, K); inactive problems cost nothing."""
        mass, mean_logsumexp = self.primitives.sinkhorn_pass(
            self.log_p, v.contiguous(), self._weight(active), self.lam
        )
        if self.group is not None:
            both = torch.cat([mass, mean_logsumexp[..., None]], -1)
            dist.all_reduce(both, group=self.group)
            mass, mean_logsumexp = both[..., :-1].contiguous(), both[..., -1]
        return mass, (v * self.col_marginal[:, None]).sum(-1) - mean_logsumexp

    def agree(self, tensor: Tensor) -> Tensor:
        """The first rank's values on every rank.

        What each computed by itself may differ in rounding, and the decisions that follow from it
        would leave ranks waiting for each other.
        """
        if self.group is not None:
            tensor = tensor.contiguous()
            dist.broadcast(tensor, group_src=0, group=self.group)
        return tensor

    def laplacian(self, v: Tensor, sharpness: Tensor, active: Tensor) -> Tensor:
        """-(Hessian of f) (B, K, K), of softmaxes that are `sharpness` (B,) <= 1 times as sharp.

        It is the Laplacian of a graph whose weights are the columns' overlaps, so its diagonal is a
        sum of positive numbers and nothing cancels.
        """
        overlap = self.primitives.sinkhorn_overlap(
            self.log_p, sharpness[:, None] * v, self._weight(active), sharpness * self.lam
        )
        if self.group is not None:
            dist.all_reduce(overlap, group=self.group)
        overlap *= sharpness[:, None, None]
        overlap.diagonal(dim1=-2, dim2=-1).zero_()
        return torch.diag_embed(overlap.sum(-1)) - overlap

    def _weight(self, active: Tensor | None) -> Tensor:
        return self.row_marginal if active is None else self.row_marginal * active[:, None]

    def select(self, b: int) -> "Problem":
        """Problem b alone, as a view."""
        one = slice(b, b + 1)
        return replace(
            self,
            log_p=self.log_p[one],
            row_marginal=self.row_marginal[one],
            col_marginal=self.col_marginal[one],
            lam=self.lam[one],
        )

    def sample(self, size: int) -> "Problem | None":
        """The problem on `size` of the rows, copied; None if a problem has no weight there.

        One row is drawn from each of `size` stretches of equal length, the same in every call.
        """
        generator = torch.Generator().manual_seed(0)
        at = torch.arange(size) + torch.rand(size, generator=generator, dtype=torch.float64)
        rows = (at * (self.total_rows / size)).long() - self.first_row
        mine = (rows >= 0) & (rows < self.log_p.shape[1])
        where = mine.nonzero()[:, 0].to(self.log_p.device)
        rows = rows[mine].to(self.log_p.device)
        log_p, c = self.log_p[:, rows], self.row_marginal[:, rows]
        if self.group is not None:  # every rank then solves the whole sample
            log_p = _gather(log_p, where, size, self.group)
            c = _gather(c, where, size, self.group)
        weight = c.sum(-1, keepdim=True)
        if (weight == 0).any():
            return None
        return replace(
            self, log_p=log_p, row_marginal=c / weight, total_rows=size, first_row=0, group=None
        )


def _gather(part: Tensor, where: Tensor, size: int, group: dist.ProcessGroup) -> Tensor:
    whole = part.new_zeros(len(part), size, *part.shape[2:])
    whole[:, where] = part
    dist.all_reduce(whole, group=group)
    return whole


@dataclass
class State:
    """Where each problem stands: v and m (B, K), f, sum_k |m_k - r_k| and reads of log_p (B,)."""

    v: Tensor
    mass: Tensor
    value: Tensor
    error: Tensor
    reads: Tensor

    def select(self, b: int) -> "State":
        one = slice(b, b + 1)
        return State(self.v[one], self.mass[one], self.value[one], self.error[one], self.reads[one])

    def put(self, b: int, one: "State") -> None:
        for name, mine in list(vars(self).items()):
            other = mine.clone()  # another state may hold the same tensors
            other[b] = getattr(one, name)[0]
            setattr(self, name, other)

    def accept(
        self, problem: Problem, chosen: Tensor, v: Tensor, mass: Tensor, value: Tensor
    ) -> None:
        """Move the chosen problems (B,) to v and what was measured there."""
        self.v = torch.where(chosen[:, None], v, self.v)
        self.mass = torch.where(chosen[:, None], mass, self.mass)
        self.value = torch.where(chosen, value, self.value)
        error = (mass - problem.col_marginal).abs().sum(-1)
        self.error = torch.where(chosen, error, self.error)

    def improve(self, problem: Problem, other: "State") -> None:
        """Take what `other` solves better."""
        self.accept(problem, other.error < self.error, other.v, other.mass, other.value)


def may_hold(condition: Tensor) -> bool:
    """Whether a condition holds for any problem; on a GPU True, as asking would be waiting."""
    return condition.device.type != "cpu" or bool(condition.any())


class Lookahead:
    """Whether a condition still holds for any problem, without waiting for a GPU.

    It must never hold again once it did not. On the CPU the answer is that of now; elsewhere that
    of `_STEPS_AHEAD` questions ago, so that the device always has work waiting. Steps that were
    not needed are of problems without weight, which cost nothing. While a CUDA graph is captured
    the answer is True.
    """

    def __init__(self) -> None:
        self._answers: deque[tuple[Tensor, torch.cuda.Event]] = deque()

    def any(self, condition: Tensor) -> bool:
        if condition.device.type == "cpu":
            return bool(condition.any())
        if is_captured(condition):
            return True
        answer = condition.any().to("cpu", non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(condition.device))
        self._answers.append((answer, event))
        if len(self._answers) <= _STEPS_AHEAD:
            return True
        answer, event = self._answers.popleft()
        event.synchronize()
        return bool(answer)


def is_captured(tensor: Tensor) -> bool:
    """Whether a CUDA graph is being captured on its device, during which no result can be read."""
    if not tensor.is_cuda:
        return False
    with torch.cuda.device(tensor.device):
        return torch.cuda.is_current_stream_capturing()


def start(problem: Problem, v: Tensor, reads: Tensor) -> State:
    """The state at v, for one read of every problem."""
    mass, value = problem.evaluate(v[:, None])
    return _state(problem, v, mass[:, 0], value[:, 0], reads + 1)


def repeat(problem: Problem, v: Tensor, count: int) -> State:
    """The state after `count` reads of Sinkhorn's iteration, as one operation; not over a group."""
    v, mass, mean_logsumexp = problem.primitives.sinkhorn_iterations(
        problem.log_p, v, problem.row_marginal, problem.col_marginal, problem.lam, count
    )
    value = (v * problem.col_marginal).sum(-1) - mean_logsumexp
    return _state(problem, v, mass, value, torch.full_like(value, count))


def _state(problem: Problem, v: Tensor, mass: Tensor, value: Tensor, reads: Tensor) -> State:
    return State(v, mass, value, (mass - problem.col_marginal).abs().sum(-1), reads)


def check_finite(problem: Problem, state: State) -> None:
    """Bad input shows in the sums: an entry that spoils them, or a column that gets no mass."""
    if not state.value.isfinite().all() or not (state.mass > 0).all():
        problem.check()
