import pytest
import torch

from selavi import kernels
from selavi.ops import _definition
from tests.kernels.interpreted.inputs import CLOSE, DTYPES, strided, transposed, views_and_store


def assert_accumulates(store, logits, index, weight, **close):
    expected = store.double()
    before = store.clone()
    _definition.accumulate_log_softmax_(expected, logits, index, weight)
    kernels.accumulate_log_softmax_(store, logits, index, weight)
    torch.testing.assert_close(store.double(), expected, **close)
    others = torch.ones(store.shape[1], dtype=torch.bool)
    others[index] = False
    assert torch.equal(store[:, others], before[:, others])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, transposed, strided])
def test_accumulate(dtype, layout):
    store, logits, index, weight = views_and_store(2, dtype=dtype)
    logits = [layout(view) for view in logits]
    assert_accumulates(layout(store), logits, index, weight, **CLOSE)
    assert_accumulates(layout(store.double()), logits, index, None, **CLOSE)


@pytest.mark.parametrize("views", [1, 3, 4, 5, 9])
@pytest.mark.parametrize("k", [1, 19])
def test_accumulate_many_views_and_columns(views, k):
    store, logits, index, weight = views_and_store(views, batch=3, k=k)
    weight /= weight.sum(0)
    assert_accumulates(store.clone(), logits, index, weight, **CLOSE)
    wide = [view.double() for view in logits]
    assert_accumulates(store.double(), wide, index, None, rtol=1e-12, atol=1e-12)


def test_accumulate_long_rows():
    store, logits, index, weight = views_and_store(2, batch=3, k=5000)
    assert_accumulates(store.clone(), logits, index, weight, **CLOSE)
    logits = [logits[0].double(), logits[1].half()]
    assert_accumulates(store.double(), logits, index, None, rtol=1e-6, atol=1e-6)


def test_accumulate_views_of_different_dtypes():
    store, logits, index, weight = views_and_store(3)
    logits = [logits[0].half(), logits[1].double(), logits[2].bfloat16()]
    assert_accumulates(store, logits, index, weight, **CLOSE)


@pytest.mark.parametrize("k", [19, 5000])
def test_accumulate_skips_what_has_no_weight_and_shows_nan_that_has(k):
    store, logits, index, weight = views_and_store(2, k=k)
    weight[0, :3], weight[1, 3:5], weight[:, 5] = 0.0, 0.0, 0.0
    expected = store.double()
    _definition.accumulate_log_softmax_(expected, logits, index, weight)
    for m, view in enumerate(logits):
        view[:, weight[m] == 0] = torch.nan
    again = store.clone()
    kernels.accumulate_log_softmax_(store, logits, index, weight)
    torch.testing.assert_close(store.double(), expected, **CLOSE)
    logits[0][1, 6, 4] = torch.nan
    kernels.accumulate_log_softmax_(again, logits, index, weight)
    assert again[1, index[6]].isnan().all() and again.isnan().sum() == k
