"""What only a GPU can show: graphs, streams, and more entries than 32 bits count. Else skipped."""

import pytest
import torch

from selavi.ops import _definition, sinkhorn
from selavi.ops._choice import PRIMITIVES
from selavi.ops._library import primitives
from tests.ops.problems import random_log_p


def arguments(name, log_p):
    """Of a primitive, on log_p (B, N, K) wherever it lies."""
    problems, n, k = log_p.shape
    generator = torch.Generator(log_p.device).manual_seed(0)
    at = {"generator": generator, "dtype": torch.float64, "device": log_p.device}
    v = torch.randn(problems, k, **at)
    c, lam = v.new_full((problems, n), 1 / n), v.new_full((problems,), 5.0)
    return {
        "sinkhorn_pass": (log_p, v[:, None].contiguous(), c, lam),
        "sinkhorn_iterations": (log_p, v, c, torch.full_like(v, 1 / k), lam, 3),
        "sinkhorn_overlap": (log_p, v, c, lam),
        "sinkhorn_labels": (log_p, v, lam),
        "sinkhorn_plan": (log_p, v, c, lam, torch.float32),
        "sinkhorn_column_logsumexp": (log_p, c.log(), lam),
        "permute_prior": (v.exp(), -v),
        "accumulate_log_softmax_": (
            torch.zeros_like(log_p),
            [log_p, log_p],
            torch.randperm(n, generator=generator, device=log_p.device),
            None,
        ),
    }[name]


def outputs(result, given):
    result = given[0] if result is None else result
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


@pytest.mark.parametrize("name", PRIMITIVES)
def test_a_graph_captures_every_primitive(gpu_backend, name):
    """So none waits for the host, and all run on the stream that is current."""
    log_p = random_log_p(2, 300, 37).cuda()
    function = getattr(primitives(gpu_backend, log_p), name)
    given = arguments(name, log_p)
    expected = [out.clone() for out in outputs(function(*given), given)]
    given = arguments(name, log_p)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = outputs(function(*given), given)
    graph.replay()
    for mine, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=0)


def test_a_graph_captures_the_fixed_iterations(gpu_backend):
    options = {"lam": 3.0, "tol": None, "max_iterations": 4, "backend": gpu_backend}
    log_p, other = (random_log_p(2, 300, 37, seed=seed).cuda() for seed in range(2))
    sinkhorn(log_p, **options)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = sinkhorn(log_p, **options)
    log_p.copy_(other)
    graph.replay()
    expected = sinkhorn(other, **options)
    assert torch.equal(result.labels, expected.labels)
    torch.testing.assert_close(result.col_potential, expected.col_potential, rtol=0, atol=0)


@pytest.mark.parametrize(
    "name", ["sinkhorn_pass", "sinkhorn_labels", "sinkhorn_plan", "sinkhorn_column_logsumexp"]
)
@pytest.mark.parametrize("shape", [(1, 7_000_000, 309), (70, 100_000, 309)], ids=str)
def test_more_entries_than_32_bits_count(gpu_backend, name, shape):
    free, _ = torch.cuda.mem_get_info()
    if free < 24e9:
        pytest.skip(f"{free / 1e9:.0f} GB are free on the GPU, of 24 that this takes")
    generator = torch.Generator("cuda").manual_seed(0)
    log_p = torch.empty(shape, dtype=torch.bfloat16, device="cuda")
    log_p.normal_(generator=generator)
    given = arguments(name, log_p)
    if name == "sinkhorn_plan":
        given = (*given[:-1], torch.bfloat16)
    found = outputs(getattr(primitives(gpu_backend, log_p), name)(*given), given)
    exact = outputs(getattr(_definition, name)(*given), given)
    rtol = 1e-2 if name == "sinkhorn_plan" else 3e-6
    for mine, wanted in zip(found, exact, strict=True):
        assert mine.dtype == wanted.dtype
        parts = (x.flatten().split(1 << 28) for x in (mine, wanted))
        for part, same in zip(*parts, strict=True):
            torch.testing.assert_close(part, same, rtol=rtol, atol=1e-9)
