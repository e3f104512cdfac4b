"""Scan a folder for videos: one row a file, with what it holds or why it cannot be used."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from selavi.atomic import replacing
from selavi.data.cache import writing_cache
from selavi.data.decode import (
    audio_stream,
    describe,
    iterate_frames,
    open_media,
    origin,
    video_stream,
)
from selavi.data.workers import Failure, check_workers, isolated_map
from selavi.errors import SelaviError

SCHEMA = pa.schema(
    [
        ("path", pa.string()),  # posix, relative to the scanned folder
        ("reason", pa.string()),  # "" = usable, else one of REASONS
        ("message", pa.string()),
        ("has_video", pa.bool_()),
        ("has_audio", pa.bool_()),
        ("duration", pa.float64()),  # seconds, the longer of picture and sound
        ("fps", pa.float64()),  # average
        ("width", pa.int32()),  # pixels as coded, before rotation
        ("height", pa.int32()),
        ("rotation", pa.int32()),  # degrees counterclockwise to turn a coded frame upright
        ("aspect", pa.float64()),  # width / height as shown: upright, with square pixels
        ("video_codec", pa.string()),
        ("audio_codec", pa.string()),
        ("sample_rate", pa.int32()),
        ("channels", pa.int32()),
        ("size_bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
    ]
)
REASONS = {
    "hidden": "the name starts with a dot",
    "bad_name": "the name is not valid UTF-8",
    "unreadable": "it cannot be opened, or is no regular file",
    "duplicate": "a link to a file that is scanned too",
    "empty_file": "zero bytes",
    "not_media": "FFmpeg knows no such format",
    "corrupt": "named or built like a video, but nothing in it decodes",
    "no_streams": "a media file with neither picture nor sound",
    "one_frame": "a still picture without sound",
    "crashed": "the decoder crashed on it",
    "timed_out": "the decoder did not answer in time",
}
_TRANSIENT = ("unreadable", "crashed", "timed_out")  # looked at again by the next scan
_MEDIA_SUFFIXES = {
    *(".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"),
    *(".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
    *(".aac", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav"),
}


@dataclass(frozen=True)
class FileInfo:
    """A row of the manifest; the fields are those of `SCHEMA`."""

    path: str
    reason: str = ""
    message: str = ""
    has_video: bool = False
    has_audio: bool = False
    duration: float = 0.0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    rotation: int = 0
    aspect: float = 1.0
    video_codec: str = ""
    audio_codec: str = ""
    sample_rate: int = 0
    channels: int = 0
    size_bytes: int = 0
    mtime_ns: int = 0


@dataclass(frozen=True)
class Manifest:
    """The files of a folder, sorted by path. `table` has `SCHEMA`'s columns."""

    table: pa.Table

    def __len__(self) -> int:
        return self.table.num_rows

    def usable(self) -> Manifest:
        """The files that can be labelled: those with moving pictures, or sound, or both."""
        return Manifest(self.table.filter(pc.equal(self.table["reason"], "")))

    def rejected(self) -> Manifest:
        """The others; their `reason` and `message` say why."""
        return Manifest(self.table.filter(pc.not_equal(self.table["reason"], "")))

    def save(self, path: Path) -> None:
        """Write parquet, atomically."""
        with replacing(path) as temporary:
            pq.write_table(self.table, temporary)

    @staticmethod
    def load(path: Path) -> Manifest:
        """Read what `save` wrote.

        Raises:
            SelaviError: the file is missing or is no manifest of this version.
        """
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise SelaviError(f"{path} cannot be read ({error}): scan the folder again") from error
        if not table.schema.equals(SCHEMA):
            raise SelaviError(f"{path} has other columns: delete it and scan the folder again")
        return Manifest(table)


def scan(
    root: Path,
    *,
    workers: int,
    cache: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    timeout: float = 60.0,
) -> Manifest:
    """Look at every file under `root`, at any depth, in parallel.

    Of each file that opens, the first two frames and the first piece of sound are decoded, so that
    a stream that is only claimed does not count. A picture stream needs two frames: a clip with one
    (or with cover art) and with sound is labelled from its sound, without sound it is rejected.

    Args:
        root: a folder.
        workers: processes (0: in this process, where a decoder's crash would end it).
        cache: a parquet file, read if there and rewritten: files whose path, size and time of
            change are those of an earlier scan are not opened again.
        on_progress: called with (files done, files in all).
        timeout: seconds for one file.

    Raises:
        SelaviError: `root` is no folder, or has no file that can be labelled; `workers` is
            negative; `cache` cannot be written.
    """
    check_workers(workers)
    if not root.is_dir():
        raise SelaviError(f"{root} is not a folder: give a folder of videos")
    known = _read_cache(cache, root)
    rows: dict[str, FileInfo] = {}
    to_probe: list[FileInfo] = []
    for info in _walk(root):
        earlier = known.get(info.path)
        if earlier and (earlier.size_bytes, earlier.mtime_ns) == (info.size_bytes, info.mtime_ns):
            info = earlier
        rows[info.path] = info
        if not info.reason and info is not earlier:
            to_probe.append(info)
    done = len(rows) - len(to_probe)
    # `workers` bounds the processes; few files do not need them all
    results = isolated_map(
        partial(probe, str(root)), to_probe, workers=min(workers, len(to_probe)), timeout=timeout
    )
    for info, result in zip(to_probe, results, strict=True):
        rows[info.path] = _as_row(info, result)
        done += 1
        if on_progress:
            on_progress(done, len(rows))
    columns = [asdict(rows[path]) for path in sorted(rows)]
    manifest = Manifest(pa.Table.from_pylist(columns, schema=SCHEMA))
    if cache is not None:
        _write_cache(manifest, cache, root)
    if not len(manifest.usable()):
        raise SelaviError(_nothing_usable(root, manifest))
    return manifest


def probe(root: str, info: FileInfo) -> FileInfo:
    """Open one file and fill in its row. Never raises for what the file contains."""
    path = os.path.join(root, info.path)
    try:
        container = open_media(path)
    except (av.error.FFmpegError, ValueError, OSError) as error:
        suffix = os.path.splitext(info.path)[1].lower()
        reason = "corrupt" if suffix in _MEDIA_SUFFIXES else "not_media"
        if isinstance(error, PermissionError | FileNotFoundError):
            reason = "unreadable"
        return _with(info, reason=reason, message=describe(error))
    with container:
        if not container.streams.video and not container.streams.audio:
            return _with(info, reason="no_streams", message=REASONS["no_streams"])
        values, frames, errors = _probe_video(container)
    with open_media(path) as container:  # anew: the frames above have used up the packets
        sound, sound_errors = _probe_audio(container)
    values |= sound
    errors += sound_errors
    values["has_video"] = frames > 1
    if frames > 1 or sound:
        with open_media(path) as container:
            values["duration"] = _duration(container)
        return _with(info, **values)
    if frames == 1:
        return _with(info, **values, reason="one_frame", message=REASONS["one_frame"])
    return _with(info, reason="corrupt", message=errors or "no frame and no sound decodes")


def _probe_video(container: av.container.InputContainer) -> tuple[dict[str, Any], int, str]:
    """Columns from the picture stream, how many of its first two frames decode, and an error."""
    if (stream := video_stream(container)) is None:
        return {}, 0, ""
    frames, error = [], ""
    try:
        for _, frame in iterate_frames(container, stream):
            frames.append(frame)
            if len(frames) == 2:
                break
    except (av.error.FFmpegError, ValueError) as exception:
        error = f"picture: {describe(exception)}. "
    if not frames:
        return {}, 0, error
    first = frames[0]
    rotation = round(first.rotation / 90) * 90 % 360
    pixel = float(stream.sample_aspect_ratio or 1) or 1.0
    aspect = first.width * pixel / first.height
    return {
        "fps": float(stream.average_rate or stream.guessed_rate or 0),
        "width": first.width,
        "height": first.height,
        "rotation": rotation,
        "aspect": 1 / aspect if rotation in (90, 270) else aspect,
        "video_codec": stream.codec_context.name,
    }, len(frames), error  # fmt: skip


def _probe_audio(container: av.container.InputContainer) -> tuple[dict[str, Any], str]:
    """Columns from the sound stream if any of it decodes, and an error."""
    if (stream := audio_stream(container)) is None:
        return {}, ""
    try:
        for _, frame in iterate_frames(container, stream):
            return {
                "has_audio": True,
                "audio_codec": stream.codec_context.name,
                "sample_rate": frame.sample_rate,
                "channels": frame.layout.nb_channels,
            }, ""
    except (av.error.FFmpegError, ValueError) as exception:
        return {}, f"sound: {describe(exception)}"
    return {}, "sound: no frame decodes"


def _duration(container: av.container.InputContainer) -> float:
    """Seconds that can really be read.

    A header may give no length, or a length that a truncated file no longer has: believed only if
    there is a packet near its end, else every packet is read (not decoded).
    """
    claimed = (container.duration or 0) / av.time_base
    if claimed > 1.0:
        try:
            container.seek(round((claimed - 1.0 + origin(container)) * av.time_base))
            if _last_packet_end(container) > claimed - 1.5:
                return claimed
            container.seek(round(origin(container) * av.time_base))
        except av.error.FFmpegError:
            pass
    measured = _last_packet_end(container)
    return min(claimed, measured) if claimed and measured else claimed or measured


def _last_packet_end(container: av.container.InputContainer) -> float:
    end = 0.0
    try:
        for packet in container.demux():
            if packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    except av.error.FFmpegError:
        pass  # as far as it goes
    return max(0.0, end - origin(container))


def _with(info: FileInfo, **values: Any) -> FileInfo:
    return FileInfo(**asdict(info) | values)


def _as_row(info: FileInfo, result: FileInfo | Failure) -> FileInfo:
    if isinstance(result, Failure):
        reason = "corrupt" if result.reason == "error" else result.reason
        return _with(info, reason=reason, message=result.message)
    return result


def _walk(root: Path) -> Iterator[FileInfo]:
    """Every file below `root`, with size and time; a reason where it need not be opened.

    Folders are entered once, whatever links lead to them, and hidden folders not at all.
    """
    seen_folders: set[str] = set()
    links: list[str] = []
    targets: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen_folders:
            subfolders.clear()
            continue
        seen_folders.add(real)
        # real folders first, so that a link to a folder of this tree is the one left out
        subfolders[:] = sorted(
            (s for s in subfolders if not s.startswith(".")),
            key=lambda s: (os.path.islink(os.path.join(folder, s)), s),
        )
        for name in sorted(names):
            path = os.path.join(folder, name)
            if os.path.islink(path) and not name.startswith("."):
                links.append(path)
            else:
                targets.add(os.path.realpath(path))
                yield _stat_row(root, path)
    for path in links:
        row = _stat_row(root, path)
        target = os.path.realpath(path)
        if not row.reason and target in targets:
            row = _with(row, reason="duplicate", message="a link to another file here")
        targets.add(target)
        yield row


def _stat_row(root: Path, path: str) -> FileInfo:
    relative = Path(path).relative_to(root).as_posix()
    try:
        relative.encode()
    except UnicodeEncodeError:
        shown = relative.encode(errors="backslashreplace").decode()
        return FileInfo(shown, "bad_name", "rename it: the name is not valid UTF-8")
    if os.path.basename(path).startswith("."):
        return FileInfo(relative, "hidden", REASONS["hidden"])
    try:
        status = os.stat(path)
    except OSError as error:
        return FileInfo(relative, "unreadable", error.strerror or str(error))
    info = FileInfo(relative, size_bytes=status.st_size, mtime_ns=status.st_mtime_ns)
    if not stat.S_ISREG(status.st_mode):  # a pipe or a device, which might block for ever
        return _with(info, reason="unreadable", message="not a regular file")
    if status.st_size == 0:
        return _with(info, reason="empty_file", message=REASONS["empty_file"])
    return info


def _read_cache(cache: Path | None, root: Path) -> dict[str, FileInfo]:
    if cache is None or not cache.exists():
        return {}
    try:
        table = pq.read_table(cache)
    except (OSError, pa.ArrowInvalid):
        return {}  # a cache may always be thrown away
    metadata = dict(table.schema.metadata or {})
    if not table.schema.equals(SCHEMA) or metadata.get(b"root") != _root_key(root):
        return {}
    rows = (FileInfo(**row) for row in table.to_pylist())
    return {row.path: row for row in rows if row.reason not in _TRANSIENT}


def _write_cache(manifest: Manifest, cache: Path, root: Path) -> None:
    table = manifest.table.replace_schema_metadata({b"root": _root_key(root)})
    with writing_cache(cache.parent):
        Manifest(table).save(cache)


def _root_key(root: Path) -> bytes:
    return os.fsencode(root.resolve())


def _nothing_usable(root: Path, manifest: Manifest) -> str:
    if not len(manifest):
        return f"{root} has no files: give a folder of videos"
    counts = manifest.table["reason"].value_counts().to_pylist()
    reasons = ", ".join(f"{c['counts']} {c['values']}" for c in counts)
    return f"{root} has no file that can be labelled ({reasons}): give a folder of videos"
