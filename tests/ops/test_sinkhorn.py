"""The solution that `sinkhorn` finds, on easy problems and on hard ones."""

from collections import deque
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from selavi.ops import _fixed_point, _newton, _problem
from selavi.ops._problem import Problem
from tests.ops.on_device import sinkhorn
from tests.ops.problems import (
    HARD,
    assert_solves,
    hard_log_p,
    one_hot_log_p,
    random_log_p,
    zipf,
)

LOGITS = Path(__file__).parents[3] / "shared" / "data" / "logits"


@pytest.mark.parametrize("solver", ["newton", "sinkhorn"])
def test_solves_every_dtype(backend, dtype, solver):
    log_p = random_log_p(2, 3, 200, 8, scale=1.0).to(dtype)
    result = sinkhorn(log_p, lam=2.0, col_marginal=zipf(8), backend=backend, solver=solver)
    assert_solves(result, log_p)
    assert result.labels.shape == (2, 3, 200) and result.n_passes.shape == (2, 3)
    assert torch.equal(result.labels, result.plan().argmax(-1))
    rows = result.plan().amax(-1) * 200
    torch.testing.assert_close(result.confidence, rows, rtol=1e-5, atol=0)


def test_backends_agree(layout, backend):
    log_p = layout(random_log_p(2, 300, 12))
    ours, definition = (
        sinkhorn(log_p, permute=True, col_marginal=zipf(12), backend=b) for b in (backend, "torch")
    )
    assert torch.equal(ours.labels, definition.labels)
    assert torch.equal(ours.col_marginal, definition.col_marginal)
    torch.testing.assert_close(ours.value, definition.value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.plan(), definition.plan(), rtol=0, atol=4e-6)


def test_matches_an_independent_solver_in_the_kernel_domain():
    log_p = random_log_p(40, 5, scale=1.0).double()
    r = zipf(5) / zipf(5).sum()
    kernel, column = (3.0 * log_p).exp(), torch.ones(5, dtype=torch.float64)
    for _ in range(2000):
        row = (1 / 40) / (kernel @ column)
        column = r / (kernel.T @ row)
    result = sinkhorn(log_p, lam=3.0, col_marginal=r, tol=1e-13)
    assert result.converged
    torch.testing.assert_close(result.plan(), row[:, None] * kernel * column, rtol=1e-10, atol=0)


def test_value_is_the_objective_at_the_solution(backend):
    log_p = random_log_p(60, 6).double()
    result = sinkhorn(log_p, lam=4.0, tol=1e-12, backend=backend)
    q, c = result.plan(), 1.0 / 60
    primal = (q * (result.log_plan() - 4.0 * log_p)).sum() - np.log(c)
    torch.testing.assert_close(result.value, primal, rtol=1e-9, atol=1e-9)


def test_invariant_to_row_shifts_and_equivariant_to_column_order(backend):
    log_p = random_log_p(300, 9).double()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    reference = sinkhorn(log_p, tol=1e-10, backend=backend)
    shifted = sinkhorn(log_p + torch.arange(300.0)[:, None], tol=1e-10, backend=backend)
    permuted = sinkhorn(log_p[:, order], tol=1e-10, backend=backend)
    torch.testing.assert_close(shifted.plan(), reference.plan(), rtol=0, atol=1e-9)
    torch.testing.assert_close(permuted.plan(), reference.plan()[:, order], rtol=0, atol=1e-9)


def test_permute_gives_the_largest_prior_to_the_heaviest_cluster(backend):
    log_p = random_log_p(500, 6, scale=1.0) + torch.tensor([0.0, 2.0, 0.5, -1.0, 1.0, -2.0])
    log_p = log_p.log_softmax(-1)
    result = sinkhorn(log_p, lam=1.0, col_marginal=zipf(6), permute=True, backend=backend)
    assert result.col_marginal.argsort(descending=True).tolist() == [1, 4, 2, 0, 3, 5]


def test_problems_of_a_batch_stop_each_on_its_own():
    easy, hard = random_log_p(400, 12, scale=0.1), hard_log_p(400, 12, 8.0, 2.0)
    together = sinkhorn(torch.stack([easy, hard]))
    assert together.n_passes[0] < together.n_passes[1]
    alone = sinkhorn(easy)
    assert together.n_passes[0] == alone.n_passes  # steps follow the batch, so v agrees to tol
    torch.testing.assert_close(together.plan()[0], alone.plan(), rtol=0, atol=4e-6)
    assert together.converged.all()


def test_warm_start_takes_fewer_passes():
    log_p = hard_log_p(800, 30, 8.0, 2.0)
    cold = sinkhorn(log_p)
    warm = sinkhorn(log_p, init=cold.col_potential)
    assert warm.n_passes == 1 and torch.equal(warm.labels, cold.labels)


def test_zero_weight_rows_are_labeled_and_carry_nothing(backend):
    log_p = random_log_p(100, 5)
    weight = torch.ones(100)
    weight[10:30] = 0.0
    result = sinkhorn(log_p, row_marginal=weight, backend=backend)
    assert result.converged and (result.plan()[10:30] == 0).all()
    kept = sinkhorn(log_p[weight > 0], backend=backend)
    torch.testing.assert_close(result.plan()[weight > 0], kept.plan(), rtol=0, atol=4e-6)
    expected = (20.0 * log_p.double() + result.col_potential).argmax(-1)
    assert torch.equal(result.labels, expected)


# Hard problems ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", ["uniform", "zipf"])
@pytest.mark.parametrize("step", ["p403", "1138", "1752", "2178"])
def test_log_probabilities_of_a_training_run(step, prior):
    path = LOGITS / f"log_p_step{step.removeprefix('p')}.npy"
    if not path.exists():
        pytest.skip(f"{path.name} is not at ../shared/data/logits")
    log_p = torch.from_numpy(np.load(path))
    marginal = zipf(16) if prior == "zipf" else None
    result = sinkhorn(log_p, col_marginal=marginal, permute=prior == "zipf")
    assert_solves(result, log_p)
    assert result.n_passes <= {"uniform": 30, "zipf": 16}[prior]
    plain = sinkhorn(log_p, col_marginal=marginal, solver="sinkhorn", max_iterations=50)
    assert not plain.converged and plain.error > 2e-6


# As measured, and as much again as a backend's rounding moves them.
PASSES = {
    "confident and noisy": 28,
    "most confident": 38,
    "one-hot rows": 50,
    "one-hot rows at -1e4": 220,
    "a column that no row favors": 140,
    "duplicate columns": 10,
    "-inf entries": 10,
    "identical rows": 26,
    "K = 1": 1,
    "N = 1": 32,
    "N = 1, K = 1": 1,
}


@pytest.mark.parametrize("name", list(HARD))
def test_hard_problems_converge(name, backend):
    log_p = HARD[name]
    result = sinkhorn(log_p, max_iterations=300, backend=backend)
    assert_solves(result, log_p)
    assert result.n_passes <= PASSES[name]


@pytest.mark.parametrize("solver", ["auto", "newton"])
def test_where_mixing_does_not_arrive(solver, backend):
    """solver="auto" begins with Anderson's method here and turns to Newton's before long."""
    log_p = hard_log_p(500, 100, 8.0, 2.0)
    result = sinkhorn(log_p, max_iterations=300, solver=solver, backend=backend)
    assert_solves(result, log_p)
    assert result.n_passes <= 120


@pytest.mark.parametrize("name", ["one-hot rows at -1e4", "most confident", "wide"])
def test_every_read_is_counted(name, monkeypatch):
    log_p = one_hot_log_p(400, 100, 1e4) if name == "wide" else HARD[name]
    reads = 0.0

    def count(method, rows):
        def counted(problem, *arguments):
            nonlocal reads
            last = arguments[-1]
            if not isinstance(last, torch.Tensor) or last.dtype != torch.bool or last.any():
                reads += rows(problem, *arguments) / len(log_p)
            return method(problem, *arguments)

        return counted

    for method in ("evaluate", "laplacian"):
        counted = count(getattr(Problem, method), lambda problem, *_: problem.log_p.shape[1])
        monkeypatch.setattr(Problem, method, counted)
    monkeypatch.setattr(Problem, "sample", count(Problem.sample, lambda _, size: size))
    result = sinkhorn(log_p, max_iterations=300)
    assert reads - 1e-6 <= result.n_passes < reads + 1


@pytest.mark.parametrize("lam", [0.01, 200.0, 1000.0])
def test_extreme_lam(lam):
    log_p = random_log_p(400, 10)
    assert_solves(sinkhorn(log_p, lam=lam), log_p)


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-7), (torch.float64, 1e-11)])
def test_prior_that_spans_nine_decades(dtype, tol):
    log_p = random_log_p(2000, 10).to(dtype)
    prior = torch.logspace(-9, 0, 10, dtype=torch.float64)
    result = sinkhorn(log_p, col_marginal=prior, tol=tol)
    assert_solves(result, log_p, tol=2 * tol)


def test_unconverged_is_said():
    log_p = hard_log_p(500, 30, 15.0, 3.0)
    for limit in (1, 2, 5):
        for solver in ("newton", "anderson", "sinkhorn"):
            result = sinkhorn(log_p, max_iterations=limit, solver=solver)
            assert not result.converged and result.n_passes <= limit
            true_error = (result.plan().sum(-2) - result.col_marginal).abs().sum()
            torch.testing.assert_close(result.error, true_error, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("solver", ["newton", "anderson", "sinkhorn"])
def test_steps_that_a_gpu_takes_in_vain_change_nothing(solver, monkeypatch):
    """A GPU is asked for its progress steps later: here the CPU is as late."""

    class Late:
        def __init__(self):
            self.answers = deque([True] * 3)

        def any(self, condition):
            self.answers.append(bool(condition.any()))
            return self.answers.popleft()

    log_p = torch.stack([random_log_p(1500, 12, scale=0.3), hard_log_p(1500, 12, 3.0, 1.0)])
    options = {"lam": 5.0, "solver": solver, "max_iterations": 60, "col_marginal": zipf(12)}
    prompt = sinkhorn(log_p, **options)
    for module in (_newton, _fixed_point):
        monkeypatch.setattr(module, "Lookahead", Late)
    monkeypatch.setattr(_newton, "may_hold", lambda condition: True)
    late = sinkhorn(log_p, **options)
    for name in ("labels", "col_potential", "error", "n_passes", "value"):
        assert torch.equal(getattr(late, name), getattr(prompt, name)), name


def test_a_capture_is_that_of_the_tensors_device(monkeypatch):
    """Device 1 captures; the current one is 0. A CPU's tensor asks no device."""
    current = [0]

    @contextmanager
    def device(which):
        current.append(which.index)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: current[-1] == 1)
    with FakeTensorMode():
        captured = [_problem.is_captured(torch.empty(1, device=f"cuda:{i}")) for i in range(2)]
    assert captured == [False, True] and current == [0]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", None)
    assert not _problem.is_captured(torch.empty(1))
