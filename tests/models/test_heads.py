import pytest
import torch
from torch import nn

from selavi.models import MultiHeads


def independent_mlps(heads: MultiHeads, dropout: float = 0.0) -> list[nn.Sequential]:
    """The same heads, one ordinary module each."""
    hidden = heads.weight.shape[1]
    mlps = []
    for h in range(heads.num_heads):
        rows = slice(h * hidden, (h + 1) * hidden)
        mlp = nn.Sequential(
            nn.Linear(heads.expand.in_features, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, heads.weight.shape[2]),
        ).double()
        mlp[0].weight.data.copy_(heads.expand.weight[rows])
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(mlp[1], name).data.copy_(getattr(heads.norm, name)[rows])
        mlp[3].weight.data.copy_(heads.weight[h].T)
        mlp[3].bias.data.copy_(heads.bias[h])
        mlps.append(mlp.train(heads.training))
    return mlps


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("dimension", "heads", "clusters", "hidden"), [(7, 3, 5, 11), (4, 1, 2, 1)]
)
def test_equals_a_loop_of_independent_mlps(dimension, heads, clusters, hidden, training):
    torch.manual_seed(0)
    module = MultiHeads(dimension, heads, clusters, hidden=hidden, dropout=0.0).double()
    module.norm.running_mean.normal_()
    module.norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(module.norm.weight)
    module.train(training)
    x = torch.randn(9, dimension, dtype=torch.float64)
    y = x.clone().requires_grad_()
    expected = torch.stack([mlp(y) for mlp in independent_mlps(module)])
    x.requires_grad_()
    actual = module(x)
    assert actual.shape == (heads, 9, clusters)
    torch.testing.assert_close(actual, expected)
    weight = torch.randn_like(expected)
    (expected * weight).sum().backward()
    (actual * weight).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_is_drawn_as_independent_linears_are():
    torch.manual_seed(0)
    heads = MultiHeads(64, 8, 16, hidden=100, dropout=0.3)
    single = nn.Linear(100, 16)
    for ours, theirs in ((heads.weight, single.weight), (heads.bias, single.bias)):
        assert ours.abs().max() <= 0.1
        assert 0.7 < ours.std() / theirs.std() < 1.4
    assert not torch.equal(heads.weight[0], heads.weight[1])


def test_permuted_outputs_are_the_old_outputs_in_the_new_order():
    torch.manual_seed(0)
    heads = MultiHeads(6, 4, 7, hidden=5, dropout=0.3).eval()
    x = torch.randn(8, 6)
    before = heads(x)
    permutation = torch.stack([torch.randperm(7) for _ in range(4)])
    heads.permute_outputs(permutation)
    torch.testing.assert_close(heads(x), before.take_along_dim(permutation[:, None], 2))


@pytest.mark.parametrize(
    "permutation", [torch.zeros(2, 3, dtype=torch.int64), torch.arange(3)[None], torch.arange(6)]
)
def test_what_is_no_permutation_is_refused_and_changes_nothing(permutation):
    heads = MultiHeads(4, 2, 3, hidden=5, dropout=0.0)
    before = heads.weight.clone()
    with pytest.raises(ValueError, match="one permutation a head"):
        heads.permute_outputs(permutation)
    assert torch.equal(heads.weight, before)


def test_bfloat16_autocast_gives_float32_logits_near_the_exact_ones():
    torch.manual_seed(0)
    heads = MultiHeads(32, 3, 5, hidden=16, dropout=0.3).eval()
    x = torch.randn(10, 32)
    with torch.autocast("cpu", torch.bfloat16):
        logits = heads(x)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, heads(x), atol=0.02, rtol=0.05)


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    heads = MultiHeads(32, 2, 5, hidden=16, dropout=0.5)
    x = torch.randn(10, 32)
    assert not torch.equal(heads(x), heads(x))
    heads.eval()
    assert torch.equal(heads(x), heads(x))
