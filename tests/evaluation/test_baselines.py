from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from selavi.data.loader import Batch, FeatureLoader
from selavi.evaluation import baselines, cluster_metrics
from selavi.evaluation.baselines import _components, _whiten
from selavi.models import AudioVisualModel, ModelConfig

CLASSES = 3
NAMES = {"log_mel", "pixels", "motion", "log_mel_and_pixels", "random_encoder"}
SMALL = ModelConfig(video_widths=(4, 6), audio_widths=(4, 6), hidden=8)


@dataclass
class ClipsInMemory:
    """A loader of given clips."""

    video: Tensor | None
    audio: Tensor | None
    has_audio_row: Tensor

    def __post_init__(self):
        self.num_clips = len(self.has_audio_row)
        self.has_video, self.has_audio = self.video is not None, self.audio is not None

    def batches(self, indices, *, batch_size, augment, draw):
        assert not augment
        for index in indices.split(batch_size):
            video = self.video[index] if self.has_video else None
            audio = self.audio[index] if self.has_audio else None
            has_video = torch.full_like(index, self.has_video, dtype=torch.bool)
            yield Batch(index, video, audio, has_video, self.has_audio_row[index])


def collection(n=90, *, video=True, audio=True):
    """Clips whose class shows in the picture and in the sound."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(n) % CLASSES
    clips = torch.randn(CLASSES, 1, 4, 16, 16, generator=generator)[truth]
    clips = clips + 0.3 * torch.randn(clips.shape, generator=generator)
    sounds = torch.randn(CLASSES, 1, 20, 30, generator=generator)[truth]
    sounds = sounds + 0.3 * torch.randn(sounds.shape, generator=generator)
    loader = ClipsInMemory(
        clips if video else None, sounds if audio else None, torch.full((n,), audio)
    )
    modalities = [m for m, given in (("video", video), ("audio", audio)) if given]
    torch.manual_seed(0)
    model = AudioVisualModel(
        SMALL, num_clusters=CLASSES, num_heads=2, modalities=modalities, video_inputs=1
    )
    return loader, model, truth


def test_classes_that_show_in_the_clips_are_found():
    loader, model, truth = collection()
    found = baselines(loader, model, CLASSES, 0, batch_size=32)
    assert set(found) == NAMES | {f"{name}_whitened" for name in NAMES} | {"shared_subspace"}
    for name in NAMES:
        assert cluster_metrics(found[name], truth)["nmi"] > 0.8, name


def test_a_seed_gives_the_same_labels_and_the_model_is_left_alone():
    loader, model, _ = collection()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (baselines(loader, model, CLASSES, 7, batch_size=20) for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("video", "expected"),
    [(True, {"pixels", "motion", "random_encoder"}), (False, {"log_mel", "random_encoder"})],
)
def test_one_modality_alone(video, expected):
    loader, model, truth = collection(video=video, audio=not video)
    found = baselines(loader, model, CLASSES, 0)
    assert {name for name in found if not name.endswith("_whitened")} == expected
    assert cluster_metrics(found["random_encoder"], truth)["nmi"] > 0.8


def test_clips_without_sound_still_get_a_label():
    loader, model, truth = collection()
    loader.has_audio_row = torch.arange(90) >= 40
    loader.audio = loader.audio * loader.has_audio_row[:, None, None, None]
    found = baselines(loader, model, CLASSES, 0, batch_size=32)  # the first batch has no sound
    assert all(labels.shape == (90,) for labels in found.values())
    heard = loader.has_audio_row
    assert cluster_metrics(found["log_mel"][heard], truth[heard])["nmi"] > 0.6
    assert cluster_metrics(found["log_mel_and_pixels"], truth)["nmi"] > 0.6


def test_given_features():
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(60) % CLASSES
    video = 5 * torch.eye(CLASSES)[truth] + 0.1 * torch.randn(60, CLASSES, generator=generator)
    audio = torch.randn(60, 4, generator=generator)
    audio[5] = torch.nan
    config = ModelConfig(video="features", audio="features", hidden=8)
    model = AudioVisualModel(
        config, num_clusters=CLASSES, num_heads=2, video_inputs=CLASSES, audio_inputs=4
    )
    found = baselines(FeatureLoader(video, audio), model, CLASSES, 0)
    names = {"video_features", "audio_features", "video_and_audio_features"}
    assert set(found) == names | {f"{name}_whitened" for name in names} | {"shared_subspace"}
    assert cluster_metrics(found["video_features"], truth)["nmi"] > 0.9


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_clips_without_any_variation():
    loader, model, _ = collection(n=6)
    loader.video = torch.zeros_like(loader.video)
    found = baselines(loader, model, 2, 0)
    assert (
        np.unique(found["motion"]).tolist() == np.unique(found["motion_whitened"]).tolist() == [0]
    )


def test_components_are_the_principal_ones_and_whitened_ones_have_unit_variance():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 5, generator=generator) * torch.tensor([9.0, 5, 3, 1e-5, 0]) + 7
    state = torch.get_rng_state()
    components = _components(rows, 0)
    assert torch.equal(torch.get_rng_state(), state)
    expected = torch.linalg.svdvals(rows.double() - rows.double().mean(0))[:3].float()
    torch.testing.assert_close(components.norm(dim=0)[:3], expected, rtol=1e-3, atol=0)
    white = _whiten(components)
    assert white.shape == (200, 3)
    torch.testing.assert_close(white.T @ white / 200, torch.eye(3), atol=1e-3, rtol=0)
