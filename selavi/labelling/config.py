"""What a clustering round does, as plain values."""

import math
from dataclasses import dataclass

from selavi.errors import check_ranges


@dataclass(frozen=True)
class LabellingConfig:
    """Settings of the label assignment.

    Attributes:
        num_clusters: K.
        num_heads: H, independent labellings learned side by side; 1 switches multi-head off.
        prior: cluster sizes: ``uniform``, ``gaussian``, ``zipf`` or a file of K numbers.
        prior_from: part of the training before which rounds assume equal sizes: a prior that comes
            when the encoders know little makes the wrong clusters large, and they stay so.
        gaussian_sd: relative standard deviation of the Gaussian prior.
        rounds: clustering rounds during training.
        schedule_power: round j of n falls at the fraction (j / n)^power of training.
        lam: lambda of the entropic regularisation, 1/epsilon.
        tol: column error sum_k |m_k - r_k| at which an assignment counts as solved.
        max_iterations: iterations after which the solver gives up and says so.
        shared_fraction: part of the training that comes before the first round, on first labels
            from what both modalities share (see `selavi.labelling.shared`); 0 begins, as the paper
            does, with a round on the predictions of random encoders.
        alignment: match the audio heads' outputs to the video heads' before the first round.
        second_view: label a random half of the heads from a second augmentation of the data.
        memory: share of the earlier rounds' log-probabilities in this round's, in [0, 1): steadies
            the labels. 0 as in the paper; above it, H x N x K numbers are kept.
        views: augmented views averaged in each labelling, and in each half's where there are two.
    """

    num_clusters: int
    num_heads: int = 10
    prior: str = "uniform"
    prior_from: float = 0.0
    gaussian_sd: float = 0.1
    rounds: int = 50
    schedule_power: float = 1.5
    lam: float = 20.0
    tol: float = 2e-6
    max_iterations: int = 200
    shared_fraction: float = 0.0
    alignment: bool = True
    second_view: bool = True
    memory: float = 0.0
    views: int = 1

    def __post_init__(self) -> None:
        check_ranges("labelling", self, {
            "num_clusters": (2, math.inf), "num_heads": (1, math.inf), "gaussian_sd": (0, 10),
            "rounds": (1, math.inf), "schedule_power": (0.01, 100), "lam": (1e-6, 1e6),
            "tol": (1e-15, 2), "max_iterations": (1, math.inf), "shared_fraction": (0, 0.99),
            "prior_from": (0, 1), "memory": (0, 0.99), "views": (1, math.inf),
        })  # fmt: skip
