"""What a clustering round does, as plain values."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LabellingConfig:
    """Settings of the label assignment.

    Attributes:
        num_clusters: K.
        num_heads: H, independent labellings learned side by side; 1 switches multi-head off.
        prior: cluster sizes: ``uniform``, ``gaussian``, ``zipf`` or a file of K numbers.
        gaussian_sd: relative standard deviation of the Gaussian prior.
        rounds: clustering rounds during training.
        schedule_power: round j of n falls at the fraction (j / n)^power of training.
        lam: lambda of the entropic regularisation, 1/epsilon.
        tol: column error sum_k |m_k - r_k| at which an assignment counts as solved.
        max_iterations: iterations after which the solver gives up and says so.
        initialization: of the heads' outputs: ``random`` as in the paper, or ``prototypes``, groups
            of clips with similar features; see `selavi.labelling.prototypes`.
        alignment: match the audio heads' outputs to the video heads' before the first round.
        second_view: label a random half of the heads from a second augmentation of the data.
        views: augmented views averaged in each labelling, and in each half's where there are two.
    """

    num_clusters: int
    num_heads: int = 10
    prior: str = "uniform"
    gaussian_sd: float = 0.1
    rounds: int = 50
    schedule_power: float = 1.5
    lam: float = 20.0
    tol: float = 2e-6
    max_iterations: int = 200
    initialization: Literal["random", "prototypes"] = "random"
    alignment: bool = True
    second_view: bool = True
    views: int = 1
