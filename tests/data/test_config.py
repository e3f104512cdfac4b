import numpy as np
import pytest

from selavi.data.config import AugmentConfig, DataConfig
from selavi.errors import SelaviError


def test_the_defaults_are_the_papers():
    config = DataConfig()
    assert (config.num_frames, config.fps, config.frame_size, config.channels) == (30, 30, 112, 3)
    assert (config.sample_rate, config.n_mels, config.n_fft) == (24_000, 257, 1024)
    assert (config.win_length, config.hop_length) == (480, 240)
    assert config.window_seconds == 1.0 and config.span_seconds == 2.0


def test_windows_fit_the_clips():
    config = DataConfig(
        num_frames=16, fps=16, audio_seconds=1.2, cache_seconds=1.5, fit_seconds=2.0
    )
    short = config.fitted(np.array([0.5, 0.6, 9.0]))
    assert (short.window_seconds, short.audio_seconds) == pytest.approx((0.6, 0.72))
    assert short.cache_seconds == pytest.approx(0.9)
    long = config.fitted(np.array([8.0, 9.0, 10.0]))
    assert long.window_seconds == pytest.approx(2.0)
    assert short.fitted(np.array([5.0])) == short
    assert DataConfig().fitted(np.array([5.0])) == DataConfig()


@pytest.mark.parametrize(
    "values, words",
    [
        ({"fps": 0}, "data.fps is 0"),
        ({"channels": 2}, "data.channels is 2"),
        ({"motion": "fast"}, "data.motion is 'fast'"),
        ({"win_ms": 100.0}, "raise n_fft"),
        ({"cache_seconds": 1.0}, "data.cache_seconds 1.0"),
        ({"fps": float("nan")}, "data.fps is nan"),
        ({"audio_seconds": float("inf")}, "data.audio_seconds is inf"),
        ({"audio_seconds": 1e-6}, "data.audio_seconds is 1e-06, less than one sample"),
        ({"hop_ms": 0.001}, "data.hop_ms"),
        ({"cache_seconds": -1.0}, "data.cache_seconds is -1.0"),
        ({"f_min": 12_000.0}, "data.f_min is 12000.0"),
    ],
)
def test_bad_values_are_named(values, words):
    with pytest.raises(SelaviError, match=words):
        DataConfig(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"crop_scale": (0.9, 0.5)},
        {"crop_scale": (0.5,)},
        {"crop_scale": ("a", 1.0)},
        {"crop_ratio": 0.0},
        {"time_masks": -1},
        {"frequency_mask": 1.5},
        {"blur_probability": -0.1},
        {"color_jitter": float("nan")},
        {"time_shift": float("inf")},
    ],
)
def test_bad_augmentation_is_named(values):
    with pytest.raises(SelaviError, match=rf"data\.augment\.{next(iter(values))} is "):
        AugmentConfig(**values)


def test_a_cache_as_long_as_the_window_survives_fitting():
    config = DataConfig(audio_seconds=1.0, cache_seconds=1.0, fit_seconds=5.0)
    for seconds in np.linspace(0.1, 4.9, 200):
        assert config.fitted(np.array([seconds])).fit_seconds == 0
