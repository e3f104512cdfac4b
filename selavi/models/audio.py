"""Audio encoders: log-mel spectrograms (B, 1, F, T) to embeddings (B, D)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, ResNet

from selavi.models.config import ModelConfig
from selavi.models.features import features
from selavi.models.video import kaiming_init


def audio_encoder(config: ModelConfig, inputs: int) -> tuple[nn.Module, int]:
    """Build the configured audio encoder.

    Args:
        config: the architecture.
        inputs: channels of the spectrograms (1), or the dimension of given features.

    Returns:
        The module and the dimension D of its embeddings.
    """
    if config.audio == "features":
        return features(inputs)
    if config.audio == "small":
        return SmallAudioEncoder(inputs, config.audio_widths), 10 * config.audio_widths[-1]
    return _resnet9(inputs), 512


def _resnet9(channels: int) -> nn.Module:
    network = ResNet(BasicBlock, [1, 1, 1, 1])
    network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.fc = nn.Identity()
    return network


class SmallAudioEncoder(nn.Module):
    """Residual 2D network on a spectrogram.

    The embedding keeps a coarse layout of frequency and time: (B, 10 * widths[-1]).

    Args:
        channels: channels of the spectrograms.
        widths: channels of the stem and of each stage; each of them halves both axes.
    """

    LAYOUT = (2, 5)

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, widths[0], 5, 2, 2, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.Sequential(
            *(ResidualBlock(before, after) for before, after in pairwise(widths))
        )
        self.embedding_norm = nn.BatchNorm1d(10 * widths[-1])
        kaiming_init(self)

    def forward(self, spectrograms: Tensor) -> Tensor:
        x = spectrograms.contiguous(memory_format=torch.channels_last)
        x = self.stages(self.stem(x))
        return self.embedding_norm(F.adaptive_avg_pool2d(x, self.LAYOUT).flatten(1))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, the first of stride 2, and a 1x1 shortcut."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(before, after, 3, 2, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(before, after, 1, 2, bias=False), nn.BatchNorm2d(after)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x) + self.shortcut(x))
