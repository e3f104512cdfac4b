"""The Sinkhorn operator: primitives against their definition, then the solution's properties."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selavi.ops import _definition, sinkhorn

LOGITS = Path(__file__).parents[3] / "shared" / "data" / "logits"
LIBRARY = torch.ops.selavi
LAM = torch.tensor([20.0], dtype=torch.float64)


def zipf(k):
    return 1.0 / torch.arange(1, k + 1, dtype=torch.float64)


def random_log_p(*shape, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator)).log_softmax(-1)


def hard_log_p(n, k, confidence, noise, seed=0):
    """Confident and noisy: what plain iteration does not solve. Class sizes ~ rank^-0.5."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.arange(1, k + 1, dtype=torch.float64) ** -0.5
    y = torch.multinomial(sizes, n, replacement=True, generator=generator)
    w = torch.randn(k, 24, generator=generator)
    logits = noise * (w @ w.T / 5)[y] + noise * torch.randn(n, k, generator=generator)
    logits[torch.arange(n), y] += confidence
    return logits.log_softmax(-1)


def one_hot_log_p(n, k, depth, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.multinomial(zipf(k), n, replacement=True, generator=generator)
    log_p = torch.full((n, k), -float(depth))
    log_p[torch.arange(n), y] = 0.0
    return log_p


def assert_solves(result, log_p, tol=2e-6):
    """The marginals hold to tol in float64, whatever arithmetic found the solution."""
    assert result.converged.all()
    plan = result.plan()
    error = (plan.sum(-2) - result.col_marginal).abs().sum(-1)
    assert (error <= 1.1 * tol).all(), error
    row_sums = torch.full(log_p.shape[:-1], 1.0 / log_p.shape[-2], dtype=torch.float64)
    torch.testing.assert_close(plan.sum(-1), row_sums, rtol=1e-6, atol=0)


# The primitives -----------------------------------------------------------------------------------


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
    if name in ("sinkhorn_labels", "sinkhorn_column_logsumexp"):
        return {"rtol": 3e-6, "atol": 3e-7}  # logarithms: absolute where their sums are relative
    return {"rtol": 3e-6, "atol": 3e-8}


def assert_primitives_match(log_p, v, c, lam=20.0, names=None):
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
        ours = getattr(LIBRARY, name)(*arguments)
        definition = getattr(_definition, name)(*arguments)
        torch.testing.assert_close(
            ours,
            definition,
            **tolerance(name, log_p.dtype),
            msg=lambda m, name=name: f"{name}: {m}",
        )


@pytest.mark.usefixtures("compiled", "poisoned_memory")
def test_primitives_match_definition(dtype, layout):
    log_p, v, c = primitive_arguments(2, 150, 37, 3)
    log_p[0, 3, 5] = -torch.inf
    assert_primitives_match(layout(log_p.to(dtype)), v, c)


@pytest.mark.usefixtures("compiled")
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
def test_primitives_match_definition_at_any_shape(problems, n, k, candidates, lam, double, seed):
    log_p, v, c = primitive_arguments(problems, n, k, candidates, seed)
    assert_primitives_match(log_p.double() if double else log_p, v, c, lam)


@pytest.mark.usefixtures("compiled")
def test_rows_of_zero_weight_are_not_read():
    log_p, v, c = primitive_arguments(1, 50, 7, 1)
    clean = LIBRARY.sinkhorn_pass(log_p, v, c, LAM)
    log_p[:, ::7] = torch.nan
    poisoned = LIBRARY.sinkhorn_pass(log_p, v, c, LAM)
    torch.testing.assert_close(poisoned, clean, rtol=0, atol=0)


@pytest.mark.usefixtures("compiled", "poisoned_memory")
def test_plan_in_every_dtype(dtype):
    log_p, v, c = primitive_arguments(2, 150, 37, 1)
    arguments = (log_p, v[:, 0].contiguous(), c, LAM.expand(2).clone(), dtype)
    ours, definition = LIBRARY.sinkhorn_plan(*arguments), _definition.sinkhorn_plan(*arguments)
    assert ours.dtype == dtype and (ours[:, ::7] == 0).all()
    # Storing rounds by half a unit, and values beside a boundary to either side of it.
    rtol = max(torch.finfo(dtype).eps, 2e-6)
    torch.testing.assert_close(ours, definition, rtol=rtol, atol=1e-7)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("n", [3, 64, 300])
def test_column_logsumexp_of_dead_columns_and_rows(n):
    log_p, _, _ = primitive_arguments(1, n, 5, 1)
    log_p[:, :, 2] = -torch.inf
    log_p[:, 1] = torch.nan
    u = torch.randn(1, n, dtype=torch.float64)
    u[:, 1] = -torch.inf
    for stored in (log_p, log_p.double(), log_p.mT.contiguous().mT):
        ours = LIBRARY.sinkhorn_column_logsumexp(stored, u, LAM)
        definition = _definition.sinkhorn_column_logsumexp(stored, u, LAM)
        assert ours[0, 2] == -torch.inf
        torch.testing.assert_close(ours, definition, rtol=1e-6, atol=1e-6)
    log_p[:, 0, 3] = torch.nan
    bad = LIBRARY.sinkhorn_column_logsumexp(log_p, u, LAM)[0].isnan()
    assert torch.equal(bad, torch.arange(5) == 3)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("shape", [(2, 40, 5000), (1, 5, 70000)])
def test_long_rows(shape):
    log_p, v, c = primitive_arguments(*shape, 2)
    assert_primitives_match(log_p, v, c, names=LONG_ROW_PRIMITIVES)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_bad_entries_show(value):
    """A solver reads them off the pass, in place of another read of the matrix."""
    for stored in (torch.float32, torch.float64, torch.bfloat16):
        log_p, v, c = primitive_arguments(2, 70, 21, 2)
        log_p[1, 5, 3] = value
        lam = LAM.expand(2).clone()
        mass, mean_logsumexp = LIBRARY.sinkhorn_pass(log_p.to(stored), v, c, lam)
        assert mass[0].isfinite().all() and mean_logsumexp[0].isfinite().all()
        assert not mass[1].isfinite().any() and not mean_logsumexp[1].isfinite().any()


@pytest.mark.usefixtures("compiled")
def test_row_that_is_minus_infinity_throughout_shows():
    for stored in (torch.float32, torch.float64, torch.bfloat16):
        log_p, v, c = primitive_arguments(1, 70, 21, 2)
        log_p[0, 5] = -torch.inf
        _, mean_logsumexp = LIBRARY.sinkhorn_pass(log_p.to(stored), v, c, LAM)
        assert not mean_logsumexp.isfinite().any()


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(("lam", "scale"), [(1.0, 1e4), (1000.0, 10.0), (1000.0, 1e4), (20.0, 5e5)])
def test_exponentials_do_not_lose_to_large_numbers(lam, scale):
    """v takes back what log_p spans, so that rows hold several entries that count."""
    generator = torch.Generator().manual_seed(0)
    offset = -scale * torch.rand(300, generator=generator)
    log_p = (offset + 2.0 / lam * torch.randn(1, 400, 300, generator=generator)).contiguous()
    v = -lam * offset.double() + torch.randn(300, generator=generator, dtype=torch.float64)
    c = torch.full((1, 400), 1 / 400, dtype=torch.float64)
    arguments = (log_p, v[None], c, torch.tensor([lam], dtype=torch.float64))
    ours = LIBRARY.sinkhorn_plan(*arguments, torch.float64)
    definition = _definition.sinkhorn_plan(*arguments, torch.float64)
    torch.testing.assert_close(ours, definition, rtol=1e-6, atol=1e-5 / 400)
    torch.testing.assert_close(ours.sum(1), definition.sum(1), rtol=4e-7, atol=0)


@pytest.mark.usefixtures("compiled")
def test_labels_are_those_of_float64():
    log_p, v, _ = primitive_arguments(1, 4000, 50, 1)
    log_p = (log_p * 64).round() / 64  # many near ties, and some exact ones
    v = (v[:, 0] * 1e-9).contiguous()
    v[:, 25:] = v[:, :25]
    ours = LIBRARY.sinkhorn_labels(log_p, v, LAM)[0]
    assert torch.equal(ours, _definition.sinkhorn_labels(log_p, v, LAM)[0])


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


# The solution -------------------------------------------------------------------------------------


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
    result = sinkhorn(log_p.log_softmax(-1), lam=1.0, col_marginal=zipf(6), permute=True)
    assert result.col_marginal.argsort(descending=True).tolist() == [1, 4, 2, 0, 3, 5]


def test_problems_of_a_batch_stop_each_on_its_own():
    easy, hard = random_log_p(400, 12, scale=0.1), hard_log_p(400, 12, 8.0, 2.0)
    together = sinkhorn(torch.stack([easy, hard]))
    assert together.n_passes[0] < together.n_passes[1]
    alone = sinkhorn(easy)
    torch.testing.assert_close(together.col_potential[0], alone.col_potential)
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
    torch.testing.assert_close(result.col_potential, kept.col_potential, rtol=1e-5, atol=1e-5)
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
    assert result.n_passes <= 14
    plain = sinkhorn(log_p, col_marginal=marginal, solver="sinkhorn", max_iterations=50)
    assert not plain.converged and plain.error > 2e-6


HARD = {
    "confident and noisy": hard_log_p(1500, 60, 8.0, 2.0),
    "most confident": hard_log_p(1500, 60, 15.0, 3.0),
    "one-hot rows": one_hot_log_p(1000, 10, 100),
    "one-hot rows at -1e4": one_hot_log_p(1000, 10, 1e4),
    "a column that no row favors": random_log_p(500, 12) - 1e4 * torch.eye(12)[3],
    "duplicate columns": random_log_p(500, 6)[:, [0, 0, 1, 2, 3, 4, 5, 5]],
    "-inf entries": random_log_p(500, 8).masked_fill(
        torch.eye(8).repeat(63, 1)[:500] > 0, -torch.inf
    ),
    "identical rows": random_log_p(1, 8).expand(300, 8),
    "K = 1": torch.zeros(50, 1),
    "N = 1": random_log_p(1, 7),
    "N = 1, K = 1": torch.zeros(1, 1),
}


@pytest.mark.parametrize("log_p", HARD.values(), ids=list(HARD))
def test_hard_problems_converge(log_p, backend):
    assert_solves(sinkhorn(log_p, backend=backend), log_p)


@pytest.mark.parametrize("lam", [0.01, 200.0, 1000.0])
def test_extreme_lam(lam):
    log_p = random_log_p(400, 10)
    assert_solves(sinkhorn(log_p, lam=lam), log_p)


def test_prior_that_spans_nine_decades():
    log_p = random_log_p(2000, 10)
    prior = torch.logspace(-9, 0, 10, dtype=torch.float64)
    result = sinkhorn(log_p, col_marginal=prior, tol=1e-8)
    assert_solves(result, log_p, tol=2e-8)


def test_unconverged_is_said():
    log_p = hard_log_p(500, 30, 15.0, 3.0)
    for limit in (1, 2, 5):
        for solver in ("newton", "sinkhorn"):
            result = sinkhorn(log_p, max_iterations=limit, solver=solver)
            assert not result.converged and result.n_passes <= limit
            true_error = (result.plan().sum(-2) - result.col_marginal).abs().sum()
            torch.testing.assert_close(result.error, true_error, rtol=1e-4, atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 60),
    k=st.integers(1, 20),
    scale=st.sampled_from([0.0, 1.0, 30.0]),
    lam=st.sampled_from([1.0, 20.0]),
    seed=st.integers(0, 99),
)
def test_error_is_honest_at_any_shape(n, k, scale, lam, seed):
    log_p = random_log_p(n, k, scale=scale, seed=seed)
    result = sinkhorn(log_p, lam=lam)
    true_error = (result.plan().sum(-2) - result.col_marginal).abs().sum()
    assert (true_error - result.error).abs() <= 3e-7
    assert result.converged == (result.error <= 2e-6)


# Bad input ----------------------------------------------------------------------------------------


def with_entry(value):
    log_p = random_log_p(10, 4)
    log_p[3, 2] = value
    return log_p


def with_dead(axis):
    log_p = random_log_p(10, 4)
    log_p.select(axis, 2).fill_(-torch.inf)
    return log_p


GOOD = random_log_p(10, 4)


@pytest.mark.parametrize(
    ("log_p", "options", "error", "message"),
    [
        (with_entry(torch.nan), {}, ValueError, r"log_p of shape \(1, 10, 4\) holds NaN or \+inf"),
        (with_entry(torch.inf), {}, ValueError, "log_p of shape"),
        (with_dead(0), {}, ValueError, "throughout row 2"),
        (with_dead(1), {}, ValueError, "throughout column 2"),
        (GOOD[0], {}, ValueError, r"log_p has shape \(4,\); expected"),
        (GOOD[:0], {}, ValueError, r"log_p has shape \(0, 4\)"),
        (GOOD.long(), {}, TypeError, "log_p has dtype torch.int64"),
        (GOOD, {"lam": 0.0}, ValueError, "lam=0.0; expected"),
        (GOOD, {"lam": float("nan")}, ValueError, "lam=nan; expected"),
        (GOOD, {"tol": -1.0}, ValueError, "tol=-1.0; expected"),
        (GOOD, {"max_iterations": 0}, ValueError, "max_iterations=0"),
        (GOOD, {"solver": "fast"}, ValueError, "solver='fast' is not one of"),
        (GOOD, {"backend": "tpu"}, ValueError, "backend='tpu' is not one of"),
        (GOOD, {"col_marginal": torch.ones(5)}, ValueError, r"col_marginal has shape \(5,\)"),
        (GOOD, {"col_marginal": torch.arange(4.0)}, ValueError, "least entry 0; .* above 0"),
        (GOOD, {"row_marginal": -torch.ones(10)}, ValueError, "least entry -1; .* at least 0"),
        (GOOD, {"row_marginal": torch.zeros(10)}, ValueError, "zero throughout"),
        (GOOD, {"col_marginal": torch.ones(4).long()}, TypeError, "col_marginal has dtype"),
        (GOOD, {"init": torch.full((4,), torch.inf)}, ValueError, "init of shape"),
    ],
)
def test_bad_input_is_named(log_p, options, error, message):
    with pytest.raises(error, match=message) as caught:
        sinkhorn(log_p, **options)
    assert "\n" not in str(caught.value)


def test_gradient_is_refused():
    log_p = random_log_p(10, 4).requires_grad_()
    with pytest.raises(RuntimeError, match=r"log_p\.detach\(\)"):
        sinkhorn(log_p)
    with torch.no_grad():
        assert sinkhorn(log_p).converged


def test_empty_batch():
    result = sinkhorn(torch.zeros(0, 10, 4))
    assert result.labels.shape == (0, 10) and result.converged.shape == (0,)
