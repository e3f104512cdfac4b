"""Priors over cluster sizes: the column marginal r that the assignment must meet."""

from pathlib import Path

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from selavi.errors import SelaviError

NAMES = ("uniform", "gaussian", "zipf")


def make_prior(spec: str, num_clusters: int, *, gaussian_sd: float = 0.1) -> Tensor:
    """The prior named by `spec`: (K,) float64, positive, decreasing for named ones, sum 1.

    ``uniform``
        1/K each.
    ``gaussian``
        Sizes 1 + sd z_k with z_k the K mid-quantiles of a standard normal (the paper draws them
        at random with sd 0.1; the order does not matter, see `permute_prior`).
    ``zipf``
        Sizes proportional to 1/rank.
    any other
        A text file (one number a line or comma separated) or a ``.npy`` file with K positive
        numbers.

    Raises SelaviError where the file is missing or unreadable, or an entry is not positive and
    finite, or their number is not K.
    """
    ranks = np.arange(num_clusters)
    if spec == "uniform":
        sizes = np.ones(num_clusters)
    elif spec == "gaussian":
        sizes = 1 - gaussian_sd * ndtri((ranks + 0.5) / num_clusters)
        if sizes.min() <= 0:
            raise SelaviError(
                f"a Gaussian prior of standard deviation {gaussian_sd} over {num_clusters} "
                "clusters has non-positive sizes: use a smaller labelling.gaussian_sd"
            )
    elif spec == "zipf":
        sizes = 1 / (ranks + 1.0)
    else:
        sizes = _read_sizes(Path(spec))
    _check(sizes, spec, num_clusters)
    return torch.from_numpy(sizes / sizes.sum())


def _read_sizes(path: Path) -> np.ndarray:
    if not path.is_file():
        raise SelaviError(f"no prior named {str(path)!r}: use one of {', '.join(NAMES)} or a file")
    try:
        if path.suffix == ".npy":
            sizes = np.load(path, allow_pickle=False)
        else:
            sizes = np.array(path.read_text().replace(",", " ").split(), dtype=np.float64)
    except (OSError, ValueError) as error:
        raise SelaviError(f"cannot read the prior {path}: {error}; give K numbers") from None
    return sizes.astype(np.float64).ravel()


def _check(sizes: np.ndarray, spec: str, num_clusters: int) -> None:
    if len(sizes) != num_clusters:
        raise SelaviError(
            f"the prior {spec} has {len(sizes)} entries for {num_clusters} clusters: give one each"
        )
    bad = np.flatnonzero(~(np.isfinite(sizes) & (sizes > 0)))
    if len(bad):
        raise SelaviError(
            f"the prior {spec} has {sizes[bad[0]]} as entry {bad[0] + 1}: "
            "every entry must be positive and finite"
        )
