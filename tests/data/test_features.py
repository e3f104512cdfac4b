import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from selavi.data.features import read_features
from selavi.errors import SelaviError


def test_npz(tmp_path):
    values = np.arange(6.0).reshape(3, 2)
    np.savez(tmp_path / "x.npz", video=values, audio=values.astype(">i2"), names=["a", "b", "c"])
    video, audio, names = read_features(tmp_path / "x.npz")
    assert video.dtype == audio.dtype == torch.float32 and torch.equal(video, audio)
    np.testing.assert_array_equal(video, values)
    assert names == ["a", "b", "c"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_safetensors(tmp_path, dtype):
    values = torch.arange(6).view(3, 2)
    save_file({"audio": values.to(dtype)}, tmp_path / "x.safetensors")
    video, audio, names = read_features(tmp_path / "x.safetensors")
    assert video is None and names == ["0", "1", "2"]
    assert audio.dtype == torch.float32 and torch.equal(audio, values.float())


@pytest.mark.parametrize(
    "values",
    [
        np.float32(1.0),
        np.ones(3),
        np.ones((2, 3, 4)),
        np.ones((0, 3)),
        np.ones((3, 0)),
        np.array([["a", "b"]]),
        np.ones((2, 3), np.complex64),
    ],
)
def test_arrays_that_are_no_features_are_named(tmp_path, values):
    np.savez(tmp_path / "x.npz", video=values)
    with pytest.raises(SelaviError, match=r"x\.npz: video has shape .*: give N x D numbers"):
        read_features(tmp_path / "x.npz")


@pytest.mark.parametrize("names", [np.array("a"), np.array(["a", "b"]), np.ones((3, 2))])
def test_names_go_with_the_rows(tmp_path, names):
    np.savez(tmp_path / "x.npz", video=np.ones((3, 2)), names=names)
    with pytest.raises(SelaviError, match="names for 3 rows"):
        read_features(tmp_path / "x.npz")


def test_files_that_cannot_be_read(tmp_path):
    np.savez_compressed(tmp_path / "good.npz", video=np.random.default_rng(0).random((50, 20)))
    good = (tmp_path / "good.npz").read_bytes()
    save_file({"video": torch.ones(50, 20)}, tmp_path / "good.safetensors")
    cut = {suffix: (tmp_path / f"good.{suffix}").read_bytes() for suffix in ("npz", "safetensors")}
    for suffix, content in cut.items():
        (tmp_path / f"empty.{suffix}").touch()
        (tmp_path / f"cut.{suffix}").write_bytes(content[: len(content) // 2])
        (tmp_path / f"folder.{suffix}").mkdir()
    (tmp_path / "damaged.npz").write_bytes(good[:200] + bytes(200) + good[400:])
    np.save(tmp_path / "pickled.npy", np.array([{}], object))
    np.savez(tmp_path / "pickled.npz", video=np.array([{}], object))
    np.save(tmp_path / "one.npy", np.ones((3, 2)))
    for name in ("empty.npz", "cut.npz", "folder.npz", "damaged.npz", "pickled.npz", "missing.npz",
                 "empty.safetensors", "cut.safetensors", "folder.safetensors",
                 "missing.safetensors", "pickled.npy", "one.npy"):  # fmt: skip
        with pytest.raises(SelaviError, match=r"^cannot read .*; give an npz or safetensors file$"):
            read_features(tmp_path / name)
    np.savez(tmp_path / "other.npz", x=np.ones(2))
    with pytest.raises(SelaviError, match="holds x: give arrays named video"):
        read_features(tmp_path / "other.npz")
