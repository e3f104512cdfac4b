"""The operators on a GPU, both of its backends, with the floors and the peers of each case.

Times are of CUDA events, and of a CUDA graph's replays where a job reads nothing on the host; a
result counts after checker.py accepted the output of the last run that was timed. With
--device cpu the same code runs on the CPU backends, to be tested: its times say nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import families
import floors
import peers
from checker import column_error, column_masses, fixed_iterations_error, label_agreement
from families import Problem
from measure import copies, fewest_iterations, iterations_within, record
from selavi.ops import _definition, backends, sinkhorn
from selavi.ops._library import primitives
from selavi.ops.compat.swav import distributed_sinkhorn

LAM, TARGET = 20.0, 2e-6
EPSILON = 0.05
BACKENDS = {"cuda": ("cuda", "triton"), "cpu": ("cpu", "torch")}
BANDWIDTHS = ("copy", "sum", "maximum", "read kernel")
FAMILIES = {name.replace(" ", "-").replace("/", "-"): name for name in families.FAMILIES[:3]}
DENSE_PEERS: dict[str, tuple[str, Callable[[Any, Problem], peers.Peer]]] = {
    "pot_log": ("peers_pot", lambda module, problem: module.pot_log(problem)),
    "ott": ("peers_ott", lambda module, problem: module.ott(problem, "float32", anderson=False)),
}


@dataclass(frozen=True)
class GpuSize:
    """bytes: what is copied and read to measure bandwidths; peer_seconds: see conftest.Size."""

    bytes: float
    heads: int
    rows: int
    samples: int
    many_rows: int
    columns: int
    wide: tuple[int, int]
    batch: tuple[int, int]
    points: int
    peer_seconds: float


SIZES = {
    "small": GpuSize(1e5, 2, 600, 800, 2000, 24, (16, 2048), (32, 96), 128, 0.1),
    "full": GpuSize(
        *(4e9, 10, 1_000_000, 170_752, 10_000_000, 309),
        *((2048, 65_536), (4096, 3000), 4096, 10.0),
    ),
}


@pytest.fixture(scope="session")
def size(request: pytest.FixtureRequest) -> GpuSize:
    return SIZES[request.config.getoption("--size")]


def against(*names: str) -> Callable[[Any], Any]:
    """Gives a benchmark the parameter `method`: this device's backends, then these peers."""

    def mark(function: Any) -> Any:
        function.peers = names
        return function

    return mark


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "method" in metafunc.fixturenames:
        ours = BACKENDS[metafunc.config.getoption("--device")]
        metafunc.parametrize("method", (*ours, *getattr(metafunc.function, "peers", ())))


@pytest.fixture(autouse=True)
def usable(request: pytest.FixtureRequest, device: str) -> None:
    """A backend that cannot run is skipped, and its rows say "not run"."""
    if device == "cpu" and request.config.getoption("--size") == "full":
        pytest.skip("on a CPU its times say nothing")
    method = request.node.callspec.params.get("method")
    if method in (*BACKENDS["cuda"], *BACKENDS["cpu"]) and backends()[method] != "available":
        pytest.skip(f"backend {method} is {backends()[method]}")


@pytest.mark.parametrize("kind", BANDWIDTHS)
def bench_bandwidth(timed_jobs, benchmark, size, device, kind):
    """The ceilings: the best copy, and the best of three ways to read."""
    if kind == "read kernel":
        if device == "cpu":
            pytest.skip("a Triton kernel needs a GPU")
        import read_bandwidth

        count, programs = read_bandwidth.entries(device, int(size.bytes / 4))
    else:
        count, programs = int(size.bytes / 4), 1
    x = torch.randn(count, device=device)
    out = torch.full_like(x if kind == "copy" else x[:programs], torch.nan)
    expected = float(x.double().sum() if kind == "sum" else x.max())
    jobs = {
        "copy": lambda: out.copy_(x),
        "sum": lambda: torch.sum(x, 0, out=out[0]),
        "maximum": lambda: torch.amax(x, 0, out=out[0]),
        "read kernel": lambda: read_bandwidth.read(x, out),
    }
    timed_jobs([jobs[kind]], graph=True)
    if kind == "copy":
        assert torch.equal(out, x)
    else:  # the sum is of numbers of both signs
        assert abs(float(out.max()) - expected) <= (count**0.5 / 100 if kind == "sum" else 0)
    work = floors.Work(4 * count, 4 * count if kind == "copy" else 0, 0)
    case = "copy" if kind == "copy" else "read"
    record(benchmark, "bandwidth", case, kind, work, dtype="float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@against()
def bench_iteration(timed_jobs, benchmark, size, device, dtype, method):
    """Sinkhorn's iteration, near the solution: three in a row, the figure is of one."""
    shape, count = (size.heads, size.rows, size.columns), 3
    log_p = families.heads("hard 8/2", *shape, device, getattr(torch, dtype))
    part = sinkhorn(log_p[:, :8192], lam=LAM, tol=1e-3, max_iterations=40, backend="torch")
    v = part.col_potential
    c = v.new_full(shape[:2], 1 / size.rows)
    r = torch.full_like(v, 1 / size.columns)
    arguments = (log_p, v, c, r, torch.full_like(v[:, 0], LAM))
    ours = primitives(method, log_p)
    timing = timed_jobs([lambda: ours.sinkhorn_iterations(*arguments, count)], graph=True)
    last, mass, _ = timing.output
    error = max(_iteration_error(log_p[h], v[h], last[h], mass[h], count) for h in range(len(v)))
    assert error <= TARGET, f"column masses are off by {error:.3g}"
    benchmark.extra_info["seconds"] = [each / count for each in timing.seconds]
    work = floors.iteration(*shape, log_p.element_size())
    record(benchmark, "iteration", dtype, method, work, error=error, target=TARGET, dtype=dtype)


def _iteration_error(log_p: Tensor, v: Tensor, last: Tensor, mass: Tensor, count: int) -> float:
    """The larger of the L1 errors of the masses at `last` and of the plan that led to it."""
    for _ in range(count - 1):
        v = v - (column_masses(log_p, LAM, v) * len(v)).log()
    exact = column_masses(log_p, LAM, last)
    own = (mass - exact).abs().sum()
    return float(torch.maximum(own, (exact - column_masses(log_p, LAM, v)).abs().sum()))


@pytest.mark.parametrize("family", FAMILIES)
@against("reference")
def bench_labels(timed_jobs, benchmark, size, device, family, method):
    """All heads' labels from their logits. The reference takes one head after another."""
    shape = (size.heads, size.samples, size.columns)
    logits = families.heads(FAMILIES[family], *shape, device)
    r = torch.full((size.columns,), 1 / size.columns, dtype=torch.float64, device=device)
    problems = [Problem(family, head, LAM, r, TARGET) for head in logits]
    if method == "reference":
        solvers = [peers.reference(problem) for problem in problems]
        solvers[0].prepare(10)()  # to warm up
        jobs = [solver.prepare(2000) for solver in solvers]
        timing = timed_jobs([lambda: [job() for job in jobs]], warm_up=False)
        found = [(alpha.log(), labels) for alpha, labels, _ in timing.output]
        info = {"iterations": max(out[2] for out in timing.output), "cap": 2000, "dtype": "float64"}
        work = None
    else:
        options = {"lam": LAM, "tol": 0.8 * TARGET, "backend": method}
        timing = timed_jobs([lambda: sinkhorn(logits, **options)])
        found = list(zip(timing.output.col_potential, timing.output.labels, strict=True))
        passes = timing.output.n_passes
        info = {"passes": int(passes.max()), "dtype": "float32"}
        one_head = floors.iteration(1, *shape[1:], 4)
        work = one_head.times(int(passes.sum()) + len(passes))  # and the labels
    errors = [column_error(p.log_p, LAM, r, v) for p, (v, _) in zip(problems, found, strict=True)]
    agreed = min(
        label_agreement(p.log_p, LAM, v, labels)
        for p, (v, labels) in zip(problems, found, strict=True)
    )
    if method != "reference":
        assert max(errors) <= TARGET, f"column error {max(errors):.3g}"
        assert agreed >= 0.9999
    info |= {"error": max(errors), "target": TARGET, "label_agreement": agreed}
    record(benchmark, "gpu labels", FAMILIES[family], method, work, **info)


def _bench_fixed(timed_jobs, benchmark, kind, shape, device, iterations, dtype, method):
    scores = families.scores(*shape, device).to(getattr(torch, dtype))
    sets = [scores.clone() for _ in range(copies(scores.nbytes) - 1)] + [scores]
    loop = torch.compile(peers.swav_loop) if method == "compiled" else peers.swav_loop

    def job(x: Tensor) -> Callable[[], Tensor]:
        if method in (
            "eager",
            "compiled",
        ):  # in float32, as DINO: in bfloat16 it is off by percents
            return lambda: loop(x.float(), EPSILON, iterations)
        return lambda: distributed_sinkhorn(x, EPSILON, iterations, backend=method)

    timing = timed_jobs([job(x) for x in sets], graph=True)
    error = fixed_iterations_error(scores, EPSILON, iterations, timing.output)
    assert error <= 1e-5, f"the plan is off by {error:.3g}"
    size = scores.element_size()
    plan_size, on_chip = timing.output.element_size(), kind == "batch"
    work = floors.fixed_iterations(*shape, size, plan_size, iterations, on_chip)
    info = {"error": error, "iterations": iterations, "dtype": dtype}
    case = f"{kind}, {dtype}, {iterations} iterations"
    record(benchmark, "gpu fixed iterations", case, method, work, **info)


@against("eager", "compiled")
def bench_wide(timed_jobs, benchmark, size, device, method):
    """Three iterations on rows too long for a block, and the plan."""
    _bench_fixed(timed_jobs, benchmark, "wide", size.wide, device, 3, "bfloat16", method)


@pytest.mark.parametrize("iterations", [3, 10])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@against("eager")
def bench_batch(timed_jobs, benchmark, size, device, iterations, dtype, method):
    """A batch of SwAV's: it fits on the chip, so more iterations should cost little more."""
    _bench_fixed(timed_jobs, benchmark, "batch", size.batch, device, iterations, dtype, method)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@against()
def bench_accumulate(timed_jobs, benchmark, size, device, dtype, method):
    """Two modalities' logits into the store; sets of them take turns, each with its own rows."""
    shape, wanted = (size.heads, size.batch[0], size.columns), getattr(torch, dtype)
    store = torch.randn(size.heads, 16 * size.batch[0], size.columns, device=device)
    before, ours = store.clone(), primitives(method, store)
    rows = torch.randperm(store.shape[1], device=device).split(size.batch[0])
    count = copies(2 * torch.Size(shape).numel() * wanted.itemsize)
    sets = [[torch.randn(shape, device=device).to(wanted) for _ in range(2)] for _ in range(count)]
    jobs = [
        lambda views=views, index=index: ours.accumulate_log_softmax_(store, views, index, None)
        for views, index in zip(sets, rows[:count], strict=True)
    ]
    timing = timed_jobs(jobs, graph=True)
    error = 0.0
    for views, index in zip(sets, rows[:count], strict=True):
        term = torch.zeros(shape, dtype=torch.float64, device=device)
        each = torch.arange(shape[1], device=device)
        _definition.accumulate_log_softmax_(term, views, each, None)
        exact = before[:, index].double() + timing.runs * term
        error = max(
            error, float(((store[:, index] - exact) / exact.abs().clamp_min(1)).abs().max())
        )
        before[:, index] = store[:, index]
    assert error <= 1e-6 + 1e-7 * timing.runs, f"the store is off by {error:.3g}"
    assert torch.equal(store, before), "rows that were not named have changed"
    work = floors.accumulate(2, *shape, wanted.itemsize, 4)
    record(benchmark, "accumulate", dtype, method, work, error=error, dtype=dtype)


@against()
def bench_memory(timed_jobs, benchmark, size, device, method):
    """Labels of very many rows: what memory is needed beside the matrix?"""
    shape = (1, size.many_rows, size.columns)
    log_p = families.heads("hard 8/2", *shape, device, torch.bfloat16)[0]
    r = torch.full((size.columns,), 1 / size.columns, dtype=torch.float64, device=device)
    options = {"lam": LAM, "tol": 0.8 * TARGET, "backend": method}
    timing = timed_jobs([lambda: sinkhorn(log_p, **options)], warm_up=False)
    result = timing.output
    error = column_error(log_p, LAM, r, result.col_potential)
    assert error <= TARGET, f"column error {error:.3g}"
    assert label_agreement(log_p, LAM, result.col_potential, result.labels) >= 0.9999
    passes = int(result.n_passes)
    info = {"passes": passes, "dtype": "bfloat16", "matrix_bytes": log_p.nbytes}
    work = floors.iteration(*shape, 2).times(passes + 1)
    record(benchmark, "memory", "labels", method, work, error=error, target=TARGET, **info)


@pytest.mark.parametrize("relative_reg", [0.01, 0.001])
@against(*DENSE_PEERS)
def bench_dense(timed_jobs, benchmark, size, device, relative_reg, method):
    problem = families.dense(size.points, relative_reg, device=device)
    if method in DENSE_PEERS:
        name, make = DENSE_PEERS[method]
        peer = make(pytest.importorskip(name, exc_type=ImportError), problem)
        most = iterations_within(size.peer_seconds, 20_000, peer.prepare, device)
        timing = timed_jobs([peer.prepare(most)], warm_up=False)
        solution = peer.solution(timing.output)
        v, work = solution.v, None
        info = {"iterations": solution.iterations, "cap": most, "dtype": peer.dtype}
    else:
        options = {"lam": problem.lam, "tol": 0.8 * problem.target, "backend": method}
        timing = timed_jobs([lambda: sinkhorn(problem.log_p, **options)])
        v, passes = timing.output.col_potential, int(timing.output.n_passes)
        info = {"passes": passes, "dtype": "float32"}
        work = floors.iteration(1, *problem.log_p.shape, 4).times(passes + 1)
    error = column_error(problem.log_p, problem.lam, problem.col_marginal, v)
    assert method in DENSE_PEERS or error <= problem.target, f"column error {error:.3g}"
    info |= {"error": error, "target": problem.target}
    record(benchmark, "gpu dense", problem.name, method, work, **info)


@pytest.mark.parametrize("relative_reg", [0.01, 0.003])
@against("flash_sinkhorn float32", "flash_sinkhorn tf32")
def bench_points(timed_jobs, benchmark, size, device, relative_reg, method):
    """From points: our time includes making the cost, the peer is given as few iterations as do."""
    clouds = families.clouds(size.points, relative_reg, device=device)
    problem = clouds.problem
    name, *precision = method.split()
    if precision:
        module = pytest.importorskip("peers_flash", exc_type=ImportError)
        if device == "cpu":
            pytest.skip("flash-sinkhorn needs a GPU")
        peer = module.flash_sinkhorn(clouds, *precision)

        def error_after(count: int) -> float:
            v = peer.solution(peer.prepare(count)()).v
            return column_error(problem.log_p, problem.lam, problem.col_marginal, v)

        most = iterations_within(size.peer_seconds / 10, 20_000, peer.prepare, device)
        count = fewest_iterations(most, problem.target, error_after)
        timing = timed_jobs([peer.prepare(count)], graph=True)
        v = peer.solution(timing.output).v
        info = {"iterations": count, "cap": most, "dtype": peer.dtype}
    else:
        options = {"lam": problem.lam, "tol": 0.8 * problem.target, "backend": method}

        def job() -> Any:
            return sinkhorn(families.negative_distances(clouds.x, clouds.y), **options)

        timing = timed_jobs([job])
        v = timing.output.col_potential
        info = {"passes": int(timing.output.n_passes), "dtype": "float32"}
    error = column_error(problem.log_p, problem.lam, problem.col_marginal, v)
    assert precision or error <= problem.target, f"column error {error:.3g}"
    info |= {"error": error, "target": problem.target}
    record(benchmark, "gpu points", problem.name, name, **info)
