import av
import numpy as np
import pytest

from selavi.data import decode as decode_module
from selavi.data.decode import decode_clip
from selavi.data.demo import write_clip


def test_frames_are_those_shown_at_each_time(kit, folder):
    clip = decode_clip(kit.request_for(folder / "a" / "good.mp4", frame_start=0.5))
    assert clip.error == "" and clip.frames.shape == (8, 32, 32, 1)
    assert clip.frames.dtype == np.uint8
    np.testing.assert_array_equal(kit.read_numbers(clip.frames), np.arange(5, 13))
    clip = decode_clip(kit.request_for(folder / "a" / "good.mp4", fps=20.0, frame_start=0.05))
    np.testing.assert_array_equal(kit.read_numbers(clip.frames), [0, 1, 1, 2, 2, 3, 3, 4])
    clip = decode_clip(kit.request_for(folder / "a" / "good.mp4", fps=5.0, gray=False))
    assert clip.frames.shape == (8, 32, 32, 3)
    np.testing.assert_array_equal(kit.read_numbers(clip.frames), np.arange(0, 16, 2))


def test_variable_frame_rate_goes_by_timestamps(kit, folder):
    clip = decode_clip(kit.request_for(folder / "variable.mp4", frame_start=0.2))
    # at .2, .3, ... .9 s; frames every .05 s until .5 s, then every .15 s
    np.testing.assert_array_equal(kit.read_numbers(clip.frames), [4, 6, 8, 10, 10, 11, 12, 12])


def test_outside_the_clip_frames_are_held_and_sound_is_silent(kit, folder):
    path = folder / "a" / "good.mp4"
    clip = decode_clip(kit.request_for(path, frame_start=-0.4, sample_start=-0.4))
    np.testing.assert_array_equal(kit.read_numbers(clip.frames), [0, 0, 0, 0, 0, 1, 2, 3])
    assert not clip.waveform[:6000].any() and clip.waveform[6600:].std() > 5000
    clip = decode_clip(kit.request_for(path, frame_start=1.6, sample_start=1.6))
    np.testing.assert_array_equal(kit.read_numbers(clip.frames), [16, 17, 18, 19, 19, 19, 19, 19])
    assert clip.waveform[:6000].std() > 5000 and not clip.waveform[9000:].any()
    clip = decode_clip(kit.request_for(path, frame_start=50.0, sample_start=50.0))
    assert (kit.read_numbers(clip.frames) == 19).all() and not clip.waveform.any()


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_sound_is_aligned_with_the_frames(kit, tmp_path, suffix):
    path = tmp_path / f"onset.{suffix}"
    write_clip(path, kit.numbered_frames(30), kit.tone(3.0, onset=2.0), fps=10)
    for start in (0.0, 1.3, 1.9):
        clip = decode_clip(
            kit.request_for(path, sample_start=start, num_samples=round(1.1 * kit.RATE))
        )
        loud = np.flatnonzero(np.abs(clip.waveform) > 3000)
        if start == 0.0:
            assert not len(loud)
        else:
            assert start + loud[0] / kit.RATE == pytest.approx(2.0, abs=0.01)


def test_sound_is_resampled(kit, folder):
    clip = decode_clip(kit.request_for(folder / "sound.m4a", num_frames=0, sample_rate=8000,
                                   num_samples=8000, sample_start=0.5))  # fmt: skip
    assert clip.frames is None and clip.error == ""
    peak = np.abs(np.fft.rfft(clip.waveform)).argmax()
    assert peak == pytest.approx(440, abs=1)


@pytest.mark.parametrize("name", ["long.mkv", "long.mp4"])
def test_one_second_of_a_long_file_decodes_little_more(kit, folder, tmp_path, monkeypatch, name):
    path = tmp_path / name
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (300, 32, 32, 3), np.uint8)
    write_clip(path, frames, kit.tone(30.0), fps=10)
    decoded = []
    iterate = decode_module.iterate_frames

    def counted(*args):
        for item in iterate(*args):
            decoded.append(type(item[1]))
            yield item

    monkeypatch.setattr(decode_module, "iterate_frames", counted)
    clip = decode_clip(kit.request_for(path, frame_start=26.0, sample_start=26.0))
    assert clip.error == ""
    assert decoded.count(av.VideoFrame) <= 10 + 20  # the encoder's key frames are 250 apart
    assert decoded.count(av.AudioFrame) <= 40  # of 470


def test_the_display_matrix_is_applied(kit, tmp_path):
    frames = np.zeros((4, 32, 64, 3), np.uint8)
    frames[:, :, :32] = 255  # the left half is white
    flat, turned = tmp_path / "flat.mp4", tmp_path / "turned.mp4"
    write_clip(flat, frames, None, fps=10)
    with av.open(str(flat)) as source, av.open(str(turned), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        stream.set_display_rotation(90)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    picture = decode_clip(kit.request_for(flat, num_samples=0)).frames[0, :, :, 0]
    assert picture[:, :14].min() > 200 and picture[:, 18:].max() < 50
    with av.open(str(turned)) as container:
        angle = next(container.decode(video=0)).rotation
    picture = decode_clip(kit.request_for(turned, num_samples=0)).frames[0, :, :, 0]
    white, black = (picture[18:], picture[:14]) if angle == 90 else (picture[:14], picture[18:])
    assert abs(angle) == 90 and white.min() > 200 and black.max() < 50


def test_bad_files_give_errors_not_exceptions(kit, folder):
    for name in ("zeroed.mp4", "no_index.mp4", "random.mp4", "empty.mp4", "notes.txt", "gone.mp4"):
        clip = decode_clip(kit.request_for(folder / name))
        assert clip.frames is None and clip.waveform is None and clip.error, name
    clip = decode_clip(kit.request_for(folder / "mute.mp4"))
    assert clip.frames is not None and clip.waveform is None and "no audio" in clip.error
    clip = decode_clip(
        kit.request_for(folder / "truncated.mkv", frame_start=18.0, sample_start=18.0)
    )
    assert clip.frames is not None  # the last frame there is
