"""Sinkhorn on a CPU: every row of the table, ours and the peers' in one process.

A run is judged by checker.py before its time counts: ours must reach the target or the benchmark
fails; what a peer reaches is written down. Marginals are matched to the clusters beforehand, for
all the same.
"""

import pytest
import torch

import families
import peers
from checker import column_error, column_masses, fixed_iterations_error, label_agreement
from families import Problem
from measure import iterations_within, record
from peers_geomloss import geomloss_dense
from peers_ott import ott
from peers_pot import pot, pot_log
from selavi.ops import SinkhornResult, sinkhorn
from selavi.ops._library import primitives

DENSE_PEERS = {
    "pot_log": pot_log,
    "ott float32": lambda problem: ott(problem, "float32", anderson=False),
    "ott float64": lambda problem: ott(problem, "float64", anderson=False),
    "ott_anderson float32": lambda problem: ott(problem, "float32", anderson=True),
    "ott_anderson float64": lambda problem: ott(problem, "float64", anderson=True),
    "geomloss": geomloss_dense,
}
LABEL_PEERS = {"reference": peers.reference, "pot_log": pot_log, "pot": pot}
POT_FAMILIES = ("hard 8/2", "easy 1")  # minutes each
LABELS = [
    (family, prior, method)
    for family in families.FAMILIES
    for prior in families.PRIORS
    for method in ("selavi", *LABEL_PEERS)
    if method in ("selavi", "reference") or (prior == "uniform" and family in POT_FAMILIES)
]
EPSILON, ITERATIONS = 0.05, 3


def solve(problem: Problem, **options) -> SinkhornResult:
    """Ours, aiming at 0.8 of the target: the checker allows nothing above the target."""
    return sinkhorn(
        problem.log_p,
        lam=problem.lam,
        col_marginal=problem.col_marginal,
        tol=0.8 * problem.target,
        **options,
    )


def run_ours(timed, benchmark, section, problem, rounds, method="selavi", **options) -> None:
    result = timed(lambda: solve(problem, **options), rounds=rounds)
    v = result.col_potential
    error = column_error(problem.log_p, problem.lam, problem.col_marginal, v)
    assert result.converged and error <= problem.target, f"column error {error:.3g}"
    assert label_agreement(problem.log_p, problem.lam, v, result.labels) >= 0.9999
    record(
        benchmark,
        section,
        problem.name,
        method,
        error=error,
        target=problem.target,
        passes=int(result.n_passes),
        dtype="float32",
    )


def run_peer(timed, benchmark, section, problem, method, peer, seconds, most) -> None:
    """One run, of as many iterations as fit in the seconds; with `seconds` None, of all."""
    if seconds is not None:
        most = iterations_within(seconds, most, peer.prepare)
    output = timed(peer.prepare(most), rounds=1, warm_up=0)
    solution = peer.solution(output)
    del output
    error = column_error(problem.log_p, problem.lam, problem.col_marginal, solution.v)
    info = {}
    if solution.labels is not None:
        labels = (problem.log_p, problem.lam, solution.v, solution.labels)
        info["label_agreement"] = label_agreement(*labels)
    record(
        benchmark,
        section,
        problem.name,
        method,
        error=error,
        target=problem.target,
        iterations=solution.iterations,
        cap=most,
        dtype=peer.dtype,
        **info,
    )


@pytest.mark.parametrize(("family", "prior", "method"), LABELS)
def bench_labels(timed, benchmark, size, family, prior, method):
    problem = families.assignment(family, prior, size.rows, size.columns)
    if method == "selavi":
        run_ours(timed, benchmark, "labels", problem, size.rounds)
        return
    peer = LABEL_PEERS[method](problem)
    seconds = None if method == "reference" else size.peer_seconds
    run_peer(timed, benchmark, "labels", problem, method, peer, seconds, most=2000)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["selavi", "sum"])
def bench_pass(timed, benchmark, size, dtype, method):
    """One evaluation at the solution of hard 8/2: column masses from one read of the matrix."""
    problem = families.assignment("hard 8/2", "uniform", size.rows, size.columns)
    x = problem.log_p.to(getattr(torch, dtype))
    if method == "sum":
        timed(x.sum, rounds=10 * size.rounds)
        record(benchmark, "pass", dtype, method, dtype=dtype)
        return
    v = solve(problem).col_potential
    row_marginal = torch.full((1, len(x)), 1 / len(x), dtype=torch.float64)
    lam = torch.tensor([problem.lam], dtype=torch.float64)
    backend = primitives("auto", x)
    mass, _ = timed(
        lambda: backend.sinkhorn_pass(x[None], v[None, None], row_marginal, lam),
        rounds=10 * size.rounds,
    )
    error = float((mass[0, 0] - column_masses(x, problem.lam, v)).abs().sum())
    assert error <= problem.target, f"column masses are off by {error:.3g}"
    record(benchmark, "pass", dtype, method, error=error, target=problem.target, dtype=dtype)


@pytest.mark.parametrize("relative_reg", [0.01, 0.001])
@pytest.mark.parametrize("method", ["selavi", *DENSE_PEERS])
def bench_dense(timed, benchmark, size, relative_reg, method):
    problem = families.dense(size.points, relative_reg)
    if method == "selavi":
        run_ours(timed, benchmark, "dense", problem, size.rounds)
        return
    peer = DENSE_PEERS[method](problem)
    name = method.split()[0]
    run_peer(timed, benchmark, "dense", problem, name, peer, size.dense_seconds, most=20_000)


@pytest.mark.parametrize("method", ["selavi", "eager", "compiled"])
def bench_fixed_iterations(timed, benchmark, size, method):
    scores = families.scores(size.batch, size.prototypes)

    def ours() -> torch.Tensor:
        return distributed_sinkhorn(scores, epsilon=EPSILON, sinkhorn_iterations=ITERATIONS)

    if method == "selavi":
        from selavi.ops.compat.swav import distributed_sinkhorn

        job = ours
    else:
        loop = torch.compile(peers.swav_loop) if method == "compiled" else peers.swav_loop

        def job() -> torch.Tensor:
            return loop(scores, EPSILON, ITERATIONS)

    # After torch.compile the first few calls are slower, by tens of milliseconds.
    plan = timed(job, rounds=size.rounds, warm_up=6 if method == "compiled" else 1)
    error = fixed_iterations_error(scores, EPSILON, ITERATIONS, plan)
    assert error <= 1e-5, f"the plan is off by {error:.3g}"
    record(
        benchmark,
        "fixed iterations",
        f"B={size.batch}, K={size.prototypes}",
        method,
        error=error,
        iterations=ITERATIONS,
        dtype="float32",
    )


@pytest.mark.parametrize("step", ["403", "1138", "1752", "2178"])
@pytest.mark.parametrize("prior", ["uniform", "zipf"])
@pytest.mark.parametrize("method", ["selavi", "plain"])
def bench_trained(timed, benchmark, size, step, prior, method):
    """Passes on a trained run's log-probabilities; plain iteration stops at 3,000 in full size."""
    log_p = families.trained(step)
    if log_p is None:
        pytest.skip(f"log_p_step{step}.npy is not at {families.LOGITS.name}; set SELAVI_LOGITS")
    problem = families.matched(f"step {step}, {prior}", log_p, prior)
    if method == "selavi":
        run_ours(timed, benchmark, "trained", problem, 3)
        return
    options = {"solver": "sinkhorn", "max_iterations": size.plain_passes}
    result = timed(lambda: solve(problem, **options), rounds=1, warm_up=0)
    error = column_error(log_p, problem.lam, problem.col_marginal, result.col_potential)
    passes = int(result.n_passes)
    record(
        benchmark,
        "trained",
        problem.name,
        method,
        error=error,
        target=problem.target,
        passes=passes,
        dtype="float32",
    )


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("method", ["cold", "warm"])
def bench_warm_start(timed, benchmark, size, family, method):
    """The log-probabilities moved by 10%; "warm" begins at the solution before that."""
    before = families.assignment(family, "uniform", size.rows, size.columns)
    problem = families.perturbed(before)
    init = solve(before).col_potential if method == "warm" else None
    run_ours(timed, benchmark, "warm start", problem, 2, method, init=init)
