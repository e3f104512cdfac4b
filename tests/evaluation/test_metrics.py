import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selavi.errors import SelaviError
from selavi.evaluation import cluster_metrics


def test_by_hand():
    # clusters a: 1 1 1 2, b: 2 2, c: 3 1
    labels = list("aaaabbcc")
    truth = [1, 1, 1, 2, 2, 2, 3, 1]
    scores = cluster_metrics(labels, truth)
    entropies = [-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), 0.0, math.log(2)]
    assert scores["mean_entropy"] == pytest.approx(sum(entropies) / 3)
    assert scores["mean_max_purity"] == pytest.approx((0.75 + 1 + 0.5) / 3)
    assert scores["accuracy"] == pytest.approx(6 / 8)  # a-1, b-2, c-3

    def entropy(*counts):
        return -sum(n / 8 * math.log(n / 8) for n in counts)

    mutual = entropy(4, 2, 2) + entropy(4, 3, 1) - entropy(3, 1, 2, 1, 1)
    mean = (entropy(4, 2, 2) + entropy(4, 3, 1)) / 2
    assert scores["nmi"] == pytest.approx(mutual / mean)
    # pairs together in both: 3 + 1 = 4; in clusters: 6 + 1 + 1 = 8; in classes: 6 + 3 = 9; of 28
    expected = 8 * 9 / 28
    assert scores["ari"] == pytest.approx((4 - expected) / ((8 + 9) / 2 - expected))


def test_accuracy_matches_one_to_one_when_numbers_differ():
    assert cluster_metrics([0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 1, 1])["accuracy"] == pytest.approx(
        4 / 6
    )
    assert cluster_metrics([0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 2, 2])["accuracy"] == pytest.approx(
        4 / 6
    )


def test_perfect_labels_under_other_names():
    scores = cluster_metrics(torch.tensor([5, 5, 9, 9, 0]), np.array(["x", "x", "y", "y", "z"]))
    assert scores == pytest.approx(
        {"nmi": 1, "ami": 1, "ari": 1, "accuracy": 1, "mean_entropy": 0, "mean_max_purity": 1}
    )


def test_one_cluster_of_many_classes():
    scores = cluster_metrics([7] * 4, ["a", "b", "c", "d"])
    assert scores["nmi"] == scores["ami"] == scores["ari"] == 0
    assert scores["accuracy"] == scores["mean_max_purity"] == 0.25
    assert scores["mean_entropy"] == pytest.approx(math.log(4))


def test_one_class_in_many_clusters():
    scores = cluster_metrics([0, 1, 2, 3], ["a"] * 4)
    assert scores["nmi"] == scores["ari"] == 0
    assert (scores["accuracy"], scores["mean_entropy"], scores["mean_max_purity"]) == (0.25, 0, 1)


def test_one_cluster_one_class_one_clip():
    scores = cluster_metrics([3], ["a"])
    assert scores["accuracy"] == scores["nmi"] == scores["mean_max_purity"] == 1


@pytest.mark.parametrize(("labels", "truth"), [([], []), ([1, 2], [1]), ([[1]], [[1]])])
def test_unfit_input_is_told_in_one_line(labels, truth):
    with pytest.raises(SelaviError, match="one class a clip") as caught:
        cluster_metrics(labels, truth)
    assert "\n" not in str(caught.value)


@settings(max_examples=50, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=60),
    names=st.permutations(range(5)),
    order=st.randoms(use_true_random=False),
)
def test_neither_names_nor_order_matter(pairs, names, order):
    scores = cluster_metrics([p[0] for p in pairs], [p[1] for p in pairs])
    order.shuffle(pairs)
    renamed = cluster_metrics([names[p[0]] for p in pairs], [f"class {p[1]}" for p in pairs])
    assert renamed == pytest.approx(scores)
    assert 0 <= scores["nmi"] <= 1 + 1e-9 and 0 <= scores["accuracy"] <= 1
    assert 0 <= scores["mean_entropy"] <= math.log(7) + 1e-9
