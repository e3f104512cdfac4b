"""Where raw windows of clips come from: decoded from files as needed, or from a cache on disk.

Both hand out the same `RawBatch`, so augmentation (`transforms.py`, `audio.py`) has one path.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from selavi.data.config import DataConfig
from selavi.data.decode import ClipRequest, DecodedClip, decode_clip
from selavi.data.manifest import Manifest
from selavi.data.workers import Failure, isolated_map
from selavi.errors import SelaviError

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
        self, frames: tuple[int, float], num_samples: int, starts: np.ndarray
    ) -> Iterator[tuple[np.ndarray | None, np.ndarray | None]]:
        """Decode one stretch of every clip: (count, fps) frames and `num_samples` from `starts`."""
        count, fps = frames
        requests = (
            self._request(i, (count, start, fps), (num_samples, start))
            for i, start in enumerate(starts.tolist())
        )
        for i, result in enumerate(self._decode(requests)):
            yield self._arrays(i, result)

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


class CachedSource:
    """Reads windows from memory-mapped arrays that hold the middle of every clip.

    The cache holds `config.cache_seconds` around each clip's middle at `config.cache_fps`; windows
    are taken from there. It is a folder named by a hash of the files and of the settings that
    matter, so another collection or another setting builds another, and the same is used again.

    Args:
        files: where the clips are decoded from when there is no cache yet.
        folder: caches are subfolders of it.
        on_progress: called with (clips done, clips in all) while a cache is built.

    Raises:
        SelaviError: there is not enough space on the disk.
    """

    def __init__(
        self,
        files: FileSource,
        folder: Path,
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        config, clips = files.config, files.clips
        self.config = config
        self.fps = config.cache_fps or config.fps
        self._origin = (clips.start + clips.end - config.cache_seconds) / 2  # of each clip's cache
        self.folder = folder / _cache_key(files)
        if not self.folder.exists():
            self._build(files, on_progress)
        self.frames = self._open("video.npy") if clips.has_video.any() else None
        self.waveform = self._open("audio.npy") if clips.has_audio.any() else None
        found = json.loads((self.folder / "clips.json").read_text())
        self.failures = {int(i): message for i, message in found["failures"].items()}
        self.clips = Clips(
            start=np.maximum(clips.start, self._origin),
            end=np.minimum(clips.end, self._origin + config.cache_seconds),
            aspect=clips.aspect,
            has_video=np.array(found["has_video"], bool),
            has_audio=np.array(found["has_audio"], bool),
        )

    def read(self, windows: Iterable[Windows]) -> Iterator[RawBatch]:
        config = self.config
        steps = np.arange(config.num_frames) / config.fps + 1e-6
        for window in windows:
            index = window.index
            batch = empty_batch(self.clips, config, index)
            middle = window.start + config.span_seconds / 2 - self._origin[index]
            if batch.frames is not None:
                times = (middle - config.window_seconds / 2)[:, None] + steps
                picks = np.floor(times * self.fps).astype(np.int64)
                picks = picks.clip(0, self.frames.shape[1] - 1)
                batch.frames[:] = self.frames[index[:, None], picks]
                batch.has_video[:] = self.clips.has_video[index]
            if batch.waveform is not None:
                firsts = np.round((middle - config.audio_seconds / 2) * config.sample_rate)
                for row, first in enumerate(firsts.astype(np.int64)):
                    low, high = max(0, -first), min(config.num_samples, self._samples - first)
                    if low < high:
                        cached = self.waveform[index[row], first + low : first + high]
                        batch.waveform[row, low:high] = cached
                batch.has_audio[:] = self.clips.has_audio[index]
            yield batch

    @property
    def _samples(self) -> int:
        return round(self.config.cache_seconds * self.config.sample_rate)

    def _open(self, name: str) -> np.ndarray:
        return np.load(self.folder / name, mmap_mode="r")

    def _build(self, files: FileSource, on_progress: Callable[[int, int], None] | None) -> None:
        """Decode every clip once into a temporary folder and rename that when it is complete."""
        config, clips = self.config, files.clips
        count = max(1, round(config.cache_seconds * self.fps))
        video_shape = (len(clips), count, config.decode_size, config.decode_size, config.channels)
        audio_shape = (len(clips), self._samples)
        needed = int(clips.has_video.any()) * int(np.prod(video_shape, dtype=np.int64))
        needed += int(clips.has_audio.any()) * 2 * int(np.prod(audio_shape, dtype=np.int64))
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        if needed > (free := shutil.disk_usage(self.folder.parent).free):
            raise SelaviError(
                f"the decoded clips need {needed / 2**30:.1f} GiB and {self.folder.parent} has "
                f"{free / 2**30:.1f} GiB free: set data.cache_seconds to 0 or free some space"
            )
        temporary = Path(tempfile.mkdtemp(prefix=".building-", dir=self.folder.parent))
        try:
            video = audio = None
            if clips.has_video.any():
                video = _new_array(temporary / "video.npy", np.uint8, video_shape)
            if clips.has_audio.any():
                audio = _new_array(temporary / "audio.npy", np.int16, audio_shape)
            has_video, has_audio = np.zeros((2, len(clips)), bool)
            stretches = files.read_whole((count, self.fps), self._samples, self._origin)
            for i, (frames, waveform) in enumerate(stretches):
                if frames is not None:
                    video[i], has_video[i] = frames, True
                if waveform is not None:
                    audio[i], has_audio[i] = waveform, True
                if on_progress:
                    on_progress(i + 1, len(clips))
            found = {"has_video": has_video.tolist(), "has_audio": has_audio.tolist()}
            found["failures"] = files.failures
            for array in (video, audio):
                if array is not None:
                    array.flush()
            (temporary / "clips.json").write_text(json.dumps(found))
            try:
                temporary.rename(self.folder)
            except OSError:
                if not self.folder.exists():  # else another process has built the same meanwhile
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _new_array(path: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def _cache_key(files: FileSource) -> str:
    """Names the cache: the files as they were scanned, and what shapes the decoded arrays."""
    c = files.config
    settings = (c.cache_seconds, c.cache_fps or c.fps, c.decode_size, c.channels, c.sample_rate)
    digest = hashlib.sha256(repr(settings).encode())
    for path, stamp in zip(files.paths, files.stamps, strict=True):
        digest.update(os.fsencode(os.path.realpath(path)) + repr(stamp).encode())
    return digest.hexdigest()[:16]
