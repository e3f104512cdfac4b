"""Batches of views: the one interface through which training and labelling see the data."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from selavi.data.audio import LogMel, audio_view
from selavi.data.cached_source import CachedSource
from selavi.data.config import DataConfig
from selavi.data.manifest import Manifest
from selavi.data.rng import between, uniform
from selavi.data.source import ClipSource, FileSource, RawBatch, Windows
from selavi.data.transforms import video_view
from selavi.errors import SelaviError

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Views of B clips.

    Attributes:
        index: (B,) int64, which clips.
        video: (B, C, T, S, S) float32, or (B, D) features; None if no clip of the collection has
            pictures. Rows without pictures are zeros.
        audio: (B, 1, F, T) float32, or (B, D) features; None if no clip has sound. Rows without
            sound are zeros.
        has_video, has_audio: (B,) bool. Both are False for a clip whose file failed in this draw.
    """

    index: Tensor
    video: Tensor | None
    audio: Tensor | None
    has_video: Tensor
    has_audio: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same on another device."""
        video = None if self.video is None else self.video.to(device, non_blocking=True)
        audio = None if self.audio is None else self.audio.to(device, non_blocking=True)
        return Batch(
            self.index.to(device, non_blocking=True),
            video,
            audio,
            self.has_video.to(device, non_blocking=True),
            self.has_audio.to(device, non_blocking=True),
        )


class ClipLoader(Protocol):
    """Gives views of the clips of one collection."""

    num_clips: int
    has_video: bool  # of any clip
    has_audio: bool

    def batches(
        self, indices: Tensor, *, batch_size: int, augment: bool, draw: int
    ) -> Iterator[Batch]:
        """Yield `indices` (M,) int64 in order, `batch_size` at a time; the last may be smaller.

        With `augment`, the view of clip i is a function of (seed, draw, i) alone (to rounding,
        which may depend on the batch); without, it is the centre view, and `draw` does not matter.
        """
        ...


class PyAVClipLoader:
    """Views of video files, decoded by PyAV directly or by way of a cache.

    Args:
        source: reads raw windows.
        config: the source's.
        seed: of all augmentation.
        device: where views are computed and batches end up.
    """

    def __init__(
        self,
        source: ClipSource,
        config: DataConfig,
        *,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.source = source
        self.config = config
        self.seed = seed
        self.device = torch.device(device)
        self.num_clips = len(source.clips)
        self.has_video = bool(source.clips.has_video.any())
        self.has_audio = bool(source.clips.has_audio.any())
        self._log_mel = LogMel(config).to(self.device)

    def batches(
        self, indices: Tensor, *, batch_size: int, augment: bool, draw: int
    ) -> Iterator[Batch]:
        chunks = [c.numpy() for c in _split(indices, batch_size)]
        windows = (self._windows(chunk, augment, draw) for chunk in chunks)
        with closing(prefetch(self.source.read(windows))) as raw_batches:
            for raw in raw_batches:
                yield self._views(raw, augment, draw)

    def _windows(self, index: np.ndarray, augment: bool, draw: int) -> Windows:
        """Where each window starts; a clip that is shorter lies anywhere within its window."""
        clips, shift = self.source.clips, self.config.augment.time_shift
        low = clips.start[index]
        high = clips.end[index] - self.config.span_seconds
        if not augment:
            return Windows(index, (low + high) / 2)
        first, last = np.minimum(low, high) - shift, np.maximum(low, high) + shift
        return Windows(index, between(first, last, uniform(self.seed, draw, index, "window")[:, 0]))

    @torch.no_grad()
    def _views(self, raw: RawBatch, augment: bool, draw: int) -> Batch:
        random = partial(uniform, self.seed, draw, raw.index) if augment else None
        has_video = torch.from_numpy(raw.has_video).to(self.device)
        has_audio = torch.from_numpy(raw.has_audio).to(self.device)
        video = audio = None
        if raw.frames is not None:
            frames = torch.from_numpy(raw.frames).to(self.device)
            aspect = self.source.clips.aspect[raw.index]
            video = video_view(frames, aspect, self.config, random)
            if not raw.has_video.all():
                video = _zero_missing(video, has_video)
        if raw.waveform is not None:
            waveform = torch.from_numpy(raw.waveform).to(self.device)
            audio = audio_view(waveform, self._log_mel, self.config, random)
            if not raw.has_audio.all():
                audio = _zero_missing(audio, has_audio)
        index = torch.from_numpy(raw.index).to(self.device)
        return Batch(index, video, audio, has_video, has_audio)


def open_loader(
    manifest: Manifest,
    root: Path,
    config: DataConfig,
    *,
    seed: int,
    workers: int,
    cache_folder: Path | None = None,
    device: torch.device | str = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
) -> PyAVClipLoader:
    """A loader for the usable files of a manifest; builds the cache if the config asks for one.

    Args:
        manifest: as scanned; clip i is row i of `manifest.usable()`.
        root: the folder that was scanned.
        cache_folder: needed when `config.cache_seconds` > 0.
        on_progress: called with (clips done, clips in all) while a cache is built.

    Raises:
        SelaviError: `root` does not hold the manifest's files, `workers` is negative, or the cache
            cannot be written.
    """
    usable = manifest.usable()
    _check_root(root, usable)
    files = FileSource(usable, root, config, workers=workers)
    if not config.cache_seconds:
        return PyAVClipLoader(files, config, seed=seed, device=device)
    if cache_folder is None:
        raise SelaviError("data.cache_seconds is set but there is no cache folder: give one")
    cached = CachedSource(files, cache_folder, on_progress=on_progress)
    return PyAVClipLoader(cached, config, seed=seed, device=device)


def _check_root(root: Path, usable: Manifest) -> None:
    """Another folder than the scanned one would give a collection of nothing but failures."""
    if not root.is_dir():
        raise SelaviError(f"{root} is not a folder: give the folder that was scanned")
    paths = usable.table["path"]
    some = [paths[int(i)].as_py() for i in np.linspace(0, len(paths) - 1, min(20, len(paths)))]
    if some and not any((root / path).exists() for path in some):
        raise SelaviError(
            f"{root} does not hold {some[0]} nor other files of the manifest: give the folder "
            "that was scanned"
        )


class FeatureLoader:
    """Somebody else's features in place of clips; nothing is augmented.

    Args:
        video, audio: (N, D) float32, or None. A row of NaN is a clip without that modality.

    Raises:
        SelaviError: both are None, their lengths differ, one is empty or not 2-D, or a value is
            infinite or a lone NaN.
    """

    def __init__(
        self,
        video: Tensor | None,
        audio: Tensor | None,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        given = {"video": video, "audio": audio}
        lengths = {k: len(v) for k, v in given.items() if v is not None}
        if not lengths:
            raise SelaviError("there are no features: give video, audio or both")
        if len(set(lengths.values())) > 1:
            raise SelaviError(
                f"video has {lengths['video']} rows and audio {lengths['audio']}: give one row a "
                "clip in each, NaN where a clip lacks it"
            )
        self.num_clips = next(iter(lengths.values()))
        self.device = torch.device(device)
        self._video, self._has_video = _features("video", video, self.num_clips)
        self._audio, self._has_audio = _features("audio", audio, self.num_clips)
        if len(bad := torch.nonzero(~(self._has_video | self._has_audio))):
            raise SelaviError(f"row {int(bad[0])} has neither video nor audio features: drop it")
        self.has_video = bool(self._has_video.any())
        self.has_audio = bool(self._has_audio.any())

    def batches(
        self, indices: Tensor, *, batch_size: int, augment: bool, draw: int
    ) -> Iterator[Batch]:
        for index in _split(indices, batch_size):
            yield Batch(
                index,
                self._video[index] if self.has_video else None,
                self._audio[index] if self.has_audio else None,
                self._has_video[index],
                self._has_audio[index],
            ).to(self.device)


def _split(indices: Tensor, batch_size: int) -> Sequence[Tensor]:
    """Batches of indices on the CPU; none of none, where `Tensor.split` gives an empty one."""
    return indices.cpu().split(batch_size) if len(indices) else ()


def _features(name: str, values: Tensor | None, rows: int) -> tuple[Tensor | None, Tensor]:
    """The features with zeros for missing rows, and which rows are there."""
    if values is None:
        return None, torch.zeros(rows, dtype=torch.bool)
    if values.ndim != 2 or not values.numel():
        raise SelaviError(f"{name} features have shape {tuple(values.shape)}: give (N, D)")
    values = values.float().clone()
    present = ~values.isnan().all(1)
    if len(bad := torch.nonzero(present & ~values.isfinite().all(1))):
        raise SelaviError(
            f"{name} features of row {int(bad[0])} are not all finite: repair it, or make the "
            "whole row NaN to mark it as missing"
        )
    return _zero_missing(values, present), present


def _zero_missing(values: Tensor, present: Tensor) -> Tensor:
    return values.masked_fill_(~present.view(-1, *[1] * (values.ndim - 1)), 0.0)


def prefetch(items: Iterator[T], depth: int = 2) -> Generator[T, None, None]:
    """Yield `items` while a thread fetches the next `depth` of them.

    Closing this generator stops the thread and closes `items` in it.
    """
    ready: queue.Queue[tuple[str, object]] = queue.Queue(depth)
    stop = threading.Event()

    def put(kind: str, value: object) -> None:
        while not stop.is_set():
            try:
                return ready.put((kind, value), timeout=0.1)
            except queue.Full:
                continue

    def run() -> None:
        try:
            for item in items:
                put("item", item)
                if stop.is_set():
                    break
            put("end", None)
        except BaseException as error:  # raised again in the thread that waits
            put("error", error)
        finally:
            if close := getattr(items, "close", None):
                close()

    thread = threading.Thread(target=run, name="selavi-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value  # type: ignore[misc]
            yield value  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
