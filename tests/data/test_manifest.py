import os
import shutil

import pytest

from selavi.data import manifest as manifest_module
from selavi.data.manifest import REASONS, Manifest, scan
from selavi.data.workers import Failure
from selavi.errors import SelaviError

USABLE = {  # path: (has_video, has_audio, seconds)
    "a/good.mp4": (True, True, 2.0),
    "a/b/good.mp4": (True, True, 2.0),
    "mute.mp4": (True, False, 2.0),
    "sound.m4a": (False, True, 2.0),
    "still_with_sound.mp4": (False, True, 2.0),
    "odd.mkv": (True, True, 2.0),
    "-dash.mp4": (True, True, 2.0),
    "naïve 視频: %d.mp4": (True, True, 2.0),
    "variable.mp4": (True, True, 2.0),
    "long.mkv": (True, True, 20.0),
    "truncated.mkv": (True, True, 10.0),
}
REJECTED = {
    "still.mp4": "one_frame",
    "picture.png": "one_frame",
    "no_index.mp4": "corrupt",
    "zeroed.mp4": "corrupt",
    "random.mp4": "corrupt",
    "list.mp4": "corrupt",
    "empty.mp4": "empty_file",
    "notes.txt": "not_media",
    "table.csv": "not_media",
    "list.m3u8": "not_media",
    "words.srt": "no_streams",
    ".hidden.mp4": "hidden",
    "gone.mp4": "unreadable",
    "link.mp4": "duplicate",
}


@pytest.fixture(scope="module")
def scanned(folder):
    seen = []
    result = scan(folder, workers=2, on_progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == list(range(seen[0][0], len(result) + 1))
    assert {total for _, total in seen} == {len(result)}
    return result


def test_every_file_is_met_once(scanned):
    rows = {row["path"]: row for row in scanned.table.to_pylist()}
    assert list(rows) == sorted(rows) and len(rows) == len(scanned)
    assert set(rows) == set(USABLE) | set(REJECTED)
    assert {p: r["reason"] for p, r in rows.items() if r["reason"]} == REJECTED
    assert all(row["message"] for row in rows.values() if row["reason"])
    assert set(REJECTED.values()) <= set(REASONS)


def test_usable_rows_say_what_they_hold(scanned):
    usable = scanned.usable()
    assert len(usable) == len(USABLE) and len(scanned.rejected()) == len(REJECTED)
    for row in usable.table.to_pylist():
        has_video, has_audio, seconds = USABLE[row["path"]]
        assert (row["has_video"], row["has_audio"]) == (has_video, has_audio), row["path"]
        slack = 2.0 if row["path"] == "truncated.mkv" else 0.2
        assert row["duration"] == pytest.approx(seconds, abs=slack), row["path"]
    rows = {row["path"]: row for row in usable.table.to_pylist()}
    good, odd = rows["a/good.mp4"], rows["odd.mkv"]
    assert (good["video_codec"], good["audio_codec"], good["fps"]) == ("h264", "aac", 10.0)
    assert (good["sample_rate"], good["channels"]) == (16_000, 1)
    assert (odd["width"], odd["height"]) == (47, 33)
    assert odd["aspect"] == pytest.approx(47 / 33)


def test_unchanged_files_are_not_opened_again(folder, tmp_path, monkeypatch):
    root, cache = tmp_path / "videos", tmp_path / "cache.parquet"
    root.mkdir()
    for name in ("mute.mp4", "still.mp4", "table.csv"):
        shutil.copy(folder / name, root)
    opened = []

    def probe(folder_name, info):
        opened.append(info.path)
        return real_probe(folder_name, info)

    real_probe = manifest_module.probe
    monkeypatch.setattr(manifest_module, "probe", probe)
    first = scan(root, workers=0, cache=cache)
    assert sorted(opened) == ["mute.mp4", "still.mp4", "table.csv"]
    opened.clear()
    assert scan(root, workers=0, cache=cache).table.equals(first.table) and not opened
    os.utime(root / "mute.mp4", ns=(1, 1))
    shutil.copy(folder / "mute.mp4", root / "new.mp4")
    (root / "table.csv").unlink()
    assert len(scan(root, workers=0, cache=cache)) == 3
    assert sorted(opened) == ["mute.mp4", "new.mp4"]
    opened.clear()
    cache.write_bytes(b"nonsense")
    scan(root, workers=0, cache=cache)
    assert len(opened) == 3


def test_a_crashing_decoder_costs_one_file(folder, tmp_path, monkeypatch):
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(folder / "mute.mp4", tmp_path / name)
    monkeypatch.setattr(manifest_module, "isolated_map", _map_that_crashes_on_a)
    cache = tmp_path / "cache" / "scan.parquet"
    rows = scan(tmp_path, workers=1, cache=cache).table.to_pylist()
    assert [row["reason"] for row in rows] == ["crashed", ""]
    assert "exit code" in rows[0]["message"]
    monkeypatch.undo()  # it may have been for want of memory: the next scan looks again
    rows = {r["path"]: r for r in scan(tmp_path, workers=0, cache=cache).table.to_pylist()}
    assert rows["a.mp4"]["reason"] == ""


def test_a_cache_that_cannot_be_written(folder, tmp_path):
    shutil.copy(folder / "mute.mp4", tmp_path)
    with pytest.raises(SelaviError, match=r"cannot write the cache .*SELAVI_CACHE"):
        scan(tmp_path, workers=0, cache=tmp_path / "mute.mp4" / "scans" / "x.parquet")


def _map_that_crashes_on_a(function, items, **options):
    """As `isolated_map` answers when the process dies; that it does is tested in test_workers."""
    del function, options
    for info in items:
        if info.path == "a.mp4":
            yield Failure("crashed", "the decoder crashed (exit code -6)")
        else:
            yield manifest_module.FileInfo(info.path, has_video=True)


def test_folders_without_videos(tmp_path):
    with pytest.raises(SelaviError, match="is not a folder"):
        scan(tmp_path / "missing", workers=0)
    with pytest.raises(SelaviError, match="workers is -2"):
        scan(tmp_path, workers=-2)
    with pytest.raises(SelaviError, match="has no files"):
        scan(tmp_path, workers=0)
    (tmp_path / "notes.txt").write_text("words")
    with pytest.raises(SelaviError, match=r"no file that can be labelled \(1 not_media\)"):
        scan(tmp_path, workers=0)


def test_special_files_and_bad_names_do_not_block(folder, tmp_path):
    shutil.copy(folder / "mute.mp4", tmp_path)
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / os.fsdecode(b"caf\xe9.mp4")).touch()
    reasons = {r["path"]: r["reason"] for r in scan(tmp_path, workers=1).table.to_pylist()}
    assert reasons["pipe.mp4"] == "unreadable"
    assert sorted(reasons.values()) == ["", "bad_name", "unreadable"]


def test_saved_and_loaded(scanned, tmp_path):
    path = tmp_path / "manifest.parquet"
    scanned.save(path)
    assert Manifest.load(path).table.equals(scanned.table)
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.parquet"]
    with pytest.raises(SelaviError, match="scan the folder again"):
        Manifest.load(tmp_path / "missing.parquet")
