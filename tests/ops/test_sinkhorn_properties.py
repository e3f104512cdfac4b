"""Properties of `sinkhorn` at any shape and at the edges of its range.

Convergence is not promised everywhere, but finite results and a report that is true are.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selavi.ops import backends
from tests.ops.on_device import sinkhorn
from tests.ops.problems import random_log_p

SOLVERS = ("newton", "anderson", "sinkhorn")
AVAILABLE = [name for name, state in backends().items() if state == "available"]


def kinds(problems):
    """Arguments of `matrix`: small to print."""
    return st.fixed_dictionaries(
        {
            "problems": problems,
            "n": st.integers(1, 40),
            "k": st.integers(1, 12),
            "scale": st.sampled_from([0.0, 1.0, 10.0, 100.0]),
            "seed": st.integers(0, 2**16),
            "deep": st.booleans(),
            "one_hot": st.sampled_from([None, 10.0, 1e4]),
            "duplicate": st.booleans(),
            "disfavored": st.sampled_from([None, 1.0, 100.0]),
        }
    )


BATCHES = kinds(st.integers(0, 3))


def matrix(problems, n, k, scale, seed, deep, one_hot, duplicate, disfavored):
    """(N, K) float64, or (B, N, K), of one of the kinds that have been hard, or of all mixed."""
    batch = () if problems is None else (problems,)
    generator = torch.Generator().manual_seed(seed)
    log_p = scale * torch.randn(*batch, n, k, generator=generator, dtype=torch.float64)
    log_p = log_p.log_softmax(-1)
    if deep and log_p.numel():  # log-probabilities down to -1e4
        log_p *= 1e4 / log_p.abs().max().clamp_min(1e-9)
    if one_hot is not None:
        which = torch.randint(0, k, (*batch, n, 1), generator=generator)
        rows = torch.rand(*batch, n, 1, generator=generator) < 0.7
        log_p = torch.where(rows, torch.full_like(log_p, -one_hot).scatter(-1, which, 0.0), log_p)
    if duplicate:
        log_p[..., 0] = log_p[..., -1]
    if disfavored is not None and k > 2:  # a column that no row favors
        log_p[..., 1] = log_p.amin(-1) - disfavored
    return log_p


@st.composite
def priors(draw, k):
    """Uniform, or positive numbers that span 1e-9 to 1."""
    if draw(st.booleans()):
        return None
    exponents = draw(st.lists(st.floats(-9, 0), min_size=k, max_size=k))
    return 10.0 ** torch.tensor(exponents, dtype=torch.float64)


LAMS = st.sampled_from([0.1, 1.0, 20.0, 1000.0])
LIMITS = st.sampled_from([1, 2, 3, 7, 30, 200])


def assert_honest(result, log_p, lam, limit, permute=False, tol=2e-6):
    """What a result says of itself is so; the true error is that of its float64 plan."""
    k = log_p.shape[-1]
    x = lam * log_p.double() + result.col_potential[..., None, :]
    rounding = 4e-16 * float(x[x.isfinite()].abs().max()) if x.numel() else 0.0  # of x itself
    plan = result.row_marginal[..., None] * x.softmax(-1)
    true_error = (plan.sum(-2) - result.col_marginal).abs().sum(-1)
    slack = rounding + (1e-12 if log_p.dtype == torch.float64 else 4e-7)
    assert ((true_error - result.error).abs() <= slack).all(), (true_error, result.error)
    assert torch.equal(result.converged, result.error <= tol)
    assert (result.n_passes <= max(limit, 1 + permute)).all() and (result.n_passes >= 1).all()
    torch.testing.assert_close(result.plan(), plan, rtol=1e-5 + rounding, atol=1e-7)
    for part in (result.col_potential, result.row_potential, result.value, result.confidence):
        assert part.isfinite().all()
    assert (result.confidence <= 1 + 1e-6).all() and (result.confidence >= (1 - 1e-6) / k).all()
    labelled = x.gather(-1, result.labels[..., None])[..., 0]
    assert (labelled >= x.amax(-1) - rounding).all()


@settings(max_examples=150, deadline=None)
@given(data=st.data(), kind=BATCHES, lam=LAMS, limit=LIMITS)
def test_a_result_is_finite_and_its_report_true(data, kind, lam, limit):
    log_p = matrix(**kind)
    prior = data.draw(priors(log_p.shape[-1]))
    solver, permute = data.draw(st.sampled_from(("auto", *SOLVERS))), data.draw(st.booleans())
    if data.draw(st.booleans()):
        log_p = log_p.float()
    result = sinkhorn(
        log_p, lam=lam, col_marginal=prior, permute=permute, solver=solver, max_iterations=limit
    )
    assert_honest(result, log_p, lam, limit, permute)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kind=kinds(st.none()), lam=LAMS, limit=LIMITS)
def test_entries_of_minus_infinity_and_rows_without_weight(data, kind, lam, limit):
    """Any pattern that leaves every row and every column an entry; no plan may fit it."""
    log_p = matrix(**kind)
    n, k = log_p.shape
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    blocked = torch.rand(n, k, generator=generator) < data.draw(st.sampled_from([0.2, 0.9]))
    rows, columns = torch.arange(n), torch.arange(k)
    blocked[rows, rows % k] = blocked[columns % n, columns] = False
    weight = torch.ones(n)
    weight[k:] = (torch.rand(n, generator=generator)[k:] < 0.7).float()
    log_p = log_p.masked_fill(blocked, -torch.inf)
    log_p[weight == 0] = data.draw(st.sampled_from([0.0, -1.0, -torch.inf]))
    solver = data.draw(st.sampled_from(("auto", *SOLVERS)))
    result = sinkhorn(log_p, lam=lam, row_marginal=weight, solver=solver, max_iterations=limit)
    plan = result.plan()
    assert plan.isfinite().all() and (plan[log_p.isneginf() | (weight == 0)[:, None]] == 0).all()
    kept = replace(
        result,
        _log_p=log_p[weight > 0],
        _labels=result.labels[weight > 0],
        row_marginal=result.row_marginal[weight > 0],
        row_potential=result.row_potential[weight > 0],
    )
    assert_honest(kept, log_p[weight > 0], lam, limit)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kind=kinds(st.none()), lam=LAMS, solver=st.sampled_from(SOLVERS))
def test_invariant_to_row_shifts_and_equivariant_to_column_order(data, kind, lam, solver):
    """Both hold of the solution, so that two that converged differ by their errors at most."""
    log_p = matrix(**kind)
    n, k = log_p.shape
    prior = data.draw(priors(k))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    order = torch.randperm(k, generator=generator)
    shift = 100 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    options = {"lam": lam, "solver": solver, "tol": 1e-7}
    reference = sinkhorn(log_p, col_marginal=prior, **options)
    shifted = sinkhorn(log_p + shift, col_marginal=prior, **options)
    permuted = sinkhorn(
        log_p[:, order], col_marginal=None if prior is None else prior[order], **options
    )
    assert_same_cost(reference, shifted, lam * shift.mean())
    permuted = replace(permuted, col_potential=permuted.col_potential[order.argsort()])
    assert_same_cost(reference, permuted)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kind=BATCHES, lam=LAMS)
def test_backends_agree(data, kind, lam):
    """Exactly where they do the same: on the masses at a given v. And on what they converge to."""
    log_p = matrix(**kind)
    prior = data.draw(priors(log_p.shape[-1]))
    stored = log_p.float() if data.draw(st.booleans()) else log_p
    options = {"lam": lam, "col_marginal": prior}
    first, *others = (sinkhorn(stored, backend=name, **options) for name in AVAILABLE)
    for other, name in zip(others, AVAILABLE[1:], strict=True):
        again = sinkhorn(stored, backend=name, init=first, tol=None, max_iterations=1, **options)
        slack = {"rtol": 0.0, "atol": 1e-12 if stored.dtype == torch.float64 else 4e-7}
        slack["atol"] += 1e-15 * lam * float(log_p.abs().max()) if log_p.numel() else 0.0
        torch.testing.assert_close(again.error, first.error, **slack)
        torch.testing.assert_close(again.plan(), first.plan(), rtol=1e-5, atol=slack["atol"])
        assert_same_cost(first, other)


def assert_same_cost(one, other, offset=0.0):
    """f is concave: f(w) - f(v) <= error(v) max_k |w_k - v_k|. Where both converged."""
    both = one.converged & other.converged
    distance = (one.col_potential - other.col_potential).abs().amax(-1)
    rounding = 1e-6 + 1e-6 * (one.col_potential.abs().amax(-1) + one.value.abs())
    slack = torch.maximum(one.error, other.error) * distance + rounding
    assert ((one.value - other.value - offset).abs() <= slack)[both].all()


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kind=BATCHES, lam=LAMS)
def test_a_warm_start_begins_where_the_result_ended(data, kind, lam):
    log_p = matrix(**kind)
    options = {"lam": lam, "col_marginal": data.draw(priors(log_p.shape[-1]))}
    cold = sinkhorn(log_p, **options)
    warm = sinkhorn(log_p, init=cold, max_iterations=1, **options)
    assert (warm.n_passes == 1).all()
    assert (warm.converged[cold.converged & (cold.error < 1e-6)]).all()


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 999), k=st.integers(1, 10), lam=LAMS)
def test_ordinary_problems_converge(data, seed, k, lam):
    """Here convergence is promised: rows that are not one-hot at lam, and a moderate prior."""
    log_p = random_log_p(50, k, scale=20.0 / max(lam, 20.0), seed=seed)
    prior = torch.rand(k, generator=torch.Generator().manual_seed(seed)) + 0.1
    result = sinkhorn(log_p, lam=lam, col_marginal=prior)
    assert result.converged
    assert_honest(result, log_p, lam, 200)


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 5, 3), (0, 1, 1)])
def test_an_empty_batch(shape, backend):
    for solver in ("auto", *SOLVERS):
        result = sinkhorn(torch.zeros(shape), solver=solver, permute=True, backend=backend)
        assert result.labels.shape == shape[:-1] and result.plan().shape == shape
        assert result.converged.shape == shape[:-2]
