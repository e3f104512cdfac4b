import pytest
import torch

from selavi import kernels
from selavi.ops import _definition


@pytest.mark.parametrize("k", [1, 2, 70])
def test_permute_prior_with_ties(k):
    generator = torch.Generator().manual_seed(0)
    mass = torch.randint(0, 9, (3, k), generator=generator).double()
    prior = torch.randint(0, 9, (3, k), generator=generator).double()
    mass[0, -1], mass[1] = -torch.inf, torch.rand(k, generator=generator, dtype=torch.float64)
    ours = kernels.permute_prior(prior, mass)
    assert torch.equal(ours, _definition.permute_prior(prior, mass))
