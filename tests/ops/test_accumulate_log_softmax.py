"""accumulate_log_softmax_ against its definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selavi import ops
from selavi.ops import _definition
from tests.ops.on_device import accumulate_log_softmax_


def arguments(views=2, heads=3, n=40, batch=11, k=19, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    store = torch.randn(heads, n, k, generator=generator)
    logits = [4 * torch.randn(heads, batch, k, generator=generator) for _ in range(views)]
    index = torch.randperm(n, generator=generator)[:batch]
    weight = torch.rand(views, batch, generator=generator)
    return store, [view.to(dtype) for view in logits], index, weight


def by_definition(store, logits, index, weight):
    wide = store.double()
    weight = None if weight is None else weight.double()
    _definition.accumulate_log_softmax_(wide, logits, index, weight)
    return wide


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("store_dtype", [torch.float32, torch.float64])
def test_matches_definition(backend, dtype, layout, store_dtype, weighted):
    store, logits, index, weight = arguments(dtype=dtype)
    store, weight = layout(store.to(store_dtype)), weight if weighted else None
    logits = [layout(view) for view in logits]
    expected = by_definition(store, logits, index, weight)
    result = accumulate_log_softmax_(store, logits, index, weight, backend=backend)
    assert result is store
    torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=3e-6)


@settings(max_examples=40, deadline=None)
@given(
    views=st.integers(1, 4),
    heads=st.integers(1, 3),
    batch=st.integers(0, 40),
    k=st.integers(1, 50),
    double=st.booleans(),
    seed=st.integers(0, 99),
)
def test_matches_definition_at_any_shape(views, heads, batch, k, double, seed):
    dtype = torch.float64 if double else torch.float32
    store, logits, index, weight = arguments(views, heads, 40, batch, k, dtype, seed)
    store = store.to(dtype)
    expected = by_definition(store, logits, index, weight)
    close = {"rtol": 1e-12, "atol": 1e-12} if double else {"rtol": 1e-6, "atol": 1e-5}
    accumulate_log_softmax_(store, logits, index, weight.to(dtype))
    torch.testing.assert_close(store.double(), expected, **close)


def test_rows_that_are_not_named_stay_bit_for_bit(backend):
    store, logits, index, weight = arguments()
    before = store.clone()
    accumulate_log_softmax_(store, logits, index, weight, backend=backend)
    others = [i for i in range(40) if i not in index.tolist()]
    assert torch.equal(store[:, others], before[:, others])


def test_weight_zero_skips_even_nan(backend):
    store, logits, index, weight = arguments()
    weight[0, :4], weight[1, 4:8], weight[:, 8] = 0.0, 0.0, 0.0
    expected = by_definition(store.clone(), logits, index, weight)
    for m, view in enumerate(logits):
        view[:, weight[m] == 0] = torch.nan
    accumulate_log_softmax_(store, logits, index, weight, backend=backend)
    torch.testing.assert_close(store.double(), expected, rtol=1e-6, atol=3e-6)


def test_nan_with_weight_shows(backend):
    store, logits, index, weight = arguments()
    logits[0][1, 2, 3] = torch.nan
    accumulate_log_softmax_(store, logits, index, weight, backend=backend)
    assert store[1, index[2]].isnan().all()
    assert store.isnan().sum() == store.shape[-1]


def test_views_of_different_dtypes(backend):
    store, logits, index, weight = arguments()
    logits = [logits[0].half(), logits[1].double()]
    expected = by_definition(store, logits, index, weight)
    accumulate_log_softmax_(store, logits, index, weight, backend=backend)
    torch.testing.assert_close(store.double(), expected, rtol=1e-6, atol=3e-6)


@pytest.mark.usefixtures("compiled")
def test_opcheck():
    store, logits, index, weight = arguments()
    operator = torch.ops.selavi.accumulate_log_softmax_.default
    torch.library.opcheck(operator, (store, logits, index, weight.double()))
    torch.library.opcheck(operator, (store, logits, index, None))


@pytest.mark.skipif(ops.backends()["cpu"] != "available", reason="the extension is not built")
def test_compiles_without_a_break():
    store, logits, index, weight = arguments()
    expected = by_definition(store, [view * 2 for view in logits], index, weight)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def accumulate(store, logits, index, weight):
        ops.accumulate_log_softmax_(store, [view * 2 for view in logits], index, weight)
        return store + 0

    result = accumulate(store, logits, index, weight)
    torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=3e-6)


def change(**changes):
    store, logits, index, weight = arguments()
    return {"store": store, "logits": logits, "index": index, "weight": weight} | changes


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (change(store=torch.zeros(3, 40)), ValueError, r"store has shape \(3, 40\)"),
        (change(store=torch.zeros(3, 40, 19).half()), TypeError, "store has dtype torch.float16"),
        (change(logits=[]), ValueError, "logits is empty"),
        (change(logits=[torch.zeros(3, 11, 18)] * 2), ValueError, r"logits\[0\] has shape"),
        (change(index=torch.arange(11).int()), TypeError, "index has dtype torch.int32"),
        (change(index=torch.arange(11) + 30), ValueError, "index holds 40; expected rows 0 to 39"),
        (change(index=torch.arange(11) - 1), ValueError, "index holds -1"),
        (change(index=torch.zeros(11).long()), ValueError, "index repeats a row"),
        (change(weight=torch.ones(1, 11)), ValueError, r"weight has shape \(1, 11\)"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        accumulate_log_softmax_(**call)


def test_gradient_is_refused():
    store, logits, index, weight = arguments()
    logits[0].requires_grad_()
    with pytest.raises(RuntimeError, match=r"under torch\.no_grad\(\)"):
        accumulate_log_softmax_(store, logits, index, weight)


def test_refuses_a_store_that_overlaps_itself_or_logits():
    store = torch.zeros(2, 5, 3)
    index = torch.arange(5)
    with pytest.raises(ValueError, match=r"logits\[0\] shares memory with the store"):
        accumulate_log_softmax_(store, [store], index)
    with pytest.raises(ValueError, match="expected entries that do not overlap"):
        accumulate_log_softmax_(torch.zeros(1, 5, 3).expand(2, 5, 3), [store], index)
