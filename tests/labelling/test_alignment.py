import torch

from selavi.labelling.alignment import align_modalities, alignment_cost


def test_recovers_a_permutation() -> None:
    generator = torch.Generator().manual_seed(0)
    video = 4 * torch.randn(3, 50, 7, generator=generator)
    order = torch.stack([torch.randperm(7, generator=generator) for _ in range(3)])
    audio = video.take_along_dim(order.argsort(1)[:, None], 2)
    found = align_modalities(alignment_cost(video, audio))
    assert torch.equal(audio.take_along_dim(found[:, None], 2), video)


def test_costs_of_batches_add_up() -> None:
    video, audio = torch.randn(2, 2, 30, 5).unbind(0)
    whole = alignment_cost(video, audio)
    parts = alignment_cost(video[:, :11], audio[:, :11]) + alignment_cost(
        video[:, 11:], audio[:, 11:]
    )
    torch.testing.assert_close(whole, parts, rtol=1e-6, atol=1e-5)


def test_nothing_to_compare_keeps_the_order() -> None:
    assert align_modalities(torch.zeros(2, 4, 4)).tolist() == [[0, 1, 2, 3]] * 2
