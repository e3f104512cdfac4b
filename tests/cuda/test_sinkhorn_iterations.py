"""sinkhorn_iterations' kernels in the emulator, against a loop over the definition of the pass.

The emulated chip has 4 multiprocessors with 227 KB of shared memory each.
"""

import pytest
import torch

from selavi.ops import _definition
from tests.ops.test_primitives import primitive_arguments

pytestmark = pytest.mark.usefixtures("emulator", "poisoned_memory")


def by_definition(log_p, v, c, r, lam, count):
    mass, value = _definition.sinkhorn_pass(log_p, v[:, None], c, lam)
    for _ in range(count - 1):
        v = v + r.log() - mass[:, 0].clamp_min(torch.finfo(mass.dtype).tiny).log()
        mass, value = _definition.sinkhorn_pass(log_p, v[:, None], c, lam)
    return v, mass[:, 0], value[:, 0]


def arguments(problems, n, k, lam=5.0, seed=0):
    log_p, v, c = primitive_arguments(problems, n, k, 1, seed)
    generator = torch.Generator().manual_seed(seed)
    r = 0.5 + torch.rand(problems, k, generator=generator, dtype=torch.float64)
    lam = torch.full((problems,), lam, dtype=torch.float64)
    return log_p, v[:, 0].contiguous(), c, r / r.sum(-1, keepdim=True), lam


def assert_matches(log_p, v, c, r, lam, count):
    ours = torch.ops.selavi_emulated.sinkhorn_iterations(log_p, v, c, r, lam, count)
    definition = by_definition(log_p, v, c, r, lam, count)
    # Errors of the masses add up in v.
    close = {"rtol": 1e-11, "atol": 1e-12} if log_p.dtype == torch.float64 else {"rtol": 3e-6}
    for name, a, b in zip(("v", "mass", "mean_logsumexp"), ours, definition, strict=True):
        torch.testing.assert_close(
            a,
            b,
            **({"atol": 3e-6 if name == "v" else 3e-8} | close),
            msg=lambda m, name=name: f"{name}: {m}",
        )


@pytest.mark.parametrize("count", [1, 4])
def test_matches_definition(dtype, layout, count):
    log_p, v, c, r, lam = arguments(2, 150, 37)
    log_p[0, 3, 5] = -torch.inf
    assert_matches(layout(log_p.to(dtype)), v, c, r, lam, count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("problems", "n", "k"),
    [
        (1, 3, 1),
        (2, 1, 2),
        (1, 1000, 2),
        (3, 1000, 37),
        (1, 700, 309),
        (7, 130, 309),  # more problems than multiprocessors
        (1, 100, 500),
        (1, 60, 1100),
        (1, 9, 4096),
        (1, 9, 4100),  # more columns than a block holds
        (1, 0, 5),
        (0, 5, 5),
    ],
)
def test_any_shape(problems, n, k, dtype):
    log_p, v, c, r, lam = arguments(problems, n, k)
    assert_matches(log_p.to(dtype), v, c, r, lam, 3)


def test_long_columns():
    """So many rows a team that it sums them in float several times."""
    log_p, v, c, r, lam = arguments(1, 20000, 8)
    assert_matches(log_p.bfloat16(), v, c, r, lam, 2)


@pytest.mark.parametrize(("n", "k"), [(1200, 309), (100, 5000)])
def test_matrices_that_do_not_fit_the_chip(n, k):
    log_p, v, c, r, lam = arguments(2, n, k)
    assert_matches(log_p, v, c, r, lam, 3)


@pytest.mark.parametrize("k", [30, 400])
def test_rows_of_zero_weight_are_not_used(k):
    log_p, v, c, r, lam = arguments(2, 100, k)
    c[1] = 0.0
    iterate = torch.ops.selavi_emulated.sinkhorn_iterations
    clean = iterate(log_p, v, c, r, lam, 3)
    log_p[c == 0] = torch.nan
    poisoned = iterate(log_p, v, c, r, lam, 3)
    for a, b in zip(clean, poisoned, strict=True):
        assert torch.equal(a, b)
    assert (clean[1][1] == 0).all() and clean[2][1] == 0


@pytest.mark.parametrize("k", [21, 400])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_bad_rows_show(value, k):
    log_p, v, c, r, lam = arguments(2, 70, k)
    log_p[1, 5] = value
    _, mass, mean = torch.ops.selavi_emulated.sinkhorn_iterations(log_p, v, c, r, lam, 1)
    assert mass[0].isfinite().all() and mean[0].isfinite()
    assert not mass[1].isfinite().any() and not mean[1].isfinite()


# A warp and a larger team to a row; the last scale is too large for floats of any kind, and with
# the first one some rows are.
@pytest.mark.parametrize("k", [30, 300])
@pytest.mark.parametrize(("lam", "scale"), [(20.0, 0.0), (1000.0, 1e4), (20.0, 5e5), (1.0, 1e8)])
def test_exponentials_do_not_lose_to_large_numbers(lam, scale, k):
    generator = torch.Generator().manual_seed(0)
    offset = (-scale * torch.rand(k, generator=generator)).round()
    log_p = offset + 2.0 / lam * torch.randn(1, 90, k, generator=generator)
    log_p[:, ::3] -= 1e4
    v = -lam * offset.double() + torch.randn(k, generator=generator, dtype=torch.float64)
    c = torch.full((1, 90), 1 / 90, dtype=torch.float64)
    r = torch.full((1, k), 1 / k, dtype=torch.float64)
    lam = torch.tensor([lam], dtype=torch.float64)
    ours = torch.ops.selavi_emulated.sinkhorn_iterations(log_p, v[None], c, r, lam, 2)
    definition = by_definition(log_p, v[None], c, r, lam, 2)
    torch.testing.assert_close(ours[1], definition[1], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ours[2], definition[2], rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("k", [300, 500, 1000])
def test_teams_do_not_disturb_each_other(k, monkeypatch):
    """The rows of some teams are too far from 0 for floats; threads take turns by chance."""
    monkeypatch.setenv("SELAVI_EMULATOR_SEED", "1")
    log_p, v, c, r, lam = arguments(1, 96, k)
    log_p[:, torch.arange(96) // 3 % 2 == 0] -= 1e4
    ours = torch.ops.selavi_emulated.sinkhorn_iterations(log_p, v, c, r, lam, 2)
    definition = by_definition(log_p, v, c, r, lam, 2)
    torch.testing.assert_close(ours[1], definition[1], rtol=1e-5, atol=1e-9)


def test_a_result_is_the_same_each_time():
    log_p, v, c, r, lam = arguments(1, 700, 150)
    iterate = torch.ops.selavi_emulated.sinkhorn_iterations
    for a, b in zip(*(iterate(log_p, v, c, r, lam, 3) for _ in range(2)), strict=True):
        assert torch.equal(a, b)


def test_count_is_checked():
    log_p, v, c, r, lam = arguments(1, 7, 5)
    with pytest.raises(RuntimeError, match="count must be 1 or more"):
        torch.ops.selavi_emulated.sinkhorn_iterations(log_p, v, c, r, lam, 0)
