from pathlib import Path

import numpy as np
import pytest
import torch

from selavi.errors import SelaviError
from selavi.labelling.priors import make_prior


@pytest.mark.parametrize("name", ["uniform", "gaussian", "zipf"])
@pytest.mark.parametrize("num_clusters", [2, 10, 309])
def test_named_priors_are_distributions(name: str, num_clusters: int) -> None:
    prior = make_prior(name, num_clusters)
    assert prior.shape == (num_clusters,) and prior.dtype == torch.float64
    assert (prior > 0).all() and prior.sum().item() == pytest.approx(1)
    assert (prior.diff() <= 1e-12).all()


def test_gaussian_spread() -> None:
    sizes = make_prior("gaussian", 1000, gaussian_sd=0.1) * 1000
    assert sizes.mean().item() == pytest.approx(1)
    assert sizes.std().item() == pytest.approx(0.1, rel=0.02)


def test_zipf_ratio() -> None:
    prior = make_prior("zipf", 10)
    assert (prior[0] / prior[9]).item() == pytest.approx(10)


def test_file_prior(tmp_path: Path) -> None:
    text = tmp_path / "sizes.txt"
    text.write_text("3, 1\n4\n")
    array = tmp_path / "sizes.npy"
    np.save(array, np.array([3, 1, 4]))
    for path in (text, array):
        assert make_prior(str(path), 3).tolist() == pytest.approx([3 / 8, 1 / 8, 4 / 8])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1 2", "2 entries for 3"),
        ("1 0 2", "0.0 as entry 2"),
        ("1 2 -3", "-3.0 as entry 3"),
        ("1 nan 2", "nan as entry 2"),
        ("1 two 3", "cannot read"),
    ],
)
def test_bad_file_prior(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "sizes.txt"
    path.write_text(content)
    with pytest.raises(SelaviError, match=message):
        make_prior(str(path), 3)


def test_unknown_prior() -> None:
    with pytest.raises(SelaviError, match="no prior named 'zipff'"):
        make_prior("zipff", 3)


def test_too_wide_gaussian() -> None:
    with pytest.raises(SelaviError, match="gaussian_sd"):
        make_prior("gaussian", 100, gaussian_sd=1.0)
