"""Slow modes of processes that were planted in noise."""

import numpy as np
import pytest
from scipy.stats import norm

from openmm_starmd.evaluation.metrics import slow_modes


@pytest.fixture
def rng():
    return np.random.default_rng(4)


def test_jsd_of_two_shifted_gaussians_is_the_integral(rng):
    x = np.linspace(-8, 9, 200_001)
    p, q = norm.pdf(x), norm.pdf(x, 1.2)
    expected = sum((d * np.log2(2 * d / (p + q))).sum() for d in (p, q)) * (x[1] - x[0]) / 2
    a, b = (np.stack([rng.normal(mean, 1, 400_000), np.zeros(400_000)], 1) for mean in (0, 1.2))
    assert slow_modes.tica_jsd(a, b) == pytest.approx((expected, expected), abs=0.003)
    assert 0.2 < expected < 0.3


def test_tica_finds_the_slow_direction_and_tells_distributions_apart(rng):
    slow = np.repeat(rng.integers(0, 2, 400), 50) * 2.0 - 1
    mixing = np.array([[1.0, 0.4, -0.3], [0.2, 1.0, 0.5], [0.1, -0.6, 1.0]])
    features = np.stack([slow, *rng.normal(size=(2, len(slow)))], 1) @ mixing
    projection = slow_modes.fit_tica(features, 5).transform(features)
    assert abs(np.corrcoef(projection[:, 0], slow)[0, 1]) > 0.98
    assert slow_modes.tica_jsd(projection, projection) == pytest.approx((0, 0), abs=1e-12)
    expected = (0.5 * np.log2(0.5 / 0.75) + 0.5 * np.log2(0.5 / 0.25) + np.log2(1 / 0.75)) / 2
    assert slow_modes.tica_jsd(projection, projection[slow > 0])[0] == pytest.approx(expected, abs=0.05)


def test_tica_says_what_it_lacks_and_passes_over_short_trajectories(rng):
    with pytest.raises(ValueError, match="does not move"):
        slow_modes.fit_tica(np.ones((50, 3)), 2)
    with pytest.raises(ValueError, match="longer than the lag of 50"):
        slow_modes.fit_tica(rng.normal(size=(50, 3)), 50)
    with pytest.raises(ValueError, match="finite features"):
        slow_modes.fit_tica(np.full((50, 3), np.nan), 2)
    x = np.cumsum(rng.normal(size=(25_000, 2)), 0)
    whole, parts = slow_modes.fit_tica(x, 3), slow_modes.fit_tica([x, x[:2]], 3)
    assert np.allclose(whole.transform(x[:10]), parts.transform(x[:10]))


def test_ca_distances_are_those_of_far_pairs(rng):
    shape = rng.normal(size=(12, 3))
    distances = slow_modes.ca_distances(shape[None])
    assert distances.shape == (1, 9 * 10 // 2)
    assert distances[0, 0] == pytest.approx(np.linalg.norm(shape[0] - shape[3]), rel=1e-5)
    assert slow_modes.ca_distances(shape[None], max_pairs=7).shape == (1, 7)
    with pytest.raises(ValueError, match="use torsions"):
        slow_modes.ca_distances(shape[None, :3])
