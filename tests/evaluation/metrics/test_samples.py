"""Independent samples, intervals and drifts of processes whose exact values are known."""

import numpy as np
import pytest

from openmm_starmd.evaluation.metrics import samples


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def test_slope_and_its_error_of_a_correlated_series(rng, ornstein_uhlenbeck):
    results = [samples.slope(ornstein_uhlenbeck(5.0, 4_000, rng)) for _ in range(100)]
    z = np.array([value / error for value, error in results])
    assert 0.8 < z.std() < 1.4  # the stated error is the true spread
    value, error = samples.slope(0.003 * np.arange(4_000) + ornstein_uhlenbeck(5.0, 4_000, rng))
    assert abs(value - 0.003) < 5 * error < 0.001
    assert samples.slope(np.ones(100)) == (0, 0)
    with pytest.raises(ValueError, match="at least 20"):
        samples.slope(np.zeros(7))


def test_block_bootstrap_covers_the_mean_of_a_correlated_series(rng, ornstein_uhlenbeck):
    covered = 0
    for seed in range(60):
        x = ornstein_uhlenbeck(10.0, 4_000, rng)
        x[0] = 0
        low, high = samples.block_bootstrap(lambda parts: np.concatenate(parts).mean(), x, seed=seed)
        covered += low <= 0 <= high
    assert 50 <= covered <= 60


def test_block_bootstrap_of_several_trajectories_keeps_them_apart():
    lengths, pieces = (60, 30, 10), []
    trajectories = [np.full(n, n) for n in lengths]
    samples.block_bootstrap(lambda parts: pieces.extend(parts) or 0.0, trajectories, n_blocks=10, n_resamples=50)
    assert all(np.ptp(piece) == 0 and len(piece) == 10 for piece in pieces)
    assert {piece[0] for piece in pieces} == set(lengths)
    low, high = samples.block_bootstrap(lambda parts: np.concatenate(parts).mean(), np.array([3.0]))
    assert low == high == 3


def test_draws_without_a_value_do_not_count():
    draws = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, np.nan]])
    low, high = samples.percentile_interval(draws, 1.0)
    assert low[0] == 1 and high[0] == 3 and np.isnan(low[1]) and np.isnan(high[1])


def test_effective_samples_are_about_the_mean_of_all_trajectories():
    square = np.tile([1.0, -1.0], 10)
    assert samples.effective_samples([square, square[:5], square[:1]]) == 26
    assert samples.effective_samples([square, square + 10]) < 5  # each stays in a state of its own


@pytest.mark.parametrize("tau", [2.0, 20.0])
def test_effective_samples_of_an_ornstein_uhlenbeck_process(rng, tau, ornstein_uhlenbeck):
    n = 200_000
    x = ornstein_uhlenbeck(tau, n, rng)
    expected = 1 / np.tanh(1 / (2 * tau))  # 1 + 2 sum exp(-k / tau)
    assert samples.autocorrelation_time(x) == pytest.approx(expected, rel=0.1)
    assert samples.effective_samples([x[: n // 2], x[n // 2 :]]) == pytest.approx(n / expected, rel=0.1)


def test_effective_samples_at_the_edges(rng):
    assert samples.effective_samples(np.ones(500)) == 1
    assert samples.effective_samples(np.ones(1)) == 1
    assert samples.effective_samples(rng.normal(size=50_000)) == pytest.approx(50_000, rel=0.02)
    assert samples.effective_samples(np.tile([1.0, -1.0], 50)) == 100  # never more than there are
    with pytest.raises(ValueError, match="found none"):
        samples.effective_samples(np.ones(0))


def test_pairs_a_lag_apart_in_pieces_are_those_of_the_whole(rng):
    x = rng.normal(size=(37, 2))
    first, second = (np.concatenate(part) for part in zip(*samples.lagged_pairs([x, x[:4]], 4, chunk=10), strict=True))
    assert (first == x[:-4]).all() and (second == x[4:]).all()
