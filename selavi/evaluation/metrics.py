"""How well cluster labels agree with known classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.special import xlogy
from sklearn.metrics import (
    adjusted_mutual_info_score,
    adjusted_rand_score,
    normalized_mutual_info_score,
)

from selavi.errors import SelaviError


def cluster_metrics(labels: Sequence[Any], truth: Sequence[Any]) -> dict[str, float]:
    """Compare a clustering of N clips with their classes. The names of neither matter.

    Args:
        labels: (N,) clusters, integers or strings.
        truth: (N,) classes, integers or strings; their number may differ from the clusters'.

    Returns:
        nmi: mutual information over the arithmetic mean of both entropies, in [0, 1].
        ami: the same, adjusted for chance; 0 is what a random labelling reaches.
        ari: adjusted Rand index.
        accuracy: share of clips whose cluster is matched to their class under the best
            one-to-one matching; what is left without a partner counts as wrong.
        mean_entropy: <H>, entropy in nats of the classes within a cluster, averaged over the
            clusters that hold a clip, each counting the same whatever its size.
        mean_max_purity: <p_max>, share of the commonest class in a cluster, averaged likewise.

    Raises:
        SelaviError: no clip, or different numbers of labels and classes.
    """
    labels, truth = np.asarray(labels), np.asarray(truth)
    if labels.ndim != 1 or labels.shape != truth.shape or not len(labels):
        raise SelaviError(
            f"cannot compare {labels.size} labels with {truth.size} classes: give one class a clip"
        )
    clusters, cluster_of = np.unique(labels, return_inverse=True)
    classes, class_of = np.unique(truth, return_inverse=True)
    counts = np.zeros((len(clusters), len(classes)), dtype=np.int64)
    np.add.at(counts, (cluster_of, class_of), 1)

    matched = counts[linear_sum_assignment(counts, maximize=True)].sum()
    share = counts / counts.sum(1, keepdims=True)
    scores = {
        "nmi": normalized_mutual_info_score(class_of, cluster_of, average_method="arithmetic"),
        "ami": adjusted_mutual_info_score(class_of, cluster_of, average_method="arithmetic"),
        "ari": adjusted_rand_score(class_of, cluster_of),
        "accuracy": matched / len(labels),
        "mean_entropy": np.abs(xlogy(share, share).sum(1)).mean(),
        "mean_max_purity": share.max(1).mean(),
    }
    return {name: float(score) for name, score in scores.items()}
