"""The CUDA kernels, in the CPU emulator, against the definition."""

import math

import pytest
import torch

from selavi.ops import _definition
from tests.ops.test_primitives import (  # noqa: F401 (run here on the emulated kernels)
    LONG_ROW_PRIMITIVES,
    assert_passes_match,
    assert_primitives_match,
    primitive_arguments,
    test_a_potential_that_has_run_away_spoils_no_other_column,
    test_bad_entries_show,
    test_column_logsumexp_of_dead_columns_and_rows,
    test_exponentials_do_not_lose_to_large_numbers,
    test_labels_are_those_of_float64,
    test_plan_in_every_dtype,
    test_primitives_match_definition,
    test_primitives_match_definition_at_any_shape,
    test_row_that_is_minus_infinity_throughout_shows,
    test_rows_of_zero_weight_are_not_read,
    tolerance,
)

LIBRARY = torch.ops.selavi_emulated
LAM = torch.tensor([20.0], dtype=torch.float64)
# Columns at the edges of the kernels' shapes.
EDGES = (1, 7, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 192, 193, 256, 309, 320, 416, 417, 512, 513)
LONG = (768, 1000, 1024, 1025, 1536, 2048, 2049, 4096, 4097, 8192)
WIDE = (8193, 20_001, 65_536, 65_537, 131_072)  # rows that blocks share


@pytest.fixture(scope="module", autouse=True)
def library(emulator):
    return LIBRARY


def assert_pass_matches(log_p, v, c, lam=LAM):
    ours = LIBRARY.sinkhorn_pass(log_p, v, c, lam)
    definition = _definition.sinkhorn_pass(log_p, v, c, lam)
    assert_passes_match(ours, definition, log_p.dtype)
    return ours


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("candidates", [1, 2, 7])
@pytest.mark.parametrize("columns", EDGES)
def test_pass_at_every_shape(columns, candidates):
    log_p, v, c = primitive_arguments(2, 45, columns, candidates, columns)
    assert_pass_matches(log_p, v, c, torch.tensor([20.0, 0.5], dtype=torch.float64))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("candidates", [1, 3])
@pytest.mark.parametrize("columns", LONG)
def test_pass_of_long_rows(columns, candidates):
    log_p, v, c = primitive_arguments(1, 9, columns, candidates, columns)
    assert_pass_matches(log_p, v, c)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", WIDE)
def test_rows_that_blocks_share(columns, stored, monkeypatch):
    log_p, v, c = primitive_arguments(1, 4, columns, 2, columns)
    log_p[0, 1, ::3] = -torch.inf
    log_p[0, 2, : columns // 2 + 1] = -torch.inf
    c[0, 3] = 0.0
    log_p[0, 3] = torch.nan
    log_p = log_p.to(stored)
    mass, value = assert_pass_matches(log_p, v, c)
    monkeypatch.setenv("SELAVI_EMULATOR_SEED", "1")
    torch.testing.assert_close(
        LIBRARY.sinkhorn_pass(log_p, v, c, LAM), (mass, value), rtol=0, atol=0
    )
    monkeypatch.setenv("SELAVI_EMULATOR_CLUSTERS", "0")
    assert_pass_matches(log_p, v, c)


def launches_of_passes(log_p, v, c, monkeypatch, capfd):
    monkeypatch.setenv("SELAVI_EMULATOR_TRACE", "1")
    LIBRARY.sinkhorn_pass(log_p, v, c, LAM)
    monkeypatch.delenv("SELAVI_EMULATOR_TRACE")
    return [line.split(":")[0] for line in capfd.readouterr().err.splitlines()]


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("clusters", [True, False])
@pytest.mark.parametrize(
    ("columns", "candidates"), [(100, 9), (2049, 9), (16_384, 7), (16_385, 3), (131_072, 2)]
)
def test_candidates_share_a_read(columns, candidates, stored, clusters, monkeypatch, capfd):
    monkeypatch.setenv("SELAVI_EMULATOR_CLUSTERS", "1" if clusters else "0")
    log_p, v, c = primitive_arguments(1, 5, columns, candidates, columns)
    log_p[0, 1] -= 1e5  # beyond what is exact in float
    log_p[0, 2, : columns // 2 + 1] = -torch.inf
    v[0, 1, 0] = torch.nan  # is not tried
    c[0, 3] = 0.0
    log_p[0, 3] = torch.nan
    log_p = log_p.to(stored)
    ours = LIBRARY.sinkhorn_pass(log_p, v, c, LAM)
    v[0, 1, 0] = 0.0
    definition = _definition.sinkhorn_pass(log_p, v, c, LAM)
    for result, reference in zip(ours, definition, strict=True):
        assert result[0, 1].isnan().all()
        result[0, 1] = reference[0, 1]
    assert_passes_match(ours, definition, log_p.dtype)
    if clusters or columns <= 8192:
        one_read = ["sinkhorn_pass", "sinkhorn_pass (merge)"]
        assert launches_of_passes(log_p, v, c, monkeypatch, capfd) == one_read
    monkeypatch.setenv("SELAVI_EMULATOR_SEED", "1")
    again = LIBRARY.sinkhorn_pass(log_p, v, c, LAM)
    for result, reference in zip(again, ours, strict=True):
        tried = [s for s in range(candidates) if s != 1]
        torch.testing.assert_close(result[0, tried], reference[0, tried], rtol=0, atol=0)


@pytest.mark.parametrize("columns", [5000, 9000])
def test_long_rows_in_every_primitive(columns):
    log_p, v, c = primitive_arguments(2, 5, columns, 1, 3)
    assert_primitives_match(LIBRARY, log_p, v, c, names=LONG_ROW_PRIMITIVES)


@pytest.mark.parametrize("columns", [5, 40, 309, 2500])
def test_results_do_not_depend_on_the_order_of_threads(columns, monkeypatch):
    log_p, v, c = primitive_arguments(2, 300, columns, 7, 1)
    lam = LAM.expand(2).clone()
    v0, u = v[:, 0].contiguous(), c.log()
    for function, arguments in (
        (LIBRARY.sinkhorn_pass, (log_p, v, c, lam)),
        (LIBRARY.sinkhorn_pass, (log_p, v0[:, None].contiguous(), c, lam)),
        (LIBRARY.sinkhorn_labels, (log_p, v0, lam)),
        (LIBRARY.sinkhorn_column_logsumexp, (log_p, u, lam)),
    ):
        monkeypatch.delenv("SELAVI_EMULATOR_SEED", raising=False)
        forward = function(*arguments)
        monkeypatch.setenv("SELAVI_EMULATOR_SEED", "1")
        torch.testing.assert_close(function(*arguments), forward, rtol=0, atol=0)


@pytest.mark.parametrize("stored", [torch.float32, torch.float64])
@pytest.mark.parametrize("columns", [20, 309, 5000])
def test_candidates_that_are_not_tried(columns, stored):
    log_p, v, c = primitive_arguments(2, 20, columns, 5, 1)
    log_p, lam = log_p.to(stored), LAM.expand(2).clone()
    clean = LIBRARY.sinkhorn_pass(log_p, v, c, lam)
    skipped = torch.zeros(2, 5, dtype=torch.bool)
    skipped[0, 1] = skipped[0, 4] = skipped[1, 0] = True
    v[skipped, 0] = torch.nan
    ours = LIBRARY.sinkhorn_pass(log_p, v, c, lam)
    for result, reference in zip(ours, clean, strict=True):
        assert result[skipped].isnan().all()
        torch.testing.assert_close(result[~skipped], reference[~skipped], rtol=0, atol=0)


@pytest.mark.parametrize("columns", [12, 309, 3000])
@pytest.mark.parametrize("n", [1, 700])
def test_problems_without_weight(columns, n):
    n = n if columns < 1000 else min(n, 200)
    log_p, v, c = primitive_arguments(3, n, columns, 2, 1)
    c[0] = 0.0
    c[1, : n // 2] = 0.0  # whole chunks of rows
    c[2] = 1 / n
    log_p[0], lam = torch.nan, LAM.expand(3).clone()
    mass, value = assert_pass_matches(log_p, v, c, lam)
    assert (mass[0] == 0).all() and (value[0] == 0).all()


def test_no_rows():
    log_p, v, c = primitive_arguments(2, 0, 7, 2, 1)
    lam = LAM.expand(2).clone()
    assert_pass_matches(log_p, v, c, lam)
    assert_pass_matches(log_p.double(), v, c, lam)
    assert LIBRARY.sinkhorn_labels(log_p, v[:, 0].contiguous(), lam)[0].shape == (2, 0)
    assert (LIBRARY.sinkhorn_column_logsumexp(log_p, c, lam) == -torch.inf).all()


@pytest.mark.parametrize("columns", [40, 700])
def test_equal_rows_do_not_add_up_their_rounding(columns):
    log_p, v, _ = primitive_arguments(1, 1, columns, 1, 1)
    rows = log_p.expand(1, 3000, columns)
    c = torch.full((1, 3000), 1 / 3000, dtype=torch.float64)
    mass = LIBRARY.sinkhorn_pass(rows, v, c, LAM)[0]
    definition = _definition.sinkhorn_pass(rows, v, c, LAM)[0]
    assert (mass - definition).abs().sum() < 5e-7


def test_far_rows_among_near_ones():
    """Rows beyond what is exact in float, in the same batches as others."""
    for columns in (20, 309, 1500):
        log_p, v, c = primitive_arguments(1, 60, columns, 3, 1)
        log_p[0, ::5] -= 1e5
        log_p[0, 7] -= 1e9
        ours = LIBRARY.sinkhorn_pass(log_p, v, c, LAM)
        definition = _definition.sinkhorn_pass(log_p, v, c, LAM)
        torch.testing.assert_close(ours, definition, rtol=3e-6, atol=3e-8)


@pytest.fixture
def far_apart(tmp_path):
    """Elements of a small array at huge strides in a file that is all holes."""

    def place(small, strides):
        size = 1 + sum((n - 1) * s for n, s in zip(small.shape, strides, strict=True))
        path = tmp_path / f"holes{math.prod(strides)}"
        path.touch()
        flat = torch.from_file(str(path), shared=True, size=size, dtype=small.dtype)
        view = flat.as_strided(small.shape, strides)
        view.copy_(small)
        return view

    return place


@pytest.mark.parametrize("strides", [(2**33, 2**31, 1), (2, 1, 40_000)])
def test_indices_beyond_32_bits_in_wide_rows(far_apart, strides):
    log_p, v, c = primitive_arguments(1, 2, 66_000, 2, 1)
    ours = LIBRARY.sinkhorn_pass(far_apart(log_p, strides), v, c, LAM)
    torch.testing.assert_close(ours, LIBRARY.sinkhorn_pass(log_p, v, c, LAM), rtol=0, atol=0)


@pytest.mark.parametrize("stored", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("columns", [7, 37, 600])
def test_indices_beyond_32_bits(far_apart, columns, stored):
    log_p, v, c = primitive_arguments(2, 6, columns, 2, 1)
    log_p, lam = log_p.to(stored), LAM.expand(2).clone()
    step = 2**30 // columns
    for strides in (
        (2**33, 2**30, 1),
        (2**31 + 7, columns, 1),
        (6, 1, 2**33 // columns),
        (2**32, 1, step),
    ):
        far = far_apart(log_p, strides)
        assert max((n - 1) * s for n, s in zip(far.shape, strides, strict=True)) > 2**31
        for name, arguments in (
            ("sinkhorn_pass", (v, c, lam)),
            ("sinkhorn_labels", (v[:, 0].contiguous(), lam)),
            ("sinkhorn_plan", (v[:, 0].contiguous(), c, lam, torch.float32)),
            ("sinkhorn_column_logsumexp", (c.log(), lam)),
        ):
            function = getattr(LIBRARY, name)
            torch.testing.assert_close(
                function(far, *arguments), function(log_p, *arguments), rtol=1e-9, atol=0
            )
