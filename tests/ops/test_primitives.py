"""The compiled primitives of the Sinkhorn operator against their definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selavi.ops import _definition
from tests.ops.on_device import Moved
from tests.ops.problems import random_log_p

LIBRARY = torch.ops.selavi
LAM = torch.tensor([20.0], dtype=torch.float64)


def primitive_arguments(problems, n, k, candidates, seed=0):
    generator = torch.Generator().manual_seed(seed)
    log_p = random_log_p(problems, n, k, seed=seed)
    v = torch.randn(problems, candidates, k, generator=generator, dtype=torch.float64)
    c = torch.rand(problems, n, generator=generator, dtype=torch.float64)
    c[:, ::7] = 0.0
    return log_p, v, c / c.sum(-1, keepdim=True).clamp_min(1e-9)


LONG_ROW_PRIMITIVES = (
    "sinkhorn_pass",
    "sinkhorn_labels",
    "sinkhorn_plan",
    "sinkhorn_column_logsumexp",
)


def tolerance(name, dtype):
    if dtype == torch.float64:
        return {"rtol": 1e-12, "atol": 1e-14}
    if name == "sinkhorn_overlap":
        # It only shapes a Newton step and may be made in bfloat16: two factors and their product
        # are each rounded to 8 bits.
        return {"rtol": 1.2e-2, "atol": 1e-6}
    if name in ("mean_logsumexp", "sinkhorn_labels", "sinkhorn_column_logsumexp"):
        return {"rtol": 3e-6, "atol": 3e-7}  # logarithms: absolute where their sums are relative
    return {"rtol": 3e-6, "atol": 3e-8}


def assert_passes_match(ours, definition, dtype):
    """(mass, mean_logsumexp) of both."""
    for name, a, b in zip(("sinkhorn_pass", "mean_logsumexp"), ours, definition, strict=True):
        torch.testing.assert_close(
            a, b, **tolerance(name, dtype), msg=lambda m, name=name: f"{name}: {m}"
        )


def assert_primitives_match(library, log_p, v, c, lam=20.0, names=None):
    lam = torch.full((len(log_p),), lam, dtype=torch.float64)
    u = torch.where(c > 0, c.log(), -torch.inf) - lam[:, None] * log_p.double().amax(-1)
    for name, arguments in (
        ("sinkhorn_pass", (log_p, v, c, lam)),
        ("sinkhorn_overlap", (log_p, v[:, 0].contiguous(), c, lam)),
        ("sinkhorn_labels", (log_p, v[:, 0].contiguous(), lam)),
        ("sinkhorn_plan", (log_p, v[:, 0].contiguous(), c, lam, torch.float64)),
        ("sinkhorn_column_logsumexp", (log_p, u, lam)),
    ):
        if names is not None and name not in names:
            continue
        ours = getattr(library, name)(*arguments)
        definition = getattr(_definition, name)(*arguments)
        if name == "sinkhorn_pass":
            assert_passes_match(ours, definition, log_p.dtype)
            continue
        torch.testing.assert_close(
            ours,
            definition,
            **tolerance(name, log_p.dtype),
            msg=lambda m, name=name: f"{name}: {m}",
        )


@pytest.mark.usefixtures("poisoned_memory")
def test_primitives_match_definition(library, dtype, layout):
    log_p, v, c = primitive_arguments(2, 150, 37, 3)
    log_p[0, 3, 5] = -torch.inf
    assert_primitives_match(library, layout(log_p.to(dtype)), v, c)


@settings(max_examples=40, deadline=None)
@given(
    problems=st.integers(0, 3),
    n=st.integers(1, 200),
    k=st.integers(1, 70),
    candidates=st.integers(1, 3),
    lam=st.sampled_from([0.5, 20.0, 1000.0]),
    double=st.booleans(),
    seed=st.integers(0, 99),
)
def test_primitives_match_definition_at_any_shape(
    library, problems, n, k, candidates, lam, double, seed
):
    log_p, v, c = primitive_arguments(problems, n, k, candidates, seed)
    assert_primitives_match(library, log_p.double() if double else log_p, v, c, lam)


def test_a_candidate_that_begins_with_nan_is_not_tried(backend):
    log_p, v, c = primitive_arguments(2, 150, 37, 4)
    v[0, 1, 0] = v[1, 0, 0] = v[1, 3, 0] = torch.nan
    ours = Moved(backend)
    lam = LAM.expand(2).clone()
    mass, mean_logsumexp = ours.sinkhorn_pass(log_p, v, c, lam)
    tried = ~v[..., 0].isnan()
    assert mass[~tried].isnan().all() and mean_logsumexp[~tried].isnan().all()
    for b, s in tried.nonzero().tolist():
        one = ours.sinkhorn_pass(log_p[b : b + 1], v[b, s][None, None], c[b : b + 1], LAM)
        both = (mass[b, s], mean_logsumexp[b, s])
        torch.testing.assert_close(both, (one[0][0, 0], one[1][0, 0]), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_iterations_match_definition(backend, count):
    log_p, v, c = primitive_arguments(2, 150, 37, 1)
    log_p[:, :, 5] = -torch.inf  # a column that no row can reach: its potential rises, and no NaN
    r = torch.rand(2, 37, dtype=torch.float64) + 0.1
    arguments = (log_p, v[:, 0].contiguous(), c, r, 0.1 * LAM.expand(2), count)
    before = v.clone()
    ours = Moved(backend).sinkhorn_iterations(*arguments)
    definition = _definition.sinkhorn_iterations(*arguments)
    torch.testing.assert_close(ours, definition, rtol=3e-6 * count, atol=1e-6 * count)
    assert torch.equal(v, before)
    mass, mean_logsumexp = _definition.sinkhorn_pass(log_p, ours[0][:, None], c, arguments[4])
    torch.testing.assert_close(ours[1:], (mass[:, 0], mean_logsumexp[:, 0]), rtol=3e-6, atol=1e-6)


def test_rows_of_zero_weight_are_not_read(library):
    log_p, v, c = primitive_arguments(1, 50, 7, 1)
    clean = library.sinkhorn_pass(log_p, v, c, LAM)
    log_p[:, ::7] = torch.nan
    poisoned = library.sinkhorn_pass(log_p, v, c, LAM)
    torch.testing.assert_close(poisoned, clean, rtol=0, atol=0)


@pytest.mark.usefixtures("poisoned_memory")
def test_plan_in_every_dtype(library, dtype):
    log_p, v, c = primitive_arguments(2, 150, 37, 1)
    arguments = (log_p, v[:, 0].contiguous(), c, LAM.expand(2).clone(), dtype)
    ours, definition = library.sinkhorn_plan(*arguments), _definition.sinkhorn_plan(*arguments)
    assert ours.dtype == dtype and (ours[:, ::7] == 0).all()
    # Storing rounds by half a unit, and values beside a boundary to either side of it.
    rtol = max(torch.finfo(dtype).eps, 2e-6)
    torch.testing.assert_close(ours, definition, rtol=rtol, atol=1e-7)


@pytest.mark.parametrize("n", [3, 64, 300])
def test_column_logsumexp_of_dead_columns_and_rows(library, n):
    log_p, _, _ = primitive_arguments(1, n, 5, 1)
    log_p[:, :, 2] = -torch.inf
    log_p[:, 1] = torch.nan
    u = torch.randn(1, n, dtype=torch.float64)
    u[:, 1] = -torch.inf
    for stored in (log_p, log_p.double(), log_p.mT.contiguous().mT):
        ours = library.sinkhorn_column_logsumexp(stored, u, LAM)
        definition = _definition.sinkhorn_column_logsumexp(stored, u, LAM)
        assert ours[0, 2] == -torch.inf
        torch.testing.assert_close(ours, definition, rtol=1e-6, atol=1e-6)
    log_p[:, 0, 3] = torch.nan
    bad = library.sinkhorn_column_logsumexp(log_p, u, LAM)[0].isnan()
    assert torch.equal(bad, torch.arange(5) == 3)


@pytest.mark.parametrize("shape", [(2, 40, 5000), (1, 5, 70000)])
def test_long_rows(library, shape):
    log_p, v, c = primitive_arguments(*shape, 2)
    assert_primitives_match(library, log_p, v, c, names=LONG_ROW_PRIMITIVES)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_bad_entries_show(library, value):
    """A solver reads them off the pass, in place of another read of the matrix."""
    for stored in (torch.float32, torch.float64, torch.bfloat16):
        log_p, v, c = primitive_arguments(2, 70, 21, 2)
        log_p[1, 5, 3] = value
        lam = LAM.expand(2).clone()
        mass, mean_logsumexp = library.sinkhorn_pass(log_p.to(stored), v, c, lam)
        assert mass[0].isfinite().all() and mean_logsumexp[0].isfinite().all()
        assert not mass[1].isfinite().any() and not mean_logsumexp[1].isfinite().any()


def test_row_that_is_minus_infinity_throughout_shows(library):
    for stored in (torch.float32, torch.float64, torch.bfloat16):
        log_p, v, c = primitive_arguments(1, 70, 21, 2)
        log_p[0, 5] = -torch.inf
        _, mean_logsumexp = library.sinkhorn_pass(log_p.to(stored), v, c, LAM)
        assert not mean_logsumexp.isfinite().any()


@pytest.mark.parametrize(("lam", "scale"), [(1.0, 1e4), (1000.0, 10.0), (1000.0, 1e4), (20.0, 5e5)])
def test_exponentials_do_not_lose_to_large_numbers(library, lam, scale):
    """v takes back what log_p spans, so that rows hold several entries that count."""
    generator = torch.Generator().manual_seed(0)
    offset = -scale * torch.rand(300, generator=generator)
    log_p = (offset + 2.0 / lam * torch.randn(1, 400, 300, generator=generator)).contiguous()
    v = -lam * offset.double() + torch.randn(300, generator=generator, dtype=torch.float64)
    c = torch.full((1, 400), 1 / 400, dtype=torch.float64)
    arguments = (log_p, v[None], c, torch.tensor([lam], dtype=torch.float64))
    ours = library.sinkhorn_plan(*arguments, torch.float64)
    definition = _definition.sinkhorn_plan(*arguments, torch.float64)
    torch.testing.assert_close(ours, definition, rtol=1e-6, atol=1e-5 / 400)
    torch.testing.assert_close(ours.sum(1), definition.sum(1), rtol=4e-7, atol=0)


@pytest.mark.parametrize("size", [1e8, 1e9, 3e10])
def test_a_potential_that_has_run_away_spoils_no_other_column(library, size):
    log_p, v, c = primitive_arguments(1, 50, 12, 1)
    v[0, 0, 3], lam = -size, torch.ones(1, dtype=torch.float64)
    for potential in (v, v - size / 3):
        ours = library.sinkhorn_pass(log_p, potential, c, lam)
        definition = _definition.sinkhorn_pass(log_p, potential, c, lam)
        torch.testing.assert_close(ours[0], definition[0], rtol=1e-5 + 1e-14 * size, atol=1e-9)
        torch.testing.assert_close(ours[1], definition[1], rtol=1e-7, atol=1e-5)


def test_labels_are_those_of_float64(library):
    log_p, v, _ = primitive_arguments(1, 4000, 50, 1)
    log_p = (log_p * 64).round() / 64  # many near ties, and some exact ones
    v = (v[:, 0] * 1e-9).contiguous()
    v[:, 25:] = v[:, :25]
    ours = library.sinkhorn_labels(log_p, v, LAM)[0]
    assert torch.equal(ours, _definition.sinkhorn_labels(log_p, v, LAM)[0])


def test_runs_agree_to_the_bit(library):
    log_p, v, c = primitive_arguments(3, 5000, 70, 2)
    lam, v0 = LAM.expand(3).clone(), v[:, 0].contiguous()
    for name, arguments in (
        ("sinkhorn_pass", (log_p, v, c, lam)),
        ("sinkhorn_iterations", (log_p, v0, c, torch.ones_like(v0), lam, 3)),
        ("sinkhorn_overlap", (log_p, v0, c, lam)),
        ("sinkhorn_column_logsumexp", (log_p, c.log(), lam)),
    ):
        first, *others = (getattr(library, name)(*arguments) for _ in range(4))
        for other in others:
            torch.testing.assert_close(other, first, rtol=0, atol=0)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("name", ["sinkhorn_pass", "sinkhorn_column_logsumexp"])
def test_result_does_not_depend_on_the_number_of_threads(name):
    log_p, v, c = primitive_arguments(2, 3000, 19, 2)
    lam = LAM.expand(2).clone()
    arguments = (log_p, v, c, lam) if name == "sinkhorn_pass" else (log_p, c.log(), lam)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(getattr(LIBRARY, name)(*arguments))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)


@pytest.mark.usefixtures("compiled")
def test_opcheck():
    log_p, v, c = primitive_arguments(1, 30, 7, 3)
    v0 = v[:, 0].contiguous()
    torch.library.opcheck(LIBRARY.sinkhorn_pass.default, (log_p, v, c, LAM))
    torch.library.opcheck(
        LIBRARY.sinkhorn_iterations.default, (log_p, v0, c, torch.ones_like(v0), LAM, 3)
    )
    torch.library.opcheck(LIBRARY.sinkhorn_overlap.default, (log_p, v0, c, LAM))
    torch.library.opcheck(LIBRARY.sinkhorn_labels.default, (log_p, v0, LAM))
    torch.library.opcheck(LIBRARY.sinkhorn_plan.default, (log_p, v0, c, LAM, torch.bfloat16))
    torch.library.opcheck(LIBRARY.sinkhorn_column_logsumexp.default, (log_p, c.log(), LAM))


@pytest.mark.usefixtures("compiled")
def test_primitives_compile_without_a_break():
    log_p, v, c = primitive_arguments(1, 30, 7, 1)
    function = torch.compile(
        lambda x: LIBRARY.sinkhorn_pass(x * 2, v, c, LAM)[0] + 1,
        fullgraph=True,
        backend="aot_eager",
    )
    torch.testing.assert_close(function(log_p), LIBRARY.sinkhorn_pass(log_p * 2, v, c, LAM)[0] + 1)


@pytest.mark.parametrize("k", [2049, 4096, 4100])
def test_stretches_of_a_long_row_may_be_minus_infinity(library, dtype, k):
    """A backend may take a long row in parts, and such a part has no maximum of its own."""
    log_p, v, c = primitive_arguments(1, 9, k, 2)
    log_p[0, 1, 2048:] = log_p[0, 2, :2048] = log_p[0, 3, 1:] = log_p[0, 4, :-1] = -torch.inf
    assert_primitives_match(library, log_p.to(dtype), v, c, 1.0, LONG_ROW_PRIMITIVES)
    log_p[0, 5, :2048] = -torch.inf
    log_p[0, 5, 7] = torch.nan
    mass, mean_logsumexp = library.sinkhorn_pass(log_p.to(dtype), v, c, LAM)
    assert not mass.isfinite().any() and not mean_logsumexp.isfinite().any()


@pytest.mark.parametrize("scale", [1e8, 1e10, 1e20, 1e30])
def test_column_logsumexp_of_huge_numbers(library, scale):
    log_p, _, _ = primitive_arguments(1, 128, 50, 1)
    log_p = log_p * scale
    u = torch.zeros(1, 128, dtype=torch.float64)
    ours = library.sinkhorn_column_logsumexp(log_p, u, LAM)
    definition = _definition.sinkhorn_column_logsumexp(log_p, u, LAM)
    torch.testing.assert_close(ours, definition, rtol=1e-13, atol=1e-6)
