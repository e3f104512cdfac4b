"""Encoders and heads."""

from selavi.models.audio_visual import AudioVisualModel
from selavi.models.checkpoint import load_official
from selavi.models.config import MODALITIES, ModelConfig
from selavi.models.heads import MultiHeads

__all__ = ["MODALITIES", "AudioVisualModel", "ModelConfig", "MultiHeads", "load_official"]
