import itertools

import pytest

from selavi.labelling.schedule import round_steps


def test_dense_early_sparse_late() -> None:
    steps = round_steps(1000, 10)
    gaps = [after - before for before, after in itertools.pairwise(steps)]
    assert steps[0] == 0 and steps[-1] < 1000 and len(steps) == 10
    assert gaps == sorted(gaps)


@pytest.mark.parametrize(("total", "rounds"), [(1, 1), (3, 10), (5, 5)])
def test_no_more_rounds_than_steps(total: int, rounds: int) -> None:
    steps = round_steps(total, rounds)
    assert steps == sorted(set(steps)) and 1 <= len(steps) <= min(total, rounds)
