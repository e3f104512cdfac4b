import numpy as np

from selavi.data.rng import between, uniform


def test_numbers_depend_on_every_argument_and_on_nothing_else():
    index = np.arange(50)
    base = uniform(1, 2, index, "crop", 3)
    np.testing.assert_array_equal(uniform(1, 2, index[::-1], "crop", 3)[::-1], base)
    np.testing.assert_array_equal(uniform(1, 2, index[7:8], "crop", 1)[0], base[7, :1])
    for other in [
        uniform(0, 2, index, "crop", 3),
        uniform(1, 3, index, "crop", 3),
        uniform(1, 2, index, "flip", 3),
        uniform(2, 1, index, "crop", 3),
        uniform(-1, 2, index, "crop", 3),
    ]:
        assert (other != base).all()


def test_numbers_are_uniform_and_uncorrelated():
    u = np.stack([uniform(0, d, np.arange(2000), "x", 4) for d in range(5)])
    assert u.min() >= 0 and u.max() < 1
    counts = np.histogram(u, 10, (0, 1))[0]
    assert abs(counts / counts.mean() - 1).max() < 0.06
    flat = u.transpose(1, 0, 2).reshape(2000, -1)
    correlation = np.corrcoef(flat.T) - np.eye(20)
    assert abs(correlation).max() < 0.1
    assert abs(np.corrcoef(flat[:-1, 0], flat[1:, 0])[0, 1]) < 0.08


def test_between():
    np.testing.assert_allclose(between(-2, 4, np.array([0, 0.5])), [-2, 1])
