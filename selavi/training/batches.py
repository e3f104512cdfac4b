"""From a loader's batches to a model's inputs."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from selavi import distributed
from selavi.data.loader import Batch
from selavi.models.audio_visual import AudioVisualModel

#: A modality that a smaller part of a batch has is rare.
RARE = 0.25


def inputs(batch: Batch, modalities: tuple[str, ...]) -> dict[str, Tensor]:
    """Those of the model's modalities that the batch has; a clip without one borrows a neighbour's.

    Borrowed inputs keep BatchNorm's statistics near those of real clips. They never count: the
    loss and the labelling leave them out by `presence`.
    """
    return {
        modality: _lend(getattr(batch, modality), getattr(batch, f"has_{modality}"))
        for modality in modalities
        if getattr(batch, modality) is not None
    }


def presence(batch: Batch, modalities: Iterable[str]) -> dict[str, Tensor]:
    """modality -> (B,) bool."""
    return {modality: getattr(batch, f"has_{modality}") for modality in modalities}


def _lend(values: Tensor, has: Tensor) -> Tensor:
    """Replace rows that are absent by the nearest one before, or else by the last."""
    if bool(has.all()) or not bool(has.any()):
        return values
    position = torch.arange(len(has), device=has.device)
    lender = torch.where(has, position, -1).cummax(0).values
    return values[torch.where(lender >= 0, lender, position[has][-1])]


def hold_rare_statistics(model: AudioVisualModel, batch: Batch) -> None:
    """Leave BatchNorm's statistics of a modality alone that few clips of a batch have.

    The few, lent to the others, would pass for the whole collection.
    """
    for modality, has in presence(batch, model.modalities).items():
        if distributed.any_rank(bool(has.sum() < RARE * len(has)), has.device):
            for part in (model.encoders[modality], model.heads[modality]):
                for module in part.modules():
                    if isinstance(module, nn.modules.batchnorm._BatchNorm):
                        module.eval()


class EpochOrder:
    """Which clips each process sees in which step: a function of (seed, epoch) alone."""

    def __init__(self, num_clips: int, batch_size: int, seed: int) -> None:
        world = distributed.world_size()
        self.num_clips = num_clips
        self.batch_size = min(batch_size, num_clips // world)
        self.steps = num_clips // (self.batch_size * world)
        self.seed = seed

    def indices(self, epoch: int, first_step: int) -> Tensor:
        """This process's clips of an epoch from `first_step` on, in order."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.num_clips, generator=generator)
        mine = order[distributed.rank() :: distributed.world_size()]
        return mine[first_step * self.batch_size : self.steps * self.batch_size]
