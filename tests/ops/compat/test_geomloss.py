"""GeomLoss's solve against GeomLoss.

Its annealing ends near the solution: some 0.5 percent off in the plan after 300 steps, and, as the
value is stationary there, 1e-4 off in the value.
"""

import warnings

import numpy as np
import pytest
import torch

from selavi.ops.compat import geomloss as ours

theirs = pytest.importorskip("geomloss.ot", reason="GeomLoss is in the test extra")


@pytest.fixture
def backend(cpu_backend):
    """Arrays are on the CPU."""
    return cpu_backend


REG = 0.2
NAMES = ("potential_a", "potential_b", "density", "plan", "value", "marginal_a", "marginal_b")


def problem(n=14, m=9, seed=0):
    rng = np.random.default_rng(seed)
    a, b = rng.random(n) + 0.1, rng.random(m) + 0.1
    return rng.random((n, m)), a / a.sum(), b / b.sum()


def assert_same(mine, reference):
    for name in NAMES:
        x, y = getattr(mine, name), getattr(reference, name)
        assert type(x) is type(y) and x.dtype == y.dtype and x.shape == y.shape, name
        if not name.startswith("potential"):
            rtol = 1e-4 if name == "value" else 2e-2
            np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-3, err_msg=name)
    total = mine.potential_a[:, None] + mine.potential_b
    expected = reference.potential_a[:, None] + reference.potential_b
    np.testing.assert_allclose(total, expected, atol=5e-3)


@pytest.mark.parametrize("shape", [(14, 9), (9, 14)])
@pytest.mark.parametrize("mass", [1.0, 3.0])
def test_solutions(backend, shape, mass):
    C, a, b = problem(*shape)
    a, b = mass * a, mass * b
    mine = ours.solve(C, reg=REG, a=a, b=b, backend=backend)
    assert_same(mine, theirs.solve(C, reg=REG, a=a, b=b, max_iter=300))
    assert mine.converged


@pytest.mark.parametrize("shape", [(14, 9), (9, 14)])
def test_the_solution_satisfies_its_definition(backend, shape):
    C, a, b = problem(*shape)
    solution = ours.solve(C, reg=0.01, a=2 * a, b=2 * b, backend=backend)
    a, b, plan = 2 * a, 2 * b, solution.plan
    np.testing.assert_allclose(solution.marginal_a, a, atol=1e-8)
    np.testing.assert_allclose(solution.marginal_b, b, atol=1e-8)
    f, g = solution.potential_a, solution.potential_b
    np.testing.assert_allclose(a[:, None] * b * np.exp((f[:, None] + g - C) / 0.01), plan)
    divergence = (plan * np.log(plan / (a[:, None] * b))).sum()
    np.testing.assert_allclose(solution.value, (plan * C).sum() + 0.01 * divergence, rtol=1e-7)
    np.testing.assert_allclose((a * f).sum(), (b * g).sum())


def test_uniform_weights_and_lists(backend):
    C = problem()[0].tolist()
    assert_same(ours.solve(C, reg=REG, backend=backend), theirs.solve(C, reg=REG, max_iter=300))


@pytest.mark.parametrize("shape", [(14, 9), (9, 14)])
def test_zero_weights_have_finite_potentials(backend, shape):
    C, a, b = problem(*shape)
    a[[0, 5]] = b[[2, 8]] = 0
    a, b = 2 * a / a.sum(), 2 * b / b.sum()
    with np.errstate(divide="ignore"):
        reference = theirs.solve(C, reg=REG, a=a, b=b, max_iter=300)
    assert_same(ours.solve(C, reg=REG, a=a, b=b, backend=backend), reference)


def test_zero_weights_hide_infinite_costs(backend):
    C, a, b = problem()
    padded = np.full((16, 10), np.inf)
    padded[:14, :9] = C
    solution = ours.solve(padded, reg=REG, a=[*a, 0, 0], b=[*b, 0], backend=backend)
    whole = ours.solve(C, reg=REG, a=a, b=b, backend=backend)
    np.testing.assert_allclose(solution.plan[:14, :9], whole.plan, rtol=1e-6)
    assert solution.plan[14:].sum() == 0 and solution.plan[:, 9:].sum() == 0
    np.testing.assert_allclose(solution.value, whole.value, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tensors_stay_tensors(backend, dtype):
    C, a, b = (torch.from_numpy(x).to(dtype) for x in problem())
    mine = ours.solve(C, reg=REG, a=a, b=b, backend=backend)
    assert_same(mine, theirs.solve(C, reg=REG, a=a, b=b, max_iter=300))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(14, 9), (9, 14)])
def test_the_gradient_of_the_value_is_the_plan(backend, shape, dtype):
    C, a, b = (torch.from_numpy(x) for x in problem(*shape))
    a[2] = b[3] = 0
    a, b = 3 * a / a.sum(), 3 * b / b.sum()
    C = C.to(dtype).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mine = ours.solve(C, reg=REG, a=a, b=b, backend=backend)
        (gradient,) = torch.autograd.grad(7.0 * mine.value, C)
    rtol = 1e-9 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(gradient, 7.0 * mine.plan, rtol=rtol, atol=1e-7)
    assert gradient.dtype == dtype
    for name in NAMES:
        assert getattr(mine, name).requires_grad == (name == "value"), name
    with torch.no_grad():
        assert not ours.solve(C, reg=REG, a=a, b=b, backend=backend).value.requires_grad


@pytest.mark.filterwarnings("ignore:Converting a tensor")  # in GeomLoss
def test_the_gradient_is_the_derivative():
    """Which GeomLoss's is not: C enters through both potentials there, and counts twice."""
    C, a, b = (torch.from_numpy(x) for x in problem())
    a, b = 2 * a, 2 * b
    C.requires_grad_()

    def value(C):
        return ours.solve(C, reg=REG, a=a, b=b, tol=1e-12).value

    assert torch.autograd.gradcheck(value, C, eps=1e-5, atol=1e-7)
    (mine,) = torch.autograd.grad(value(C), C)
    reference = theirs.solve(C, reg=REG, a=a, b=b, max_iter=300).value
    (doubled,) = torch.autograd.grad(reference, C)
    torch.testing.assert_close(2 * mine, doubled, rtol=2e-2, atol=1e-3)


def test_convergence_is_reported(backend):
    C, a, b = problem()
    with pytest.warns(UserWarning, match="solve did not converge") as caught:
        solution = ours.solve(C, reg=1e-3, a=a, b=b, max_iter=2, backend=backend)
    assert caught[0].filename == __file__ and not solution.converged
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ours.solve(C, reg=1e-3, a=a, b=b, tol=1e-3, backend=backend).converged


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"unbalanced": 1.0}, NotImplementedError, "geomloss itself"),
        ({"unbalanced_type": "TV"}, NotImplementedError, "geomloss itself"),
        ({"method": "exact"}, NotImplementedError, "auto"),
        ({"reg": -1.0}, ValueError, "reg=-1.0"),
        ({"max_iter": 0}, ValueError, "max_iter=0"),
        ({"C": np.ones((2, 14, 9))}, ValueError, "C has shape"),
        ({"a": np.ones(14)}, ValueError, "same sum"),
        ({"b": np.ones(3)}, ValueError, "b has shape"),
        ({"b": torch.ones(9, requires_grad=True)}, RuntimeError, "b.detach"),
    ],
)
def test_wrong_arguments(change, error, words):
    C, a, b = problem()
    with pytest.raises(error, match=words):
        ours.solve(**({"C": C, "reg": REG, "a": a, "b": b, "backend": "torch"} | change))
