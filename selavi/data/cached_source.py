"""Windows of clips from a cache on disk that holds the middle of every clip, decoded once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from selavi import distributed
from selavi.atomic import replacing
from selavi.data.cache import writing_cache
from selavi.data.source import Clips, FileSource, RawBatch, Windows, empty_batch
from selavi.errors import SelaviError

_FOUND = "clips.json"  # in a cache: which clips gave pictures and sound, and why others did not


class CachedSource:
    """Reads windows from memory-mapped arrays that hold the middle of every clip.

    The cache holds `config.cache_seconds` around each clip's middle at `config.cache_fps`; windows
    are taken from there. It is a folder named by a hash of the files and of the settings that
    matter, so another collection or another setting builds another, and the same is used again.
    Clips that failed are tried again each time that it is opened: an overloaded machine or a lost
    network folder must not cost a clip for ever.

    Args:
        files: where the clips are decoded from when there is no cache yet.
        folder: caches are subfolders of it.
        on_progress: called with (clips done, clips in all) while a cache is built.

    Raises:
        SelaviError: there is not enough space on the disk, or the cache cannot be written.
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
        elif distributed.is_main():  # the other ranks see what it left
            self._retry(files, on_progress)
        self.frames, self.waveform = self._open(clips, "r")
        found = json.loads((self.folder / _FOUND).read_text())
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
    def _count(self) -> int:
        """Frames of a clip in the cache."""
        return max(1, round(self.config.cache_seconds * self.fps))

    @property
    def _samples(self) -> int:
        return round(self.config.cache_seconds * self.config.sample_rate)

    def _open(self, clips: Clips, mode: Literal["r", "r+"]) -> tuple[np.ndarray | None, ...]:
        """The pictures and the sound, each None if no clip has any."""
        names = (("video.npy", clips.has_video), ("audio.npy", clips.has_audio))
        return tuple(
            np.load(self.folder / name, mmap_mode=mode) if has.any() else None
            for name, has in names
        )

    def _build(self, files: FileSource, on_progress: Callable[[int, int], None] | None) -> None:
        """Decode every clip once into a temporary folder and rename that when it is complete."""
        config, clips = self.config, files.clips
        video_shape = (
            len(clips),
            self._count,
            config.decode_size,
            config.decode_size,
            config.channels,
        )
        audio_shape = (len(clips), self._samples)
        needed = int(clips.has_video.any()) * int(np.prod(video_shape, dtype=np.int64))
        needed += int(clips.has_audio.any()) * 2 * int(np.prod(audio_shape, dtype=np.int64))
        with writing_cache(self.folder.parent), self._replacing_folder(needed) as temporary:
            video = audio = None
            if clips.has_video.any():
                video = _new_array(temporary / "video.npy", np.uint8, video_shape)
            if clips.has_audio.any():
                audio = _new_array(temporary / "audio.npy", np.int16, audio_shape)
            found = {"has_video": [False] * len(clips), "has_audio": [False] * len(clips)}
            self._fill((video, audio), found, files, np.arange(len(clips)), on_progress)
            (temporary / _FOUND).write_text(json.dumps(found))

    def _retry(self, files: FileSource, on_progress: Callable[[int, int], None] | None) -> None:
        """Decode again what failed when this cache was last opened.

        Runs that use the cache meanwhile know the rows that this fills as missing.
        """
        found = json.loads((self.folder / _FOUND).read_text())
        failed = np.array([int(i) for i in found["failures"]], np.int64)
        if not len(failed):
            return
        with writing_cache(self.folder), replacing(self.folder / _FOUND) as temporary:
            self._fill(self._open(files.clips, "r+"), found, files, failed, on_progress)
            temporary.write_text(json.dumps(found))

    def _fill(
        self,
        arrays: tuple[np.ndarray | None, ...],
        found: dict[str, Any],
        files: FileSource,
        index: np.ndarray,
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        """Decode clips `index` into their rows of `arrays`, and note in `found` what they gave."""
        video, audio = arrays
        stretches = files.read_whole(
            Windows(index, self._origin[index]), (self._count, self.fps), self._samples
        )
        for done, (i, frames, waveform) in enumerate(stretches, start=1):
            if frames is not None:
                video[i], found["has_video"][i] = frames, True
            if waveform is not None:
                audio[i], found["has_audio"][i] = waveform, True
            if on_progress:
                on_progress(done, len(index))
        found["failures"] = files.failures
        for array in arrays:
            if array is not None:
                array.flush()

    @contextmanager
    def _replacing_folder(self, needed: int) -> Iterator[Path]:
        """A temporary folder with room for `needed` bytes that becomes the cache when complete."""
        if needed > (free := shutil.disk_usage(self.folder.parent).free):
            raise SelaviError(
                f"the decoded clips need {needed / 2**30:.1f} GiB and {self.folder.parent} has "
                f"{free / 2**30:.1f} GiB free: set data.cache_seconds to 0 or free some space"
            )
        temporary = Path(tempfile.mkdtemp(prefix=".building-", dir=self.folder.parent))
        try:
            yield temporary
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
