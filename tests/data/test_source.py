import logging
import shutil

import numpy as np
import pytest

from selavi import distributed
from selavi.data import source as source_module
from selavi.data.cached_source import CachedSource
from selavi.data.config import DataConfig
from selavi.data.manifest import scan
from selavi.data.source import FileSource, Windows
from selavi.errors import SelaviError

SMALL = dict(
    num_frames=4, fps=10.0, frame_size=16, decode_size=20, channels=1, sample_rate=8000,
    audio_seconds=0.4, n_mels=16, n_fft=256,
)  # fmt: skip


@pytest.fixture
def collection(folder, tmp_path):
    """Six clips of 2 s, of which one has no sound and one no picture, and one of 20 s."""
    root = tmp_path / "videos"
    root.mkdir()
    for name in ("a/good.mp4", "mute.mp4", "sound.m4a", "odd.mkv", "variable.mp4", "long.mkv"):
        shutil.copy(folder / name, root)
    return root


def files_of(root, **settings):
    config = DataConfig(**{**SMALL, **settings})
    return FileSource(scan(root, workers=0), root, config, workers=0)


def all_windows(source, starts):
    index = np.arange(len(source.clips))
    return [Windows(index, np.full(len(index), start)) for start in starts]


def test_the_cache_holds_what_the_files_give(collection, tmp_path):
    settings = dict(cache_seconds=1.0, cache_fps=20.0)
    files = files_of(collection, **settings)
    progress = []
    cached = CachedSource(files, tmp_path / "cache", on_progress=lambda *a: progress.append(a))
    assert progress == [(i + 1, 6) for i in range(6)]
    index = np.arange(6)
    windows = [Windows(index, files.clips.end / 2 - 0.5 + late) for late in (0.0, 0.25, 0.6)]
    for direct, stored in zip(files.read(windows), cached.read(windows), strict=True):
        np.testing.assert_array_equal(direct.has_video, stored.has_video)
        np.testing.assert_array_equal(direct.has_audio, stored.has_audio)
        assert np.abs(direct.frames.astype(int) - stored.frames).max() <= 1
        difference = direct.waveform.astype(float) - stored.waveform
        assert np.sqrt(np.mean(difference**2)) < 0.02 * direct.waveform.std()


def test_windows_beyond_the_cache_are_held_and_silent(collection, tmp_path):
    cached = CachedSource(files_of(collection, cache_seconds=1.0), tmp_path / "cache")
    early, late = cached.read(all_windows(cached, (-9.0, 30.0)))
    for batch in (early, late):
        assert not batch.waveform.any()
        assert (np.ptp(batch.frames[batch.has_video].astype(int), axis=1) == 0).all()


def test_a_cache_is_used_again_and_only_for_the_same(collection, tmp_path, monkeypatch):
    first = CachedSource(files_of(collection, cache_seconds=1.0), tmp_path / "cache")
    monkeypatch.setattr(source_module, "decode_clip", None)
    again = CachedSource(files_of(collection, cache_seconds=1.0, n_mels=8), tmp_path / "cache")
    assert again.folder == first.folder and len(list((tmp_path / "cache").iterdir())) == 1
    monkeypatch.undo()
    other = CachedSource(files_of(collection, cache_seconds=1.5), tmp_path / "cache")
    (collection / "mute.mp4").touch()
    touched = CachedSource(files_of(collection, cache_seconds=1.0), tmp_path / "cache")
    assert len({first.folder, other.folder, touched.folder}) == 3


def test_an_interrupted_build_leaves_no_cache(collection, tmp_path):
    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CachedSource(files_of(collection, cache_seconds=1.0), tmp_path / "cache", on_progress=stop)
    assert not list((tmp_path / "cache").iterdir())


def test_a_cache_that_does_not_fit_is_refused(collection, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(SelaviError, match=r"data\.cache_seconds"):
        CachedSource(files_of(collection, cache_seconds=1.0), tmp_path / "cache")


@pytest.mark.parametrize("workers", [0, 2])
def test_files_that_fail_later_are_missing_and_reported_once(collection, caplog, workers):
    files = files_of(collection)
    files.workers = workers
    names = [p.rsplit("/", 1)[1] for p in files.paths]
    gone, corrupt = names.index("good.mp4"), names.index("variable.mp4")
    (collection / "good.mp4").unlink()
    (collection / "variable.mp4").write_bytes(b"overwritten" * 100)
    with caplog.at_level(logging.WARNING):
        batches = list(files.read(all_windows(files, (0.0, 0.5))))
    assert sorted(files.failures) == sorted([gone, corrupt]) and len(caplog.records) == 2
    for batch in batches:
        np.testing.assert_array_equal(np.flatnonzero(~batch.has_video), sorted(
            [gone, corrupt, names.index("sound.m4a")]))  # fmt: skip
        assert not batch.frames[gone].any() and not batch.waveform[corrupt].any()


def test_a_cache_tries_what_failed_again(collection, tmp_path, caplog, monkeypatch):
    files = files_of(collection, cache_seconds=1.0)
    gone = [p.rsplit("/", 1)[1] for p in files.paths].index("good.mp4")
    (collection / "good.mp4").rename(tmp_path / "away")
    for opened in (1, 2):
        cached = CachedSource(files, tmp_path / "cache")
        assert list(cached.failures) == [gone] and len(caplog.records) == opened
        assert not cached.clips.has_video[gone] and not cached.clips.has_audio[gone]
    (tmp_path / "away").rename(collection / "good.mp4")
    monkeypatch.setattr(distributed, "rank", lambda: 1)  # leaves it to rank 0
    assert list(CachedSource(files, tmp_path / "cache").failures) == [gone]
    monkeypatch.undo()
    progress = []
    for _ in range(2):
        cached = CachedSource(files, tmp_path / "cache", on_progress=lambda *a: progress.append(a))
        assert not cached.failures and progress == [(1, 1)]
    fresh = CachedSource(files, tmp_path / "fresh")
    for name in ("frames", "waveform"):
        np.testing.assert_array_equal(getattr(cached, name), getattr(fresh, name))
    np.testing.assert_array_equal(cached.clips.has_audio, fresh.clips.has_audio)


def test_a_cache_that_cannot_be_written(collection):
    files = files_of(collection, cache_seconds=1.0)
    with pytest.raises(SelaviError, match=r"cannot write the cache .*SELAVI_CACHE"):
        CachedSource(files, collection / "good.mp4" / "cache")


def test_collections_of_one_modality_have_one_array(folder, tmp_path):
    shutil.copy(folder / "mute.mp4", tmp_path)
    files = files_of(tmp_path)
    (batch,) = files.read(all_windows(files, (0.0,)))
    assert batch.waveform is None and batch.frames is not None
    (tmp_path / "mute.mp4").unlink()
    shutil.copy(folder / "sound.m4a", tmp_path)
    files = files_of(tmp_path, cache_seconds=1.0)
    (batch,) = CachedSource(files, tmp_path / ".cache").read(all_windows(files, (0.8,)))
    assert batch.frames is None and batch.waveform.any()
