"""Real files of many formats, where they are at hand (see the `formats` fixture)."""

import numpy as np
import pytest
import torch

from selavi.data.config import DataConfig
from selavi.data.loader import open_loader
from selavi.data.manifest import scan

REASONS = {
    "moviepy_result.webm": "empty_file",
    "small_AudioVideoInterleave.avi": "corrupt",
    "small_FlashVideo.flv": "corrupt",
    "small_Mpeg4.mp4": "no_streams",
    "small_WindowsMediaVideo.wmv": "corrupt",
    "small_webm.webm": "one_frame",
    "sources.csv": "not_media",
}


@pytest.fixture(scope="module")
def scanned(formats):
    return scan(formats, workers=2)


def test_scan(scanned):
    rows = {row["path"]: row for row in scanned.table.to_pylist()}
    assert {p: r["reason"] for p, r in rows.items() if r["reason"]} == REASONS
    assert rows["small_mp4-with-audio.mp4"]["has_video"] is False
    assert rows["moviepy_no_duration.webm"]["duration"] == pytest.approx(4.94, abs=0.05)
    assert rows["decord_video_90.mov"]["aspect"] == pytest.approx(320 / 568)
    assert rows["lipnet_bbaf2n.mpg"]["audio_codec"] == "mp2"


def test_every_usable_file_gives_a_batch(scanned, formats):
    config = DataConfig(
        num_frames=4, fps=8.0, frame_size=24, decode_size=32, sample_rate=8000, audio_seconds=0.5,
        n_mels=20, n_fft=256,
    )  # fmt: skip
    loader = open_loader(scanned, formats, config, seed=0, workers=2)
    usable = scanned.usable().table

    for augment in (False, True):
        batch = next(
            loader.batches(
                torch.arange(len(usable)), batch_size=len(usable), augment=augment, draw=0
            )
        )
        np.testing.assert_array_equal(batch.has_video, usable["has_video"].to_numpy())
        np.testing.assert_array_equal(batch.has_audio, usable["has_audio"].to_numpy())
        assert batch.video.isfinite().all() and batch.audio.isfinite().all()
    assert not loader.source.failures
