from functools import partial

import numpy as np
import pytest
import torch
import torchaudio

from selavi.data.audio import LogMel, audio_view
from selavi.data.config import AugmentConfig, DataConfig
from selavi.data.rng import uniform

PLAIN = dict(volume_db=0.0)


def config_with(augment=None, **settings):
    values = dict(sample_rate=8000, audio_seconds=1.0, n_mels=32, n_fft=256, audio_norm="fixed")
    return DataConfig(
        **{**values, **settings}, augment=AugmentConfig(**{**PLAIN, **(augment or {})})
    )


def sounds(rows, seconds=1.0, rate=8000):
    t = torch.arange(round(seconds * rate)) / rate
    hertz = 300 + 100 * torch.arange(rows)[:, None]
    wave = torch.sin(2 * torch.pi * hertz * t * (1 + 0.5 * t)) * 8000
    return (wave + 300 * torch.randn(wave.shape, generator=torch.manual_seed(0))).to(torch.int16)


def draws(rows):
    return partial(uniform, 0, 0, np.arange(rows))


def test_log_mel_is_torchaudios():
    config = config_with()
    wave = torch.randn(2, 8000, generator=torch.manual_seed(0)) * 0.1
    reference = torchaudio.transforms.MelSpectrogram(
        8000, n_fft=256, win_length=160, hop_length=80, n_mels=32, pad_mode="constant"
    )
    mel = LogMel(config)(wave)
    assert mel.shape == (2, 1, 32, 101)
    torch.testing.assert_close(mel[:, 0], (reference(wave) + 1e-5).log(), atol=1e-4, rtol=1e-4)


def test_the_papers_spectrogram(recwarn):
    config = DataConfig()
    mel = LogMel(config)(torch.zeros(1, config.num_samples))
    assert mel.shape == (1, 1, 257, 201) and mel.isfinite().all() and not recwarn.list


def test_a_tone_lights_its_band():
    config = config_with(f_min=50.0)
    t = np.arange(8000) / 8000
    mel = LogMel(config)(torch.from_numpy(np.sin(2 * np.pi * 1000 * t)).float()[None])
    band = int(mel.mean(3).argmax())
    edges = torchaudio.functional.melscale_fbanks(129, 50.0, 4000.0, 32, 8000)
    assert edges[:, band].argmax() * 4000 / 128 == pytest.approx(1000, abs=70)


@pytest.mark.parametrize("norm, dims", [("clip", (1, 2, 3)), ("band", (3,))])
def test_norms(norm, dims):
    config = config_with(audio_norm=norm)
    mel = audio_view(sounds(3), LogMel(config), config, None)
    torch.testing.assert_close(mel.mean(dims), torch.zeros_like(mel.mean(dims)), atol=1e-4, rtol=0)
    std = mel.std(dims, correction=0)
    torch.testing.assert_close(std, torch.ones_like(std), atol=1e-2, rtol=0)
    silent = audio_view(torch.zeros(1, 8000, dtype=torch.int16), LogMel(config), config, None)
    assert silent.abs().max() < 1e-2


@pytest.mark.parametrize(
    "strength",
    [
        dict(volume_db=10.0),
        dict(noise_db=5.0),
        dict(audio_stretch=0.3),
        dict(audio_shift=0.2),
        dict(frequency_stretch=0.3),
        dict(frequency_shift=0.2),
        dict(equalizer_db=6.0),
        dict(time_masks=2),
        dict(frequency_masks=2),
    ],
)
def test_every_strength_does_something_for_each_clip_alone(strength):
    rows = 6
    config = config_with(strength)
    log_mel, wave = LogMel(config), sounds(rows)
    plain = audio_view(wave, log_mel, config, None)
    views = audio_view(wave, log_mel, config, draws(rows))
    assert views.shape == plain.shape == (rows, 1, 32, 101)
    assert ((views - plain).abs().flatten(1).max(1).values > 0.03).sum() >= 5
    one = audio_view(wave[3:4], log_mel, config, partial(uniform, 0, 0, np.array([3])))
    torch.testing.assert_close(one[0], views[3], atol=1e-4, rtol=1e-4)


def test_volume_is_a_gain_in_decibels():
    config = config_with(dict(volume_db=10.0))
    log_mel, wave = LogMel(config), sounds(1)
    plain = audio_view(wave, log_mel, config, None)
    louder = audio_view(wave, log_mel, config, lambda purpose, n: np.ones((1, n)))
    change = (louder - plain).mean() * 4  # back to natural logarithms of power
    assert change == pytest.approx(np.log(10), abs=0.05)


def test_masks_cover_stripes_of_at_most_the_given_part():
    rows = 50
    config = config_with(dict(time_masks=1, time_mask=0.3, frequency_masks=1, frequency_mask=0.25))
    log_mel, wave = LogMel(config), sounds(rows)
    views = audio_view(wave, log_mel, config, draws(rows))
    hidden = views == views.mode(-1).values.mode(-1).values[..., None, None]
    times = hidden.all(2)[:, 0].sum(1)
    bands = hidden.all(3)[:, 0].sum(1)
    assert 20 < times.max() <= 0.3 * 101 + 1 and 4 < bands.max() <= 0.25 * 32 + 1


def test_a_shift_moves_the_onset():
    config = config_with(dict(audio_shift=0.25))
    wave = torch.zeros(1, 8000, dtype=torch.int16)
    wave[:, 4000:] = sounds(1)[:, :4000]
    view = audio_view(wave, LogMel(config), config, lambda purpose, n: np.ones((1, n)))
    loud = view[0, 0].mean(0) > -0.5
    assert int(loud.int().argmax()) == pytest.approx(25, abs=3)
