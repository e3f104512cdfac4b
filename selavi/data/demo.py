"""Render a small audio-visual collection whose classes need both the picture and the sound.

Five moving shapes and five sounds make ten classes: each shape goes with two sounds and each sound
with two shapes, so neither separates the classes alone. Color, place, size, speed, pitch, loudness,
noise and onset vary freely within a class.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np

from selavi.atomic import replacing
from selavi.data.workers import Failure, isolated_map
from selavi.errors import SelaviError

SIZE, FPS, SECONDS, SAMPLE_RATE = 72, 15, 1.2, 16_000
SHAPES = ("disc", "square", "triangle", "ring", "cross")
SOUNDS = ("rise", "fall", "pulses", "bursts", "warble")
CLASSES = tuple((i % 5, (i + i // 5) % 5) for i in range(10))  # (shape, sound), largest class first


@dataclass(frozen=True)
class ClipPlan:
    """What one demo clip shows; everything else about it follows from `seed`."""

    path: str
    shape: int
    sound: int
    seed: tuple[int, int]


def render_demo(
    out: Path,
    *,
    num_clips: int = 360,
    seed: int = 0,
    workers: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `out/clips/*.mp4` (H.264 and AAC, shuffled names) and `out/labels.csv` (path, label).

    Class sizes fall about as 1 / rank. The same arguments give the same collection.

    Args:
        num_clips: at least three a class, 30.
        workers: encoding processes; 0 encodes in this one.
        on_progress: called with (clips written, clips in all).

    Raises:
        SelaviError: too few clips, a negative seed, or a file could not be written.
    """
    if num_clips < 3 * len(CLASSES):
        raise SelaviError(f"num_clips is {num_clips}: give at least {3 * len(CLASSES)}")
    if seed < 0:
        raise SelaviError(f"seed is {seed}: give 0 or more")
    labels = np.repeat(np.arange(len(CLASSES)), class_sizes(num_clips))
    np.random.default_rng([seed, num_clips]).shuffle(labels)
    try:
        (out / "clips").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SelaviError(
            f"cannot write the demo to {out}: {error.strerror or error}; give another folder"
        ) from error
    plans = [
        ClipPlan(f"clips/{i:05d}.mp4", *CLASSES[label], (seed, i)) for i, label in enumerate(labels)
    ]
    results = isolated_map(partial(render_clip, str(out)), plans, workers=workers)
    for done, result in enumerate(results, start=1):
        if isinstance(result, Failure):
            raise SelaviError(f"a demo clip could not be written to {out}: {result.message}")
        if on_progress:
            on_progress(done, num_clips)
    with (
        replacing(out / "labels.csv") as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        writer.writerows((p.path, f"{SHAPES[p.shape]}-{SOUNDS[p.sound]}") for p in plans)


def class_sizes(num_clips: int) -> np.ndarray:
    """(10,) sizes that add up: three each, and the rest as 1 / rank."""
    weight = 1 / np.arange(1, len(CLASSES) + 1)
    rest = num_clips - 3 * len(CLASSES)
    sizes = 3 + np.floor(rest * weight / weight.sum()).astype(int)
    sizes[0] += num_clips - sizes.sum()
    return sizes


def render_clip(root: str, plan: ClipPlan) -> None:
    """Render and encode one clip; nothing but `plan` decides what it shows."""
    rng = np.random.default_rng(plan.seed)
    frames = draw_picture(plan.shape, rng)
    waveform = make_sound(plan.sound, rng)
    write_clip(Path(root, plan.path), frames, waveform, fps=FPS, sample_rate=SAMPLE_RATE)


def draw_picture(shape: int, rng: np.random.Generator) -> np.ndarray:
    """(T, SIZE, SIZE, 3) uint8: one shape in its own motion, in front of a noisy gradient."""
    steps = round(SECONDS * FPS)
    time = np.arange(steps)[:, None, None] / FPS
    y, x = (np.mgrid[:SIZE, :SIZE] + 0.5) / SIZE * 2 - 1
    radius = rng.uniform(0.28, 0.42)
    center_x, center_y = rng.uniform(-0.35, 0.35, (2, 1, 1, 1))
    swing = np.sin(2 * np.pi * (rng.uniform(0.7, 1.3) * time + rng.uniform()))
    turn = rng.uniform(0, 2 * np.pi)
    if shape == 0:  # the disc goes left and right
        center_x = center_x + 0.45 * swing
    elif shape == 1:  # the square turns
        turn = turn + rng.choice((-1, 1)) * rng.uniform(2.5, 4.5) * time
    elif shape == 2:  # the triangle goes up and down
        center_y = center_y + 0.45 * swing
        turn = 0.25 * np.cos(turn)
    elif shape == 3:  # the ring grows and shrinks
        radius = radius * (1 + 0.45 * swing)
    else:  # the cross rocks
        turn = turn + 0.7 * swing
    dx, dy = x - center_x, y - center_y
    u = (np.cos(turn) * dx + np.sin(turn) * dy) / radius
    v = (np.cos(turn) * dy - np.sin(turn) * dx) / radius
    inside = np.clip(0.5 - _distance(shape, u, v) * radius * SIZE / 2, 0, 1)[..., None]

    back, fore = rng.uniform(0, 1, (2, 3))
    while abs((back - fore) @ (0.299, 0.587, 0.114)) < 0.3:  # visible in gray, brighter or darker
        back, fore = rng.uniform(0, 1, (2, 3))
    slope = (x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1))[..., None] * 0.15
    picture = ((back + slope) * (1 - inside) + fore * inside).astype(np.float32)
    picture = np.broadcast_to(picture, (steps, SIZE, SIZE, 3))
    grain = rng.standard_normal(picture.shape, np.float32) * np.float32(rng.uniform(0.01, 0.06))
    return (np.clip(picture + grain, 0, 1) * 255).astype(np.uint8)


def _distance(shape: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Roughly the signed distance to the outline of a shape of unit radius, negative inside."""
    if shape == 0:
        return np.hypot(u, v) - 0.9
    if shape == 1:
        return np.maximum(np.abs(u), np.abs(v)) - 0.8
    if shape == 2:
        return np.maximum(v - 0.6, np.abs(u) * 0.87 - v * 0.5 - 0.6)
    if shape == 3:
        return np.abs(np.hypot(u, v) - 0.8) - 0.22
    arms = np.minimum(np.abs(u), np.abs(v)) - 0.26
    return np.maximum(arms, np.maximum(np.abs(u), np.abs(v)) - 1.0)


def make_sound(sound: int, rng: np.random.Generator) -> np.ndarray:
    """(S,) float32 in [-1, 1]: one sound somewhere in the clip, with background noise."""
    total = round(SECONDS * SAMPLE_RATE)
    length = rng.uniform(0.6, 0.85)
    t = np.arange(round(length * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = 350 * 2 ** rng.uniform(0, 2)
    rate = rng.uniform(5, 8)
    octaves = np.zeros_like(t)
    envelope = np.ones_like(t)
    if sound in (0, 1):  # a glide up or down
        octaves = rng.uniform(1.0, 1.6) * (t / length - 0.5) * (1 if sound == 0 else -1)
    elif sound == 2:  # short decaying pulses
        envelope = np.exp(-((t * rate) % 1) * 6)
    elif sound == 3:  # bursts of noise
        envelope = ((t * rate * 0.6) % 1 < 0.5).astype(float)
    else:  # a tone that trembles in pitch
        octaves = 0.25 * np.sin(2 * np.pi * rate * t)
    phase = 2 * np.pi * np.cumsum(pitch * 2**octaves) / SAMPLE_RATE
    voice = np.sin(phase) + rng.uniform(0.1, 0.5) * np.sin(2 * phase)
    if sound == 3:
        voice = rng.normal(0, 1, t.shape)
    voice = voice * envelope * np.minimum(1, np.minimum(t, length - t) / 0.02)
    start = rng.integers(0, total - len(t))
    hum = 150 * 2 ** rng.uniform(0, 4)  # a steady tone of no meaning, anywhere in the range
    wave = rng.uniform(0, 0.6) * np.sin(2 * np.pi * hum * np.arange(total) / SAMPLE_RATE)
    wave += rng.normal(0, 10 ** rng.uniform(-2.5, -0.7), total)
    wave[start : start + len(t)] += voice
    return (wave * 0.25 * 10 ** (rng.uniform(-9, 3) / 20)).clip(-1, 1).astype(np.float32)


def write_clip(
    path: Path,
    frames: np.ndarray | None,
    waveform: np.ndarray | None,
    *,
    fps: float,
    sample_rate: int = SAMPLE_RATE,
    times: np.ndarray | None = None,
) -> None:
    """Encode H.264 and AAC into the container that the path's suffix names.

    Args:
        frames: (T, H, W, 3) uint8, or None for sound alone.
        waveform: (S,) float32 mono in [-1, 1], or None for pictures alone.
        times: (T,) seconds, for a variable frame rate; default k / fps.
    """
    with av.open(f"file:{path}", "w") as container:
        video = audio = None
        if frames is not None:
            rate = Fraction(fps).limit_denominator(1001)
            video = container.add_stream("libx264", rate, {"crf": "20", "preset": "veryfast"})
            video.height, video.width = frames.shape[1:3]
            even = frames.shape[1] % 2 == frames.shape[2] % 2 == 0
            video.pix_fmt = "yuv420p" if even else "yuv444p"
            video.codec_context.time_base = Fraction(1, 90_000)
            video.thread_type, video.codec_context.thread_count = "NONE", 1
        if waveform is not None:
            audio = container.add_stream("aac", sample_rate, {"aac_coder": "fast"}, layout="mono")
        if video is not None and frames is not None:
            for k, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
                frame.pts = round((k / fps if times is None else times[k]) * 90_000)
                frame.time_base = Fraction(1, 90_000)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        if audio is not None and waveform is not None:
            sound = av.AudioFrame.from_ndarray(waveform[None].astype(np.float32), "fltp", "mono")
            sound.sample_rate, sound.pts = sample_rate, 0
            sound.time_base = Fraction(1, sample_rate)
            container.mux(audio.encode(sound))
            container.mux(audio.encode(None))
