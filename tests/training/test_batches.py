import torch

from selavi.data.loader import Batch
from selavi.models import AudioVisualModel, ModelConfig
from selavi.training.batches import EpochOrder, hold_rare_statistics, inputs
from selavi.training.config import TrainingConfig
from selavi.training.learning_rate import learning_rate


def batch_of(has_audio: list[bool]) -> Batch:
    rows = torch.arange(len(has_audio)).float()[:, None]
    has = torch.tensor(has_audio)
    return Batch(
        torch.arange(len(has)), rows.clone(), rows * has[:, None], torch.ones_like(has), has
    )


def test_absent_rows_borrow_the_nearest_before() -> None:
    given = inputs(batch_of([False, True, False, False, True]), ("video", "audio"))
    assert given["video"].flatten().tolist() == [0, 1, 2, 3, 4]
    assert given["audio"].flatten().tolist() == [4, 1, 1, 1, 4]


def test_a_batch_without_a_modality_passes_zeros() -> None:
    assert inputs(batch_of([False] * 3), ("audio",))["audio"].tolist() == [[0.0]] * 3


def test_statistics_of_a_rare_modality_are_left_alone() -> None:
    config = ModelConfig(video="features", audio="features", hidden=4)
    model = AudioVisualModel(config, num_clusters=3, num_heads=2, video_inputs=1, audio_inputs=1)
    model.train()
    batch = batch_of([True] + 7 * [False])
    hold_rare_statistics(model, batch)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(**inputs(batch, model.modalities))
    changed = {name for name, v in model.state_dict().items() if not torch.equal(v, before[name])}
    assert changed and all("video" in name for name in changed)


def test_an_epoch_visits_each_clip_at_most_once_and_resumes_in_order() -> None:
    order = EpochOrder(23, 5, seed=3)
    indices = order.indices(epoch=2, first_step=0)
    assert order.steps == 4 and len(indices) == 20 == len(set(indices.tolist()))
    assert torch.equal(order.indices(2, 3), indices[15:])
    assert not torch.equal(order.indices(3, 0), indices)


def test_fewer_clips_than_a_batch_make_one_step() -> None:
    order = EpochOrder(3, 64, seed=0)
    assert (order.batch_size, order.steps) == (3, 1)


def test_learning_rate_warms_up_and_decays() -> None:
    config = TrainingConfig(lr=1.0, warmup_epochs=2, lr_schedule="cosine")
    rates = [learning_rate(config, step / 10, 12, 10) for step in range(120)]
    assert rates[0] == 1 / 20 and rates[19] == 1.0
    assert rates[20:] == sorted(rates[20:], reverse=True) and rates[-1] < 0.001
    assert learning_rate(TrainingConfig(lr=0.5, warmup_epochs=0), 3.0, 10, 10) == 0.5
