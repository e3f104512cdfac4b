"""accumulate_log_softmax_'s kernels in the emulator, against the definition."""

import pytest
import torch

from tests.ops.test_accumulate_log_softmax import arguments, by_definition

pytestmark = pytest.mark.usefixtures("emulator", "poisoned_memory")


def accumulate(store, logits, index, weight):
    weight = None if weight is None else weight.double()
    torch.ops.selavi_emulated.accumulate_log_softmax_(store, logits, index, weight)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("store_dtype", [torch.float32, torch.float64])
def test_matches_definition(dtype, layout, store_dtype, weighted):
    store, logits, index, weight = arguments(dtype=dtype)
    store, weight = layout(store.to(store_dtype)), weight if weighted else None
    logits = [layout(view) for view in logits]
    expected = by_definition(store, logits, index, weight)
    accumulate(store, logits, index, weight)
    torch.testing.assert_close(store.double(), expected, rtol=1e-6, atol=3e-6)


# A warp, several warps, the whole block, and more than it holds, to a row.
@pytest.mark.parametrize("k", [1, 2, 37, 309, 500, 1100, 5000, 8200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_length_of_rows(k, dtype):
    store, logits, index, weight = arguments(heads=2, batch=5, k=k, dtype=dtype)
    store = store.to(dtype)
    expected = by_definition(store, logits, index, weight)
    accumulate(store, logits, index, weight)
    close = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-6}
    torch.testing.assert_close(store.double(), expected, **({"atol": 3e-6} | close))


# Rows of a block, of a cluster's blocks, and, without clusters, of more columns than a block holds.
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("clusters", ["1", "0"])
@pytest.mark.parametrize("stored", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("k", [8193, 12_289, 21_000, 65_536, 131_072])
def test_long_rows(k, stored, clusters, monkeypatch):
    monkeypatch.setenv("SELAVI_EMULATOR_CLUSTERS", clusters)
    store, logits, index, weight = arguments(heads=1, n=4, batch=2, k=k, dtype=stored)
    logits[1] = logits[1] + 1e4  # rounds by itself where stored in 16 bit
    logits[0][0, 1, : k // 2 + 1] = -torch.inf
    store = store.double() if stored == torch.float64 else store
    expected, again = by_definition(store, logits, index, weight), store.clone()
    accumulate(store, logits, index, weight)
    torch.testing.assert_close(store.double(), expected, rtol=1e-6, atol=3e-6)
    monkeypatch.setenv("SELAVI_EMULATOR_SEED", "1")
    accumulate(again, logits, index, weight)
    assert torch.equal(again, store)


@pytest.mark.parametrize("k", [9000, 30_000])
def test_long_rows_of_any_layout(layout, k):
    store, logits, index, _ = arguments(heads=2, n=3, batch=2, k=k)
    store, logits = layout(store), [layout(view) for view in logits]
    expected = by_definition(store, logits, index, None)
    accumulate(store, logits, index, None)
    torch.testing.assert_close(store.double(), expected, rtol=1e-6, atol=3e-6)


@pytest.mark.parametrize("k", [8193, 30_000])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_long_rows_that_are_bad_show(value, k):
    store, logits, index, weight = arguments(heads=1, n=4, batch=2, k=k)
    logits[0][0, 0, 5] = value
    if value == -torch.inf:
        logits[0][0, 0] = value
    accumulate(store, logits, index, weight)
    assert store[0, index[0]].isnan().all() and store[0, index[1]].isfinite().all()


@pytest.mark.parametrize("k", [19, 309, 8200, 30_000])
def test_weights_zero_and_nan(k):
    store, logits, index, weight = arguments(k=k)
    weight[0, :4], weight[1, 4:8], weight[:, 8] = 0.0, 0.0, 0.0
    expected = by_definition(store, logits, index, weight)
    for m, view in enumerate(logits):
        view[:, weight[m] == 0] = torch.nan
    logits[1][2, 10, 3] = torch.nan
    expected[2, index[10]] = torch.nan
    logits[0][1, 9, 2] = -torch.inf
    expected[1, index[9], 2] = -torch.inf
    untouched = torch.ones(40, dtype=torch.bool).index_fill(0, index, False)
    before = store.clone()
    accumulate(store, logits, index, weight)
    close = torch.isclose(store.double(), expected, rtol=1e-6, atol=3e-6, equal_nan=True)
    close[1, index[9]] = True  # its other entries gain what the dead one loses
    assert close.all() and store[1, index[9], 2] == -torch.inf
    assert torch.equal(store[:, untouched], before[:, untouched])


@pytest.mark.parametrize("k", [19, 8200])
def test_logits_that_are_large(k):
    store, logits, index, weight = arguments(k=k)
    logits = [view + 1e6 * (-1) ** m for m, view in enumerate(logits)]
    expected = by_definition(store, logits, index, weight)
    accumulate(store, logits, index, weight)
    torch.testing.assert_close(store.double(), expected, rtol=1e-6, atol=3e-6)


def test_views_of_different_dtypes():
    store, logits, index, weight = arguments(views=3)
    logits = [logits[0].half(), logits[1].double(), logits[2].bfloat16()]
    expected = by_definition(store, logits, index, weight)
    accumulate(store, logits, index, weight)
    torch.testing.assert_close(store.double(), expected, rtol=1e-6, atol=3e-6)


@pytest.mark.parametrize("weighted", [True, False])
def test_more_views_than_a_launch_takes(weighted):
    store, logits, index, weight = arguments(views=35)
    weight = weight / 35 if weighted else None
    expected = by_definition(store, logits, index, weight)
    accumulate(store, logits, index, weight)
    torch.testing.assert_close(store.double(), expected, rtol=1e-6, atol=3e-6)


def test_empty_batch():
    store, logits, index, weight = arguments(batch=0)
    before = store.clone()
    accumulate(store, logits, index, weight)
    assert torch.equal(store, before)
