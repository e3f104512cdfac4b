"""selavi.ops.numpy: the extension on arrays against the definition, then arrays of all kinds."""

import importlib.util
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selavi import ops
from selavi.ops import _definition, _library

if ops.backends()["numpy"] != "available":
    pytest.skip(f"backend numpy is {ops.backends()['numpy']}", allow_module_level=True)

from selavi.ops import _numpy
from selavi.ops.numpy import sinkhorn


def random_log_p(*shape, dtype=np.float32, seed=0):
    logits = 3 * np.random.default_rng(seed).normal(size=shape)
    return (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(dtype)


def zipf(k):
    return 1.0 / np.arange(1, k + 1)


def assert_results_equal(result, expected):
    for name in vars(result):
        if not name.startswith("_"):
            np.testing.assert_array_equal(getattr(result, name), getattr(expected, name), name)


# The primitives -----------------------------------------------------------------------------------


def tolerance(name, wide):
    if wide:
        return {"rtol": 1e-12, "atol": 1e-14}
    if name in ("sinkhorn_labels", "sinkhorn_column_logsumexp"):
        return {"rtol": 3e-6, "atol": 3e-7}  # logarithms: absolute where their sums are relative
    return {"rtol": 3e-6, "atol": 3e-8}


def assert_primitives_match(log_p, candidates=3, lam=20.0, seed=0):
    problems, n, k = log_p.shape
    wide = log_p.dtype == torch.float64
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(problems, candidates, k, generator=generator, dtype=torch.float64)
    v0 = v[:, 0].contiguous()
    c = torch.rand(problems, n, generator=generator, dtype=torch.float64)
    c[:, ::7] = 0.0
    c /= c.sum(-1, keepdim=True).clamp_min(1e-9)
    u = c.log()
    lam = torch.full((problems,), lam, dtype=torch.float64)
    backend = _library.primitives("numpy", log_p)
    for name, arguments in (
        ("sinkhorn_pass", (log_p, v, c, lam)),
        ("sinkhorn_overlap", (log_p, v0, c, lam)),
        ("sinkhorn_labels", (log_p, v0, lam)),
        ("sinkhorn_plan", (log_p, v0, c, lam, torch.float64)),
        ("sinkhorn_column_logsumexp", (log_p, u, lam)),
    ):
        ours = getattr(backend, name)(*arguments)
        definition = getattr(_definition, name)(*arguments)
        torch.testing.assert_close(
            ours, definition, **tolerance(name, wide), msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_primitives_match_definition(dtype, layout):
    log_p = torch.from_numpy(random_log_p(2, 150, 37, dtype=dtype))
    log_p[0, 3, 5] = -torch.inf
    log_p[1, :, 4] = -torch.inf
    assert_primitives_match(layout(log_p))


@settings(max_examples=40, deadline=None)
@given(
    problems=st.integers(0, 3),
    n=st.integers(1, 100),
    k=st.integers(1, 70),
    candidates=st.integers(1, 3),
    lam=st.sampled_from([0.5, 20.0, 1000.0]),
    double=st.booleans(),
    seed=st.integers(0, 99),
)
def test_primitives_match_definition_at_any_shape(problems, n, k, candidates, lam, double, seed):
    log_p = torch.from_numpy(random_log_p(problems, n, k, seed=seed))
    assert_primitives_match(log_p.double() if double else log_p, candidates, lam, seed)


def test_overlap_is_symmetric_to_the_bit():
    log_p, ones = random_log_p(1, 200, 30), np.ones(1)
    overlap = _numpy.sinkhorn_overlap(log_p, np.zeros((1, 30)), np.full((1, 200), 1 / 200), ones)
    np.testing.assert_array_equal(overlap, overlap.transpose(0, 2, 1))


def test_rows_of_zero_weight_are_not_read():
    log_p, weight = random_log_p(1, 50, 7, seed=1), np.ones((1, 50))
    weight[:, ::7] = 0.0
    arguments = (np.zeros((1, 2, 7)), weight, np.ones(1))
    clean = _numpy.sinkhorn_pass(log_p, *arguments)
    log_p[:, ::7] = np.nan
    for array, expected in zip(_numpy.sinkhorn_pass(log_p, *arguments), clean, strict=True):
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_entries_show(dtype, value):
    """A solver reads them off the pass, in place of another read of the matrix."""
    log_p = random_log_p(2, 50, 7, dtype=dtype)
    log_p[1, 5, 3] = value
    arguments = (np.zeros((2, 2, 7)), np.full((2, 50), 1 / 50), np.ones(2))
    for array in _numpy.sinkhorn_pass(log_p, *arguments):
        assert np.isfinite(array[0]).all() and not np.isfinite(array[1]).any()


def test_column_logsumexp_of_dead_columns_and_rows():
    log_p = random_log_p(1, 30, 5)
    log_p[:, :, 2] = -np.inf
    log_p[:, 1] = np.nan
    u = np.random.default_rng(0).normal(size=(1, 30))
    u[:, 1] = -np.inf
    for stored in (log_p, log_p.astype(np.float64), np.asfortranarray(log_p)):
        ours = _numpy.sinkhorn_column_logsumexp(stored, u, np.ones(1))
        expected = np.logaddexp.reduce(np.delete(stored + u[..., None], 1, axis=1), axis=1)
        assert ours[0, 2] == -np.inf
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e4, 1e7])
def test_far_from_zero(scale):
    """Each row's distances to its largest entry count, however far from 0 the row is."""
    log_p = torch.from_numpy(random_log_p(2, 40, 9)).double()
    shifts = torch.linspace(-scale, 0, 40, dtype=torch.float64)[:, None]
    log_p = (log_p + shifts).float()
    assert_primitives_match(log_p, lam=1.0)


def test_the_module_reads_negative_strides():
    log_p, v = random_log_p(2, 50, 7), np.random.default_rng(1).normal(size=(2, 7))
    flipped = log_p[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1]
    assert min(flipped.strides) < 0
    expected = _numpy.sinkhorn_labels(log_p, v, np.ones(2))
    for array, same in zip(_numpy.sinkhorn_labels(flipped, v, np.ones(2)), expected, strict=True):
        np.testing.assert_array_equal(array, same)


def test_the_module_runs_without_torch():
    path = importlib.util.find_spec("selavi.ops._numpy").origin
    code = f"""
import importlib.util, sys
import numpy as np
spec = importlib.util.spec_from_file_location("_numpy", {path!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
log_p, v = np.zeros((1, 4, 2)), np.zeros((1, 1, 2))
mass, _ = module.sinkhorn_pass(log_p, v, np.ones((1, 4)), np.ones(1))
print(mass.tolist(), "torch" in sys.modules)
"""
    run = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[[[2.0, 2.0]]] False"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"log_p": np.zeros((4, 2))}, ValueError, r"log_p must be \(B, N, K\)"),
        ({"log_p": np.zeros((1, 4, 2), dtype=int)}, TypeError, "log_p must be float32"),
        ({"log_p": np.zeros((1, 4, 2), dtype=">f8")}, TypeError, "native byte order"),
        ({"log_p": np.zeros(72, "b")[1:65].view("f8").reshape(1, 4, 2)}, ValueError, "aligned"),
        ({"v": np.zeros((1, 2))}, ValueError, r"v must be \(B, S, K\)"),
        ({"v": np.zeros((1, 1, 3))}, ValueError, r"v must be \(B, S, K\)"),
        ({"row_marginal": np.ones((1, 5))}, ValueError, r"row_marginal must be \(B, N\)"),
        ({"lam": np.ones(2)}, ValueError, r"lam must be \(B,\)"),
    ],
)
def test_the_module_checks_what_it_indexes(changes, error, message):
    good = {"log_p": np.zeros((1, 4, 2)), "v": np.zeros((1, 1, 2))}
    good |= {"row_marginal": np.ones((1, 4)), "lam": np.ones(1)}
    with pytest.raises(error, match=message):
        _numpy.sinkhorn_pass(**(good | changes))


def test_the_module_refuses_other_dtypes_for_the_plan():
    arguments = (np.zeros((1, 4, 2)), np.zeros((1, 2)), np.ones((1, 4)), np.ones(1))
    for dtype in (np.dtype(int), np.dtype(">f4")):
        with pytest.raises(TypeError, match="dtype must be float32, float64 or float16"):
            _numpy.sinkhorn_plan(*arguments, dtype)


# The solution -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("shape", [(300, 12), (2, 300, 12), (2, 1, 60, 12)])
def test_matches_tensors(dtype, shape):
    log_p = random_log_p(*shape, dtype=dtype)
    weight = np.linspace(0, 1, shape[-2])
    options = {"lam": 5.0, "permute": True, "tol": 1e-7}
    result = sinkhorn(log_p, col_marginal=zipf(12), row_marginal=weight, **options)
    expected = ops.sinkhorn(
        torch.from_numpy(log_p),
        col_marginal=torch.from_numpy(zipf(12)),
        row_marginal=torch.from_numpy(weight),
        backend="torch",
        **options,
    )
    assert result.converged.all() and result.converged.shape == shape[:-2]
    np.testing.assert_array_equal(result.labels, expected.labels)
    np.testing.assert_array_equal(result.col_marginal, expected.col_marginal)
    np.testing.assert_allclose(result.value, expected.value, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(result.confidence, expected.confidence, rtol=1e-5)
    np.testing.assert_allclose(result.plan(), expected.plan(), atol=1e-6)
    rtol = 1e-7 if dtype == np.float64 else 3e-6  # exponents of 7 digits, down to -125
    np.testing.assert_allclose(np.exp(result.log_plan()), result.plan(), rtol=rtol, atol=1e-36)
    for name in ("row_marginal", "row_potential", "col_potential"):
        np.testing.assert_allclose(getattr(result, name), getattr(expected, name), atol=1e-5)


@pytest.mark.parametrize("stored", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", ">f4", "g", torch.bfloat16], ids=str)
def test_plan_in_every_dtype(stored, dtype):
    log_p, weight = random_log_p(60, 12, dtype=stored), np.ones(60)
    weight[::7] = 0.0
    result = sinkhorn(log_p, row_marginal=weight)
    if dtype == torch.bfloat16:  # which only a tensor can be
        plan = result._result.plan(dtype)
        assert plan.dtype == dtype
        plan, eps = plan.double().numpy(), torch.finfo(dtype).eps
    else:
        plan, eps = result.plan(dtype), np.finfo(dtype).eps
        assert plan.dtype == np.dtype(dtype)
    assert (plan[::7] == 0).all()
    np.testing.assert_allclose(plan.astype("f8"), result.plan(), rtol=eps, atol=1e-7)


def test_warm_start_takes_fewer_passes():
    log_p = random_log_p(500, 12)
    cold = sinkhorn(log_p)
    for init in (cold, cold.col_potential):
        warm = sinkhorn(log_p, init=init)
        assert warm.n_passes == 1 and (warm.labels == cold.labels).all()


def test_solvers_agree():
    log_p = random_log_p(200, 8, dtype=np.float64)
    newton, *others = (
        sinkhorn(log_p, lam=1.0, tol=1e-11, solver=solver)
        for solver in ("newton", "anderson", "sinkhorn")
    )
    for other in others:
        np.testing.assert_allclose(newton.plan(), other.plan(), rtol=1e-8)


def test_without_a_tolerance_it_runs_to_the_end():
    log_p = random_log_p(200, 8)
    results = [sinkhorn(log_p, lam=1.0, tol=None, max_iterations=count) for count in (3, 60)]
    assert not results[0].converged and results[1].converged
    assert results[0].n_passes < results[1].n_passes


def _read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def _strided(x):
    wide = np.full((x.shape[0], 2 * x.shape[1]), np.nan, dtype=x.dtype)
    wide[:, ::2] = x
    return wide[:, ::2]


def _unaligned(x):
    memory = np.zeros(x.nbytes + 1, dtype=np.uint8)
    view = memory[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


def _field(x):
    """A field of records of 5 bytes: strides that are not whole elements."""
    records = np.zeros(x.shape, dtype=[("p", x.dtype), ("rest", "u1")])
    records["p"] = x
    return records["p"]


IN_PLACE = {"Fortran order": np.asfortranarray, "strided": _strided, "read-only": _read_only}
COPIED = {
    "negative strides": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "foreign byte order": lambda x: x.astype(x.dtype.newbyteorder()),
    "unaligned": _unaligned,
    "field of a record": _field,
}


@pytest.mark.parametrize("arrange", (IN_PLACE | COPIED).values(), ids=list(IN_PLACE | COPIED))
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_arrays_of_every_kind(arrange, dtype):
    log_p = random_log_p(200, 7, dtype=dtype)
    array = arrange(log_p)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_results_equal(sinkhorn(array), sinkhorn(log_p))
    np.testing.assert_array_equal(array, log_p)


@pytest.mark.parametrize("arrange", IN_PLACE.values(), ids=list(IN_PLACE))
def test_is_read_where_it_lies(arrange):
    array = arrange(random_log_p(20, 7))
    tensor = sinkhorn(array)._result._log_p
    assert tensor.data_ptr() == array.__array_interface__["data"][0]


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_memory_map(tmp_path, mode):
    log_p = random_log_p(200, 7)
    np.save(tmp_path / "log_p.npy", log_p)
    mapped = np.load(tmp_path / "log_p.npy", mmap_mode=mode)
    assert isinstance(mapped, np.memmap)
    result = sinkhorn(mapped)
    del mapped  # the result keeps the mapping alive
    assert_results_equal(result, sinkhorn(log_p))
    np.testing.assert_array_equal(result.plan(), sinkhorn(log_p).plan())


# Bad input ----------------------------------------------------------------------------------------


def with_entry(value):
    log_p = random_log_p(10, 4)
    log_p[3, 2] = value
    return log_p


GOOD = random_log_p(10, 4)


@pytest.mark.parametrize(
    ("log_p", "options", "error", "message"),
    [
        (with_entry(np.nan), {}, ValueError, r"log_p of shape \(1, 10, 4\) holds NaN or \+inf"),
        (GOOD[0], {}, ValueError, r"log_p has shape \(4,\); expected"),
        (GOOD[:0], {}, ValueError, r"log_p has shape \(0, 4\)"),
        (GOOD.astype(int), {}, TypeError, "log_p has dtype int64; expected float32, float64 or"),
        (
            GOOD.astype(np.longdouble),
            {},
            TypeError,
            "log_p has dtype (float128|float96|longdouble)",
        ),
        (GOOD.astype(object), {}, TypeError, "log_p has dtype object"),
        (GOOD, {"lam": 0.0}, ValueError, "lam=0.0; expected"),
        (GOOD, {"solver": "fast"}, ValueError, "solver='fast' is not one of"),
        (GOOD, {"col_marginal": np.ones(5)}, ValueError, r"col_marginal has shape \(5,\)"),
        (GOOD, {"row_marginal": np.zeros(10)}, ValueError, "zero throughout"),
        (GOOD, {"col_marginal": np.ones(4, dtype=int)}, TypeError, "col_marginal has dtype int64"),
        (GOOD, {"init": np.full(4, np.inf)}, ValueError, "init of shape"),
    ],
)
def test_bad_input_is_named(log_p, options, error, message):
    with pytest.raises(error, match=message) as caught:
        sinkhorn(log_p, **options)
    assert "\n" not in str(caught.value)


def test_bfloat16_is_refused():
    with pytest.raises(TypeError, match=r"backend='numpy' got a tensor of torch\.bfloat16"):
        ops.sinkhorn(torch.from_numpy(GOOD).bfloat16(), backend="numpy")


def test_a_missing_extension_is_told(monkeypatch):
    monkeypatch.setattr(_library, "_NUMPY_BUILT", False)
    with pytest.raises(RuntimeError, match="backend='numpy' is not built: install selavi with"):
        sinkhorn(GOOD)


def test_empty_batch():
    assert sinkhorn(np.zeros((0, 10, 4))).labels.shape == (0, 10)
