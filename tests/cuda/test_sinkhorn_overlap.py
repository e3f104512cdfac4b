"""sinkhorn_overlap's kernels in the emulator, against the definition."""

import pytest
import torch

from selavi.ops import _definition
from tests.ops.test_primitives import primitive_arguments, tolerance

pytestmark = pytest.mark.usefixtures("emulator", "poisoned_memory")


def overlap(log_p, v, c, lam=20.0):
    lam = torch.full((len(log_p),), lam, dtype=torch.float64)
    v = v[:, 0].contiguous()
    ours = torch.ops.selavi_emulated.sinkhorn_overlap(log_p, v, c, lam)
    return ours, _definition.sinkhorn_overlap(log_p, v, c, lam)


def assert_matches(log_p, v, c, lam=20.0):
    ours, definition = overlap(log_p, v, c, lam)
    assert torch.equal(ours, ours.mT)
    torch.testing.assert_close(ours, definition, **tolerance("sinkhorn_overlap", log_p.dtype))


def test_matches_definition(dtype, layout):
    log_p, v, c = primitive_arguments(2, 150, 37, 1)
    log_p[0, 3, 5] = -torch.inf
    assert_matches(layout(log_p.to(dtype)), v, c)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("problems", "n", "k"),
    [
        (1, 3, 1),
        (2, 1, 2),
        (3, 1000, 2),
        (1, 1000, 37),
        (1, 70, 64),
        (2, 300, 65),
        (1, 600, 309),
        (1, 40, 500),
        (1, 20, 1100),
        (1, 0, 5),
        (2, 0, 200),
        (0, 5, 5),
    ],
)
def test_any_shape(problems, n, k, dtype):
    log_p, v, c = primitive_arguments(problems, n, k, 1)
    assert_matches(log_p.to(dtype), v, c, lam=5.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_zero_weight_are_not_used(dtype):
    log_p, v, c = primitive_arguments(3, 100, 70, 1)
    c[1] = 0.0
    log_p = log_p.to(dtype)
    clean, _ = overlap(log_p, v, c)
    log_p[c == 0] = torch.nan
    poisoned, _ = overlap(log_p, v, c)
    assert torch.equal(clean, poisoned) and (clean[1] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_bad_rows_show(dtype, value):
    log_p, v, c = primitive_arguments(2, 70, 21, 1)
    log_p[1, 5] = value
    ours, _ = overlap(log_p.to(dtype), v, c)
    assert ours[0].isfinite().all() and not ours[1].isfinite().any()


# The last is too large for floats of any kind.
@pytest.mark.parametrize(("lam", "scale"), [(1.0, 1e4), (1000.0, 1e4), (20.0, 5e5), (1.0, 1e8)])
def test_exponentials_do_not_lose_to_large_numbers(lam, scale):
    generator = torch.Generator().manual_seed(0)
    offset = (-scale * torch.rand(70, generator=generator)).round()
    log_p = offset + 2.0 / lam * torch.randn(1, 200, 70, generator=generator)
    v = -lam * offset.double() + torch.randn(70, generator=generator, dtype=torch.float64)
    c = torch.full((1, 200), 1 / 200, dtype=torch.float64)
    assert_matches(log_p, v[None, None], c, lam)


def test_a_result_is_the_same_each_time():
    log_p, v, c = primitive_arguments(1, 700, 150, 1)
    assert torch.equal(overlap(log_p, v, c)[0], overlap(log_p, v, c)[0])
