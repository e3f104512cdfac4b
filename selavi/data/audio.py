"""Log-mel spectrograms and their augmentations, a batch at a time on the batch's device."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn

from selavi.data.config import DataConfig
from selavi.data.rng import between
from selavi.data.transforms import Draw, standardize

_FLOOR = 1e-5  # mel power below which all is silence


class LogMel(nn.Module):
    """Waveform (B, S) float32 in [-1, 1] -> log-mel power (B, 1, n_mels, 1 + S // hop) float32."""

    filters: Tensor
    window: Tensor

    def __init__(self, config: DataConfig) -> None:
        super().__init__()
        self.n_fft, self.hop_length = config.n_fft, config.hop_length
        with warnings.catch_warnings():
            # with many filters the lowest are narrower than a bin and empty, as in the paper
            warnings.filterwarnings("ignore", message="At least one mel filterbank")
            filters = torchaudio.functional.melscale_fbanks(
                n_freqs=config.n_fft // 2 + 1,
                f_min=config.f_min,
                f_max=config.sample_rate / 2,
                n_mels=config.n_mels,
                sample_rate=config.sample_rate,
            )
        self.register_buffer("filters", filters.T.contiguous(), persistent=False)
        self.register_buffer("window", torch.hann_window(config.win_length), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        spectrum = torch.stft(
            waveform,
            self.n_fft,
            self.hop_length,
            len(self.window),
            self.window,
            pad_mode="constant",
            return_complex=True,
        )
        # not abs().square(): the complex magnitude costs more than the transform itself
        power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)
        return (self.filters @ power).add_(_FLOOR).log_().unsqueeze(1)


def audio_view(waveform: Tensor, log_mel: LogMel, config: DataConfig, draw: Draw | None) -> Tensor:
    """Turn raw sound into the audio encoder's input.

    Args:
        waveform: (B, S) int16.
        log_mel: on the same device.
        draw: random numbers for a training view; None for the centre view.

    Returns:
        (B, 1, n_mels, T) float32.
    """
    augment = config.augment
    sound = waveform.float() / 32768
    if draw is not None and augment.noise_db:
        sound = _add_noise(sound, draw, augment.noise_db)
    if draw is not None and augment.volume_db:
        decibels = augment.volume_db * between(-1, 1, draw("volume", 1))
        sound = sound * _as(10 ** (decibels / 20), sound)
    mel = log_mel(sound)
    if draw is not None:
        mel = _move(mel, draw, config)
        if augment.equalizer_db:
            mel = mel + _equalizer(draw("equalizer", 4), mel, augment.equalizer_db)
    if config.audio_norm == "clip":
        mel = standardize(mel, (1, 2, 3))
    elif config.audio_norm == "band":
        mel = standardize(mel, (3,))
    else:
        mel = (mel + 4) / 4  # about the mean and deviation of recorded speech
    if draw is not None:
        u = draw("masks", 2 * (augment.frequency_masks + augment.time_masks))
        parts = _as(u, mel).split([2 * augment.frequency_masks, 2 * augment.time_masks], dim=1)
        mel = _mask(mel, parts[0], augment.frequency_mask, dim=2)
        mel = _mask(mel, parts[1], augment.time_mask, dim=3)
    return mel


def _as(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device, like.dtype)


def _add_noise(sound: Tensor, draw: Draw, least_snr: float) -> Tensor:
    """White noise, `least_snr` to `least_snr` + 20 decibels below each clip's mean power."""
    power = sound.square().mean(1, keepdim=True)
    snr = _as(between(least_snr, least_snr + 20, draw("snr", 1)), sound)
    noise = _as(between(-1, 1, draw("noise", sound.shape[1])), sound) * 3**0.5  # unit variance
    return sound + noise * (power * 10 ** (-snr / 10)).sqrt()


def _move(mel: Tensor, draw: Draw, config: DataConfig) -> Tensor:
    """Stretch and shift mel (B, 1, F, T) along both axes by one linear interpolation."""
    augment = config.augment
    sizes = (
        augment.audio_stretch,
        2 * augment.audio_shift / config.audio_seconds,
        augment.frequency_stretch,
        2 * augment.frequency_shift,
    )
    if not any(sizes):
        return mel
    u = between(-1, 1, draw("move", 4)) * np.array(sizes)
    theta = np.zeros((len(mel), 2, 3))
    theta[:, 0, 0], theta[:, 0, 2] = 1 + u[:, 0], u[:, 1]
    theta[:, 1, 1], theta[:, 1, 2] = 1 + u[:, 2], u[:, 2] + u[:, 3]  # the lowest band stays
    grid = F.affine_grid(_as(theta, mel), list(mel.shape), align_corners=False)
    return F.grid_sample(mel, grid, padding_mode="border", align_corners=False)


def _equalizer(u: np.ndarray, mel: Tensor, decibels: float) -> Tensor:
    """A smooth gain over the bands, (B, 1, F, 1) in nepers of power: cosines of random sizes."""
    waves = np.cos(math.pi * np.arange(1, 5)[:, None] * np.linspace(0, 1, mel.shape[2]))
    gain = between(-1, 1, u) * math.sqrt(1.5) @ waves  # of unit variance
    return _as(gain * decibels * math.log(10) / 10, mel)[:, None, :, None]


def _mask(mel: Tensor, u: Tensor, largest: float, dim: int) -> Tensor:
    """Set stripes of up to `largest` of `dim` to each clip's mean; u (B, 2 M) places M of them."""
    if not u.shape[1]:
        return mel
    size = mel.shape[dim]
    widths, places = u.unsqueeze(-1).chunk(2, dim=1)  # (B, M, 1)
    lengths = widths * largest * size
    starts = places * (size - lengths)
    position = torch.arange(size, device=mel.device) + 0.5
    hidden = ((position >= starts) & (position < starts + lengths)).any(1)  # (B, size)
    shape = [len(mel), 1, 1, 1]
    shape[dim] = size
    return torch.where(hidden.view(shape), mel.mean((1, 2, 3), keepdim=True), mel)
