"""SwAV's and DINO's functions against their definition in the kernel domain, in float64."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.ops.on_device import (
    distributed_sinkhorn,
    ibot_sinkhorn_knopp_teacher,
    sinkhorn_knopp_teacher,
)


def defined(scores, temperature, iterations):
    """The documented loop; one shift of all entries keeps its exponentials in range."""
    x = scores.double() / temperature
    q = (x - x.max()).exp().T
    q /= q.sum()
    num_prototypes, num_samples = q.shape
    for _ in range(iterations):
        q /= q.sum(1, keepdim=True)
        q /= num_prototypes
        q /= q.sum(0, keepdim=True)
        q /= num_samples
    return (q * num_samples).T


def scores_of(samples, prototypes, dtype=torch.float32, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(samples, prototypes, generator=generator)).to(dtype)


def close(dtype):
    # Below float64 results are float32, and a backend's exponentials may be.
    wide = dtype == torch.float64
    return {"rtol": 1e-12, "atol": 1e-15} if wide else {"rtol": 1e-5, "atol": 1e-30}


@pytest.mark.parametrize("iterations", [1, 2, 3, 10])
@pytest.mark.parametrize(("samples", "prototypes"), [(40, 7), (9, 33), (1, 5), (6, 1)])
def test_swav_is_its_definition(backend, dtype, samples, prototypes, iterations):
    scores = scores_of(samples, prototypes, dtype)
    codes = distributed_sinkhorn(scores, 0.1, iterations, backend=backend)
    expected = defined(scores, 0.1, iterations)
    assert codes.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(codes.double(), expected, **close(dtype))


@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_dino_is_its_definition(backend, dtype, iterations):
    output = scores_of(31, 12, dtype)
    expected = defined(output, 0.07, iterations).float()
    targets = sinkhorn_knopp_teacher(output, 0.07, iterations, backend=backend)
    assert targets.dtype == torch.float32
    torch.testing.assert_close(targets, expected, rtol=1e-5, atol=1e-30)
    count = torch.tensor(31)
    masked = ibot_sinkhorn_knopp_teacher(output, 0.07, count, iterations, backend=backend)
    assert torch.equal(masked, targets) and count == 31


def test_defaults_are_the_originals(backend):
    scores = scores_of(20, 6)
    codes = distributed_sinkhorn(scores, backend=backend)
    torch.testing.assert_close(codes.double(), defined(scores, 0.05, 3), rtol=1e-5, atol=1e-30)
    targets = sinkhorn_knopp_teacher(scores, 0.04, backend=backend)
    torch.testing.assert_close(targets.double(), defined(scores, 0.04, 3), rtol=1e-5, atol=1e-30)


def test_any_layout_is_read_and_left_as_it_is(backend, layout):
    scores = layout(scores_of(20, 6)).requires_grad_()
    before = scores.detach().clone()
    codes = distributed_sinkhorn(scores, backend=backend)
    torch.testing.assert_close(codes.double(), defined(before, 0.05, 3), rtol=1e-5, atol=1e-30)
    assert not codes.requires_grad
    assert torch.equal(scores.detach(), before)


@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_extreme_logits_are_finite_and_exact(backend, extreme, iterations):
    """One shift for all and one per prototype change nothing in exact arithmetic."""
    scores = scores_of(24, 8, torch.bfloat16).double()  # few digits: moving them is exact
    ordinary = sinkhorn_knopp_teacher(scores, 0.05, iterations, backend=backend)
    moved = scores + extreme
    moved[:, 3] -= 2 * extreme
    targets = sinkhorn_knopp_teacher(moved, 0.05, iterations, backend=backend)
    torch.testing.assert_close(targets, ordinary, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_spread_logits_underflow_nowhere(backend, dtype):
    """exp(x) spans 10^170000: every prototype still gets its share of the samples."""
    scores = scores_of(64, 16, dtype, scale=1e4).clamp(-6e4, 6e4)
    codes = distributed_sinkhorn(scores, 0.05, 3, backend=backend)
    assert codes.isfinite().all()
    torch.testing.assert_close(codes.sum(1), torch.ones(64), rtol=1e-5, atol=1e-30)
    one = distributed_sinkhorn(scores, 0.05, 1, backend=backend)
    x = scores.double() / 0.05
    torch.testing.assert_close(one.double(), (x - x.logsumexp(0)).softmax(1), rtol=1e-5, atol=1e-30)


def test_a_shift_of_one_sample_changes_the_result(backend):
    """Why nothing is subtracted per sample: the first step weighs samples by their exponentials."""
    scores = scores_of(12, 5)
    shifted = scores.clone()
    shifted[0] += 0.5
    codes = distributed_sinkhorn(shifted, backend=backend)
    torch.testing.assert_close(codes.double(), defined(shifted, 0.05, 3), rtol=1e-5, atol=1e-30)
    assert (codes - distributed_sinkhorn(scores, backend=backend)).abs().max() > 1e-3


def test_a_masked_prototype_gets_nothing(backend):
    scores = scores_of(12, 5)
    scores[:, 2] = -torch.inf
    rest = [0, 1, 3, 4]
    codes = distributed_sinkhorn(scores, backend=backend)
    assert (codes[:, 2] == 0).all()
    others = distributed_sinkhorn(scores[:, rest], backend=backend)
    torch.testing.assert_close(codes[:, rest], others, rtol=1e-5, atol=1e-30)


def test_no_samples_no_codes(backend):
    assert distributed_sinkhorn(torch.empty(0, 4), backend=backend).shape == (0, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((torch.zeros(4),), ValueError, r"shape \(4,\)"),
        ((torch.zeros(4, 3, dtype=torch.int64),), TypeError, "int64"),
        ((torch.zeros(4, 3), 0.0), ValueError, "temperature is 0.0"),
        ((torch.zeros(4, 3), 0.05, 0), ValueError, "at least 1"),
    ],
)
def test_wrong_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        distributed_sinkhorn(*arguments)
    if len(arguments) != 2:
        with pytest.raises(error, match=words):
            sinkhorn_knopp_teacher(*(*arguments[:1], 0.05, *arguments[2:]))


class Loss(torch.nn.Module):
    """As DINOv2's: the method is called on an instance, with keywords."""

    sinkhorn_knopp_teacher = staticmethod(functools.partial(sinkhorn_knopp_teacher, group=None))


class Teacher(torch.nn.Module):
    """As DINOv3's SinkhornKnoppTeacher."""

    forward = staticmethod(ibot_sinkhorn_knopp_teacher)


def test_it_can_stand_in_for_the_methods(backend):
    output = scores_of(6, 4)
    arguments = {"teacher_temp": 0.05, "backend": backend}
    targets = Loss().sinkhorn_knopp_teacher(output, **arguments)
    masked = Teacher()(output, n_masked_patches_tensor=torch.tensor([6]), **arguments)
    assert torch.equal(targets, masked)


RANK = """
import sys
import torch
import torch.distributed as dist
from selavi.ops.compat.dino import ibot_sinkhorn_knopp_teacher, sinkhorn_knopp_teacher
from selavi.ops.compat.swav import distributed_sinkhorn

store, rank, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
alone = [dist.new_group([r]) for r in range(2)][rank]
scores = 3 * torch.randn(11, 4, generator=torch.Generator().manual_seed(0))
results = {}
for backend in sys.argv[4:]:
    for first in (4, 11, 0):  # rows of rank 0
        own = scores[:first] if rank == 0 else scores[first:]
        count = torch.tensor(len(own))
        results[backend, first] = [
            distributed_sinkhorn(own, 0.05, 3, backend=backend),
            distributed_sinkhorn(own, 0.05, 1, dist.group.WORLD, backend=backend),
            sinkhorn_knopp_teacher(own, 0.05, backend=backend),
            ibot_sinkhorn_knopp_teacher(own, 0.05, count, backend=backend),
            sinkhorn_knopp_teacher(own, 0.05, group=alone, backend=backend),
        ]
        assert count == len(own)
torch.save(results, out)
dist.destroy_process_group()
"""


def test_two_processes_with_unequal_batches(tmp_path: Path):
    store = tmp_path / "store"
    compiled = hasattr(torch.ops.selavi, "sinkhorn_plan")
    backends = ["torch", "auto"] if compiled else ["torch"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-c",
                RANK,
                store,
                str(rank),
                tmp_path / f"{rank}.pt",
                *backends,
            ],
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        assert [rank.wait(120) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    scores = 3 * torch.randn(11, 4, generator=torch.Generator().manual_seed(0))
    for key in results[0]:
        first = key[1]
        parts = [[rank[key][i] for rank in results] for i in range(5)]
        three = defined(scores, 0.05, 3).float()
        one = defined(scores, 0.05, 1).float()
        alone = [defined(x, 0.05, 3).float() for x in (scores[:first], scores[first:]) if len(x)]
        for own, expected in zip(parts, (three, one, three, three, torch.cat(alone)), strict=True):
            assert [len(x) for x in own] == [first, 11 - first]
            torch.testing.assert_close(torch.cat(own), expected, rtol=1e-5, atol=1e-12)
