"""The learning rate over a run."""

import math

from selavi import distributed
from selavi.training.config import TrainingConfig


def learning_rate(config: TrainingConfig, epoch: float, epochs: int, steps: int) -> float:
    """Linear warm-up, then constant or a cosine to zero; times the number of processes.

    Args:
        epoch: epochs done, a multiple of 1 / steps.
        epochs: of the whole run.
        steps: an epoch.
    """
    lr = config.lr * distributed.world_size()
    if epoch < config.warmup_epochs:
        return lr * (epoch + 1 / steps) / config.warmup_epochs
    if config.lr_schedule == "constant":
        return lr
    left = max(epochs - config.warmup_epochs, 1)
    return lr * 0.5 * (1 + math.cos(math.pi * (epoch - config.warmup_epochs) / left))
