import pytest
import torch

from selavi.errors import SelaviError
from selavi.labelling.assignment import (
    assign,
    clustering_round,
    head_groups,
    mean_log_softmax,
)
from selavi.labelling.config import LabellingConfig
from selavi.labelling.final import joint_log_p, label_clips, solve_labellings
from selavi.labelling.priors import make_prior
from selavi.labelling.selection import head_agreement

CONFIG = LabellingConfig(num_clusters=5, num_heads=4)


def batches(logits: list[torch.Tensor], present: torch.Tensor, size: int = 7):
    for start in range(0, present.shape[1], size):
        index = torch.arange(start, min(start + size, present.shape[1]))
        yield index, [m[:, index] for m in logits], present[:, index]


def test_mean_over_the_modalities_that_are_there() -> None:
    video, audio = torch.randn(2, 4, 20, 5).unbind(0)
    present = torch.ones(2, 20, dtype=torch.bool)
    present[0, 3] = present[1, 5] = present[1, 6] = False
    video[:, 3] = float("nan")
    found = mean_log_softmax([batches([video, audio], present)], 20, 4, 5)
    both = (video.log_softmax(-1) + audio.log_softmax(-1)) / 2
    expected = both.clone()
    expected[:, 3] = audio.log_softmax(-1)[:, 3]
    expected[:, 5:7] = video.log_softmax(-1)[:, 5:7]
    torch.testing.assert_close(found, expected)


def test_mean_over_views() -> None:
    first, second = torch.randn(2, 4, 20, 5).unbind(0)
    present = torch.ones(1, 20, dtype=torch.bool)
    found = mean_log_softmax([batches([first], present), batches([second], present)], 20, 4, 5)
    torch.testing.assert_close(found, (first.log_softmax(-1) + second.log_softmax(-1)) / 2)


@pytest.mark.parametrize("prior", ["uniform", "zipf"])
def test_cluster_sizes_follow_the_prior(prior: str) -> None:
    log_p = torch.randn(4, 400, 5).log_softmax(-1)
    result = assign(log_p, make_prior(prior, 5), CONFIG)
    assert result.converged.all() and (result.error <= CONFIG.tol).all()
    expected = (make_prior(prior, 5) * 400).sort().values
    for labels in result.labels:
        sizes = labels.bincount(minlength=5).sort().values
        assert (sizes - expected).abs().max() < 25  # labels are rounded plans


def test_divergence_is_told() -> None:
    log_p = torch.zeros(1, 10, 5)
    log_p[0, 3, 2] = float("nan")
    with pytest.raises(SelaviError, match="diverged"):
        assign(log_p, make_prior("uniform", 5), CONFIG)


def test_groups_are_halves_and_one_without_a_second_view() -> None:
    groups = head_groups(7, CONFIG, seed=0, round_=3)
    assert sorted(torch.cat(groups).tolist()) == list(range(7))
    assert {len(g) for g in groups} == {3, 4}
    assert any(
        not torch.equal(groups[0], head_groups(7, CONFIG, seed=0, round_=r)[0]) for r in range(5)
    )
    single = LabellingConfig(num_clusters=5, second_view=False)
    assert [g.tolist() for g in head_groups(7, single, seed=0, round_=0)] == [list(range(7))]


def test_round_labels_each_group_from_its_own_draw() -> None:
    logits = torch.randn(2, 4, 60, 5)  # of draws 10 and 11
    present = torch.ones(1, 60, dtype=torch.bool)
    groups = [torch.tensor([0, 3]), torch.tensor([1, 2])]
    prior = make_prior("uniform", 5)
    found, _ = clustering_round(
        lambda heads, draw: batches([logits[draw - 10][heads]], present),
        groups, 60, prior, CONFIG, first_draw=10,
    )  # fmt: skip
    for draw, heads in enumerate(groups):
        alone = assign(logits[draw][heads].log_softmax(-1), prior, CONFIG)
        assert torch.equal(found.labels[heads], alone.labels)


def test_final_labels() -> None:
    config = LabellingConfig(num_clusters=5)
    log_p = {m: torch.randn(80, 5).log_softmax(-1) for m in ("video", "audio")}
    present = {m: torch.ones(80, dtype=torch.bool) for m in log_p}
    present["audio"][:10] = False
    prior = make_prior("uniform", 5)
    solved = solve_labellings(log_p, present, prior, config)
    potentials = {name: solution.potentials[0] for name, solution in solved.items()}
    labels = label_clips(log_p, present, potentials, config.lam)
    joint = assign(joint_log_p(log_p, present)[None], prior, config)
    assert torch.equal(labels.cluster, joint.labels[0])
    assert (labels.by_modality["audio"] == -1).nonzero().flatten().tolist() == list(range(10))
    assert labels.agreement[:10].isnan().all()
    assert ((labels.agreement[10:] >= 0) & (labels.agreement[10:] <= 1)).all()
    assert ((labels.confidence > 0.2 - 1e-6) & (labels.confidence <= 1)).all()


def test_the_odd_head_agrees_least() -> None:
    labels = torch.arange(100).div(20, rounding_mode="floor").repeat(4, 1)
    labels[2] = labels[2][torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    assert head_agreement(labels).argmin() == 2
    assert head_agreement(labels[:1]).tolist() == [1.0]


def test_memory_mixes_in_the_rounds_before() -> None:
    logits = torch.randn(2, 4, 60, 5)
    present = torch.ones(1, 60, dtype=torch.bool)
    config = LabellingConfig(num_clusters=5, second_view=False, memory=0.25)
    prior = make_prior("uniform", 5)
    store = None
    for number in range(2):
        found, store = clustering_round(
            lambda heads, draw: batches([logits[draw][heads]], present),
            [torch.arange(4)], 60, prior, config, number, store,
        )  # fmt: skip
    expected = 0.25 * logits[0].log_softmax(-1) + 0.75 * logits[1].log_softmax(-1)
    torch.testing.assert_close(store, expected)
    assert torch.equal(found.labels, assign(expected, prior, config).labels)


def test_clips_that_could_not_be_read_take_no_part() -> None:
    config = LabellingConfig(num_clusters=4)
    log_p = torch.randn(1, 100, 4).log_softmax(-1)
    log_p[:, 40:] = 0
    prior = make_prior("uniform", 4)
    alone = assign(log_p[:, :40], prior, config)
    assert torch.equal(assign(log_p, prior, config).labels[:, :40], alone.labels)
    present = {"video": torch.arange(100) < 40}
    labels = label_clips({"video": log_p[0]}, present, {"joint": alone.potentials[0]}, config.lam)
    assert (labels.cluster[40:] == -1).all() and labels.confidence[40:].isnan().all()
    with pytest.raises(SelaviError, match="no clip could be read"):
        assign(torch.zeros(1, 10, 4), prior, config)
