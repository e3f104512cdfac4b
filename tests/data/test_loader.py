import shutil
import threading
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch

from selavi.data.config import AugmentConfig, DataConfig
from selavi.data.loader import FeatureLoader, open_loader, prefetch
from selavi.data.manifest import scan
from selavi.errors import SelaviError

CONFIG = DataConfig(
    num_frames=4, fps=10.0, frame_size=16, decode_size=20, channels=1, sample_rate=8000,
    audio_seconds=0.4, n_mels=16, n_fft=256,
    augment=AugmentConfig(
        color_jitter=0.2, blur_probability=0.5, time_masks=1, frequency_masks=1, noise_db=20.0,
        equalizer_db=2.0, frequency_stretch=0.1, video_stretch=0.1, time_shift=0.1,
    ),
)  # fmt: skip
CACHED = replace(CONFIG, cache_seconds=1.0, cache_fps=20.0)
NAMES = ("a/good.mp4", "mute.mp4", "sound.m4a", "odd.mkv", "variable.mp4", "-dash.mp4")


@pytest.fixture(scope="module")
def collection(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("collection")
    for name in NAMES:
        shutil.copy(folder / name, root)
    return root


@pytest.fixture(scope="module")
def scanned(collection):
    return scan(collection, workers=0)


@pytest.fixture(params=["files", "cache"])
def loader(request, collection, scanned, tmp_path):
    config = CACHED if request.param == "cache" else CONFIG
    return open_loader(
        scanned, collection, config, seed=3, workers=0, cache_folder=tmp_path / "cache"
    )


def gather(loader, indices, **arguments):
    """All batches as one, and their sizes."""
    batches = list(loader.batches(torch.tensor(indices), **arguments))
    names = ("index", "video", "audio", "has_video", "has_audio")
    joined = {n: torch.cat([getattr(b, n) for b in batches]) for n in names}
    return joined, [len(b.index) for b in batches]


def test_shapes_and_missing_modalities(loader, scanned):
    assert (loader.num_clips, loader.has_video, loader.has_audio) == (6, True, True)
    out, sizes = gather(loader, [5, 0, 3, 1, 2, 4], batch_size=4, augment=True, draw=0)
    assert sizes == [4, 2] and out["index"].tolist() == [5, 0, 3, 1, 2, 4]
    assert out["video"].shape == (6, 1, 4, 16, 16) and out["audio"].shape == (6, 1, 16, 41)
    assert out["video"].dtype == out["audio"].dtype == torch.float32
    table = scanned.usable().table
    for name, missing in (("video", "sound.m4a"), ("audio", "mute.mp4")):
        place = out["index"].tolist().index(table["path"].to_pylist().index(missing))
        has = out[f"has_{name}"]
        assert has.dtype == torch.bool and not has[place] and has.sum() == 5
        assert not out[name][place].any() and out[name][has].flatten(1).any(1).all()


def test_views_depend_on_seed_draw_and_clip_alone(loader):
    first, _ = gather(loader, range(6), batch_size=6, augment=True, draw=2)
    again, _ = gather(loader, [4, 3, 5, 0, 2, 1], batch_size=2, augment=True, draw=2)
    order = again["index"]
    for name in ("video", "audio"):
        torch.testing.assert_close(again[name], first[name][order], atol=1e-5, rtol=1e-5)
        both = first["has_video"] & first["has_audio"]
        other, _ = gather(loader, range(6), batch_size=6, augment=True, draw=3)
        assert ((other[name] - first[name]).abs().flatten(1).max(1).values[both] > 0.01).all()
    loader.seed += 1
    other, _ = gather(loader, range(6), batch_size=6, augment=True, draw=2)
    assert not torch.allclose(other["video"], first["video"])


def test_the_centre_view_ignores_draw_and_seed(loader):
    first, _ = gather(loader, range(6), batch_size=3, augment=False, draw=0)
    loader.seed += 1
    again, _ = gather(loader, range(6), batch_size=6, augment=False, draw=5)
    for name in ("video", "audio"):
        torch.testing.assert_close(again[name], first[name], atol=1e-5, rtol=1e-5)


def test_workers_do_not_change_the_views(collection, scanned):
    inline, spread = (open_loader(scanned, collection, CONFIG, seed=3, workers=n) for n in (0, 2))
    arguments = dict(batch_size=4, augment=True, draw=1)
    first, again = (gather(x, range(6), **arguments)[0] for x in (inline, spread))
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name]), name


def test_short_clips_lie_anywhere_in_the_window(collection, scanned):
    config = DataConfig(num_frames=40, fps=10.0, sample_rate=8000, audio_seconds=1.0, n_fft=256)
    loader = open_loader(scanned, collection, config, seed=0, workers=0)
    index = np.zeros(200, np.int64)
    assert loader._windows(index, False, 0).start[0] == pytest.approx((2.0 - 4.0) / 2, abs=0.1)
    starts = [loader._windows(index[:1], True, d).start[0] for d in range(200)]
    assert min(starts) < -1.8 and max(starts) > -0.2 and min(starts) >= -2.1


def test_leaving_early_and_coming_back(loader):
    before = threading.active_count()
    for draw in range(3):
        for batch in loader.batches(torch.arange(6), batch_size=1, augment=True, draw=draw):
            assert len(batch.index) == 1
            break
    assert threading.active_count() == before


def test_no_indices_give_no_batch(loader):
    for one in (loader, FeatureLoader(torch.ones(2, 3), None)):
        none = torch.zeros(0, dtype=torch.int64)
        assert not list(one.batches(none, batch_size=2, augment=True, draw=0))


def test_another_folder_than_the_scanned_one(collection, scanned, tmp_path):
    cache = tmp_path / "cache"
    for root, words in ((tmp_path, "does not hold"), (tmp_path / "missing", "is not a folder")):
        with pytest.raises(SelaviError, match=words):
            open_loader(scanned, root, CACHED, seed=0, workers=0, cache_folder=cache)
    assert not cache.exists()
    with pytest.raises(SelaviError, match="workers is -1"):
        open_loader(scanned, collection, CONFIG, seed=0, workers=-1)


def test_a_cache_needs_a_folder(collection, scanned):
    with pytest.raises(SelaviError, match="cache folder"):
        open_loader(scanned, collection, CACHED, seed=0, workers=0)


def test_batches_move(loader):
    batch = next(loader.batches(torch.arange(2), batch_size=2, augment=False, draw=0)).to("meta")
    assert batch.video.is_meta and batch.has_audio.is_meta


def test_features():
    video = torch.arange(12.0).view(4, 3)
    audio = torch.ones(4, 2)
    audio[2] = torch.nan
    loader = FeatureLoader(video, audio)
    out, sizes = gather(loader, [3, 2, 0], batch_size=2, augment=True, draw=0)
    assert sizes == [2, 1] and out["has_audio"].tolist() == [True, False, True]
    assert torch.equal(out["video"], video[[3, 2, 0]]) and not out["audio"][1].any()
    assert audio[2].isnan().all()  # the caller's tensor is its own
    batch = next(FeatureLoader(None, torch.ones(2, 3)).batches(
        torch.arange(2), batch_size=2, augment=False, draw=0))  # fmt: skip
    assert batch.video is None and not batch.has_video.any()


@pytest.mark.parametrize(
    "video, audio, words",
    [
        (None, None, "no features"),
        (torch.ones(3, 2), torch.ones(4, 2), "video has 3 rows and audio 4"),
        (torch.ones(3), None, "give .N, D."),
        (torch.ones(0, 3), None, "give .N, D."),
        (torch.tensor([[1.0, torch.nan]]), None, "video features of row 0"),
        (torch.tensor([[1.0], [torch.inf]]), None, "row 1"),
        (torch.full((1, 2), torch.nan), None, "row 0 has neither"),
    ],
)
def test_bad_features_are_named(video, audio, words):
    with pytest.raises(SelaviError, match=words):
        FeatureLoader(video, audio)


def test_prefetch_passes_errors_on_and_bounds_what_it_holds():
    def failing():
        yield 1
        raise ValueError("broken")

    items = prefetch(failing())
    assert next(items) == 1
    with pytest.raises(ValueError, match="broken"):
        next(items)
    taken = []
    items = prefetch((taken.append(i) or i for i in count()), depth=2)
    assert next(items) == 0
    items.close()
    assert len(taken) <= 5
