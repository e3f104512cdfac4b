"""permute_prior's kernels in the emulator, against the definition."""

import pytest
import torch

from selavi.ops import _definition
from tests.ops.problems import zipf

pytestmark = pytest.mark.usefixtures("emulator", "poisoned_memory")


@pytest.mark.parametrize(("problems", "k"), [(3, 1), (2, 2), (4, 37), (2, 309), (1, 1100), (0, 5)])
def test_matches_definition(problems, k):
    generator = torch.Generator().manual_seed(k)
    prior = torch.rand(problems, k, generator=generator, dtype=torch.float64)
    mass = torch.randn(problems, k, generator=generator, dtype=torch.float64)
    ours = torch.ops.selavi_emulated.permute_prior(prior, mass)
    assert torch.equal(ours, _definition.permute_prior(prior, mass))


@pytest.mark.parametrize("k", [7, 309, 600])
def test_ties_break_by_index(k):
    generator = torch.Generator().manual_seed(k)
    mass = torch.randint(-2, 3, (3, k), generator=generator).double()
    mass[mass == 0] *= torch.randn(int((mass == 0).sum()), generator=generator).sign()  # -0.0 too
    prior = zipf(k).expand(3, k).flip(-1).contiguous()
    ours = torch.ops.selavi_emulated.permute_prior(prior, mass)
    assert torch.equal(ours, _definition.permute_prior(prior, mass + 0.0))


def test_extreme_masses():
    info = torch.finfo(torch.float64)
    mass = torch.tensor(
        [[0.0, info.max, -torch.inf, torch.nan, info.tiny / 4, torch.inf, -info.tiny, torch.nan]],
        dtype=torch.float64,
    )
    prior = torch.arange(8, dtype=torch.float64)[None]
    ours = torch.ops.selavi_emulated.permute_prior(prior, mass)
    assert torch.equal(ours, _definition.permute_prior(prior, mass))
