"""All primitives at once: offsets, and schemas."""

import torch

from selavi import kernels
from selavi.ops import _definition
from tests.kernels.interpreted.inputs import (
    CLOSE,
    arguments,
    assert_matches,
    calls,
    views_and_store,
)


def test_offsets_beyond_2_to_the_31(tmp_path):
    """Strides of more than 2^31 elements, in a file with holes."""
    path, gap = tmp_path / "holes", 2**31 + 8
    with path.open("wb") as file:
        file.truncate(2 * 5 * gap)
    memory = torch.from_file(str(path), shared=True, size=5 * gap, dtype=torch.bfloat16)
    for strides in ((16, gap, 1), (8, 16, gap), (gap, 16, 1)):
        log_p, v, c, lam = arguments(2, 4, 5, 1)
        far = memory.as_strided(log_p.shape, strides)
        far.copy_(log_p)
        assert_matches(far, v, c, lam)
        logits, weight = far.float().bfloat16(), torch.ones(1, 4, dtype=torch.float64)
        expected = torch.zeros(2, 4, 5, dtype=torch.float64)
        _definition.accumulate_log_softmax_(expected, [logits], torch.arange(4), weight)
        store = torch.zeros(2, 4, 5)
        kernels.accumulate_log_softmax_(store, [far], torch.arange(4), weight)
        torch.testing.assert_close(store.double(), expected, **CLOSE)
    memory = memory.view(torch.float32)
    gap = 2**31 + 4
    store = memory.as_strided((2, 2, 5), (8, gap, 1)).fill_(0.0)
    one = torch.arange(1, 2)
    kernels.accumulate_log_softmax_(store, [logits[:, :1]], one, weight[:, :1])
    torch.testing.assert_close(store[:, 1].double(), expected[:, 0], **CLOSE)


def test_operators_keep_to_their_schemas():
    log_p, v, c, lam = arguments(1, 9, 7, 2)
    one, names = v[:, 0].contiguous(), calls(log_p, v, c, lam)
    names["permute_prior"] = (one.abs(), one)
    names["sinkhorn_iterations"] = (log_p, one, c, one.softmax(-1), lam, 2)
    names["accumulate_log_softmax_"] = views_and_store(2)
    for name, call in names.items():
        torch.library.opcheck(getattr(kernels, name), call, test_utils="test_schema")
