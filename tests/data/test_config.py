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
        ({"augment": AugmentConfig(crop_scale=(0.9, 0.5))}, "crop_scale"),
    ],
)
def test_bad_values_are_named(values, words):
    with pytest.raises(SelaviError, match=words):
        DataConfig(**values)
