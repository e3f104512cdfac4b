"""Clips that the tests make themselves, and the real ones if they are at hand."""

from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from selavi.data.decode import ClipRequest
from selavi.data.demo import write_clip

RATE = 16_000


def numbered_frames(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frames whose brightness is 8 + 8 k, so that a decoded frame tells which one it is."""
    levels = 8 + 8 * np.arange(count, dtype=np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def tone(seconds: float, onset: float = 0.0, hertz: float = 440.0) -> np.ndarray:
    t = np.arange(round(seconds * RATE)) / RATE
    return (0.5 * np.sin(2 * np.pi * hertz * t) * (t >= onset)).astype(np.float32)


def read_numbers(frames: np.ndarray) -> np.ndarray:
    """The inverse of `numbered_frames`, from (T, H, W, C)."""
    return np.rint((frames.mean((1, 2, 3)) - 8) / 8).astype(int)


def request_for(path: Path, **changes: object) -> ClipRequest:
    """Eight gray frames at 10 fps and 0.8 s of sound from the start, but for `changes`."""
    values = dict(
        path=str(path), num_frames=8, frame_start=0.0, fps=10.0, size=32, gray=True,
        num_samples=12_800, sample_start=0.0, sample_rate=RATE,
    )  # fmt: skip
    return ClipRequest(**{**values, **changes})


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The helpers above: test modules cannot import from here."""
    return SimpleNamespace(
        RATE=RATE,
        numbered_frames=numbered_frames,
        tone=tone,
        read_numbers=read_numbers,
        request_for=request_for,
    )


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good and bad files of every kind that can be made here."""
    root = tmp_path_factory.mktemp("videos")
    (root / "a" / "b").mkdir(parents=True)
    (root / "c").mkdir()
    frames, sound = numbered_frames(20), tone(2.0)
    write_clip(root / "a" / "good.mp4", frames, sound, fps=10)
    write_clip(root / "a" / "b" / "good.mp4", frames, sound, fps=10)
    write_clip(root / "mute.mp4", frames, None, fps=10)
    write_clip(root / "sound.m4a", None, sound, fps=10)
    write_clip(root / "still_with_sound.mp4", frames[:1], sound, fps=10)
    write_clip(root / "still.mp4", frames[:1], None, fps=10)
    write_clip(root / "odd.mkv", numbered_frames(20, 33, 47), sound, fps=10)
    write_clip(root / "-dash.mp4", frames, sound, fps=10)
    write_clip(root / "naïve 視频: %d.mp4", frames, sound, fps=10)
    times = np.concatenate([np.arange(10) * 0.05, 0.5 + np.arange(10) * 0.15])
    write_clip(root / "variable.mp4", frames, sound, fps=10, times=times)
    whole = (root / "a" / "good.mp4").read_bytes()
    (root / "no_index.mp4").write_bytes(whole[: len(whole) // 2])
    write_clip(root / "long.mkv", np.repeat(frames, 10, 0), tone(20.0), fps=10)
    whole = (root / "long.mkv").read_bytes()
    (root / "truncated.mkv").write_bytes(whole[: len(whole) // 2])
    garbled = bytearray((root / "a" / "good.mp4").read_bytes())
    start = garbled.index(b"mdat") + 4
    garbled[start : garbled.index(b"moov") - 4] = bytes(garbled.index(b"moov") - 4 - start)
    (root / "zeroed.mp4").write_bytes(garbled)
    (root / "empty.mp4").touch()
    (root / "random.mp4").write_bytes(np.random.default_rng(0).bytes(50_000))
    (root / "notes.txt").write_text("not a video\n" * 50)
    (root / "table.csv").write_text("path,label\n")
    (root / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n")
    (root / "list.mp4").write_text("ffconcat version 1.0\nfile long.mkv\n")
    (root / "words.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nwords\n")
    (root / ".hidden.mp4").write_bytes(whole)
    (root / "gone.mp4").symlink_to(root / "nowhere.mp4")
    (root / "link.mp4").symlink_to(root / "mute.mp4")
    (root / "c" / "loop").symlink_to(root)
    write_image(root / "picture.png")
    return root


def write_image(path: Path) -> None:
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("png", 1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        frame = av.VideoFrame.from_ndarray(numbered_frames(1)[0], "rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture(scope="session")
def formats() -> Path:
    """The collection of oddly formatted real files, where it is there."""
    path = Path(__file__).parents[3] / "shared" / "data" / "formats"
    if not path.is_dir():
        pytest.skip("the collection of real oddly formatted files is not here")
    return path
