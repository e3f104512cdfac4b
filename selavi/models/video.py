"""Video encoders: clips (B, C, T, S, S) to embeddings (B, D)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.video import r2plus1d_18

from selavi.models.config import ModelConfig
from selavi.models.features import features


def video_encoder(config: ModelConfig, inputs: int) -> tuple[nn.Module, int]:
    """Build the configured video encoder.

    Args:
        config: the architecture.
        inputs: channels of the clips (1 or 3), or the dimension of given features.

    Returns:
        The module and the dimension D of its embeddings.
    """
    if config.video == "features":
        return features(inputs)
    if config.video == "small":
        return SmallVideoEncoder(inputs, config.video_widths), config.video_widths[-1]
    return _r2plus1d_18(inputs), 512


def _r2plus1d_18(channels: int) -> nn.Module:
    network = r2plus1d_18(weights=None)
    if channels != 3:
        stem = network.stem[0]
        network.stem[0] = nn.Conv3d(
            channels, stem.out_channels, stem.kernel_size, stem.stride, stem.padding, bias=False
        )
        nn.init.kaiming_normal_(network.stem[0].weight, mode="fan_out", nonlinearity="relu")
    network.fc = nn.Identity()
    return network


class SmallVideoEncoder(nn.Module):
    """Residual (2+1)D network for a few small frames, mean-pooled over time and space.

    Args:
        channels: channels of the frames.
        widths: channels of the stem and of each stage; every stage but the first halves the
            picture and the time axis.
    """

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.input_norm = nn.BatchNorm3d(channels, affine=False)
        self.stem = nn.Sequential(
            nn.Conv3d(2 * channels, widths[0], (3, 5, 5), (1, 2, 2), (1, 2, 2), bias=False),
            nn.BatchNorm3d(widths[0]),
            nn.ReLU(inplace=True),
            nn.MaxPool3d((1, 2, 2), ceil_mode=True),
        )
        self.stages = nn.Sequential(
            *(
                FactoredBlock(before, after, stride=1 if index == 0 else 2)
                for index, (before, after) in enumerate(pairwise(widths))
            )
        )
        self.embedding_norm = nn.BatchNorm1d(widths[-1])
        kaiming_init(self)

    def forward(self, clips: Tensor) -> Tensor:
        frames = self.input_norm(clips)
        # What moves is told apart from what is there: the second half is each frame's
        # difference from the clip's mean, at a scale near the frame's own.
        motion = 2 * (frames - frames.mean(2, keepdim=True))
        features = self.stages(self.stem(torch.cat([frames, motion], 1)))
        return self.embedding_norm(features.mean((2, 3, 4)))


class FactoredBlock(nn.Module):
    """3x3 convolution in space, then 3 in time, and a 1x1x1 shortcut."""

    def __init__(self, before: int, after: int, *, stride: int) -> None:
        super().__init__()
        self.space = nn.Sequential(
            nn.Conv3d(before, after, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
            nn.BatchNorm3d(after),
            nn.ReLU(inplace=True),
        )
        self.time = nn.Sequential(
            nn.Conv3d(after, after, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False),
            nn.BatchNorm3d(after),
        )
        self.shortcut = nn.Sequential(
            nn.Conv3d(before, after, 1, stride, bias=False), nn.BatchNorm3d(after)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.time(self.space(x)) + self.shortcut(x))


def kaiming_init(network: nn.Module) -> None:
    """Draw every convolution's weights from He's normal distribution, as torchvision does."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
