"""What k-means reaches without any training, on the same clips."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from selavi import progress
from selavi.data.pooled import CLIP_SHAPE, pooled_clips, pooled_inputs
from selavi.labelling.shared import shared_labels

if TYPE_CHECKING:
    from selavi.data.loader import Batch, ClipLoader
    from selavi.models import AudioVisualModel

# Principal components that k-means sees of each modality.
_COMPONENTS = 50
_BATCHNORM_BATCHES = 20


@torch.no_grad()
def baselines(
    loader: ClipLoader,
    model: AudioVisualModel,
    num_clusters: int,
    seed: int,
    *,
    batch_size: int = 64,
) -> dict[str, np.ndarray]:
    """Cluster the centre views by k-means (best of 10 starts).

    K-means sees each modality's 50 largest principal components, those of two modalities side by
    side. Components scaled to unit variance are tried too, as `..._whitened`: which of the two
    is better depends on the collection, and by much. A clip that lacks a modality gets that
    modality's mean.

    Args:
        loader: of the N clips.
        model: as drawn, not trained. It is left as it is; a copy gets BatchNorm statistics from
            20 batches, as the method itself does before its first round.
        num_clusters: K.
        seed: of k-means and the principal components.
        batch_size: clips that are read at once.

    Returns:
        Name -> (N,) int labels, for what the collection has of
        log_mel: the log-mel spectrogram, averaged down to at most 32 x 32;
        pixels: the frames, averaged down to at most 8 x 16 x 16;
        motion: the same less the clip's mean frame;
        log_mel_and_pixels: both;
        random_encoder: the untrained encoders' embeddings of all modalities;
        or, of given features, video_features, audio_features and video_and_audio_features;
        and each of them whitened; and of two modalities shared_subspace: their canonical variates,
        which is where the tiny preset's training starts from.
    """
    encoder = _with_statistics(model, loader, batch_size, seed)
    rows: dict[str, list[Tensor]] = defaultdict(list)
    every_clip = torch.arange(loader.num_clips)
    batches = loader.batches(every_clip, batch_size=batch_size, augment=False, draw=0)
    with progress.task("describing clips for k-means", loader.num_clips) as advance:
        for batch in batches:
            for name, values in _describe(batch, encoder).items():
                rows[name].append(values.float().cpu())
            advance(len(batch.index))
    single = {name: _components(torch.cat(values), seed) for name, values in rows.items()}
    plain = _joined(single)
    whitened = _joined({name: _whiten(points) for name, points in single.items()})
    points = plain | {f"{name}_whitened": values for name, values in whitened.items()}
    k_means = KMeans(num_clusters, n_init=10, random_state=seed)
    # So few numbers an iteration that a second thread costs more than it brings, much more on a
    # busy machine.
    labels = {}
    with threadpool_limits(1), progress.task("k-means", len(points)) as advance:
        for name, values in points.items():
            labels[name] = k_means.fit_predict(values.numpy())
            advance()
    inputs, present = pooled_clips(loader, batch_size=batch_size)
    if len(inputs) == 2:
        labels["shared_subspace"] = shared_labels(
            inputs, present, num_clusters=num_clusters, num_heads=1, seed=seed
        )[0]
    return labels


def _joined(single: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the baselines that see two modalities; the encoders' embeddings are one of them."""
    points = {name: x for name, x in single.items() if not name.startswith("encoder_")}
    encoded = [x for name, x in single.items() if name.startswith("encoder_")]
    if encoded:
        points["random_encoder"] = torch.cat(encoded, 1)
    for first, second, name in (
        ("log_mel", "pixels", "log_mel_and_pixels"),
        ("video_features", "audio_features", "video_and_audio_features"),
    ):
        if first in points and second in points:
            points[name] = torch.cat([points[first], points[second]], 1)
    return points


def _with_statistics(
    model: AudioVisualModel, loader: ClipLoader, batch_size: int, seed: int
) -> AudioVisualModel:
    """A copy whose BatchNorm statistics are plain averages over some batches of the clips."""
    encoder = copy.deepcopy(model).train()
    for module in encoder.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
            module.reset_running_stats()
    order = torch.randperm(loader.num_clips, generator=torch.Generator().manual_seed(seed))
    some = order[: _BATCHNORM_BATCHES * batch_size]
    for batch in loader.batches(some, batch_size=batch_size, augment=False, draw=0):
        for modality, (values, has) in _modalities(batch).items():
            if has.sum() > 1:
                encoder.embed(**{modality: values[has]})
    return encoder.eval()


def _modalities(batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """Modality -> what the model takes and which rows of it are real."""
    given = {"video": (batch.video, batch.has_video), "audio": (batch.audio, batch.has_audio)}
    return {name: (values, has) for name, (values, has) in given.items() if values is not None}


def _describe(batch: Batch, encoder: AudioVisualModel) -> dict[str, Tensor]:
    """Description -> (B, D), with rows of NaN for clips that lack the modality."""
    every: dict[str, Tensor] = {}
    pooled = pooled_inputs(batch)
    for modality, (values, has) in _modalities(batch).items():
        described: dict[str, Tensor] = {}
        if values.ndim == 2:
            described[f"{modality}_features"] = values
        elif modality == "video":
            frames = pooled[modality].view(len(values), min(values.shape[2], CLIP_SHAPE[0]), -1)
            described["pixels"] = frames.flatten(1)
            described["motion"] = (frames - frames.mean(1, keepdim=True)).flatten(1)
        else:
            described["log_mel"] = pooled[modality]
        if values.ndim > 2:
            embeddings = values.new_zeros(len(values), encoder.embedding_dims[modality])
            if has.any():
                embeddings[has] = encoder.embed(**{modality: values[has]})[modality].float()
            described[f"encoder_{modality}"] = embeddings
        for name, rows in described.items():
            every[name] = rows.where(has[:, None], torch.nan)
    return every


def _components(rows: Tensor, seed: int) -> Tensor:
    """Principal components: (N, D) to (N, at most 50). Rows of NaN become 0, the mean."""
    present = ~rows.isnan().any(1)
    size = min(_COMPONENTS, rows.shape[1], max(int(present.sum()), 1))
    components = rows.new_zeros(len(rows), size)
    if present.any():
        centered = rows[present] - rows[present].mean(0)
        sought = min(size + 20, *centered.shape)  # more than are kept, so that those are exact
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            left, scale, _ = torch.pca_lowrank(centered, sought, center=False, niter=5)
        components[present] = (left * scale)[:, :size]
    return components


def _whiten(components: Tensor) -> Tensor:
    """Unit variance, but for what varies a thousand times less than the first: that is rounding."""
    deviation = components.std(0, correction=0)
    kept = deviation > 1e-3 * deviation[0]
    return components[:, kept] / deviation[kept] if kept.any() else components
