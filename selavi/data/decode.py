"""Decode one window of one file with PyAV: frames by timestamp, sound aligned with them.

Times are in seconds from the container's own start, so a stream that begins late stays late.
Nothing here imports torch: the functions run in the worker processes of `workers.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import Interpolation

_NOT_MEDIA_FORMATS = {"tty", "concat", "hls", "dash"}  # text shown as video, lists of other files
_TICK = 1e-3  # containers round timestamps to a millisecond
_PREROLL = 0.2  # seconds of sound decoded before the window, while codecs settle
_SEEK_FROM = 1.0  # nearer to the start than this, decoding from the start is as fast and safer


@dataclass(frozen=True)
class ClipRequest:
    """One window of one file. `num_frames` or `num_samples` of 0 leaves that modality out."""

    path: str
    num_frames: int
    frame_start: float  # seconds; may lie before the clip's start or run past its end
    fps: float
    size: int  # pixels; whole frames are squeezed into size x size
    gray: bool
    num_samples: int
    sample_start: float
    sample_rate: int


@dataclass(frozen=True)
class DecodedClip:
    """What a file gave for a request; None where a modality was not asked for or not had.

    Attributes:
        frames: (T, size, size, C) uint8, C = 1 (gray) or 3 (RGB), upright.
        waveform: (S,) int16, mono.
        error: why a modality that was asked for is None, else "".
    """

    frames: np.ndarray | None
    waveform: np.ndarray | None
    error: str = ""


def open_media(path: str) -> InputContainer:
    """Open a local media file.

    Raises:
        av.error.FFmpegError, ValueError: it is no media file, or one that points to other files.
    """
    container = av.open(  # "file:" keeps names such as "-x.mp4" and "a:b.mp4" names
        f"file:{path}", container_options={"protocol_whitelist": "file"}
    )
    if container.format.name in _NOT_MEDIA_FORMATS:
        container.close()
        raise ValueError(f"{container.format.long_name} is not a video or sound format")
    return container


def origin(container: InputContainer) -> float:
    """The container's time zero in its streams' own timestamps, in seconds."""
    return (container.start_time or 0) / av.time_base


def decode_clip(request: ClipRequest) -> DecodedClip:
    """Decode one window; never raises on a bad file.

    Frame k is the one shown at `frame_start + k / fps`: the last whose timestamp is not later. The
    first is held before the clip's start and the last past its end. Sound is zero outside the clip.
    Decoding starts at the key frame before the window and ends with the window.
    """
    errors: list[str] = []

    def attempt(decode: Callable[[ClipRequest], np.ndarray], wanted: int) -> np.ndarray | None:
        if not wanted:
            return None
        try:
            return decode(request)
        except (av.error.FFmpegError, ValueError, OSError, MemoryError) as error:
            errors.append(describe(error))
            return None

    frames = attempt(_decode_frames, request.num_frames)
    waveform = attempt(_decode_waveform, request.num_samples)
    return DecodedClip(frames, waveform, "; ".join(errors))


def describe(error: Exception) -> str:
    """One line, without the path that FFmpeg repeats."""
    return str(getattr(error, "strerror", None) or error or type(error).__name__).split("\n")[0]


def video_stream(container: InputContainer) -> av.VideoStream | None:
    """The first real picture stream: cover art does not count."""
    still = av.stream.Disposition.attached_pic
    return next((s for s in container.streams.video if not s.disposition & still), None)


def audio_stream(container: InputContainer) -> av.AudioStream | None:
    """The first sound stream."""
    return next(iter(container.streams.audio), None)


def iterate_frames(
    container: InputContainer, stream: av.VideoStream | av.AudioStream, start: float = 0.0
) -> Iterator[tuple[float, Any]]:
    """Yield (time, frame) in the order of presentation, from `start` or a little before it.

    Damaged packets are skipped; the last error is raised only if no frame was decoded at all.
    """
    stream.codec_context.thread_type = "NONE"  # the parallelism is over files
    zero = origin(container)
    if start > _SEEK_FROM:
        container.seek(round((start + zero) / stream.time_base), stream=stream)
    error: av.error.FFmpegError | None = None
    time, step = None, 0.0
    if stream.type == "video":
        step = 1 / float(stream.average_rate or stream.guessed_rate or 25)
    packet: Any
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.FFmpegError as exception:
            error = exception
            continue
        for frame in frames:
            if frame.time is not None:
                time = frame.time - zero
            else:  # raw streams have no clocks
                time = 0.0 if time is None else time + step
            if stream.type == "audio":
                step = frame.samples / frame.sample_rate
            yield time, frame
    if time is None and error is not None:
        raise error


def _seek_and_iterate(path: str, kind: str, start: float) -> Iterator[tuple[float, Any]]:
    """As `iterate_frames`, and from an earlier point when an index sends us past `start`."""
    for attempt in (start, start - 10.0, 0.0):
        with open_media(path) as container:
            stream = video_stream(container) if kind == "video" else audio_stream(container)
            if stream is None:
                raise ValueError(f"no {kind} stream")
            try:
                first = next(frames := iterate_frames(container, stream, attempt), None)
            except av.error.FFmpegError:
                if attempt <= _SEEK_FROM:
                    raise
                continue
            if attempt <= _SEEK_FROM or (first and first[0] <= start + _TICK):
                if first is None:
                    raise ValueError(f"the {kind} stream gives no frame")
                yield first
                yield from frames
                return


def _decode_frames(request: ClipRequest) -> np.ndarray:
    wanted = request.frame_start + np.arange(request.num_frames) / request.fps + _TICK
    out = np.empty(
        (request.num_frames, request.size, request.size, 1 if request.gray else 3), np.uint8
    )
    filled, shown = 0, None
    for time, frame in _seek_and_iterate(request.path, "video", request.frame_start):
        until = int(np.searchsorted(wanted, time))  # these are shown before this frame is
        if until > filled and shown is not None:
            out[filled:until] = _picture(shown, request)
            filled = until
        if filled == request.num_frames:
            return out
        shown = frame
    out[filled:] = _picture(shown, request)
    return out


def _picture(frame: av.VideoFrame, request: ClipRequest) -> np.ndarray:
    """(size, size, C) uint8, upright."""
    pixels = frame.reformat(
        request.size,
        request.size,
        "gray" if request.gray else "rgb24",
        interpolation=Interpolation.AREA,
        threads=1,
    ).to_ndarray()
    turns = round(frame.rotation / 90)  # counterclockwise quarter turns, as rot90 counts them
    return np.rot90(pixels, turns).reshape(request.size, request.size, -1)


def _decode_waveform(request: ClipRequest) -> np.ndarray:
    out = np.zeros(request.num_samples, np.int16)
    rate = request.sample_rate
    end = request.sample_start + request.num_samples / rate
    resampler, position, expected, heard = None, 0, None, False

    def place(frames: list[av.AudioFrame]) -> None:
        nonlocal position
        for frame in frames:
            chunk = frame.to_ndarray()[0]
            first, last = max(position, 0), min(position + len(chunk), len(out))
            if first < last:
                out[first:last] = chunk[first - position : last - position]
            position += len(chunk)

    start = request.sample_start - _PREROLL
    for time, frame in _seek_and_iterate(request.path, "audio", start):
        heard = True
        if time >= end:
            break
        if expected is None or abs(time - expected) > 0.05:  # the start, or a gap in the stream
            if resampler is not None:
                place(resampler.resample(None))
            resampler = av.AudioResampler("s16", "mono", rate)
            position = round((time - request.sample_start) * rate)
        expected = time + frame.samples / frame.sample_rate
        frame.pts = None  # the resampler counts samples itself
        place(resampler.resample(frame))
    if resampler is not None:
        place(resampler.resample(None))
    if not heard:
        raise ValueError("the audio stream gives no frame")
    return out
