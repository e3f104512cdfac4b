from functools import partial

import numpy as np
import pytest
import torch

from selavi.data.config import AugmentConfig, DataConfig
from selavi.data.rng import uniform
from selavi.data.transforms import standardize, video_view

STILL = AugmentConfig(crop_scale=(1.0, 1.0), flip=False)


def config_with(augment=STILL, **settings):
    values = dict(num_frames=4, frame_size=16, decode_size=16, channels=1)
    return DataConfig(**{**values, **settings}, augment=augment)


def draws(rows, seed=0):
    return partial(uniform, seed, 0, np.arange(rows))


def frames_of(rows, size=16, channels=1, steps=4):
    generator = torch.Generator().manual_seed(0)
    shape = (rows, steps, size, size, channels)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def pixels(view):
    return view * 0.22 + 0.45


@pytest.mark.parametrize("channels", [1, 3])
def test_the_identity_view_is_the_frames(channels):
    frames = frames_of(2, channels=channels)
    config = config_with(channels=channels)
    expected = frames.permute(0, 4, 1, 2, 3) / 255
    for draw in (None, draws(2)):
        view = video_view(frames, np.ones(2), config, draw)
        assert view.shape == (2, channels, 4, 16, 16) and view.dtype == torch.float32
        torch.testing.assert_close(pixels(view), expected, atol=1e-5, rtol=0)


def test_wide_and_tall_frames_are_cropped_to_squares():
    ramp = torch.arange(16, dtype=torch.uint8) * 16
    wide = ramp.view(1, 1, 1, 16, 1).expand(1, 4, 16, 16, 1)
    view = pixels(video_view(wide, np.array([2.0]), config_with(), None))[0, 0, 0]
    assert torch.allclose(view, view[:1])  # columns only
    # the middle half: 4 to 12 of 16 columns, half a column apart
    torch.testing.assert_close(view[0] * 255 / 16, 3.75 + 0.5 * torch.arange(16), atol=1e-3, rtol=0)
    view = pixels(video_view(wide.transpose(2, 3), np.array([0.5]), config_with(), None))[0, 0, 0]
    torch.testing.assert_close(
        view[:, 0] * 255 / 16, 3.75 + 0.5 * torch.arange(16), atol=1e-3, rtol=0
    )


def test_the_centre_view_takes_the_middle_of_the_crop_scale():
    ramp = (torch.arange(16, dtype=torch.uint8) * 16).view(1, 1, 1, 16, 1).expand(1, 4, 16, 16, 1)
    config = config_with(AugmentConfig(crop_scale=(0.02, 0.48)))  # a quarter: half the side
    view = pixels(video_view(ramp, np.ones(1), config, None))[0, 0, 0, 0]
    torch.testing.assert_close(view * 255 / 16, 3.75 + 0.5 * torch.arange(16), atol=1e-3, rtol=0)


def test_half_of_the_views_are_mirrored():
    rows = 200
    ramp = torch.arange(16, dtype=torch.uint8).view(1, 1, 1, 16, 1).expand(rows, 4, 16, 16, 1)
    config = config_with(AugmentConfig(crop_scale=(0.5, 1.0), flip=True))
    view = video_view(ramp, np.ones(rows), config, draws(rows))
    mirrored = view[..., 0] > view[..., -1]
    assert (mirrored == mirrored[:, :, :1, :1]).all() and 70 < mirrored[:, 0, 0, 0].sum() < 130


def test_crops_stay_inside_and_have_the_size_asked_for():
    rows = 100
    ramp = (torch.arange(64, dtype=torch.float32) * 4).to(torch.uint8)
    config = config_with(AugmentConfig(crop_scale=(0.25, 0.36), flip=False), decode_size=64)
    wide = ramp.view(1, 1, 1, 64, 1).expand(rows, 4, 64, 64, 1)
    view = pixels(video_view(wide, np.full(rows, 2.0), config, draws(rows)))[:, 0, 0, 0] * 255 / 256
    seen = (view[:, -1] - view[:, 0]) * 16 / 15  # fraction of the width
    assert seen.min() > 0.5 / 2 - 0.02 and seen.max() < 0.6 / 2 + 0.02
    assert view[:, 0].min() < 0.1 and view[:, -1].max() > 0.9 and view[:, 0].std() > 0.1


def test_a_quarter_turn():
    frames = frames_of(1).float()
    frames = torch.nn.functional.avg_pool2d(frames[..., 0], 5, 1, 2)[..., None].to(torch.uint8)
    config = config_with(AugmentConfig(crop_scale=(1.0, 1.0), flip=False, rotate=90.0))
    view = video_view(frames, np.ones(1), config, lambda purpose, n: np.full((1, n), 1.0))
    turned = torch.rot90(frames[0, :, :, :, 0], 1, (1, 2)) / 255
    torch.testing.assert_close(pixels(view)[0, 0], turned, atol=1e-4, rtol=0)


def test_frames_are_stretched_and_shifted_in_time():
    levels = torch.arange(8, dtype=torch.uint8) * 30
    frames = levels.view(1, 8, 1, 1, 1).expand(1, 8, 16, 16, 1)

    def view(u, **strength):
        config = config_with(
            AugmentConfig(crop_scale=(1.0, 1.0), flip=False, **strength), num_frames=8, fps=10.0
        )
        out = video_view(frames, np.ones(1), config, lambda purpose, n: np.full((1, n), u))
        return (pixels(out)[0, 0, :, 0, 0] * 255 / 30).round().int().tolist()

    assert view(1.0, video_shift=0.2) == [2, 3, 4, 5, 6, 7, 7, 7]
    assert view(0.0, video_shift=0.2) == [0, 0, 0, 1, 2, 3, 4, 5]
    assert view(0.0, video_stretch=0.5) == [2, 2, 3, 3, 4, 4, 5, 5]


@pytest.mark.parametrize("motion", ["difference", "deviation"])
def test_motion_channels(motion):
    frames = frames_of(2, channels=3)
    config = config_with(channels=3, motion=motion)
    view = video_view(frames, np.ones(2), config, None)
    assert view.shape == (2, 6, 4, 16, 16) and config.video_channels == 6
    picture, change = view.chunk(2, 1)
    if motion == "difference":
        assert not change[:, :, 0].any()
        torch.testing.assert_close(change[:, :, 1:], 2 * (picture[:, :, 1:] - picture[:, :, :-1]))
    else:
        torch.testing.assert_close(change, 2 * (picture - picture.mean(2, keepdim=True)))


@pytest.mark.parametrize(
    "strength",
    [
        dict(color_jitter=0.4),
        dict(blur_probability=1.0),
        dict(crop_ratio=1.5, crop_scale=(0.3, 0.9)),
        dict(rotate=20.0),
        dict(video_stretch=0.9),
    ],
)
def test_every_strength_does_something_for_each_clip_alone(strength):
    rows = 6
    frames = frames_of(rows, channels=3, steps=8)
    config = config_with(AugmentConfig(**{**dict(crop_scale=(1.0, 1.0), flip=False), **strength}),
                         channels=3)  # fmt: skip
    plain = video_view(frames, np.ones(rows), config_with(channels=3), None)
    views = video_view(frames, np.ones(rows), config, draws(rows))
    assert ((views - plain).abs().flatten(1).max(1).values > 0.05).sum() >= 4
    alone = partial(uniform, 0, 0, np.array([3]))
    one = video_view(frames[3:4], np.ones(1), config, alone)
    torch.testing.assert_close(one[0], views[3], atol=1e-5, rtol=1e-5)


def test_blur_leaves_the_mean_and_lowers_the_contrast():
    frames = frames_of(40)
    config = config_with(AugmentConfig(crop_scale=(1.0, 1.0), flip=False, blur_probability=0.5))
    plain = video_view(frames, np.ones(40), config, None)
    views = video_view(frames, np.ones(40), config, draws(40))
    blurred = (views != plain).flatten(1).any(1)
    assert 10 < blurred.sum() < 30
    assert (views[blurred].std((1, 2, 3, 4)) < plain[blurred].std((1, 2, 3, 4))).all()
    torch.testing.assert_close(views.mean((1, 2, 3, 4)), plain.mean((1, 2, 3, 4)), atol=0.1, rtol=0)


def test_each_clip_by_its_own_mean_and_deviation():
    frames = frames_of(2)
    frames[1] = 7  # a constant clip stays finite
    view = video_view(frames, np.ones(2), config_with(video_norm="clip"), None)
    assert abs(view[0].mean()) < 1e-4 and abs(view[0].std() - 1) < 1e-2
    assert view[1].abs().max() < 1e-2
    assert standardize(torch.zeros(1, 5), (1,)).isfinite().all()
