"""Correlated samples: trajectories, pairs of frames a lag apart, independent samples, intervals and drifts.

Where a trajectory is asked for, a list of several will do unless a function says otherwise; nothing is joined across
their ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.stats import linregress


def as_trajectories(values: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
    """List of arrays, one a trajectory, from one array or a sequence of them."""
    return [np.asarray(v) for v in values] if isinstance(values, list | tuple) else [np.asarray(values)]


def subsample(values: np.ndarray, n: int = 20_000) -> np.ndarray:
    """At most ``n`` evenly spaced frames of ``values``, shape (T, ...): enough to fit a model to."""
    return values if len(values) <= n else values[np.linspace(0, len(values) - 1, n).astype(int)]


def lagged_pairs(trajectories: list[np.ndarray], lag: int, chunk: int = 10_000):
    """Yield (x, y) of shape (<= chunk, F) each, ``lag`` frames apart, never across the end of a trajectory."""
    if lag < 1:
        raise ValueError(f"expected a lag of at least 1 frame, found {lag}")
    longest = max(map(len, trajectories), default=0)
    if longest <= lag:
        raise ValueError(f"expected a trajectory longer than the lag of {lag} frames, found {longest} frames at most")
    if any(trajectory.shape[1:] == (0,) for trajectory in trajectories):
        raise ValueError("expected at least one feature, found none")
    for trajectory in trajectories:
        for start in range(0, len(trajectory) - lag, chunk):
            end = min(start + chunk, len(trajectory) - lag)
            if not np.isfinite(trajectory[start : end + lag]).all():
                raise ValueError("expected finite features, found some that are no numbers; cut the trajectory there")
            yield trajectory[start:end], trajectory[start + lag : end + lag]


def _autocorrelation(trajectories: list[np.ndarray]) -> np.ndarray:
    """Normalised autocorrelation of a series (T,) at all lags, (T,); 0 for a constant series.

    The mean is that of all trajectories together; each counts at a lag by the pairs it has there.
    """
    longest = max(map(len, trajectories))
    if longest == 0:
        raise ValueError("expected a series of at least 1 value, found none")
    mean = sum(t.sum() for t in trajectories) / sum(map(len, trajectories))
    covariance, pairs = np.zeros(longest), np.zeros(longest)
    for trajectory in trajectories:
        n = len(trajectory)
        size = next_fast_len(2 * n, real=True)
        covariance[:n] += irfft(np.abs(rfft(trajectory - mean, size)) ** 2, size)[:n]
        pairs[:n] += n - np.arange(n)
    covariance /= pairs
    return covariance / (covariance[0] if covariance[0] > 1e-12 else np.inf)


def autocorrelation_time(values: np.ndarray | Sequence[np.ndarray]) -> float:
    """Integrated autocorrelation time 1 + 2 sum_k rho(k) of a series (T,), in frames: frames to one independent sample.

    The sum ends at the first window of at least five times itself (Sokal 1997), so that it does not gather the noise of
    long lags. inf for a constant series. A trajectory not much longer than the result gives but a lower bound.
    """
    rho = _autocorrelation([t.astype(np.float64) for t in as_trajectories(values)])
    if rho[0] == 0:
        return float("inf")
    times = 2 * np.cumsum(rho) - 1
    closed = np.arange(len(times)) >= 5 * times
    return float(max(1.0, times[np.argmax(closed)] if closed.any() else times[-1]))


def effective_samples(values: np.ndarray | Sequence[np.ndarray]) -> float:
    """Independent samples in a series (T,): frames / `autocorrelation_time`; 1 for a constant one."""
    return max(1.0, sum(map(len, as_trajectories(values))) / autocorrelation_time(values))


def slope(values: np.ndarray, n_blocks: int = 20) -> tuple[float, float]:
    """Drift of a series (T,) per step, with its standard error.

    A straight line through the means of ``n_blocks`` equal blocks: block means hide the correlation of neighbouring
    frames, which would make the error of a fit to single frames far too small.
    """
    length = len(values) // n_blocks
    if length == 0:
        raise ValueError(f"expected at least {n_blocks} values, one per block, found {len(values)}")
    means = np.asarray(values[: length * n_blocks], dtype=np.float64).reshape(n_blocks, length).mean(1)
    if np.ptp(means) == 0:
        return 0.0, 0.0
    fit = linregress((np.arange(n_blocks) + 0.5) * length, means)
    return float(fit.slope), float(fit.stderr)


def block_bootstrap(
    statistic: Callable[[list[np.ndarray]], np.ndarray | float],
    values: np.ndarray | Sequence[np.ndarray],
    *,
    n_blocks: int = 20,
    n_resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Low and high limit, of its shape, of a bootstrap interval of a statistic of a correlated series (T, ...).

    The statistic takes a list of contiguous pieces of the values. About ``n_blocks`` blocks of all trajectories
    together are drawn with replacement; each should be longer than the correlation time. Draws in which the statistic
    is nan do not count; the limits are nan where it is so in all. For a statistic of several arrays, let ``values`` be
    frame numbers, and look the arrays up with the pieces.
    """
    generator, trajectories = np.random.default_rng(seed), as_trajectories(values)
    share = n_blocks / max(1, sum(map(len, trajectories)))
    blocks = [b for t in trajectories for b in np.array_split(t, max(1, min(len(t), round(share * len(t)))))]
    n = len(blocks)
    draws = [statistic([blocks[i] for i in generator.integers(n, size=n)]) for _ in range(n_resamples)]
    return percentile_interval(np.asarray(draws), confidence)


def percentile_interval(draws: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Central interval of draws (R, ...) -> low and high of shape (...); nan draws are left out."""
    draws = np.asarray(draws, dtype=np.float64)
    nowhere = np.isnan(draws).all(0)
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(np.where(nowhere, 0.0, draws), [tail, 1 - tail], axis=0)
    return np.where(nowhere, np.nan, low), np.where(nowhere, np.nan, high)
