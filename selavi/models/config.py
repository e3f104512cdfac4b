"""What the two encoders and their heads are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selavi.errors import SelaviError

MODALITIES = ("video", "audio")
VIDEO_ENCODERS = ("r2plus1d_18", "small", "features")
AUDIO_ENCODERS = ("resnet9", "small", "features")


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of an `AudioVisualModel`. Every field is a plain YAML value.

    Attributes:
        video: "r2plus1d_18" (the paper's), "small" (for CPUs) or "features" (input is already
            a vector a clip, from somebody else's encoder).
        audio: "resnet9" (the paper's), "small" or "features".
        hidden: width of each head's hidden layer.
        dropout: probability, before and after the hidden layer of each head.
        video_widths: channels of the small video encoder's stem and of each stage after it.
        audio_widths: the same for the small audio encoder.

    Raises:
        SelaviError: an unknown encoder, a width below 1, or a dropout outside [0, 1).
    """

    video: str = "small"
    audio: str = "small"
    hidden: int = 512
    dropout: float = 0.3
    video_widths: Sequence[int] = (24, 48, 96, 192)
    audio_widths: Sequence[int] = (32, 64, 128, 256)

    def __post_init__(self) -> None:
        for name, known in (("video", VIDEO_ENCODERS), ("audio", AUDIO_ENCODERS)):
            if getattr(self, name) not in known:
                raise SelaviError(
                    f"unknown {name} encoder {getattr(self, name)!r}: choose one of "
                    + ", ".join(known)
                )
        for name in ("video_widths", "audio_widths"):
            widths = tuple(getattr(self, name))  # YAML reads a tuple back as a list
            if not widths or min(widths) < 1:
                raise SelaviError(f"{name} is {list(widths)}: give one or more positive widths")
            object.__setattr__(self, name, widths)
        if self.hidden < 1:
            raise SelaviError(f"hidden is {self.hidden}: give a positive width")
        if not 0 <= self.dropout < 1:
            raise SelaviError(f"dropout is {self.dropout}: give a probability in [0, 1)")
