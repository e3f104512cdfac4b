"""Where raw windows of clips come from: decoded from files as needed here, or from a cache.

Both (the other is in `cached_source.py`) hand out the same `RawBatch`, so augmentation
(`transforms.py`, `audio.py`) has one path.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from selavi.data.config import DataConfig
from selavi.data.decode import ClipRequest, DecodedClip, decode_clip
from selavi.data.manifest import Manifest
from selavi.data.workers import Failure, check_workers, isolated_map

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clips:
    """What is known of each clip before it is read. All arrays have N entries.

    Attributes:
        start, end: float64 seconds, the part that can be read.
        aspect: float64, width / height as shown.
        has_video, has_audio: bool.
    """

    start: np.ndarray
    end: np.ndarray
    aspect: np.ndarray
    has_video: np.ndarray
    has_audio: np.ndarray

    def __len__(self) -> int:
        return len(self.start)


@dataclass(frozen=True)
class Windows:
    """Which windows to read: clip `index` (B,) int64 from `start` (B,) seconds on.

    A window is `DataConfig.span_seconds` long; frames and sound share its middle.
    """

    index: np.ndarray
    start: np.ndarray


@dataclass(frozen=True)
class RawBatch:
    """Windows as read. Rows whose modality is missing are zeros, and False in `has_*`.

    Attributes:
        index: (B,) int64.
        frames: (B, T, R, R, C) uint8, whole frames squeezed into squares; None if no clip has any.
        waveform: (B, S) int16; None if no clip has any.
        has_video, has_audio: (B,) bool.
    """

    index: np.ndarray
    frames: np.ndarray | None
    waveform: np.ndarray | None
    has_video: np.ndarray
    has_audio: np.ndarray


class ClipSource(Protocol):
    """Reads windows of clips.

    `failures` maps a clip's index to the message of its first failed read.
    """

    clips: Clips
    failures: dict[int, str]

    def read(self, windows: Iterable[Windows]) -> Iterator[RawBatch]:
        """Yield a batch for each item, in order; may read ahead."""
        ...


class FileSource:
    """Decodes each window from its file when it is asked for, in worker processes.

    A file that cannot be decoded (any more) gives zeros and False for that read, is logged once
    and counted in `failures`; the run goes on.

    Args:
        manifest: usable rows; clip i is row i.
        root: the folder that its paths are relative to.
        workers: decoding processes; 0 decodes in this process.
        timeout: seconds for one window.

    Raises:
        SelaviError: `workers` is negative.
    """

    def __init__(
        self,
        manifest: Manifest,
        root: Path,
        config: DataConfig,
        *,
        workers: int,
        timeout: float = 60.0,
    ) -> None:
        table = manifest.table
        self.paths = [os.path.join(root, p) for p in table["path"].to_pylist()]
        self.stamps = list(
            zip(table["size_bytes"].to_pylist(), table["mtime_ns"].to_pylist(), strict=True)
        )
        duration = table["duration"].to_numpy()
        self.clips = Clips(
            start=np.zeros(len(duration)),
            end=duration,
            aspect=table["aspect"].to_numpy(),
            has_video=table["has_video"].to_numpy(),
            has_audio=table["has_audio"].to_numpy(),
        )
        check_workers(workers)
        self.config = config
        self.workers = workers
        self.timeout = timeout
        self.failures: dict[int, str] = {}

    def read(self, windows: Iterable[Windows]) -> Iterator[RawBatch]:
        config = self.config
        waiting: deque[np.ndarray] = deque()

        def requests() -> Iterator[ClipRequest]:
            for window in windows:
                waiting.append(window.index)
                for i, start in zip(window.index, window.start, strict=True):
                    middle = start + config.span_seconds / 2
                    yield self._request(
                        int(i),
                        (config.num_frames, middle - config.window_seconds / 2, config.fps),
                        (config.num_samples, middle - config.audio_seconds / 2),
                    )

        results: list[DecodedClip | Failure] = []
        for result in self._decode(requests()):
            results.append(result)
            if len(results) == len(waiting[0]):
                yield self._collate(waiting.popleft(), results)
                results = []

    def read_whole(
        self, wanted: Windows, frames: tuple[int, float], num_samples: int
    ) -> Iterator[tuple[int, np.ndarray | None, np.ndarray | None]]:
        """Decode a stretch of each wanted clip: (count, fps) frames and `num_samples` of sound.

        Yields each clip's index and what it gave; `failures` are those of this reading.
        """
        count, fps = frames
        index, starts = wanted.index.tolist(), wanted.start.tolist()
        requests = (
            self._request(i, (count, start, fps), (num_samples, start))
            for i, start in zip(index, starts, strict=True)
        )
        self.failures.clear()
        for i, result in zip(index, self._decode(requests), strict=True):
            yield i, *self._arrays(i, result)

    def _decode(self, requests: Iterator[ClipRequest]) -> Iterator[DecodedClip | Failure]:
        return isolated_map(
            decode_clip, requests, workers=self.workers, timeout=self.timeout, lookahead=8
        )

    def _request(
        self, i: int, frames: tuple[int, float, float], sound: tuple[int, float]
    ) -> ClipRequest:
        return ClipRequest(
            path=self.paths[i],
            num_frames=frames[0] if self.clips.has_video[i] else 0,
            frame_start=float(frames[1]),
            fps=frames[2],
            size=self.config.decode_size,
            gray=self.config.channels == 1,
            num_samples=sound[0] if self.clips.has_audio[i] else 0,
            sample_start=float(sound[1]),
            sample_rate=self.config.sample_rate,
        )

    def _arrays(
        self, i: int, result: DecodedClip | Failure
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Frames and waveform, and note a failure the first time."""
        if isinstance(result, Failure):
            result = DecodedClip(None, None, result.message)
        if result.error and i not in self.failures:
            self.failures[i] = result.error
            log.warning("%s cannot be decoded, treated as missing: %s", self.paths[i], result.error)
        return result.frames, result.waveform

    def _collate(self, index: np.ndarray, results: list[DecodedClip | Failure]) -> RawBatch:
        batch = empty_batch(self.clips, self.config, index)
        for row, (i, result) in enumerate(zip(index, results, strict=True)):
            frames, waveform = self._arrays(int(i), result)
            if frames is not None:
                batch.frames[row], batch.has_video[row] = frames, True
            if waveform is not None:
                batch.waveform[row], batch.has_audio[row] = waveform, True
        return batch


def empty_batch(clips: Clips, config: DataConfig, index: np.ndarray) -> RawBatch:
    """Zeros, with nothing marked as there."""
    size, rows = config.decode_size, len(index)
    frames = waveform = None
    if clips.has_video.any():
        frames = np.zeros((rows, config.num_frames, size, size, config.channels), np.uint8)
    if clips.has_audio.any():
        waveform = np.zeros((rows, config.num_samples), np.int16)
    return RawBatch(index, frames, waveform, np.zeros(rows, bool), np.zeros(rows, bool))
