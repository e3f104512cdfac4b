"""Options, threads, and what the results say about the machine."""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import pytest
import torch

THREADS = torch.get_num_threads()  # OMP_NUM_THREADS where it is set
# Before JAX is imported: as many threads as torch has.
os.environ["NPROC"] = str(THREADS)
os.environ["XLA_FLAGS"] = (
    f"--xla_cpu_multi_thread_eigen={'true' if THREADS > 1 else 'false'} "
    f"intra_op_parallelism_threads={THREADS}"
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no pool of processes beside what is timed


@dataclass(frozen=True)
class Size:
    """peer_seconds, dense_seconds: what a peer's run may take before its iterations are capped."""

    rows: int
    columns: int
    points: int
    batch: int
    prototypes: int
    peer_seconds: float
    dense_seconds: float
    rounds: int
    plain_passes: int


SIZES = {
    "small": Size(800, 24, 128, 64, 512, 0.1, 0.1, 2, 200),
    "full": Size(170_752, 309, 4096, 2048, 65_536, 120.0, 30.0, 5, 3000),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--size", choices=sorted(SIZES), default="small", help="of the problems")


@pytest.fixture(scope="session")
def size(request: pytest.FixtureRequest) -> Size:
    return SIZES[request.config.getoption("--size")]


@pytest.fixture
def timed(benchmark: Any) -> Callable[..., Any]:
    """Runs a job some rounds after a warm-up; keeps its peak memory beside its times."""
    from measure import PeakMemory

    def run(job: Callable[[], Any], *, rounds: int, warm_up: int = 1) -> Any:
        memory = PeakMemory()
        result = benchmark.pedantic(job, rounds=rounds, warmup_rounds=warm_up)
        benchmark.extra_info["peak_extra_bytes"] = memory.extra()
        return result

    return run


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    compiler = shutil.which("c++")
    said = "none"
    if compiler is not None:
        output = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
        said = output.stdout.splitlines()[0]
    packages = ("torch", "numpy", "POT", "ott-jax", "jax", "jaxlib", "geomloss", "pytest-benchmark")
    machine_info["threads"] = THREADS
    machine_info["cores"] = os.cpu_count()
    machine_info["compiler"] = said
    machine_info["versions"] = {name: version(name) for name in packages}
    machine_info["size"] = config.getoption("--size")
