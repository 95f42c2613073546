"""Rates, timescales and drifts of processes whose exact values are known."""

import numpy as np
import pytest

from openmm_starmd.evaluation import kinetics


def two_state_chain(p, q, n, rng):
    """States of a chain that leaves 0 with probability p and 1 with q."""
    uniform, states = rng.random(n), np.zeros(n, dtype=int)
    for i in range(1, n):
        leaves = uniform[i] < (q if states[i - 1] else p)
        states[i] = states[i - 1] ^ leaves
    return states


def ornstein_uhlenbeck(tau, n, rng):
    """Unit-variance process with autocorrelation exp(-lag / tau)."""
    decay = np.exp(-1 / tau)
    noise, x = rng.normal(size=n) * np.sqrt(1 - decay**2), np.zeros(n)
    for i in range(1, n):
        x[i] = decay * x[i - 1] + noise[i]
    return x


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.mark.parametrize("lag", [1, 4])
def test_implied_timescale_of_a_two_state_chain(rng, lag):
    p, q = 0.02, 0.05
    states = two_state_chain(p, q, 200_000, rng)
    assert kinetics.slowest_timescale(states, lag) == pytest.approx(-1 / np.log(1 - p - q), rel=0.05)


def test_trajectories_are_not_joined_across_their_ends():
    apart = [np.repeat([0, 1], 50), np.repeat([1, 0], 50)]
    joined = kinetics.slowest_timescale(np.concatenate([np.repeat([0, 1], 50), np.repeat([0, 1], 50)]))
    assert kinetics.slowest_timescale(apart) != pytest.approx(joined, rel=0.01)
    assert kinetics.slowest_timescale(apart) == pytest.approx(-1 / np.log(1 - 2 / 99), rel=1e-3)


def test_a_frozen_trajectory_has_no_timescale():
    assert kinetics.slowest_timescale(np.full(100, 3)) == 0.0


def test_states_of_separate_clusters(rng):
    centres = np.array([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    labels = rng.integers(0, 3, 600)
    states = kinetics.fit_states(centres[labels] + rng.normal(0, 0.1, (600, 2)), 3, seed=1)
    found = states.transform(centres)
    assert sorted(found) == [0, 1, 2]


def test_hop_rate_of_a_known_chain(rng):
    rates = np.array([0.1, 0.4])
    hops = rng.random((100_000, 2)) < rates
    angles = np.cumsum(np.where(hops, 2 * np.pi / 3, rng.normal(0, 0.1, hops.shape)), 0)
    wrapped = (angles + np.pi) % (2 * np.pi) - np.pi
    assert kinetics.hop_rate(wrapped) == pytest.approx(hops[1:].mean(0), abs=1e-12)
    flips = np.cumsum(np.full((100, 1), np.pi), 0)
    assert kinetics.hop_rate(flips, np.pi)[0] == 0 and kinetics.hop_rate(flips)[0] == 1
    assert kinetics.hop_rate(flips, lag=2)[0] == 0


def test_autocorrelation_of_an_ornstein_uhlenbeck_process(rng):
    x = np.stack([ornstein_uhlenbeck(8.0, 200_000, rng), ornstein_uhlenbeck(30.0, 200_000, rng)], 1)
    expected = np.exp(-np.arange(21)[:, None] / [8.0, 30.0])
    assert np.abs(kinetics.autocorrelation(x, 20) - expected).max() < 0.05
    assert (kinetics.autocorrelation(np.ones((50, 1)), 5) == 0).all()


def test_decorrelation_of_small_angles_is_that_of_the_process(rng):
    # sin of small fluctuations is linear; cos is quadratic, so that its autocorrelation is the square
    x = 0.05 * ornstein_uhlenbeck(10.0, 200_000, rng)[:, None]
    linear = np.exp(-np.arange(16) / 10.0)
    assert np.abs(kinetics.decorrelation(x, 15)[:, 0] - (linear + linear**2) / 2).max() < 0.05


def test_slope_and_its_error_of_a_correlated_series(rng):
    results = [kinetics.slope(ornstein_uhlenbeck(5.0, 4_000, rng)) for _ in range(100)]
    z = np.array([value / error for value, error in results])
    assert 0.8 < z.std() < 1.4  # the stated error is the true spread
    value, error = kinetics.slope(0.003 * np.arange(4_000) + ornstein_uhlenbeck(5.0, 4_000, rng))
    assert abs(value - 0.003) < 5 * error < 0.001
    assert kinetics.slope(np.ones(100)) == (0, 0)
    with pytest.raises(ValueError, match="at least 20"):
        kinetics.slope(np.zeros(7))


def test_block_bootstrap_covers_the_mean_of_a_correlated_series(rng):
    covered = 0
    for seed in range(60):
        x = ornstein_uhlenbeck(10.0, 4_000, rng)
        x[0] = 0
        low, high = kinetics.block_bootstrap(lambda parts: np.concatenate(parts).mean(), x, seed=seed)
        covered += low <= 0 <= high
    assert 50 <= covered <= 60
