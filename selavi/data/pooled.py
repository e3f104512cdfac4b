"""Small descriptions of clips that need no encoder."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selavi import distributed
from selavi.data.loader import Batch, ClipLoader

#: Largest (mels, steps) of a spectrogram and (frames, height, width) of a clip.
SPECTROGRAM_SHAPE = (32, 32)
CLIP_SHAPE = (8, 16, 16)


def pooled_inputs(batch: Batch) -> dict[str, Tensor]:
    """What the collection has of "video" and "audio", averaged down: (B, F) float32 each.

    Log-mel spectrograms shrink to at most 32 x 32 and frames to at most 8 x 16 x 16, of the first
    channel; given features stay as they are. Rows of clips that lack the modality mean nothing.
    """
    pooled = {}
    if batch.video is not None:
        pooled["video"] = batch.video
        if batch.video.ndim > 2:
            frames = batch.video[:, :1]
            pooled["video"] = F.adaptive_avg_pool3d(frames, _at_most(frames, CLIP_SHAPE)).flatten(1)
    if batch.audio is not None:
        pooled["audio"] = batch.audio
        if batch.audio.ndim > 2:
            shape = _at_most(batch.audio, SPECTROGRAM_SHAPE)
            pooled["audio"] = F.adaptive_avg_pool2d(batch.audio, shape).flatten(1)
    return pooled


def pooled_clips(
    loader: ClipLoader, *, batch_size: int, on_batch: Callable[[int], None] = lambda count: None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """`pooled_inputs` of all centre views, modality -> (N, F), and modality -> (N,) presence.

    Each rank reads its share and gets all.
    """
    inputs: dict[str, list[Tensor]] = {}
    present: dict[str, list[Tensor]] = {}
    shard = distributed.shard(loader.num_clips)
    for batch in loader.batches(shard, batch_size=batch_size, augment=False, draw=0):
        pooled = pooled_inputs(batch)
        for modality, values in pooled.items():
            inputs.setdefault(modality, []).append(values)
            present.setdefault(modality, []).append(getattr(batch, f"has_{modality}"))
        on_batch(len(batch.index))

    def whole(parts: dict[str, list[Tensor]]) -> dict[str, np.ndarray]:
        return {
            m: distributed.gather_shards(torch.cat(p), loader.num_clips, 0).cpu().numpy()
            for m, p in parts.items()
        }

    return whole(inputs), whole(present)


def _at_most(values: Tensor, shape: tuple[int, ...]) -> list[int]:
    return [min(has, most) for has, most in zip(values.shape[2:], shape, strict=True)]
