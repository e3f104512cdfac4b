"""The model: an encoder and H heads a modality."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from selavi.models.audio import audio_encoder
from selavi.models.config import MODALITIES, ModelConfig
from selavi.models.heads import MultiHeads
from selavi.models.video import video_encoder


class AudioVisualModel(nn.Module):
    """Encoders and heads of the modalities that a collection has.

    In training mode BatchNorm needs two clips or more of each modality that is given. The two
    modalities of one call may hold different numbers of clips.

    Args:
        config: the architecture.
        num_clusters: K.
        num_heads: H, of each modality.
        modalities: "video", "audio" or both; a modality that is left out has no parameters.
        video_inputs: channels of the clips, or the dimension of given video features.
        audio_inputs: channels of the spectrograms, or the dimension of given audio features.

    Raises:
        ValueError: no modality, or an unknown one.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_clusters: int,
        num_heads: int,
        modalities: Sequence[str] = MODALITIES,
        video_inputs: int = 3,
        audio_inputs: int = 1,
    ) -> None:
        super().__init__()
        if not modalities or not set(modalities) <= set(MODALITIES):
            raise ValueError(f"modalities are {tuple(modalities)}, not some of {MODALITIES}")
        self.config, self.num_clusters, self.num_heads = config, num_clusters, num_heads
        self.modalities = tuple(m for m in MODALITIES if m in modalities)
        self.encoders, self.heads = nn.ModuleDict(), nn.ModuleDict()
        self.embedding_dims: dict[str, int] = {}
        builders = {"video": (video_encoder, video_inputs), "audio": (audio_encoder, audio_inputs)}
        for modality in self.modalities:
            build, inputs = builders[modality]
            self.encoders[modality], dimension = build(config, inputs)
            self.embedding_dims[modality] = dimension
            self.heads[modality] = MultiHeads(
                dimension, num_heads, num_clusters, hidden=config.hidden, dropout=config.dropout
            )

    def embed(self, video: Tensor | None = None, audio: Tensor | None = None) -> dict[str, Tensor]:
        """Embeddings (B, D) of each modality that is given.

        Args:
            video: (B, C, T, S, S) clips, or (B, D) features, or None.
            audio: (B, 1, F, T) log-mel spectrograms, or (B, D) features, or None.

        Raises:
            ValueError: an input of a modality that the model lacks, or no input.
        """
        given = {m: x for m, x in (("video", video), ("audio", audio)) if x is not None}
        if not given or not set(given) <= set(self.modalities):
            raise ValueError(f"the model takes {self.modalities}, got {tuple(given)}")
        return {modality: self.encoders[modality](x) for modality, x in given.items()}

    def classify(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """Logits (H, B, K) of each modality's embeddings (B, D)."""
        return {modality: self.heads[modality](x) for modality, x in embeddings.items()}

    def forward(
        self, video: Tensor | None = None, audio: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Logits (H, B, K) of each modality that is given: `classify(embed(video, audio))`."""
        return self.classify(self.embed(video, audio))
