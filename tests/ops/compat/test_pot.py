"""POT's functions against POT: plans, losses, logs, warm starts, warnings."""

import warnings

import numpy as np
import pytest
import torch

from selavi.ops.compat import pot

ot = pytest.importorskip("ot", reason="POT is in the test extra")


@pytest.fixture
def backend(cpu_backend):
    """Arrays are on the CPU."""
    return cpu_backend


METHODS = (
    "sinkhorn",
    "sinkhorn_log",
    "greenkhorn",
    "sinkhorn_stabilized",
    "sinkhorn_epsilon_scaling",
)
HISTOGRAM_METHODS = ("sinkhorn", "sinkhorn_log", "sinkhorn_stabilized")
REG = 0.2


def problem(n=14, m=9, seed=0):
    rng = np.random.default_rng(seed)
    a, b = rng.random(n) + 0.1, rng.random(m) + 0.1
    return a / a.sum(), b / b.sum(), rng.random((n, m))


def assert_gauge(theirs, ours):
    """Potentials of one problem may differ by a constant."""
    np.testing.assert_allclose(np.ptp(theirs - ours, axis=0), 0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(14, 9), (9, 14)])
def test_plans_and_logs(backend, method, shape):
    a, b, M = problem(*shape)
    theirs, their_log = ot.sinkhorn(a, b, M, REG, method, 20000, log=True)
    ours, our_log = pot.sinkhorn(a, b, M, REG, method, log=True, backend=backend)
    assert isinstance(ours, np.ndarray) and ours.dtype == np.float64
    np.testing.assert_allclose(ours, theirs, atol=2e-8)
    assert list(our_log) == list(their_log)
    for name, value in our_log.items():
        if name in ("u", "v"):
            assert_gauge(np.log(their_log[name]), np.log(value))
        elif name in ("log_u", "log_v", "logu", "logv", "alpha", "beta"):
            assert_gauge(their_log[name], value)
        elif name == "err":
            assert len(value) == 1 and value[0] <= 1e-9
    count = our_log.get("niter", our_log.get("n_iter"))
    assert 1 <= count < 50
    log_u, log_v = _log_potentials(our_log, REG)
    np.testing.assert_allclose(np.exp(log_u[:, None] + log_v - M / REG), ours, rtol=1e-9)


def _log_potentials(log, reg):
    if "alpha" in log:
        return log["alpha"] / reg, log["beta"] / reg
    return np.log(log["u"]), np.log(log["v"])


@pytest.mark.parametrize("method", HISTOGRAM_METHODS)
def test_losses(backend, method):
    a, b, M = problem()
    theirs, ours = (
        ot.sinkhorn2(a, b, M, REG, method),
        pot.sinkhorn2(a, b, M, REG, method, backend=backend),
    )
    assert np.ndim(ours) == 0
    np.testing.assert_allclose(ours, theirs, rtol=1e-7)
    loss, log = pot.sinkhorn2(a, b, M, REG, method, log=True, backend=backend)
    assert loss == ours and set(log) == set(ot.sinkhorn2(a, b, M, REG, method, log=True)[1])


@pytest.mark.parametrize("method", HISTOGRAM_METHODS)
@pytest.mark.parametrize("function", ["sinkhorn", "sinkhorn2"])
def test_histograms(backend, function, method):
    a, b, M = problem()
    rng = np.random.default_rng(1)
    b = np.stack([b, rng.random(9), rng.random(9)], 1)
    b /= b.sum(0)
    each = [ot.sinkhorn2(a, b[:, j], M, REG, method, 5000) for j in range(3)]
    ours, log = getattr(pot, function)(a, b, M, REG, method, log=True, backend=backend)
    np.testing.assert_allclose(ours, each, rtol=1e-7)
    if method != "sinkhorn_stabilized":  # POT's does not converge with histograms
        theirs, their_log = getattr(ot, function)(a, b, M, REG, method, 5000, log=True)
        np.testing.assert_allclose(ours, theirs, rtol=1e-7)
        assert set(their_log) <= set(log)
        assert_gauge(np.log(their_log["u"]), np.log(log["u"]))
        assert_gauge(np.log(their_log["v"]), np.log(log["v"]))
    else:
        assert log["alpha"].shape == (14, 3) and log["beta"].shape == (9, 3)


def test_histograms_with_zeros_in_different_places(backend):
    a, b, M = problem()
    b = np.stack([b, b, b, b[::-1]], 1)
    b[3, 1] = b[0, 2] = b[3, 2] = 0
    b /= b.sum(0)
    ours = pot.sinkhorn(a, b, M, REG, backend=backend)
    np.testing.assert_allclose(ours, ot.sinkhorn(a, b, M, REG), rtol=1e-7)


def test_uniform_weights(backend):
    M = problem()[2]
    for empty in ([], None):
        ours = pot.sinkhorn(empty, empty, M, REG, backend=backend)
        np.testing.assert_allclose(ours, ot.sinkhorn([], [], M, REG), atol=1e-9)


@pytest.mark.parametrize("shape", [(14, 9), (9, 14)])
@pytest.mark.parametrize("method", ["sinkhorn", "sinkhorn_log"])
def test_zero_weights(backend, method, shape):
    a, b, M = problem(*shape)
    a[[0, 5]] = b[[2, 8]] = 0
    a, b = a / a.sum(), b / b.sum()
    with np.errstate(divide="ignore"):  # only POT's log domain takes zeros on both sides
        theirs = ot.sinkhorn(a, b, M, REG, "sinkhorn_log")
    ours, log = pot.sinkhorn(a, b, M, REG, method, log=True, backend=backend)
    np.testing.assert_allclose(ours, theirs, atol=1e-9)
    assert (ours[[0, 5]] == 0).all() and (ours[:, [2, 8]] == 0).all()
    assert (log["u"][[0, 5]] == 0).all() and (log["v"][[2, 8]] == 0).all()
    np.testing.assert_allclose(
        pot.sinkhorn2(a, b, M, REG, backend=backend), (theirs * M).sum(), rtol=1e-7
    )


def test_zero_weights_hide_what_they_weigh(backend):
    """A padded row or column may cost infinitely much."""
    a, b, M = problem()
    padded = np.full((16, 10), np.inf)
    padded[:14, :9] = M
    plan = pot.sinkhorn([*a, 0, 0], [*b, 0], padded, REG, backend=backend)
    assert plan[14:].sum() == 0 and plan[:, 9:].sum() == 0
    np.testing.assert_allclose(plan[:14, :9], ot.sinkhorn(a, b, M, REG), atol=1e-9)
    loss = pot.sinkhorn2([*a, 0, 0], [*b, 0], padded, REG, backend=backend)
    np.testing.assert_allclose(loss, ot.sinkhorn2(a, b, M, REG), rtol=1e-7)


def test_weights_of_another_mass(backend):
    a, b, M = problem()
    ours, log = pot.sinkhorn(5 * a, 5 * b, M, REG, log=True, backend=backend)
    np.testing.assert_allclose(ours, ot.sinkhorn(5 * a, 5 * b, M, REG), atol=1e-8)
    np.testing.assert_allclose(log["u"][:, None] * np.exp(-M / REG) * log["v"], ours, rtol=1e-9)


@pytest.mark.parametrize("shape", [(14, 9), (9, 14)])
@pytest.mark.parametrize("method", METHODS)
def test_warm_start(backend, method, shape):
    """The log of one call, and of POT's, starts the next one at the solution."""
    a, b, M = problem(*shape)
    for library, options in ((pot, {"backend": backend}), (ot, {"numItermax": 20000})):
        with np.errstate(over="ignore"):  # in POT's epsilon scaling
            log = library.sinkhorn(a, b, M, REG, method, log=True, stopThr=1e-10, **options)[1]
        pair = log["warmstart"] if "warmstart" in log else (np.log(log["u"]), np.log(log["v"]))
        again = pot.sinkhorn(
            a, b, M, REG, method, log=True, warmstart=pair, stopThr=1e-7, backend=backend
        )
        assert again[1].get("niter", again[1].get("n_iter")) == 1
        # And POT takes ours: its own iteration has nothing left to do.
        with np.errstate(over="ignore"):
            theirs = ot.sinkhorn(
                a, b, M, REG, "sinkhorn_log", log=True, warmstart=_logs(pair, method)
            )
        assert theirs[1]["niter"] <= 10


def _logs(pair, method):
    scale = REG if method in ("sinkhorn_stabilized", "sinkhorn_epsilon_scaling") else 1.0
    return pair[0] / scale, pair[1] / scale


def test_warm_start_of_histograms(backend):
    a, b, M = problem()
    b = np.stack([b, b[::-1]], 1)
    options = {"log": True, "stopThr": 1e-7, "backend": backend}
    log = pot.sinkhorn(a, b, M, REG, **options)[1]
    pair = (np.log(log["u"]), np.log(log["v"]))
    assert pot.sinkhorn(a, b, M, REG, warmstart=pair, **options)[1]["niter"] == 1
    pairs = [(pair[0][:, j], pair[1][:, j]) for j in range(2)]
    again = pot.sinkhorn(a, b, M, REG, "sinkhorn_log", warmstart=pairs, **options)
    assert again[1]["niter"] == 1
    with pytest.raises(ValueError, match="1 pairs for 2 histograms"):
        pot.sinkhorn(a, b, M, REG, "sinkhorn_log", warmstart=pairs[:1], **options)


def test_small_reg_where_the_kernel_underflows(backend):
    a, b, M = problem()
    plan = pot.sinkhorn(a, b, M, 1e-3, backend=backend)
    np.testing.assert_allclose(plan.sum(0), b, atol=1e-9)
    np.testing.assert_allclose(plan.sum(1), a, atol=1e-9)
    assert (plan * M).sum() <= ot.emd2(a, b, M) * (1 + 1e-3)


def test_tensors_stay_tensors(backend, dtype):
    a, b, M = (torch.from_numpy(x) for x in problem())
    plan, log = pot.sinkhorn(a, b, M.to(dtype), REG, log=True, backend=backend)
    assert plan.dtype == log["u"].dtype == log["err"][0].dtype == dtype
    expected = ot.sinkhorn(a.numpy(), b.numpy(), M.to(dtype).double().numpy(), REG)
    rtol = max(1e-5, torch.finfo(dtype).eps) if dtype != torch.float64 else 1e-7
    np.testing.assert_allclose(plan.double(), expected, rtol=rtol, atol=1e-6 * (rtol > 1e-7))
    loss = pot.sinkhorn2(a, b, M.to(dtype), REG, backend=backend)
    assert isinstance(loss, torch.Tensor) and loss.dtype == dtype and loss.shape == ()


def test_dtype_follows_the_cost(backend):
    a, b, M = problem()
    assert pot.sinkhorn(a, b, M.astype(np.float32), REG, backend=backend).dtype == np.float32
    whole = np.round(5 * M).astype(int)
    np.testing.assert_allclose(
        pot.sinkhorn(list(a), list(b), whole.tolist(), 1.0, backend=backend),
        ot.sinkhorn(a, b, whole, 1.0),
        atol=1e-9,
    )
    transposed = np.asfortranarray(M)[::-1]
    np.testing.assert_allclose(
        pot.sinkhorn(a, b, transposed, REG, backend=backend),
        ot.sinkhorn(a, b, transposed, REG),
        atol=1e-9,
    )


def test_a_float32_cost_converges_where_POT_warns(backend):
    a, b, M = (torch.from_numpy(x).float() for x in problem())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = pot.sinkhorn(a, b, M, REG, stopThr=0.0, backend=backend)
    assert (plan.sum(0) - b).abs().sum() < 2e-6


def test_warnings(backend):
    a, b, M = problem()
    with pytest.warns(UserWarning, match="Sinkhorn did not converge: error") as caught:
        pot.sinkhorn(a, b, M, 1e-3, numItermax=2, backend=backend)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="scale a and b to the same sum"):
        plan = pot.sinkhorn(a, 2 * b, M, REG, backend=backend)
    np.testing.assert_allclose(plan.sum(1), a, atol=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pot.sinkhorn(a, b, M, 1e-3, numItermax=2, warn=False, backend=backend)
        pot.sinkhorn2(a, b, M, 1e-3, numItermax=2, backend=backend)


def test_verbose(backend, capsys):
    pot.sinkhorn(*problem(), REG, verbose=True, backend=backend)
    assert "reads of M, error" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"method": "screenkhorn"}, ValueError, "any of them will do"),
        ({"numIterMax": 5}, TypeError, "numIterMax"),
        ({"reg": 0.0}, ValueError, "reg=0.0"),
        ({"numItermax": 0}, ValueError, "numItermax=0"),
        ({"stopThr": -1.0}, ValueError, "stopThr=-1.0"),
        ({"a": np.ones(3)}, ValueError, r"a has shape \(3,\)"),
        ({"b": np.ones((9, 2)), "method": "greenkhorn"}, ValueError, "one histogram"),
        ({"b": np.zeros(9)}, ValueError, "b must hold"),
        ({"a": -np.ones(14)}, ValueError, "a must hold"),
        ({"M": np.ones(4)}, ValueError, "M has shape"),
        ({"M": np.full((14, 9), np.nan)}, ValueError, "NaN"),
        ({"warmstart": (np.zeros(3), np.zeros(9))}, ValueError, r"warmstart\[0\]"),
        ({"warmstart": (np.zeros(14), np.full(9, -np.inf))}, ValueError, "not finite"),
        ({"M": torch.ones(14, 9, requires_grad=True)}, RuntimeError, "detach"),
        ({"a": torch.ones(14, requires_grad=True)}, RuntimeError, r"a.detach\(\)"),
    ],
)
def test_wrong_arguments(change, error, words):
    a, b, M = problem()
    arguments = {"a": a, "b": b, "M": M, "reg": REG, "backend": "torch"} | change
    with pytest.raises(error, match=words):
        pot.sinkhorn(**arguments)


def test_options_of_POTs_iterations_are_accepted(backend):
    arguments = (*problem(), REG, "sinkhorn_stabilized")
    plan = pot.sinkhorn(*arguments, tau=1e5, print_period=5, backend=backend)
    np.testing.assert_allclose(plan, pot.sinkhorn(*arguments, backend=backend))
