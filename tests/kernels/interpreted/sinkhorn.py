"""The primitives of sinkhorn."""

import sys

import pytest
import torch

from selavi import kernels
from selavi.ops import _definition
from tests.kernels.interpreted.inputs import (
    DTYPES,
    arguments,
    assert_matches,
    calls,
    lams,
    padded_rows,
    strided,
    transposed,
)

LONG = 8200  # columns: more than fit in a program


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_primitives_in_every_dtype(dtype):
    log_p, v, c, lam = arguments()
    log_p[0, 3, 5] = -torch.inf
    assert_matches(log_p.to(dtype), v, c, lam)


@pytest.mark.parametrize("layout", [transposed, strided, padded_rows])
def test_primitives_in_every_layout(layout):
    log_p, v, c, lam = arguments(n=9)
    assert_matches(layout(log_p), v, c, lam)
    expanded = log_p[:1].expand(2, -1, -1)
    assert_matches(expanded, v, c, lam)


@pytest.mark.parametrize(
    ("n", "k", "dtype"),
    [
        (1, 1, torch.float32),
        (70, 1, torch.float64),
        (40, 2, torch.bfloat16),
        (5, 37, torch.float64),
        (19, 309, torch.float32),
        (7, 309, torch.bfloat16),
        (5, 309, torch.float64),
        (3, 3000, torch.bfloat16),
        (2, 3000, torch.float64),
        (2, 5500, torch.float64),
        (2, 8000, torch.float32),
    ],
)
def test_primitives_at_shapes(n, k, dtype):
    log_p, v, c, lam = arguments(1, n, k, 1)
    assert_matches(log_p.to(dtype), v, c, lam, {"sinkhorn_overlap"} if k > 1000 else ())


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_rows_that_do_not_fit(dtype):
    log_p, v, c, lam = arguments(2, 5, LONG, 1)
    log_p[0, 1, :3000] = -torch.inf  # a block of it is -inf throughout
    assert_matches(log_p.to(dtype), v, c, lam, {"sinkhorn_overlap"})
    poisoned = log_p.to(dtype)
    poisoned[1, 3, 4000] = torch.nan
    mass, value = kernels.sinkhorn_pass(poisoned, v, c, lam)
    assert mass[0].isfinite().all() and not mass[1].isfinite().any()
    assert value[0].isfinite().all() and not value[1].isfinite().any()


@pytest.mark.parametrize(("programs", "chunk"), [(40, 2), (100, 1)])
def test_rows_that_do_not_fit_in_chunks(monkeypatch, programs, chunk):
    """The last chunk is shorter; the second read goes from the last row to the first."""
    monkeypatch.setattr(sys.modules["selavi.kernels._launch"], "PROGRAMS", programs)
    log_p, v, c, lam = arguments(1, 5, LONG, 2)
    blocks = sys.modules["selavi.kernels._launch"].column_blocks(log_p, candidates=2)
    assert blocks.chunk == chunk
    assert_matches(log_p, v, c, lam, {"sinkhorn_overlap"})


@pytest.mark.parametrize("k", [21, LONG])
def test_a_candidate_that_is_not_tried(k):
    log_p, v, c, lam = arguments(2, 9 if k < 100 else 3, k, 2)
    mass, value = kernels.sinkhorn_pass(log_p, v, c, lam)
    v[0, 1, 0] = torch.nan
    partly = kernels.sinkhorn_pass(log_p, v, c, lam)
    assert partly[0][0, 1].isnan().all() and partly[1][0, 1].isnan()
    mass[0, 1], value[0, 1] = torch.nan, torch.nan
    torch.testing.assert_close(partly, (mass, value), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("k", "dtype"), [*((21, dtype) for dtype in DTYPES[:3]), (LONG, torch.float32)], ids=str
)
def test_rows_and_problems_without_weight_are_not_used(k, dtype):
    log_p, v, c, lam = arguments(2, 9, k, 1)
    c[1] = 0.0
    names = ("sinkhorn_pass", "sinkhorn_overlap") if k < 100 else ("sinkhorn_pass",)
    clean = [getattr(kernels, n)(*calls(log_p.to(dtype), v, c, lam)[n]) for n in names]
    log_p[c == 0] = torch.nan
    poisoned = [getattr(kernels, n)(*calls(log_p.to(dtype), v, c, lam)[n]) for n in names]
    torch.testing.assert_close(poisoned, clean, rtol=0, atol=0)
    for part in (*clean[0], *clean[1:]):
        assert (part[1] == 0).all() and part[0].isfinite().all() and (part[0] != 0).any()
    plan = kernels.sinkhorn_plan(log_p.to(dtype), v[:, 0].contiguous(), c, lam, torch.float32)
    assert (plan[c == 0] == 0).all() and plan.isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_bad_entries_show_in_their_problem(dtype, value):
    log_p, v, c, lam = arguments(2, 9, 21, 2)
    log_p[1, 5, 3] = value
    mass, mean_logsumexp = kernels.sinkhorn_pass(log_p.to(dtype), v, c, lam)
    assert mass[0].isfinite().all() and mean_logsumexp[0].isfinite().all()
    assert not mass[1].isfinite().any() and not mean_logsumexp[1].isfinite().any()


@pytest.mark.parametrize(
    ("dtype", "k"), [*((d, 21) for d in DTYPES[:3]), (DTYPES[0], LONG)], ids=str
)
def test_a_row_that_is_minus_infinity_throughout(dtype, k):
    log_p, v, c, lam = arguments(1, 9, k, 1)
    log_p[0, 5] = -torch.inf
    log_p, one = log_p.to(dtype), v[:, 0].contiguous()
    mass, mean_logsumexp = kernels.sinkhorn_pass(log_p, v, c, lam)
    assert not mean_logsumexp.isfinite().any() and not mass.isfinite().any()
    labels, logsumexp, _ = kernels.sinkhorn_labels(log_p, one, lam)
    assert labels[0, 5] == 0 and logsumexp[0, 5] == -torch.inf
    others = torch.arange(9) != 5
    plan = kernels.sinkhorn_plan(log_p, one, c, lam, torch.float64)
    assert plan[0, 5].isnan().all() and plan[0, others].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 2, LONG), (2, 0, LONG)])
def test_empty_problems_of_long_rows(shape):
    problems, rows, columns = shape
    log_p, c = torch.zeros(shape), torch.zeros(problems, rows, dtype=torch.float64)
    v, lam = torch.zeros(problems, 2, columns, dtype=torch.float64), lams(problems)
    mass, value = kernels.sinkhorn_pass(log_p, v, c, lam)
    assert torch.equal(mass, torch.zeros_like(v)) and (value == 0).all()
    plan = kernels.sinkhorn_plan(log_p, v[:, 0].contiguous(), c, lam, torch.float32)
    assert plan.shape == shape


@pytest.mark.parametrize("k", [30, LONG])
@pytest.mark.parametrize(("lam", "scale"), [(1.0, 1e4), (1000.0, 10.0), (1000.0, 1e4), (20.0, 5e5)])
def test_exponentials_do_not_lose_to_large_numbers(lam, scale, k):
    """v takes back what log_p spans, so that rows hold several entries that count."""
    n = 40 if k < 100 else 3
    generator = torch.Generator().manual_seed(0)
    offset = -scale * torch.rand(k, generator=generator)
    log_p = (offset + 2.0 / lam * torch.randn(1, n, k, generator=generator)).contiguous()
    v = -lam * offset.double() + torch.randn(k, generator=generator, dtype=torch.float64)
    c = torch.full((1, n), 1 / n, dtype=torch.float64)
    call = (log_p, v[None], c, lams(1, lam))
    plan = _definition.sinkhorn_plan(*call, torch.float64)
    ours = kernels.sinkhorn_plan(*call, torch.float64)
    torch.testing.assert_close(ours, plan, rtol=1e-6, atol=1e-5 / n)
    mass, _ = kernels.sinkhorn_pass(log_p, v[None, None], c, lams(1, lam))
    # A sum over few rows has each exponent's own rounding, which in many averages out.
    torch.testing.assert_close(mass[:, 0], plan.sum(1), rtol=4e-7 if n > 3 else 3e-6, atol=0)


@pytest.mark.parametrize("size", [1e8, 1e9, 3e10])
def test_a_potential_that_has_run_away_spoils_no_other_column(size):
    log_p, v, c, _ = arguments(1, 9, 12, 1)
    v[0, 0, 3], lam = -size, lams(1, 1.0)
    for potential in (v, v - size / 3):
        ours = kernels.sinkhorn_pass(log_p, potential, c, lam)
        definition = _definition.sinkhorn_pass(log_p, potential, c, lam)
        torch.testing.assert_close(ours[0], definition[0], rtol=1e-5 + 1e-14 * size, atol=1e-9)
        torch.testing.assert_close(ours[1], definition[1], rtol=1e-7, atol=1e-5)


def test_labels_are_those_of_float64():
    log_p, v, _, lam = arguments(1, 400, 50, 1)
    log_p = (log_p * 64).round() / 64  # many near ties, and some exact ones
    v = (v[:, 0] * 1e-9).contiguous()
    v[:, 25:] = v[:, :25]
    ours = kernels.sinkhorn_labels(log_p, v, lam)[0]
    assert torch.equal(ours, _definition.sinkhorn_labels(log_p, v, lam)[0])


def test_ties_between_the_blocks_of_a_long_row_go_to_the_first():
    log_p, v = torch.zeros(1, 2, LONG), torch.zeros(1, LONG, dtype=torch.float64)
    log_p[0, 1, [3000, 7000]] = 1.0
    assert kernels.sinkhorn_labels(log_p, v, lams(1))[0].tolist() == [[0, 3000]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_plan_in_every_dtype(dtype):
    log_p, v, c, lam = arguments(2, 9, 37, 1)
    call = (log_p, v[:, 0].contiguous(), c, lam, dtype)
    ours, definition = kernels.sinkhorn_plan(*call), _definition.sinkhorn_plan(*call)
    assert ours.dtype == dtype
    rtol = max(torch.finfo(dtype).eps, 2e-6)
    torch.testing.assert_close(ours, definition, rtol=rtol, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_column_logsumexp_of_dead_columns_and_rows(dtype):
    log_p, _, _, lam = arguments(1, 300, 5, 1)
    log_p[:, :, 2] = -torch.inf
    log_p[:, 1] = torch.nan
    u = torch.randn(1, 300, dtype=torch.float64)
    u[:, 1] = -torch.inf
    ours = kernels.sinkhorn_column_logsumexp(log_p.to(dtype), u, lam)
    definition = _definition.sinkhorn_column_logsumexp(log_p.to(dtype), u, lam)
    assert ours[0, 2] == -torch.inf
    torch.testing.assert_close(ours, definition, rtol=1e-6, atol=1e-6)
    log_p[:, 0, 3] = torch.nan
    bad = kernels.sinkhorn_column_logsumexp(log_p.to(dtype), u, lam)[0].isnan()
    assert torch.equal(bad, torch.arange(5) == 3)


@pytest.mark.parametrize("count", [1, 4])
def test_iterations_are_evaluations_and_updates(count):
    log_p, v, c, lam = arguments(2, 9, 21, 1)
    v, lam = v[:, 0].contiguous(), lam / 20
    r = torch.rand(2, 21, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.1
    r /= r.sum(-1, keepdim=True)
    expected = v
    mass, value = _definition.sinkhorn_pass(log_p, expected[:, None], c, lam)
    for _ in range(count - 1):
        expected = expected + r.log() - mass[:, 0].log()
        mass, value = _definition.sinkhorn_pass(log_p, expected[:, None], c, lam)
    ours = kernels.sinkhorn_iterations(log_p, v, c, r, lam, count)
    torch.testing.assert_close(ours, (expected, mass[:, 0], value[:, 0]), rtol=1e-5, atol=1e-6)


def test_an_iteration_raises_a_column_without_mass_by_the_largest_finite_step():
    log_p, _, c, _ = arguments(1, 9, 4, 1)
    log_p[..., 2] = -torch.inf
    r = torch.full((1, 4), 0.25, dtype=torch.float64)
    v, mass, _ = kernels.sinkhorn_iterations(log_p, torch.zeros_like(r), c, r, lams(1), 2)
    tiny = torch.tensor(torch.finfo(torch.float64).tiny, dtype=torch.float64)
    torch.testing.assert_close(v[0, 2], r[0, 2].log() - tiny.log())
    assert mass[0, 2] == 0 and mass.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (0, 0, 3), (0, 5, 600), (2, 0, 600)])
def test_empty_problems(shape):
    problems, rows, columns = shape
    log_p, c = torch.zeros(shape), torch.zeros(problems, rows, dtype=torch.float64)
    v, lam = torch.zeros(problems, 2, columns, dtype=torch.float64), lams(problems)
    for name, call in calls(log_p, v, c, lam).items() if rows else ():
        torch.testing.assert_close(getattr(kernels, name)(*call), getattr(_definition, name)(*call))
    mass, value = kernels.sinkhorn_pass(log_p, v, c, lam)
    assert torch.equal(mass, torch.zeros_like(v)) and (value == 0).all()
    overlap = kernels.sinkhorn_overlap(log_p, v[:, 0].contiguous(), c, lam)
    assert overlap.shape == (problems, columns, columns) and (overlap == 0).all()
