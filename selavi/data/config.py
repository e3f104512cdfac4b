"""What a clip looks like when it reaches the model, as plain values that YAML can hold."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from selavi.errors import SelaviError, check_ranges

_LARGEST = 1e6  # of what has no bound by itself: keeps infinity and its kin out


@dataclass(frozen=True)
class AugmentConfig:
    """How a training view differs from the centre view. Every strength of 0 switches its part off.

    The time window is always jittered: a training view starts anywhere in its clip, a centre view
    in the middle.

    Raises:
        SelaviError: a value that cannot be met, with its name.
    """

    time_shift: float = 0.0  # seconds by which the window may also leave the clip at either end

    video_stretch: float = 0.0  # frames are played slower or faster by a factor in 1 -/+ this,
    video_shift: float = 0.0  # and this many seconds earlier or later, within the window
    crop_scale: tuple[float, float] = (0.4, 1.0)  # crop area / area of the largest square; the
    # centre view takes the middle of this range
    crop_ratio: float = 1.0  # the crop's width : height is between 1 / this and this
    rotate: float = 0.0  # degrees either way
    flip: bool = True  # mirror left and right in half of the views
    color_jitter: float = 0.0  # brightness, contrast (and saturation) factors in 1 -/+ this
    blur_probability: float = 0.0  # Gaussian blur, sigma 0.3 to 1.5 pixels

    volume_db: float = 6.0  # gain in decibels either way
    noise_db: float = 0.0  # signal-to-noise ratio of added white noise is at least this; 0 = none
    audio_stretch: float = 0.0  # as for video, of the log-mel: factor in 1 -/+ this
    audio_shift: float = 0.0  # seconds
    frequency_stretch: float = 0.0  # the mel axis, factor in 1 -/+ this about its low end
    frequency_shift: float = 0.0  # fraction of all bands, up or down
    equalizer_db: float = 0.0  # deviation of a smooth random gain over the bands
    time_masks: int = 0  # SpecAugment: this many stripes, each up to time_mask of the length
    time_mask: float = 0.2
    frequency_masks: int = 0  # and this many up to frequency_mask of the bands
    frequency_mask: float = 0.2

    def __post_init__(self) -> None:
        many = (0, _LARGEST)
        check_ranges("data.augment", self, {
            "time_shift": many, "video_stretch": (0, 1), "video_shift": many,
            "crop_ratio": (1, _LARGEST), "rotate": many, "color_jitter": (0, 1),
            "blur_probability": (0, 1), "volume_db": many, "noise_db": (-100, 100),
            "audio_stretch": (0, 1), "audio_shift": many, "frequency_stretch": (0, 1),
            "frequency_shift": (0, 1), "equalizer_db": many, "time_masks": many,
            "time_mask": (0, 1), "frequency_masks": many, "frequency_mask": (0, 1),
        })  # fmt: skip
        match self.crop_scale:
            case (int() | float() as low, int() | float() as high) if 0 < low <= high <= 1:
                pass
            case other:
                raise SelaviError(
                    f"data.augment.crop_scale is {list(other)}: give two numbers, "
                    "0 < low <= high <= 1"
                )


@dataclass(frozen=True)
class DataConfig:
    """Shapes and rates of what the model sees.

    Defaults are the paper's: 30 RGB frames of 112 x 112 at 30 fps, and 24 kHz audio as log-mel with
    257 filters, 20 ms windows and 10 ms hops.

    Raises:
        SelaviError: a value that cannot be met, with its name.
    """

    num_frames: int = 30
    fps: float = 30.0
    frame_size: int = 112  # pixels, height and width of what the model sees
    decode_size: int = 160  # pixels, the square that whole frames are squeezed into before crops
    channels: Literal[1, 3] = 3  # gray or RGB
    motion: Literal["none", "difference", "deviation"] = "none"  # append, to each channel, its
    # change since the last frame, or its deviation from the window's mean (both doubled)
    video_norm: Literal["fixed", "clip"] = "fixed"  # (x - .45) / .22, or each clip by its own

    sample_rate: int = 24_000
    audio_seconds: float = 2.0  # shares its middle with the frames
    n_mels: int = 257
    n_fft: int = 1024
    win_ms: float = 20.0
    hop_ms: float = 10.0
    f_min: float = 0.0  # Hz, where the lowest filter begins
    audio_norm: Literal["fixed", "clip", "band"] = "clip"  # (x + 4) / 4; or by each clip's own mean
    # and deviation; or by those of each of its bands over time

    cache_seconds: float = 0.0  # decode once to disk, this much around each middle; 0 = never
    cache_fps: float = 0.0  # frames a second in the cache; 0 = fps
    fit_seconds: float = 0.0  # make the frames' window as long as the median clip, at most this;
    # fps, audio_seconds and cache_seconds scale with it. 0 = take them as they are
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        for name in ("num_frames", "fps", "frame_size", "decode_size", "sample_rate",
                     "audio_seconds", "n_mels", "n_fft", "win_ms", "hop_ms"):  # fmt: skip
            if not 0 < getattr(self, name) < math.inf:
                raise SelaviError(f"data.{name} is {getattr(self, name)}: give a positive number")
        for name in ("cache_seconds", "cache_fps", "fit_seconds"):
            check_ranges("data", self, {name: (0, _LARGEST)})
        if not 0 <= self.f_min < self.sample_rate / 2:
            raise SelaviError(
                f"data.f_min is {self.f_min}: give 0 or more, and less than half of "
                f"data.sample_rate {self.sample_rate}"
            )
        for name, samples in (("win_ms", self.win_length), ("hop_ms", self.hop_length),
                              ("audio_seconds", self.num_samples)):  # fmt: skip
            if samples < 1:
                raise SelaviError(
                    f"data.{name} is {getattr(self, name)}, less than one sample at "
                    f"data.sample_rate {self.sample_rate}: raise it"
                )
        if self.channels not in (1, 3):
            raise SelaviError(f"data.channels is {self.channels}: give 1 (gray) or 3 (RGB)")
        for name, choices in (("video_norm", ("fixed", "clip")),
                              ("motion", ("none", "difference", "deviation")),
            ("audio_norm", ("fixed", "clip", "band"))):  # fmt: skip
            if getattr(self, name) not in choices:
                raise SelaviError(
                    f"data.{name} is {getattr(self, name)!r}: give one of {', '.join(choices)}"
                )
        if self.win_length > self.n_fft:
            raise SelaviError(
                f"data.win_ms {self.win_ms} is {self.win_length} samples, more than data.n_fft "
                f"{self.n_fft}: raise n_fft"
            )
        if 0 < self.cache_seconds < self.span_seconds * (1 - 1e-9):  # `fitted` rounds
            raise SelaviError(
                f"data.cache_seconds {self.cache_seconds} is less than one window of "
                f"{self.span_seconds} s: raise it, or set it to 0 to decode each time"
            )

    def fitted(self, durations: np.ndarray) -> DataConfig:
        """The same with windows that suit clips of these lengths (N,) in seconds; see fit_seconds.

        Fitting is done once: the result has fit_seconds 0.
        """
        if not self.fit_seconds:
            return self
        window = float(np.clip(np.median(durations), self.hop_ms / 1000, self.fit_seconds))
        factor = window / self.window_seconds
        return replace(
            self,
            fps=self.fps / factor,
            audio_seconds=self.audio_seconds * factor,
            cache_seconds=self.cache_seconds * factor,
            cache_fps=self.cache_fps / factor,
            fit_seconds=0.0,
        )

    @property
    def window_seconds(self) -> float:
        """Length of the frames' window."""
        return self.num_frames / self.fps

    @property
    def span_seconds(self) -> float:
        """Length of the longer of the two windows, which share their middle."""
        return max(self.window_seconds, self.audio_seconds)

    @property
    def num_samples(self) -> int:
        """Audio samples in a window."""
        return round(self.audio_seconds * self.sample_rate)

    @property
    def win_length(self) -> int:
        return round(self.win_ms * self.sample_rate / 1000)

    @property
    def hop_length(self) -> int:
        return round(self.hop_ms * self.sample_rate / 1000)

    @property
    def video_channels(self) -> int:
        """Channels of the tensor that reaches the video encoder."""
        return self.channels * (1 if self.motion == "none" else 2)
