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
        return SmallVideoEncoder(inputs, config.video_widths), 8 * config.video_widths[-1]
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
    """Residual (2+1)D network for a few small frames.

    The embedding keeps a coarse layout of time and space: (B, 8 * widths[-1]).

    Args:
        channels: channels of the frames.
        widths: channels of the stem and of each stage; every stage but the first halves the
            picture, the third and later ones also the time axis.
    """

    LAYOUT = (2, 2, 2)

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(channels, widths[0], (5, 7, 7), (2, 4, 4), (2, 3, 3), bias=False),
            nn.BatchNorm3d(widths[0]),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.Sequential(
            *(
                FactoredBlock(before, after, space=min(index + 1, 2), time=1 if index < 2 else 2)
                for index, (before, after) in enumerate(pairwise(widths))
            )
        )
        self.embedding_norm = nn.BatchNorm1d(8 * widths[-1])
        kaiming_init(self)

    def forward(self, clips: Tensor) -> Tensor:
        x = clips.contiguous(memory_format=torch.channels_last_3d)
        x = self.stages(self.stem(x))
        return self.embedding_norm(F.adaptive_avg_pool3d(x, self.LAYOUT).flatten(1))


class FactoredBlock(nn.Module):
    """3x3 convolution in space, then 3 in time, and a 1x1x1 shortcut."""

    def __init__(self, before: int, after: int, *, space: int, time: int) -> None:
        super().__init__()
        self.space = nn.Sequential(
            nn.Conv3d(before, after, (1, 3, 3), (1, space, space), (0, 1, 1), bias=False),
            nn.BatchNorm3d(after),
            nn.ReLU(inplace=True),
        )
        self.time = nn.Sequential(
            nn.Conv3d(after, after, (3, 1, 1), (time, 1, 1), (1, 0, 0), bias=False),
            nn.BatchNorm3d(after),
        )
        self.shortcut = nn.Sequential(
            nn.Conv3d(before, after, 1, (time, space, space), bias=False), nn.BatchNorm3d(after)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.time(self.space(x)) + self.shortcut(x))


def kaiming_init(network: nn.Module) -> None:
    """Draw every convolution's weights from He's normal distribution, as torchvision does."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
