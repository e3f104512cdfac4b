import numpy as np
from sklearn.metrics import normalized_mutual_info_score as nmi

from selavi.labelling.shared import shared_labels, shared_subspace


def collection(rng: np.random.Generator) -> tuple[dict, dict, np.ndarray, np.ndarray]:
    """Classes that both modalities show, and in each a stronger grouping that the other lacks."""
    n = 1200
    classes, nuisance = rng.integers(0, 4, n), rng.integers(0, 4, (2, n))
    inputs = {}
    for name, other in zip(("video", "audio"), nuisance, strict=True):
        shown = 2 * rng.normal(size=(4, 30))[classes] + 6 * rng.normal(size=(4, 30))[other]
        inputs[name] = (shown + rng.normal(size=(n, 30))).astype(np.float32)
    present = {name: np.ones(n, bool) for name in inputs}
    return inputs, present, classes, nuisance[0]


def test_finds_what_is_shared_under_stronger_nuisance() -> None:
    inputs, present, classes, nuisance = collection(np.random.default_rng(0))
    labels = shared_labels(inputs, present, num_clusters=4, num_heads=3, seed=0)
    assert labels.shape == (3, 1200) and labels.dtype == np.int64
    for head in labels:
        assert nmi(classes, head) > 0.9
        assert nmi(nuisance, head) < 0.1


def test_clips_that_lack_a_modality_are_labelled_from_the_other() -> None:
    inputs, present, classes, _ = collection(np.random.default_rng(1))
    present["audio"][:200] = False
    inputs["audio"][:200] = np.nan
    labels = shared_labels(inputs, present, num_clusters=4, num_heads=1, seed=0)[0]
    assert nmi(classes[200:], labels[200:]) > 0.9


def test_one_modality_alone() -> None:
    inputs, present, _, _ = collection(np.random.default_rng(2))
    points = shared_subspace({"video": inputs["video"]}, {"video": present["video"]})
    np.testing.assert_allclose(points.std(0), 1, rtol=1e-3)


def test_constant_inputs_do_not_break() -> None:
    inputs = {"video": np.zeros((20, 6), np.float32), "audio": np.ones((20, 3), np.float32)}
    present = {name: np.ones(20, bool) for name in inputs}
    assert np.isfinite(shared_subspace(inputs, present)).all()
