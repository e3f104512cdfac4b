"""The inputs: what is solved. Seeds are fixed; big matrices are made chunk by chunk."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from checker import column_masses
from selavi.labelling.priors import make_prior
from selavi.ops import permute_prior

HARD = ((3.0, 1.0), (8.0, 2.0), (15.0, 3.0))  # confidence, noise
EASY = (0.3, 1.0, 3.0)  # sharpness
PRIORS = ("uniform", "gaussian", "zipf")
FAMILIES = tuple(f"hard {c:g}/{s:g}" for c, s in HARD) + tuple(f"easy {s:g}" for s in EASY)
LOGITS = Path(
    os.environ.get("SELAVI_LOGITS", Path(__file__).parents[2] / "shared" / "data" / "logits")
)
_CHUNK = 8192


@dataclass(frozen=True)
class Problem:
    """Rows weigh the same; columns must weigh col_marginal to an L1 error of target.

    Attributes:
        log_p: (N, K) float32.
        col_marginal: (K,) float64, sum 1, already matched to the clusters by eq. 4.
    """

    name: str
    log_p: Tensor
    lam: float
    col_marginal: Tensor
    target: float


@lru_cache(maxsize=1)  # one matrix at a time
def family(name: str, rows: int, columns: int) -> Tensor:
    """Log-probabilities (rows, columns) float32 of a member of FAMILIES."""
    logits = _logits(name, rows, columns, torch.Generator().manual_seed(0))
    return _by_chunks(torch.empty(rows, columns), lambda part: logits(part).log_softmax(-1))


def heads(
    name: str,
    count: int,
    rows: int,
    columns: int,
    device: str,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Logits (count, rows, columns) of so many draws of a member, made on the device."""
    result = torch.empty(count, rows, columns, dtype=dtype, device=device)
    for seed, head in enumerate(result):
        generator = torch.Generator(device).manual_seed(seed)
        _by_chunks(head, _logits(name, rows, columns, generator))
    return result


def _logits(
    name: str, rows: int, columns: int, generator: torch.Generator
) -> Callable[[slice], Tensor]:
    """What makes a part's rows; parts must be asked for in order.

    hard c/s: class sizes ~ rank^-0.5, W (K, 24) standard normal, S = W W^T / 5, and
    logits = c onehot(y) + s S[y] + s noise. easy s: class sizes ~ 1 / rank, W (K, 32),
    x = W[y] + 1.5 noise, and logits = s x W^T / sqrt(32).
    """
    kind, parameters = name.split()
    values = [float(value) for value in parameters.split("/")]
    at: Any = {"generator": generator, "device": generator.device}
    ranks = torch.arange(1, columns + 1, dtype=torch.float64, device=generator.device)
    sizes = ranks**-0.5 if kind == "hard" else 1 / ranks
    y = torch.multinomial(sizes, rows, replacement=True, generator=generator)
    w = torch.randn(columns, 24 if kind == "hard" else 32, **at)
    if kind == "hard":
        one_hot = torch.eye(columns, device=generator.device)
        similarity = values[1] * (w @ w.T / 5) + values[0] * one_hot

        def logits(part: slice) -> Tensor:
            return similarity[y[part]] + values[1] * torch.randn(len(y[part]), columns, **at)

    else:

        def logits(part: slice) -> Tensor:
            x = w[y[part]] + 1.5 * torch.randn(len(y[part]), 32, **at)
            return values[0] * x @ w.T / 32**0.5

    return logits


def assignment(name: str, prior: str, rows: int, columns: int, target: float = 2e-6) -> Problem:
    """Labels at lambda 20 under a prior of selavi.labelling (Gaussian: standard deviation 0.1)."""
    log_p = family(name, rows, columns)
    return matched(f"{name}, {prior}", log_p, prior, target)


def matched(name: str, log_p: Tensor, prior: str, target: float = 2e-6) -> Problem:
    """The prior's largest share goes to the cluster that is heaviest without the prior."""
    columns = log_p.shape[1]
    mass = column_masses(log_p, 20.0, torch.zeros(columns, dtype=torch.float64))
    return Problem(name, log_p, 20.0, permute_prior(make_prior(prior, columns), mass), target)


def perturbed(problem: Problem, share: float = 0.1) -> Problem:
    """The same with normal noise of `share` of the log-probabilities' standard deviation added."""
    log_p = problem.log_p
    generator = torch.Generator().manual_seed(1)
    sd = share * log_p[:: max(1, len(log_p) // _CHUNK)].std()

    def moved(part: slice) -> Tensor:
        noise = torch.randn(log_p[part].shape, generator=generator)
        return (log_p[part] + sd * noise).log_softmax(-1)

    return replace(problem, log_p=_by_chunks(torch.empty_like(log_p), moved))


@lru_cache(maxsize=1)
def dense(points: int, relative_reg: float, target: float = 1e-6, device: str = "cpu") -> Problem:
    """Squared Euclidean cost between two sets of uniform points in the unit square.

    reg is relative to the largest cost: log_p = -cost and lam = 1 / reg.
    """
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, points, 2, dtype=torch.float64, generator=generator)
    cost = (torch.cdist(x, y) ** 2).float()
    uniform = torch.full((points,), 1 / points, dtype=torch.float64)
    lam = 1 / (relative_reg * cost.max().item())
    name = f"reg {relative_reg:g}"
    return Problem(name, -cost.to(device), lam, uniform.to(device), target)


@dataclass(frozen=True)
class Clouds:
    """Two sets of points, x (N, D) and y (K, D) float32, and the problem of their distances."""

    x: Tensor
    y: Tensor
    problem: Problem


def negative_distances(x: Tensor, y: Tensor) -> Tensor:
    """-|x_i - y_k|^2 (N, K), by one product of matrices."""
    distances = torch.addmm(y.square().sum(1), x, y.T, beta=-1, alpha=2)
    return distances.sub_(x.square().sum(1)[:, None])


@lru_cache(maxsize=1)
def clouds(points: int, relative_reg: float, target: float = 1e-6, device: str = "cpu") -> Clouds:
    """Two clouds of points in 64 dimensions, uniform in a cube; reg as in `dense`.

    They are centred, on a grid of 1/64 from -1/2 to 1/2: whoever computes a distance in float32,
    or a product in TF32, has it exactly, so that all solve the same problem.
    """
    generator = torch.Generator().manual_seed(0)
    half = torch.randint(-32, 33, (2, points // 2, 64), generator=generator) / 64
    x, y = torch.cat([half, -half], 1).to(device)
    log_p = negative_distances(x, y)
    uniform = torch.full((points,), 1 / points, dtype=torch.float64, device=device)
    lam = 1 / (relative_reg * -log_p.min().item())
    return Clouds(x, y, Problem(f"reg {relative_reg:g}", log_p, lam, uniform, target))


@lru_cache(maxsize=1)
def scores(batch: int, prototypes: int, device: str = "cpu") -> Tensor:
    """Cosines (batch, prototypes) float32 of random directions in 128 dimensions."""
    generator = torch.Generator(device).manual_seed(0)
    x, w = (torch.randn(n, 128, generator=generator, device=device) for n in (batch, prototypes))
    return torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(w).T


def trained(step: str) -> Tensor | None:
    """Log-probabilities of a training run's model, or None where the file is not at hand."""
    path = LOGITS / f"log_p_step{step}.npy"
    return torch.from_numpy(np.load(path)) if path.exists() else None


def _by_chunks(result: Tensor, make: Callable[[slice], Tensor]) -> Tensor:
    for first in range(0, len(result), _CHUNK):
        part = slice(first, min(first + _CHUNK, len(result)))
        result[part] = make(part)
    return result
