"""`value` has the envelope gradient -lam Q, and whatever else has none says so."""

import pytest
import torch

from tests.ops.on_device import sinkhorn
from tests.ops.problems import random_log_p, zipf

WAY_OUT = r"log_p\.detach\(\)"


def example(*shape, dtype=torch.float64, seed=0):
    log_p = random_log_p(*shape, scale=1.0, seed=seed).to(dtype)
    return log_p.requires_grad_()


def gradient(log_p, **options):
    result = sinkhorn(log_p, **options)
    return torch.autograd.grad(result.value.sum(), log_p)[0]


@pytest.mark.parametrize("solver", ["newton", "anderson", "sinkhorn"])
def test_gradcheck(backend, solver):
    weight = torch.ones(7)
    weight[2:4] = 0.0

    def value(log_p):
        result = sinkhorn(
            log_p,
            lam=2.0,
            tol=1e-12,
            max_iterations=2000,
            row_marginal=weight,
            col_marginal=zipf(4),
            solver=solver,
            backend=backend,
        )
        return result.value

    assert torch.autograd.gradcheck(value, example(2, 7, 4))


def test_gradcheck_of_the_fixed_iterations_at_their_end():
    def value(log_p):
        return sinkhorn(log_p, lam=2.0, tol=None, max_iterations=500).value

    assert torch.autograd.gradcheck(value, example(6, 3))


def test_gradient_is_that_of_the_regularised_cost():
    """d/dlog_p of -min_Q lam <Q, -log_p> + ..., by an iteration that autograd unrolls."""
    log_p, r = example(9, 4), zipf(4) / zipf(4).sum()
    c = torch.full((9,), 1 / 9, dtype=torch.float64)
    u, v = torch.zeros_like(c), torch.zeros_like(r)
    for _ in range(300):
        v = r.log() - (2.0 * log_p + u[:, None]).logsumexp(0)
        u = c.log() - (2.0 * log_p + v).logsumexp(1)
    unrolled = (r * v).sum() + (c * (u - c.log())).sum()
    ours = sinkhorn(log_p, lam=2.0, col_marginal=r, tol=1e-13)
    torch.testing.assert_close(ours.value, unrolled, rtol=1e-12, atol=1e-12)
    expected = torch.autograd.grad(unrolled, log_p)[0]
    actual = torch.autograd.grad(ours.value, log_p)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def test_gradient_is_the_plan_in_every_dtype_and_layout(backend, dtype, layout):
    log_p = layout(random_log_p(2, 50, 6).to(dtype)).requires_grad_()
    options = {"lam": 3.0, "col_marginal": zipf(6), "backend": backend}
    actual = gradient(log_p, **options)
    plan = sinkhorn(log_p.detach(), **options).plan()
    assert actual.dtype == dtype and actual.shape == log_p.shape
    rounding = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 1e-5}
    torch.testing.assert_close(actual.double(), -3.0 * plan, **rounding)


def test_incoming_gradients_weigh_each_problem(backend):
    log_p = example(2, 3, 20, 4)
    result = sinkhorn(log_p, backend=backend)
    weight = torch.arange(6.0, dtype=torch.float64).view(2, 3)
    actual = torch.autograd.grad(result.value, log_p, weight)[0]
    plan = sinkhorn(log_p.detach(), backend=backend).plan()
    torch.testing.assert_close(actual, -20.0 * weight[..., None, None] * plan)


def test_entries_and_rows_without_mass_have_gradient_zero(backend):
    log_p = random_log_p(40, 5)
    log_p[3, 1], log_p[:, 4] = -torch.inf, log_p[:, 4] - 1e4
    log_p[11] = -torch.inf
    weight = torch.ones(40)
    weight[[7, 11]] = 0.0
    options = {"row_marginal": weight, "backend": backend}
    plan = sinkhorn(log_p, **options).plan()
    actual = gradient(log_p.requires_grad_(), **options)
    assert actual[3, 1] == 0 and (actual[[7, 11]] == 0).all()
    torch.testing.assert_close(actual, (-20.0 * plan).float(), rtol=1e-5, atol=1e-7)


def test_one_step_of_descent_lowers_the_cost():
    logits = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    before = -sinkhorn(logits.log_softmax(-1)).value
    before.backward()
    with torch.no_grad():
        after = -sinkhorn((logits - 0.1 * logits.grad).log_softmax(-1)).value
    assert after < before.detach()


@pytest.mark.parametrize(
    "read",
    [lambda r: r.labels, lambda r: r.plan(), lambda r: r.log_plan()],
    ids=["labels", "plan", "log_plan"],
)
def test_parts_without_a_gradient_refuse_to_be_read(read):
    result = sinkhorn(example(10, 4))
    with pytest.raises(RuntimeError, match=rf"has no gradient; call sinkhorn on {WAY_OUT}"):
        read(result)


PARTS = ["col_potential", "row_potential", "confidence", "error"]


@pytest.mark.parametrize("part", PARTS)
def test_parts_without_a_gradient_refuse_to_be_differentiated(part):
    result = sinkhorn(example(10, 4))
    with pytest.raises(RuntimeError, match="only `value` has a gradient; detach"):
        getattr(result, part).sum().backward()
    result = sinkhorn(example(10, 4))
    with pytest.raises(RuntimeError, match="only `value` has a gradient; detach"):
        (result.value + getattr(result, part).sum()).backward()


@pytest.mark.parametrize("part", PARTS)
def test_detached_parts_join_the_value(part):
    log_p = example(10, 4)
    result = sinkhorn(log_p)
    (result.value + getattr(result, part).detach().sum()).backward()
    assert torch.equal(log_p.grad, gradient(log_p))


@pytest.mark.parametrize("name", ["row_marginal", "col_marginal"])
def test_marginals_that_require_a_gradient_are_refused(name):
    marginal = torch.ones({"row_marginal": 10, "col_marginal": 4}[name]).requires_grad_()
    for log_p in (example(10, 4), example(10, 4).detach()):
        with pytest.raises(RuntimeError, match=rf"no gradient for {name}; pass {name}\.detach"):
            sinkhorn(log_p, **{name: marginal})
        with torch.no_grad():
            assert sinkhorn(log_p, **{name: marginal}).converged


def test_everything_can_be_read_without_grad_mode():
    log_p = example(10, 4)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            result = sinkhorn(log_p)
            assert torch.equal(result.labels, result.plan().argmax(-1))
            assert not result.value.requires_grad and result.log_plan().isfinite().all()
    result = sinkhorn(log_p.detach())
    assert not result.value.requires_grad and result.labels.shape == (10,)


def test_a_result_with_a_gradient_is_a_start():
    log_p = example(50, 4)
    first = sinkhorn(log_p)
    for init in (first, first.col_potential):
        again = sinkhorn(log_p, init=init)
        assert again.n_passes == 1
        again.value.backward()
    assert log_p.grad is not None
    torch.testing.assert_close(log_p.grad, 2 * gradient(log_p, init=first))


def test_a_second_gradient_is_refused(backend):
    log_p = example(10, 4)
    value = sinkhorn(log_p, backend=backend).value
    first = torch.autograd.grad(value, log_p, create_graph=True)[0]
    torch.testing.assert_close(first.detach(), gradient(log_p, backend=backend))
    with pytest.raises(RuntimeError, match="`value` has a first gradient only; detach"):
        (first.pow(2).sum() + log_p.sum()).backward()


def test_a_result_of_no_grad_has_no_gradient_anywhere():
    log_p = random_log_p(40, 6).requires_grad_()
    with torch.no_grad():
        result = sinkhorn(log_p, lam=2.0)
    assert not result.log_plan().requires_grad and not result.plan().requires_grad
