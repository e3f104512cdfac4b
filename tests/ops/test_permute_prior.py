"""permute_prior against its definition and eq. 3-4."""

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selavi.ops import _definition
from tests.ops.on_device import permute_prior


def test_largest_prior_goes_to_heaviest_cluster(backend, dtype):
    prior = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=dtype)
    mass = torch.tensor([[1.0, 4.0, 2.0, 3.0], [4.0, 3.0, 2.0, 1.0]])
    result = permute_prior(prior, mass, backend=backend)
    assert result.dtype == dtype
    expected = [[0.125, 0.5, 0.125, 0.25], [0.5, 0.25, 0.125, 0.125]]
    assert result.tolist() == expected


def test_ties_go_to_the_lowest_index(backend):
    mass = torch.tensor([1.0, 2.0, 2.0, 1.0])
    assert permute_prior(torch.arange(4.0), mass, backend=backend).tolist() == [1, 3, 2, 0]


def test_is_the_best_of_all_orders(backend):
    generator = torch.Generator().manual_seed(0)
    prior, mass = (torch.rand(5, generator=generator, dtype=torch.float64) for _ in range(2))
    # eq. 3: E(R) = const - sum_k q_k [R log r]_k
    scores = [(mass * prior[list(p)].log()).sum() for p in permutations(range(5))]
    ours = (mass * permute_prior(prior, mass, backend=backend).log()).sum()
    torch.testing.assert_close(ours, torch.stack(scores).max())


@settings(max_examples=50, deadline=None)
@given(batch=st.integers(0, 3), k=st.integers(1, 40), seed=st.integers(0, 99))
def test_matches_definition(batch, k, seed):
    generator = torch.Generator().manual_seed(seed)
    prior = torch.rand(batch, k, generator=generator, dtype=torch.float64)
    mass = torch.randint(0, 5, (batch, k), generator=generator).double()
    assert torch.equal(permute_prior(prior, mass), _definition.permute_prior(prior, mass))


def test_strided_input(backend):
    prior, mass = torch.rand(6, 3).T, torch.rand(3, 12)[:, ::2]
    expected = permute_prior(prior.contiguous(), mass.contiguous(), backend=backend)
    assert torch.equal(permute_prior(prior, mass, backend=backend), expected)


@pytest.mark.usefixtures("compiled")
def test_opcheck():
    arguments = (torch.rand(2, 5).double(), torch.rand(2, 5).double())
    torch.library.opcheck(torch.ops.selavi.permute_prior.default, arguments)


@pytest.mark.parametrize(
    ("prior", "mass", "error", "message"),
    [
        (torch.ones(3), torch.ones(4), ValueError, r"prior has shape \(3,\); expected \(4,\)"),
        (torch.ones(4), torch.full((4,), torch.nan), ValueError, "mass of shape .* NaN"),
        (torch.ones(4).long(), torch.ones(4), TypeError, "prior has dtype torch.int64"),
    ],
)
def test_bad_input_is_named(prior, mass, error, message):
    with pytest.raises(error, match=message):
        permute_prior(prior, mass)
