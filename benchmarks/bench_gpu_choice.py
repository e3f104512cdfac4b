"""Each primitive on both GPU backends, by columns and size of the dtype: what "auto" goes by.

choose_backends.py makes selavi/ops/backend_choice.json of it. A time counts only where the output
is that of the definition in float64.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import bench_gpu
import families
from bench_gpu import against, usable  # noqa: F401
from measure import copies, record
from selavi.ops import _definition
from selavi.ops._choice import PRIMITIVES
from selavi.ops._library import primitives

ENTRIES = {"small": 20_000, "full": 50_000_000}
COLUMNS = {"small": (16, 309), "full": (16, 309, 3000)}  # in each of the table's ranges one
# Relative to the entry, and to the largest: the overlap may be made in bfloat16.
TOLERANCES = {"sinkhorn_overlap": (2e-2, 1e-4)}
STORE_ROWS = 2  # of the store, for each of the batch


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    bench_gpu.pytest_generate_tests(metafunc)
    metafunc.parametrize("columns", COLUMNS[metafunc.config.getoption("--size")])


def _arguments(primitive: str, log_p: Tensor, v: Tensor) -> tuple[Any, ...]:
    """Of the primitive, on log_p (B, N, K) and v (B, K); lam is 1, so that no column starves."""
    problems, n, k = log_p.shape
    c, lam = v.new_full((problems, n), 1 / n), torch.ones_like(v[:, 0])
    if primitive == "accumulate_log_softmax_":
        store = torch.zeros(problems, STORE_ROWS * n, k, device=log_p.device)
        return store, [log_p, log_p], torch.arange(n, device=log_p.device) * STORE_ROWS, None
    return {
        "sinkhorn_pass": (log_p, v[:, None], c, lam),
        "sinkhorn_iterations": (log_p, v, c, torch.full_like(v, 1 / k), lam, 3),
        "sinkhorn_overlap": (log_p, v, c, lam),
        "sinkhorn_labels": (log_p, v, lam),
        "sinkhorn_plan": (log_p, v, c, lam, torch.float32),
        "sinkhorn_column_logsumexp": (log_p, torch.zeros_like(c), lam),
        "permute_prior": (v.exp(), -v),
    }[primitive]


def _outputs(result: Any, arguments: Sequence[Any]) -> tuple[Tensor, ...]:
    """Of a call; an operator that returns nothing wrote to its first argument."""
    result = arguments[0] if result is None else result
    return (result,) if isinstance(result, Tensor) else tuple(result)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("primitive", PRIMITIVES)
@against()
def bench_choice(timed_jobs, benchmark, request, device, primitive, columns, dtype, method):
    entries = ENTRIES[request.config.getoption("--size")]
    shape = (2, entries // (2 * columns), columns)
    log_p = families.heads("hard 8/2", *shape, device, getattr(torch, dtype))
    generator = torch.Generator(device).manual_seed(0)
    v = torch.randn(2, columns, generator=generator, dtype=torch.float64, device=device)
    ours = getattr(primitives(method, log_p), primitive)
    sets = [_arguments(primitive, log_p.clone(), v) for _ in range(copies(log_p.nbytes))]
    definition = getattr(_definition, primitive)

    given = _arguments(primitive, log_p, v)
    exact = _outputs(definition(*given), given)
    given = _arguments(primitive, log_p, v)
    found = _outputs(ours(*given), given)
    rtol, atol = TOLERANCES.get(primitive, (3e-6, 3e-7))
    for mine, wanted in zip(found, exact, strict=True):
        wanted = wanted.double()
        margin = atol * float(wanted.abs().max())
        assert torch.allclose(mine.double(), wanted, rtol=rtol, atol=margin)
    jobs: list[Callable[[], Any]] = [lambda given=given: ours(*given) for given in sets]
    timed_jobs(jobs, graph=True, seconds=0.1)
    info = {"primitive": primitive, "columns": columns, "dtype": dtype}
    record(benchmark, "choice", f"{primitive}, {columns} columns, {dtype}", method, **info)
