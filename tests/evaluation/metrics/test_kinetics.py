"""Memory of processes whose exact values are known."""

import numpy as np
import pytest

from openmm_starmd.evaluation.metrics import kinetics


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def test_autocorrelation_of_an_ornstein_uhlenbeck_process_at_each_lag(rng, ornstein_uhlenbeck):
    x = np.stack([ornstein_uhlenbeck(8.0, 200_000, rng), ornstein_uhlenbeck(30.0, 200_000, rng)], 1) + [1.0, -3.0]
    lags = np.array([1, 4, 16])
    sums = np.stack([kinetics.correlation_sums(x[:-lag], x[lag:]) for lag in lags])
    assert np.abs(kinetics.decorrelation(sums) - np.exp(-lags[:, None] / [8.0, 30.0])).max() < 0.05
    still = np.ones((50, 1))
    assert (kinetics.decorrelation(kinetics.correlation_sums(still[:-5], still[5:])[None]) == 0).all()


def test_sums_add_up_over_pieces(rng):
    x = rng.normal(size=(60, 3))
    for sums in (kinetics.correlation_sums, kinetics.covariance_sums):
        parts = sum(sums(x[a:b], x[a + 7 : b + 7]) for a, b in ((0, 20), (20, 53)))
        assert parts == pytest.approx(sums(x[:-7], x[7:]))


def test_vamp2_of_ornstein_uhlenbeck_processes(rng, ornstein_uhlenbeck):
    slow, fast = ornstein_uhlenbeck(50.0, 100_000, rng), ornstein_uhlenbeck(10.0, 100_000, rng)
    mixed = np.stack([slow, fast], 1) @ np.array([[1.0, 0.4], [-0.7, 1.0]]) + 3
    lag = 5

    def score(x):
        return kinetics.vamp2(kinetics.covariance_sums(x[:-lag], x[lag:]))

    assert score(mixed) == pytest.approx(np.exp(-2 * lag / 50.0) + np.exp(-2 * lag / 10.0), abs=0.02)
    assert score(rng.permutation(mixed)) == pytest.approx(0, abs=0.01)
    assert score(np.ones((100, 3))) == 0


def test_vamp2_is_that_of_deeptime(rng):
    x = np.cumsum(rng.normal(size=(2_000, 3)), 0) @ rng.normal(size=(3, 3))
    model = pytest.importorskip("deeptime.decomposition").VAMP(lagtime=3).fit_fetch((x[:-3], x[3:]))
    expected = (model.singular_values**2).sum()
    assert kinetics.vamp2(kinetics.covariance_sums(x[:-3], x[3:])) == pytest.approx(expected, rel=1e-6)
