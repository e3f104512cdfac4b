"""Every kernel compiled ahead of time for GPUs that need not be there, as it would be launched."""

import re

import pytest

pytest.importorskip("triton")

import torch

from selavi import kernels
from tests.kernels.record import ARCHITECTURES, Resources, launches_of

DTYPES = (torch.bfloat16, torch.float32, torch.float64)
KERNELS = {
    "split_potential_kernel",
    "whole_rows_kernel",
    "block_logsumexp_kernel",
    "join_blocks_kernel",
    "block_masses_kernel",
    "sum_parts_kernel",
    "labels_kernel",
    "whole_rows_plan_kernel",
    "block_plan_kernel",
    "column_logsumexp_kernel",
    "overlap_kernel",
    "rank_kernel",
    "accumulate_kernel",
}

# ptxas puts a number or two aside for the sake of more warps; more than this would cost time.
ALLOWED_SPILLS = 0.01


def on_gpu(*shape, dtype=torch.float64):
    return torch.empty(shape, dtype=dtype, device="cuda")


def call_everything(dtype, k, n=100_000):
    log_p, c, lam, one = on_gpu(10, n, k, dtype=dtype), on_gpu(10, n), on_gpu(10), on_gpu(10, k)
    kernels.sinkhorn_pass(log_p, on_gpu(10, 7, k), c, lam)
    kernels.sinkhorn_iterations(log_p, one, c, one, lam, 2)
    kernels.sinkhorn_labels(log_p, one, lam)
    kernels.sinkhorn_plan(log_p, one, c, lam, dtype)
    kernels.sinkhorn_column_logsumexp(log_p, c, lam)
    if k <= 4096:
        kernels.sinkhorn_overlap(log_p, one, c, lam)
    kernels.permute_prior(one, one)
    index, store = on_gpu(4096, dtype=torch.int64), on_gpu(10, n, k, dtype=torch.float32)
    logits = [on_gpu(10, 4096, k, dtype=dtype)] * 2
    kernels.accumulate_log_softmax_(store, logits, index, None)
    kernels.accumulate_log_softmax_(store, logits * 2, index, on_gpu(4, 4096))


def compile_everything(dtype, k, architecture):
    """{kernel: its worst resources}; prints them. No kernel adds up in an order of chance."""
    seen, worst = set(), {}
    for launch in launches_of(lambda: call_everything(dtype, k)):
        if launch.key() in seen:
            continue
        seen.add(launch.key())
        compiled = launch.compile(architecture)
        assert not re.search(r"^\s*(@\S+ )?(atom|red)\.", compiled.asm["ptx"], re.MULTILINE)
        resources, name = Resources.of(compiled), launch.kernel.__name__
        print(f"{name:24} sm_{architecture} {str(dtype)[6:]:9} K={k:<6} {resources}")
        worst[name] = max(worst.get(name, resources), resources, key=lambda r: r.spills)
    return worst


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernels_compile_and_keep_to_registers(dtype, architecture):
    compiled = set()
    for k in (309, 100, 6144, 8192, 20_000):
        worst = compile_everything(dtype, k, architecture)
        assert {name: r for name, r in worst.items() if r.spills > ALLOWED_SPILLS} == {}
        compiled |= set(worst)
    missing = KERNELS ^ compiled
    assert missing == ({"split_potential_kernel"} if dtype == torch.float64 else set())


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [2, 16, 600, 1024, 3000, 4096, 6000, 7000])
def test_kernels_of_every_shape_keep_to_registers(k, dtype, architecture):
    worst = compile_everything(dtype, k, architecture)
    assert {name: r for name, r in worst.items() if r.spills > ALLOWED_SPILLS} == {}
