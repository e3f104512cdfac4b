"""How the encoders are trained, as plain values."""

import math
from dataclasses import dataclass
from typing import Literal

from selavi.errors import check_ranges


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of the optimisation (stochastic gradient descent with momentum).

    Attributes:
        epochs: passes over the collection.
        min_steps: a small collection is passed over more often, until this many steps are done.
        batch_size: clips a step and process.
        lr: learning rate a process; multiplied by the number of processes.
        lr_schedule: after the warm-up ``constant``, or ``cosine`` down to zero.
        warmup_epochs: linear warm-up of the learning rate.
        momentum, weight_decay: of SGD.
        precision: of the encoders' arithmetic: ``float32``, ``bfloat16`` (autocast), or ``auto``:
            bfloat16 on GPUs that multiply it in hardware and on CPUs with AMX.
        clip_norm: largest gradient norm; 0 switches clipping off.
        bn_warmup_batches: batches that set BatchNorm's statistics before the first round.
        checkpoint_minutes: time between checkpoints within an epoch; every epoch's end and every
            clustering round write one too.
    """

    epochs: int = 200
    min_steps: int = 0
    batch_size: int = 16
    lr: float = 0.01
    lr_schedule: Literal["constant", "cosine"] = "constant"
    warmup_epochs: int = 10
    momentum: float = 0.9
    weight_decay: float = 1e-5
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    clip_norm: float = 0.0
    bn_warmup_batches: int = 20
    checkpoint_minutes: float = 10.0

    def __post_init__(self) -> None:
        check_ranges("training", self, {
            "epochs": (1, math.inf), "min_steps": (0, math.inf), "batch_size": (2, math.inf),
            "lr": (1e-12, 1e6), "warmup_epochs": (0, math.inf), "momentum": (0, 0.9999),
            "weight_decay": (0, 1e3), "clip_norm": (0, math.inf),
            "bn_warmup_batches": (0, math.inf), "checkpoint_minutes": (0, math.inf),
        })  # fmt: skip
