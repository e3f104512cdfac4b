"""What `sinkhorn` refuses, and how it says so."""

import numpy as np
import pytest
import torch

from tests.ops.on_device import sinkhorn
from tests.ops.problems import random_log_p


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
        (GOOD, {"solver": "newton", "tol": None}, ValueError, "solver='newton' needs a tol"),
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


def test_empty_batch():
    result = sinkhorn(torch.zeros(0, 10, 4))
    assert result.labels.shape == (0, 10) and result.converged.shape == (0,)


def test_entries_of_rows_without_weight_are_checked_for_their_labels():
    log_p, weight = with_entry(torch.nan), torch.ones(10)
    weight[3] = 0.0
    with pytest.raises(ValueError, match="holds NaN"):
        sinkhorn(log_p, row_marginal=weight)


def test_a_row_of_minus_infinity_without_weight_is_none(backend):
    log_p, weight = with_dead(0), torch.ones(10)
    weight[2] = 0.0
    result = sinkhorn(log_p, row_marginal=weight, backend=backend)
    assert result.converged and result.row_potential[2] == -torch.inf
    assert result.labels[2] == 0 and result.confidence[2] == 1 / 4
    assert (result.plan()[2] == 0).all()


def test_dead_entries_are_named_although_the_rows_of_a_sample_miss_them():
    log_p = random_log_p(4000, 4)
    log_p[3123, 2] = torch.nan
    with pytest.raises(ValueError, match=r"log_p of shape \(1, 4000, 4\) holds NaN"):
        sinkhorn(log_p)
    log_p[3123] = -torch.inf
    with pytest.raises(ValueError, match="throughout row 3123"):
        sinkhorn(log_p)
    log_p[3123] = 0.0
    log_p[:, 1] = -torch.inf
    with pytest.raises(ValueError, match="throughout column 1"):
        sinkhorn(log_p)


def test_unchecked_entries_end_unconverged():
    """tol=None looks at no value: what is wrong shows in the result."""
    for log_p in (with_entry(torch.nan), with_dead(0)):
        result = sinkhorn(log_p, tol=None, max_iterations=3)
        assert not result.converged and not result.value.isfinite()


def test_arguments_of_the_wrong_type_are_named():
    log_p = random_log_p(20, 4)
    for name, value in (("lam", None), ("lam", 1j), ("permute", "yes"), ("group", "gloo")):
        with pytest.raises(TypeError, match=f"{name} is a {type(value).__name__}"):
            sinkhorn(log_p, **{name: value})
    assert sinkhorn(log_p, max_iterations=np.int64(20)).n_passes <= 20
