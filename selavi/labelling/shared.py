"""First labels from what the picture and the sound of the clips have in common.

A random encoder's predictions say little, and self-labelling takes long to leave them behind. What
both modalities show is seldom chance, and linear algebra finds it: canonical correlation analysis.
"""

from collections.abc import Callable

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits

#: Principal components of a modality: at most this many, and clips for each of them at least.
COMPONENTS = 100
CLIPS_PER_COMPONENT = 20


def shared_subspace(inputs: dict[str, np.ndarray], present: dict[str, np.ndarray]) -> np.ndarray:
    """Canonical variates of two modalities side by side, each scaled by its correlation.

    Each modality is reduced to whitened principal components X, Y; with U S V^T the singular value
    decomposition of X^T Y / N, the variates are X U S and Y V S: directions that the other modality
    cannot predict vanish. Of one modality alone, its whitened components.

    Args:
        inputs: modality -> (N, F).
        present: modality -> (N,) bool; what a clip lacks counts as the mean.

    Returns:
        (N, D) float64.
    """
    whitened = [_whiten(inputs[m].astype(np.float64), present[m]) for m in inputs]
    if len(whitened) == 1:
        return whitened[0]
    first, second = whitened
    both = np.logical_and(*present.values())
    u, s, vt = np.linalg.svd(first[both].T @ second[both] / max(both.sum(), 1))
    size = len(s)
    return np.concatenate([first @ u[:, :size] * s, second @ vt[:size].T * s], 1)


def shared_labels(
    inputs: dict[str, np.ndarray],
    present: dict[str, np.ndarray],
    *,
    num_clusters: int,
    num_heads: int,
    seed: int,
    on_head: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """k-means in the shared subspace, from other random starts for each head: (H, N) int64."""
    points = shared_subspace(inputs, present)
    labels = np.empty((num_heads, len(points)), dtype=np.int64)
    with threadpool_limits(1):  # its threads spin where cores are shared
        for head in range(num_heads):
            k_means = KMeans(num_clusters, n_init=3, random_state=seed + head)
            labels[head] = k_means.fit_predict(points)
            on_head()
    return labels


def _whiten(rows: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Principal components of unit variance over the clips that have the modality, 0 elsewhere."""
    most = max(min(COMPONENTS, present.sum() // CLIPS_PER_COMPONENT, rows.shape[1]), 1)
    pca = PCA(int(most), svd_solver="randomized", random_state=0)
    whitened = np.zeros((len(rows), int(most)))
    if present.sum() > 1:
        components = pca.fit_transform(rows[present])
        deviation = components.std(0)
        kept = deviation > 1e-3 * deviation[0]  # less is rounding, not signal
        whitened[:, : kept.sum()][present] = components[:, kept] / deviation[kept]
    return whitened
