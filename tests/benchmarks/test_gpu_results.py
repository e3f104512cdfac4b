"""What becomes of a GPU's raw results: floors, rows, table, choice, staleness. No GPU is needed."""

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
GPU = {
    "name": "NVIDIA H100 80GB HBM3",
    "multiprocessors": 132,
    "cuda": "13.0",
    "driver_version": "580",
    "clocks.sm": "345 MHz",
    "clocks.max.sm": "1980 MHz",
}
KEYS = ("cores", "threads", "compiler", "python_version", "system", "release")


@pytest.fixture(scope="module")
def modules():
    """Imports a module of benchmarks, as its scripts import each other."""
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module
    sys.path.remove(str(BENCHMARKS))


def benchmark(name, section, case, method, seconds, **info):
    extra = {"section": section, "case": case, "method": method, "seconds": seconds, **info}
    stats = dict.fromkeys(("min", "q1", "median", "q3", "max", "rounds"), 99.0)
    extra = {"peak_extra_bytes": 0, "dtype": "float32", **extra, "verified": True}
    return {"name": name, "extra_info": extra, "stats": stats}


def raw(*benchmarks, **machine):
    info = dict.fromkeys(KEYS, "x") | {
        "cpu": {"brand_raw": "a CPU"},
        "gpu": GPU,
        "size": "full",
        "kernel_hash": "0123",
        "versions": {"POT": "not installed", "ott-jax": "0.6"},
    }
    return {
        "commit_info": {"id": "unversioned", "dirty": False},
        "datetime": "2026-01-01",
        "machine_info": info | machine,
        "benchmarks": list(benchmarks),
    }


def traffic(read, written=0.0):
    return {"bytes_read": read, "bytes_written": written, "exponentials": 132 * 16 * 1.98e9}


@pytest.fixture
def results(modules):
    """Copies at 2 and reads at 4 TB/s; an iteration at half of that, which Triton failed."""
    pass_on = {"primitive": "sinkhorn_pass", "columns": 309}
    return modules("results").condense(
        [
            raw(
                benchmark("a", "bandwidth", "copy", "copy", [1.0], **traffic(1e12, 1e12)),
                benchmark("b", "bandwidth", "read", "sum", [1.0], **traffic(3e12)),
                benchmark("c", "bandwidth", "read", "maximum", [1.0], **traffic(4e12)),
            ),
            raw(
                benchmark("d", "iteration", "float32", "cuda", [1.9, 2, 5], **traffic(4e12)),
                benchmark("e", "accumulate", "float32", "cuda", [2.0], **traffic(5e12, 1e12)),
                benchmark("f", "gpu labels", "hard", "reference", [300.0], error=1e-3, target=2e-6),
                benchmark("g", "gpu labels", "hard", "cuda", [2.0], error=1e-6, target=2e-6),
                benchmark("h", "gpu labels", "other", "reference", [9.0], error=0, target=2e-6),
                benchmark("i", "choice", "x", "cuda", [2.0], **pass_on),
                benchmark("j", "choice", "x", "triton", [1.0], **pass_on),
                benchmark("k", "choice", "y", "triton", [1.0], **pass_on | {"columns": 9}),
            ),
        ],
        commit="abcdef0123",
    )


def row(results, title, ours, quantity):
    (found,) = (
        row
        for row in results["rows"]
        if (row["ours"], row["quantity"]) == (ours, quantity) and row["title"].startswith(title)
    )
    return found


def test_times_are_those_of_events_and_floors_those_of_the_measured_bandwidth(results):
    cases = {(case["section"], case["method"]): case for case in results["cases"]}
    iteration, accumulate = cases["iteration", "cuda"], cases["accumulate", "cuda"]
    assert results["bandwidth"] == {"copy": 2e12, "read": 4e12}
    assert iteration["median"] == 2 and iteration["rounds"] == 3
    assert iteration["floor_bytes"] == 1.0 and iteration["floor_exponentials"] == 1.0
    assert accumulate["floor_bytes"] == 1.0 + 1.0  # 2e12 at a copy's pace, 4e12 are read only
    assert row(results, "one iteration, 10 x 1M x 309, float32", "cuda", "floor")["worst"] == 0.5


def test_a_row_is_met_by_its_worst_case_and_not_by_what_was_not_run(results):
    labels = row(results, "labels, 10 heads", "cuda", "time")
    assert labels["worst"] == 150 and labels["missing"] == ["other"] and labels["met"] is False
    assert labels["peer_unconverged"] == 1
    nothing = row(results, "one iteration, 10 x 1M x 309, bfloat16", "cuda", "floor")
    assert nothing["worst"] is None and nothing["met"] is None
    failed = row(results, "labels, 10 heads", "triton", "time")
    assert failed["worst"] is None and failed["missing"] == ["hard", "other"]


def test_a_peer_that_is_absent_is_not_beaten(results, modules):
    pytest.importorskip("matplotlib", reason="matplotlib is in the bench extra")
    lines = modules("report").table(results | {"steps": []}).splitlines()
    (line,) = (line for line in lines if "POT" in line and "(cuda)" in line)
    assert "POT is not installed" in line and line.endswith("| - |")


def test_points_are_compared_with_the_faster_of_a_peers_variants(modules):
    case, peer = ("gpu points", "reg 0.01"), "flash_sinkhorn"
    good = {"error": 9e-7, "target": 1e-6, "iterations": 100}
    runs = raw(
        benchmark("a", *case, "cuda", [1.0], error=5e-7, target=1e-6, passes=30),
        benchmark("b", *case, peer, [9.0], **good),
        benchmark("c", *case, peer, [4.0], **good | {"dtype": "tf32"}),
        benchmark("d", *case, peer, [0.1], **good | {"error": 1e-3}),
        versions={"flash-sinkhorn": "0.4.1"},
    )
    results = modules("results").condense([runs], commit="abcdef0123")
    points = row(results, "points in 64 dimensions", "cuda", "time")
    assert points["worst"] == 4 and points["met"] and not points["absent"]
    without = modules("results").condense([raw(versions={"flash-sinkhorn": "not installed"})])
    assert row(without, "points in 64 dimensions", "cuda", "time")["absent"]


@pytest.mark.parametrize(("target", "least", "found"), [(0.1, 0.0, 10), (1e-6, 0.05, 22)])
def test_a_peer_gets_the_fewest_iterations_that_do(modules, target, least, found):
    """Its error falls as 1 / count, down to the least that it can reach."""
    asked = []

    def error(count):
        asked.append(count)
        return max(least, 1 / count)

    assert modules("measure").fewest_iterations(1000, target, error) == found
    assert max(asked) <= 1000


def test_distances_on_the_grid_are_exact(modules):
    """In float32, and for whoever centres the clouds first."""
    clouds = modules("families").clouds(64, 0.01)
    exact = modules("families").negative_distances(clouds.x.double(), clouds.y.double())
    assert exact.equal(clouds.problem.log_p.double())
    assert not clouds.x.mean(0).any() and not clouds.y.mean(0).any()


def test_flash_sinkhorn_takes_what_it_is_given(modules):
    pytest.importorskip("flash_sinkhorn")
    clouds = modules("families").clouds(64, 0.01)
    for dtype in ("float32", "tf32"):
        peer = modules("peers_flash").flash_sinkhorn(clouds, dtype)
        with pytest.raises(ValueError, match="CUDA tensors"):
            peer.prepare(3)()


def test_names_and_mixed_runs(results, modules):
    assert modules("results").name(results) == "h100-abcdef0"
    assert modules("results").name(results | {"size": "small"}) == "h100-abcdef0-small"
    with pytest.raises(ValueError, match="different commits, sizes, threads or kernels"):
        modules("results").condense([raw(), raw(kernel_hash="4567")])


def test_the_choice_is_the_faster_where_both_were_measured(results, modules):
    table = modules("choose_backends").table(results, "h100-abcdef0")
    assert table == {
        "measured": "h100-abcdef0",
        "default": "cuda",
        "faster": {"sinkhorn_pass": {"4": {"1024": "triton"}}},
    }


def test_other_kernels_make_a_result_stale(modules, tmp_path, monkeypatch):
    kernels = modules("kernel_hash")
    source = tmp_path / "csrc" / "cuda" / "pass.cu"
    source.parent.mkdir(parents=True)
    source.write_text("one")
    before = kernels.kernel_hash(tmp_path)
    source.write_text("two")
    assert kernels.kernel_hash(tmp_path) != before
    monkeypatch.setattr(kernels, "newest_gpu_result", lambda: None)
    assert kernels.state() == "No GPU result is committed."
    result = Path("h100-0.json"), {"kernel_hash": before}
    monkeypatch.setattr(kernels, "newest_gpu_result", lambda: result)
    assert kernels.state().startswith("GPU result stale: h100-0.json")


def test_the_newest_result_of_full_size_is_told_from_the_rest(modules, tmp_path):
    said = {"machine": {"gpu": GPU}, "size": "full", "date": "2026-01-02"}
    for name, change in {
        "h100-1": {},
        "h100-0": {"date": "2026-01-01"},
        "h100-2-small": {"date": "2026-01-03", "size": "small"},
        "cpu-3": {"date": "2026-01-03", "machine": {"gpu": None}},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(said | change))
    path, _ = modules("kernel_hash").newest_gpu_result(tmp_path)
    assert path.stem == "h100-1"
