"""Divergences, correlations and free energies against their definitions."""

import numpy as np
import pytest

from openmm_starmd.evaluation.metrics import differences


@pytest.fixture
def rng():
    return np.random.default_rng(4)


def test_divergence_is_zero_for_equal_one_for_disjoint_and_symmetric(rng):
    p, q = rng.random((7, 5)), rng.random((7, 5))
    assert differences.jensen_shannon(p, 3 * p) == pytest.approx(0, abs=1e-12)
    assert differences.jensen_shannon([1, 0], [0, 1]) == pytest.approx(1)
    assert differences.jensen_shannon(p, q) == pytest.approx(differences.jensen_shannon(q, p))
    with pytest.raises(ValueError, match="something in them"):
        differences.jensen_shannon(p, np.zeros((7, 5)))


def test_correlation_is_pearsons_and_zero_for_a_flat_profile(rng):
    x = rng.normal(size=30)
    assert differences.correlation(x, 3 * x + 1) == pytest.approx(1)
    assert differences.correlation(x, -x) == pytest.approx(-1)
    assert differences.correlation(x, np.ones(30)) == 0
    assert differences.correlation(x[:1], x[:1]) == 0


def test_mean_absolute_difference_leaves_out_what_is_no_number():
    curve = np.array([1.0, 2.0, 3.0, np.nan])
    assert differences.mean_absolute_difference(curve, curve + [1, -2, 3, 0]) == pytest.approx(2)
    assert np.isnan(differences.mean_absolute_difference([np.nan], [1.0]))


def test_free_energy_of_a_double_well(rng):
    thermal = differences.GAS_CONSTANT * 300.0
    assert thermal == pytest.approx(2.494, abs=0.001)

    def potential(x):
        return thermal * (4 * (x**2 - 1) ** 2 + 0.5 * x)

    x = rng.uniform(-2, 2, 2_000_000)
    x = x[rng.random(len(x)) < np.exp(-potential(x) / thermal - 0.6)]
    counts = np.histogram(x, 100, (-2, 2))[0]
    energy = differences.free_energy(counts, 300.0)
    fine = (np.arange(100_000) + 0.5) / 25_000 - 2
    weight = np.exp(-potential(fine) / thermal)
    share = weight.reshape(100, -1).sum(1) / weight.sum()
    low = energy < 4 * thermal
    assert energy.min() == 0 and np.isinf(energy[0])
    assert energy[low] == pytest.approx(-thermal * np.log(share / share.max())[low], abs=0.2)


def test_difference_of_free_energies_of_known_populations():
    def difference(*counts):
        return differences.free_energy_difference(*map(np.array, counts), 300.0)

    thermal = differences.GAS_CONSTANT * 300.0
    even, skewed = [100, 100, 0], [150, 50, 0]
    expected = thermal * np.sqrt((np.log(1.5) ** 2 + np.log(0.5) ** 2) / 2)
    assert difference(even, skewed) == pytest.approx(expected)
    assert difference(even, even) == 0
    never = thermal * np.sqrt((np.log(0.5) ** 2 + np.log(0.5 / (0.5 / 200)) ** 2) / 2)
    assert difference(even, [200, 0, 0]) == pytest.approx(never)
    rare = [10_000, 10, 0]  # 6.9 kT above: left out
    assert difference(rare, [10_000, 0, 10]) == pytest.approx(0, abs=1e-12)
