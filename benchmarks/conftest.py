"""Options, threads, and what the results say about the machine."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest
import torch

from kernel_hash import kernel_hash

THREADS = torch.get_num_threads()  # OMP_NUM_THREADS where it is set
PACKAGES = (
    *("torch", "triton", "numpy", "POT", "ott-jax", "jax", "jaxlib", "geomloss"),
    *("flash-sinkhorn", "pytest-benchmark"),
)


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
    parser.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="of bench_gpu*.py")
    parser.addoption("--until", type=float, help="skip what begins after this time since the epoch")


def pytest_configure(config: pytest.Config) -> None:
    """Before JAX is imported: as many threads as torch has, and not all of a GPU's memory."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no processes beside what is timed
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if config.getoption("--device") == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["NPROC"] = str(THREADS)
        os.environ["XLA_FLAGS"] = (
            f"--xla_cpu_multi_thread_eigen={'true' if THREADS > 1 else 'false'} "
            f"intra_op_parallelism_threads={THREADS}"
        )


@pytest.fixture(scope="session")
def size(request: pytest.FixtureRequest) -> Size:
    return SIZES[request.config.getoption("--size")]


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    return request.config.getoption("--device")


@pytest.fixture(autouse=True)
def time_is_left(request: pytest.FixtureRequest) -> None:
    until = request.config.getoption("--until")
    if until is not None and time.time() > until:
        pytest.skip("no time is left")


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


@pytest.fixture
def timed_jobs(benchmark: Any, device: str) -> Callable[..., Any]:
    """measure.time_jobs on the device: its times stand in for pytest-benchmark's own."""
    from measure import time_jobs

    def run(jobs: Sequence[Callable[[], Any]], **options: Any) -> Any:
        timing = benchmark.pedantic(time_jobs, args=(jobs, device), kwargs=options, rounds=1)
        benchmark.extra_info["seconds"] = timing.seconds
        benchmark.extra_info["peak_extra_bytes"] = timing.peak_extra_bytes
        return timing

    return run


def _first_line(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return "none"
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return output.strip().splitlines()[0] if output.strip() else "none"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _gpu() -> dict[str, Any]:
    """The GPU and its clocks as they are found; nothing is set."""
    properties = torch.cuda.get_device_properties(0)
    asked = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit")
    said = _first_line(
        "nvidia-smi", f"--query-gpu={','.join(asked)}", "--format=csv,noheader", "--id=0"
    )
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
        **dict(zip(asked, said.split(", "), strict=True)),
    }


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    machine_info["threads"] = THREADS
    machine_info["cores"] = os.cpu_count()
    machine_info["compiler"] = _first_line("c++", "--version")
    machine_info["versions"] = {name: _version(name) for name in PACKAGES}
    machine_info["size"] = config.getoption("--size")
    machine_info["kernel_hash"] = kernel_hash()
    if config.getoption("--device") == "cuda":
        machine_info["gpu"] = _gpu()
