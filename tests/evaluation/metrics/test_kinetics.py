"""Rates, timescales and drifts of processes whose exact values are known."""

import numpy as np
import pytest

from openmm_starmd.evaluation.metrics import kinetics, nulls


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


def test_hop_rate_of_a_known_chain(rng):
    rates = np.array([0.1, 0.4])
    hops = rng.random((100_000, 2)) < rates
    angles = np.cumsum(np.where(hops, 2 * np.pi / 3, rng.normal(0, 0.1, hops.shape)), 0)
    wrapped = (angles + np.pi) % (2 * np.pi) - np.pi
    assert kinetics.hop_rate(wrapped) == pytest.approx(hops[1:].mean(0), abs=1e-12)
    flips = np.cumsum(np.full((100, 1), np.pi), 0)
    assert kinetics.hop_rate(flips, np.pi)[0] == 0 and kinetics.hop_rate(flips)[0] == 1
    assert kinetics.hop_rate(flips, lag=2)[0] == 0
    with pytest.raises(ValueError, match="trajectory's 100, found 100"):
        kinetics.hop_rate(flips, lag=100)


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


def test_block_bootstrap_of_several_trajectories_keeps_them_apart():
    lengths, pieces = (60, 30, 10), []
    trajectories = [np.full(n, n) for n in lengths]
    kinetics.block_bootstrap(lambda parts: pieces.extend(parts) or 0.0, trajectories, n_blocks=10, n_resamples=50)
    assert all(np.ptp(piece) == 0 and len(piece) == 10 for piece in pieces)
    assert {piece[0] for piece in pieces} == set(lengths)
    low, high = kinetics.block_bootstrap(lambda parts: np.concatenate(parts).mean(), np.array([3.0]))
    assert low == high == 3


def test_draws_without_a_value_do_not_count():
    draws = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, np.nan]])
    low, high = kinetics.percentile_interval(draws, 1.0)
    assert low[0] == 1 and high[0] == 3 and np.isnan(low[1]) and np.isnan(high[1])


def test_autocorrelation_of_trajectories_is_about_their_common_mean():
    square = np.tile([1.0, -1.0], 10)[:, None]
    expected = (-1.0) ** np.arange(6)
    assert kinetics.autocorrelation([square, square[:5], square[:1]], 5)[:, 0] == pytest.approx(expected, abs=0.02)
    assert kinetics.autocorrelation([square, square + 2], 5)[:, 0] == pytest.approx((1 + expected) / 2)
    with pytest.raises(ValueError, match="longer than the lag of 20"):
        kinetics.autocorrelation(square, 20)


def test_difference_of_decorrelation_at_equal_times():
    curve = np.exp(-np.arange(41) / 12.0)[:, None] * np.ones(2)
    assert kinetics.decorrelation_difference(curve, curve[::4], 4) == pytest.approx(0)
    assert kinetics.decorrelation_difference(curve, curve[::4] + [0.1, -0.2], 4) == pytest.approx([0.1, 0.2])
    assert np.isnan(kinetics.decorrelation_difference(curve, curve[:1])).all()


@pytest.mark.parametrize("tau", [2.0, 20.0])
def test_effective_samples_of_an_ornstein_uhlenbeck_process(rng, tau):
    n = 200_000
    x = ornstein_uhlenbeck(tau, n, rng)
    expected = 1 / np.tanh(1 / (2 * tau))  # 1 + 2 sum exp(-k / tau)
    assert kinetics.autocorrelation_time(x) == pytest.approx(expected, rel=0.1)
    assert kinetics.effective_samples([x[: n // 2], x[n // 2 :]]) == pytest.approx(n / expected, rel=0.1)
    assert kinetics.effective_samples_per_hour(x, 1800) == pytest.approx(2 * kinetics.effective_samples(x))


def test_effective_samples_at_the_edges(rng):
    assert kinetics.effective_samples(np.ones(500)) == 1
    assert kinetics.effective_samples(np.ones(1)) == 1
    assert kinetics.effective_samples(rng.normal(size=50_000)) == pytest.approx(50_000, rel=0.02)
    assert kinetics.effective_samples(np.tile([1.0, -1.0], 50)) == 100  # never more than there are
    with pytest.raises(ValueError, match="found 0 at most"):
        kinetics.effective_samples(np.ones(0))
    with pytest.raises(ValueError, match="wall time"):
        kinetics.effective_samples_per_hour(np.ones(3), 0)


def test_vamp2_of_ornstein_uhlenbeck_processes(rng):
    slow, fast = ornstein_uhlenbeck(50.0, 100_000, rng), ornstein_uhlenbeck(10.0, 100_000, rng)
    mixed = np.stack([slow, fast], 1) @ np.array([[1.0, 0.4], [-0.7, 1.0]]) + 3
    lag = 5
    slow, fast = np.exp(-2 * lag / 50.0), np.exp(-2 * lag / 10.0)
    assert kinetics.vamp2(mixed, lag) == pytest.approx(slow + fast, abs=0.02)
    assert kinetics.vamp2(mixed, lag, dimensions=1) == pytest.approx(slow, abs=0.02)
    assert kinetics.vamp2(rng.permutation(mixed), lag) == pytest.approx(0, abs=0.01)
    assert kinetics.vamp2(np.ones((100, 3)), lag) == 0
    with pytest.raises(ValueError, match="longer than the lag"):
        kinetics.vamp2(mixed[:5], lag)
    with pytest.raises(ValueError, match="at least one feature"):
        kinetics.vamp2(mixed[:, :0], lag)


def test_strides_agree_when_the_long_one_is_ten_of_the_short_and_not_otherwise(rng):
    def walk(sigma, n):
        return (np.cumsum(rng.normal(0, sigma, (n, 1)), 0) + np.pi) % (2 * np.pi) - np.pi

    short = walk(0.2, 200_000)
    displacements, ends = kinetics.stride_consistency(short, walk(0.2 * np.sqrt(10), 50_000))
    assert displacements[0] < 0.005 and ends[0] < 0.02
    displacements, ends = kinetics.stride_consistency([short], [walk(0.2, 50_000)])
    assert displacements[0] > 0.1
    displacements, ends = kinetics.stride_consistency(short, short[::10])
    assert displacements[0] < 0.005


def test_nulls_are_what_they_say():
    x = np.arange(20.0).reshape(10, 2)
    assert (nulls.frozen(x) == x[0]).all() and nulls.frozen(x).shape == x.shape
    mixed = nulls.shuffled(x, seed=3)
    assert (mixed != x).any() and (np.sort(mixed[:, 0]) == x[:, 0]).all() and (np.diff(mixed, axis=1) == 1).all()
    assert (nulls.shuffled(x, seed=3) == mixed).all()
    first, second = nulls.halves(x[:9])
    assert (first == x[:4]).all() and (second == x[4:8]).all()
    with pytest.raises(ValueError, match="at least 2 frames"):
        nulls.halves(x[:1])
