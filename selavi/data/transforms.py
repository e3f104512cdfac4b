"""Views of raw frames, a batch at a time on the batch's device.

A view's parameters are drawn for each clip from `rng.uniform`, so what a clip gets does not depend
on the batch that it is in. One `grid_sample` crops, flips, turns and resizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selavi.data.config import AugmentConfig, DataConfig
from selavi.data.rng import between

Draw = Callable[[str, int], np.ndarray]  # (purpose, n) -> (B, n) uniform numbers in [0, 1)

_LUMA = (0.299, 0.587, 0.114)
_BLUR_SIGMA = (0.3, 1.5)  # pixels


def video_view(frames: Tensor, aspect: np.ndarray, config: DataConfig, draw: Draw | None) -> Tensor:
    """Turn raw frames into the video encoder's input.

    Args:
        frames: (B, T, R, R, C) uint8, whole frames squeezed into squares.
        aspect: (B,) width / height of the frames before they were squeezed.
        config: sizes and strengths.
        draw: random numbers for a training view; None for the centre view.

    Returns:
        (B, C', T, S, S) float32, C' = config.video_channels, S = config.frame_size.
    """
    if draw is not None and (config.augment.video_stretch or config.augment.video_shift):
        frames = _retime(frames, draw("video time", 2), config)
    batch, steps, size, _, channels = frames.shape
    planes = frames.permute(0, 1, 4, 2, 3).reshape(batch, steps * channels, size, size)
    grid = _crop_grid(aspect, config, draw).to(frames.device)
    x = F.grid_sample(planes.float().div_(255), grid, padding_mode="border", align_corners=False)
    x = x.view(batch, steps, channels, config.frame_size, config.frame_size)
    if draw is not None:
        augment = config.augment
        if augment.blur_probability:
            x = _blur(x, draw("blur", 2), augment.blur_probability)
        if augment.color_jitter:
            x = _color_jitter(x, draw("color", 3), augment.color_jitter)
    x = x.transpose(1, 2)
    # .45 and .22 are about the mean and deviation of natural videos
    x = standardize(x, (1, 2, 3, 4)) if config.video_norm == "clip" else x.sub_(0.45).div_(0.22)
    return x.contiguous() if config.motion == "none" else _with_motion(x, config.motion)


def _with_motion(x: Tensor, motion: str) -> Tensor:
    """x (B, C, T, S, S) and, as further channels, how it moves."""
    out = x.new_empty(len(x), 2 * x.shape[1], *x.shape[2:])
    still, change = out.chunk(2, dim=1)
    still.copy_(x)
    if motion == "difference":
        change[:, :, 0] = 0
        torch.sub(x[:, :, 1:], x[:, :, :-1], out=change[:, :, 1:])
    else:
        torch.sub(x, x.mean(2, keepdim=True), out=change)
    change.mul_(2)
    return out


def standardize(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Zero mean and unit deviation over `dims`; a constant becomes zero."""
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + 1e-5)


def _retime(frames: Tensor, u: np.ndarray, config: DataConfig) -> Tensor:
    """Stretch about the middle and shift, by picking frames; the first and the last are held."""
    steps = frames.shape[1]
    stretch, shift = (between(-1, 1, u[:, i : i + 1]) for i in (0, 1))
    middle = (steps - 1) / 2
    times = (np.arange(steps) - middle) * (1 + config.augment.video_stretch * stretch) + middle
    times += shift * config.augment.video_shift * config.fps
    picks = torch.from_numpy(np.rint(times).clip(0, steps - 1).astype(np.int64))
    rows = torch.arange(len(frames))[:, None]
    return frames[rows.to(frames.device), picks.to(frames.device)]


def _crop_grid(aspect: np.ndarray, config: DataConfig, draw: Draw | None) -> Tensor:
    """Where each output pixel looks in the squeezed square: (B, S, S, 2) float32 in [-1, 1].

    Lengths below are in units of the frame's height, so that the frame is aspect x 1.
    """
    rows = len(aspect)
    augment: AugmentConfig = config.augment
    short = np.minimum(aspect, 1.0)
    width = height = short * math.sqrt(sum(augment.crop_scale) / 2)
    x = y = np.full(rows, 0.5)
    angle, mirror = np.zeros(rows), np.ones(rows)
    if draw is not None:
        u = draw("crop", 6).T
        side = short * np.sqrt(between(*augment.crop_scale, u[0]))
        ratio = np.exp(math.log(augment.crop_ratio) * between(-0.5, 0.5, u[1]))
        width = np.minimum(side * ratio, aspect)
        height = np.minimum(side / ratio, 1.0)
        x = between(width / 2, aspect - width / 2, u[2]) / aspect
        y = between(height / 2, 1 - height / 2, u[3])
        angle = np.deg2rad(augment.rotate) * between(-1, 1, u[4])
        if augment.flip:
            mirror = np.where(u[5] < 0.5, -1.0, 1.0)
    cos, sin = np.cos(angle), np.sin(angle)
    theta = np.stack(
        [
            np.stack([mirror * width * cos / aspect, -height * sin / aspect, 2 * x - 1], -1),
            np.stack([mirror * width * sin, height * cos, 2 * y - 1], -1),
        ],
        axis=1,
    )
    shape = [rows, 1, config.frame_size, config.frame_size]
    return F.affine_grid(torch.from_numpy(theta).float(), shape, align_corners=False)


def _blur(x: Tensor, u: np.ndarray, probability: float) -> Tensor:
    """Gaussian blur of the drawn clips of x (B, T, C, S, S), both directions in turn."""
    chosen = torch.from_numpy(np.flatnonzero(u[:, 0] < probability)).to(x.device)
    if not len(chosen):
        return x
    radius = math.ceil(2 * _BLUR_SIGMA[1])
    sigma = torch.from_numpy(between(*_BLUR_SIGMA, u[:, 1:])).float().to(x.device)[chosen]
    offset = torch.arange(-radius, radius + 1, device=x.device)
    kernel = torch.exp(-0.5 * (offset / sigma) ** 2)
    kernel /= kernel.sum(1, keepdim=True)
    # a clip is a channel here, so that each is convolved with its own kernel
    y = x[chosen].flatten(1, 2).transpose(0, 1)
    y = F.pad(y, (radius,) * 4, mode="replicate")
    y = F.conv2d(y, kernel[:, None, None, :], groups=len(chosen))
    y = F.conv2d(y, kernel[:, None, :, None], groups=len(chosen))
    return x.index_copy(0, chosen, y.transpose(0, 1).reshape(len(chosen), *x.shape[1:]))


def _color_jitter(x: Tensor, u: np.ndarray, strength: float) -> Tensor:
    """Scale brightness, contrast and (RGB) saturation of x (B, T, C, S, S) in [0, 1], in place."""
    factors = torch.from_numpy(between(1 - strength, 1 + strength, u)).float().to(x.device)
    brightness, contrast, saturation = factors.view(-1, 3, 1, 1, 1, 1).unbind(1)
    # (x - mean) * contrast + mean of the brightened x, in place: memory is what this costs
    mean = x.mean((1, 2, 3, 4), keepdim=True) * brightness
    x.mul_(brightness * contrast).add_(mean * (1 - contrast))
    if x.shape[2] == 3:
        luma = torch.tensor(_LUMA, device=x.device).view(3, 1, 1)
        gray = (x * luma).sum(2, keepdim=True)
        x.mul_(saturation).add_(gray * (1 - saturation))
    return x.clamp_(0, 1)
