import csv
from collections import Counter

import numpy as np
import pytest

from selavi.data.demo import (
    CLASSES,
    SHAPES,
    SOUNDS,
    class_sizes,
    draw_picture,
    make_sound,
    render_demo,
)
from selavi.data.manifest import scan
from selavi.errors import SelaviError


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    progress = []
    render_demo(out, num_clips=40, seed=1, workers=2, on_progress=lambda *a: progress.append(a))
    assert progress == [(i + 1, 40) for i in range(40)]
    return out


def test_every_clip_has_picture_and_sound(demo):
    usable = scan(demo / "clips", workers=2).usable().table
    assert len(usable) == 40
    assert all(usable["has_video"].to_pylist()) and all(usable["has_audio"].to_pylist())
    assert set(usable["video_codec"].to_pylist()) == {"h264"}
    assert set(usable["audio_codec"].to_pylist()) == {"aac"}
    np.testing.assert_allclose(usable["duration"].to_numpy(), 1.2, atol=0.1)


def test_labels(demo):
    with open(demo / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [f"clips/{i:05d}.mp4" for i in range(40)]
    labels = [row["label"] for row in rows]
    sizes = sorted(Counter(labels).values(), reverse=True)
    assert sizes == sorted(class_sizes(40), reverse=True) and len(sizes) == 10
    assert labels != sorted(labels)


def test_neither_picture_nor_sound_alone_separates_the_classes():
    assert len(set(CLASSES)) == 10
    for side, names in ((0, SHAPES), (1, SOUNDS)):
        assert Counter(c[side] for c in CLASSES) == {i: 2 for i in range(len(names))}


@pytest.mark.parametrize("num_clips", [30, 100, 360, 1000])
def test_class_sizes_are_skewed(num_clips):
    sizes = class_sizes(num_clips)
    assert sizes.sum() == num_clips and sizes.min() >= 3 and (np.diff(sizes) <= 0).all()
    if num_clips >= 360:
        assert sizes[0] >= 8 * sizes[-1]


def test_the_same_seed_gives_the_same_clip():
    for kind in range(5):
        for make in (draw_picture, make_sound):
            first, again, other = (make(kind, np.random.default_rng(s)) for s in (0, 0, 1))
            np.testing.assert_array_equal(first, again)
            assert (first != other).any()
        assert first.dtype == np.float32 and np.abs(first).max() <= 1


def test_bad_arguments(tmp_path):
    with pytest.raises(SelaviError, match="at least 30"):
        render_demo(tmp_path, num_clips=29)
    with pytest.raises(SelaviError, match="seed is -1"):
        render_demo(tmp_path, num_clips=30, seed=-1)
    (tmp_path / "file").touch()
    with pytest.raises(SelaviError, match="cannot write the demo"):
        render_demo(tmp_path / "file" / "demo", num_clips=30)
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "00000.mp4").mkdir()  # a folder where a file should go
    with pytest.raises(SelaviError, match="could not be written"):
        render_demo(tmp_path, num_clips=30, workers=0)
