import pytest

from selavi.data.config import AugmentConfig, DataConfig
from selavi.errors import SelaviError


def test_the_defaults_are_the_papers():
    config = DataConfig()
    assert (config.num_frames, config.fps, config.frame_size, config.channels) == (30, 30, 112, 3)
    assert (config.sample_rate, config.n_mels, config.n_fft) == (24_000, 257, 1024)
    assert (config.win_length, config.hop_length) == (480, 240)
    assert config.window_seconds == 1.0 and config.span_seconds == 2.0


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
