"""What torch.compile and fake tensors see of the operators, without a GPU."""

import pytest

pytest.importorskip("triton")

import torch
import triton
from functorch.compile import aot_function
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget

from selavi import kernels
from selavi.ops import _definition


class NamedGpu:
    """Enough of a driver for Triton to compile to its first form, which torch analyses."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0


@pytest.fixture
def named_gpu(monkeypatch):
    monkeypatch.setattr(triton.runtime.driver, "_active", NamedGpu())


def tensor(*shape, dtype=torch.float64, device="cuda"):
    return torch.empty(shape, dtype=dtype, device=device)


def calls(k=309, device="cuda"):
    log_p = tensor(2, 100, k, dtype=torch.bfloat16, device=device)
    one, c = tensor(2, k, device=device), tensor(2, 100, device=device)
    lam = tensor(2, device=device)
    u = tensor(2, 100, device=device)
    return {
        "sinkhorn_pass": (log_p, tensor(2, 3, k, device=device), c, lam),
        "sinkhorn_overlap": (log_p, one, c, lam),
        "sinkhorn_labels": (log_p, one, lam),
        "sinkhorn_plan": (log_p, one, c, lam, torch.float16),
        "sinkhorn_column_logsumexp": (log_p, u, lam),
        "permute_prior": (one, one),
    }


def described(result):
    parts = result if isinstance(result, tuple) else (result,)
    return [(part.shape, part.dtype) for part in parts]


@pytest.mark.parametrize("name", calls(device="meta"))
def test_fake_tensors_get_the_shapes_and_dtypes_of_the_definition(name):
    with FakeTensorMode():
        ours = getattr(kernels, name)(*calls()[name])
        theirs = getattr(_definition, name)(*calls(device="cpu")[name])
    assert described(ours) == described(theirs)
    assert all(part.is_cuda for part in (ours if isinstance(ours, tuple) else (ours,)))


def graph_of(function, *arguments):
    """The operators that the compiler gets, kernels with the tensors that they change."""
    seen = []

    def compiler(graph, _):
        for node in graph.graph.nodes:
            if "triton" in str(node.target):
                seen.append(node.kwargs["tensors_to_clone"])
            elif "selavi" in str(node.target):
                seen.append(str(node.target))
        return graph

    aot_function(function, fw_compiler=compiler)(*arguments)
    return seen


@pytest.mark.usefixtures("named_gpu")
def test_a_compiler_sees_the_kernels_of_a_pass_and_what_they_write():
    def function(log_p, v, c, lam):
        return kernels.sinkhorn_pass(log_p * 2, v, c, lam)[0] + 1

    with FakeTensorMode():
        assert graph_of(function, *calls()["sinkhorn_pass"]) == [
            ["hi", "lo", "scales"],
            ["mass_parts", "value_parts"],
            ["mass", "value"],
        ]


@pytest.mark.usefixtures("named_gpu")
def test_a_compiler_sees_the_kernels_of_iterations():
    def function(log_p, v, c, r, lam):
        return kernels.sinkhorn_iterations(log_p, v, c, r, lam, 3)

    with FakeTensorMode():
        log_p, one, c, lam = calls()["sinkhorn_overlap"]
        seen = graph_of(function, log_p, one, c, one, lam)
    assert len(seen) == 9 and seen[2] == ["mass", "value", "next_v"]


@pytest.mark.usefixtures("named_gpu")
def test_a_compiler_sees_that_accumulate_changes_the_store():
    def function(store, view, index):
        store = store.clone()
        kernels.accumulate_log_softmax_(store, [view, view * 2], index, None)
        return store

    with FakeTensorMode():
        index = tensor(7, dtype=torch.int64)
        seen = graph_of(function, tensor(2, 50, 309), tensor(2, 7, 309), index)
    assert seen == [["store"]]
