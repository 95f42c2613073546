"""How fast generated trajectories move and whether they drift: arrays in, arrays out.

Where a trajectory is asked for, a list of several will do unless a function says otherwise; nothing is joined across
their ends. Markov state models live in `openmm_starmd.evaluation.metrics.markov`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from deeptime.decomposition import VAMP
from deeptime.numeric import ZeroRankError
from scipy.fft import irfft, next_fast_len, rfft
from scipy.stats import linregress

from openmm_starmd.evaluation.metrics.arrays import TWO_PI, as_trajectories, lagged_pairs, torsion_jsd, wrap

HOP = np.pi / 3


def hop_rate(
    angles: np.ndarray, periods: np.ndarray | float = TWO_PI, *, lag: int = 1, threshold: float = HOP
) -> np.ndarray:
    """Share of steps in which each torsion turns by more than ``threshold``.

    Parameters
    ----------
    angles : ndarray, shape (T, K)
        Radian.
    periods : ndarray, shape (K,), or float
    lag : int
        Frames of one step; steps from every frame count (sliding window).
    threshold : float
        Radian.

    Returns
    -------
    ndarray, shape (K,)
    """
    if not 1 <= lag < len(angles):
        raise ValueError(f"expected a lag from 1 frame to less than the trajectory's {len(angles)}, found {lag}")
    return (np.abs(wrap(angles[lag:] - angles[:-lag], periods)) > threshold).mean(0)


def autocorrelation(values: np.ndarray | Sequence[np.ndarray], max_lag: int) -> np.ndarray:
    """Normalised autocorrelation of each column, (T, K) -> (max_lag + 1, K); 0 for a constant column.

    About the mean of all trajectories together; each counts at a lag by the pairs it has there.
    """
    trajectories = [np.asarray(v, dtype=np.float64) for v in as_trajectories(values)]
    longest = max(map(len, trajectories))
    if longest <= max_lag:
        raise ValueError(f"expected a trajectory longer than the lag of {max_lag} frames, found {longest} at most")
    mean = sum(t.sum(0) for t in trajectories) / sum(map(len, trajectories))
    lags = np.arange(max_lag + 1)
    covariance = 0.0
    for trajectory in trajectories:
        reach = min(len(trajectory), max_lag + 1)
        size = next_fast_len(len(trajectory) + reach, real=True)
        power = np.abs(rfft(trajectory - mean, size, axis=0)) ** 2
        part = np.zeros((max_lag + 1, *trajectory.shape[1:]))
        part[:reach] = irfft(power, size, axis=0)[:reach]
        covariance = covariance + part
    pairs = sum(np.maximum(len(t) - lags, 0) for t in trajectories)
    covariance /= pairs.reshape(-1, *[1] * (covariance.ndim - 1))
    return covariance / np.where(covariance[0] > 1e-12, covariance[0], np.inf)


def decorrelation(
    angles: np.ndarray | Sequence[np.ndarray], max_lag: int, periods: np.ndarray | float = TWO_PI
) -> np.ndarray:
    """Mean of the autocorrelations of cosine and sine of each torsion, (T, K) -> (max_lag + 1, K)."""
    phases = [a * (TWO_PI / periods) for a in as_trajectories(angles)]
    return (
        autocorrelation([np.cos(p) for p in phases], max_lag) + autocorrelation([np.sin(p) for p in phases], max_lag)
    ) / 2


def decorrelation_difference(reference: np.ndarray, generated: np.ndarray, step: int = 1) -> np.ndarray:
    """Mean absolute difference of two decorrelation curves over the lags that both have.

    Parameters
    ----------
    reference, generated : ndarray, shape (L, K) and (L', K)
        Results of `decorrelation`.
    step : int
        Frames of the reference that one frame of the generated trajectory lasts.

    Returns
    -------
    ndarray, shape (K,)
        Lag 0 is left out; nan where no other lag is shared.
    """
    both = min(len(reference[::step]), len(generated))
    if both < 2:
        return np.full(reference.shape[1:], np.nan)
    return np.abs(reference[::step][1:both] - generated[1:both]).mean(0)


def autocorrelation_time(values: np.ndarray | Sequence[np.ndarray]) -> float:
    """Integrated autocorrelation time 1 + 2 sum_k rho(k) of a series (T,), in frames: frames to one independent sample.

    The sum ends at the first window of at least five times itself (Sokal 1997), so that it does not gather the noise of
    long lags. inf for a constant series. A trajectory not much longer than the result gives but a lower bound.
    """
    trajectories = as_trajectories(values)
    rho = autocorrelation(trajectories, max(1, *map(len, trajectories)) - 1)
    if rho[0] == 0:
        return float("inf")
    times = 2 * np.cumsum(rho) - 1
    closed = np.arange(len(times)) >= 5 * times
    return float(max(1.0, times[np.argmax(closed)] if closed.any() else times[-1]))


def effective_samples(values: np.ndarray | Sequence[np.ndarray]) -> float:
    """Independent samples in a series (T,): frames / `autocorrelation_time`; 1 for a constant one."""
    return max(1.0, sum(map(len, as_trajectories(values))) / autocorrelation_time(values))


def effective_samples_per_hour(values: np.ndarray | Sequence[np.ndarray], seconds: float) -> float:
    """`effective_samples` of a series (T,) in one hour, of the wall time ``seconds`` that it took, all included."""
    if not seconds > 0:
        raise ValueError(f"expected a wall time above 0 s, found {seconds}")
    return effective_samples(values) * 3600 / seconds


def vamp2(features: np.ndarray | Sequence[np.ndarray], lag: int, dimensions: int | None = None) -> float:
    """VAMP-2 score (Wu and Noe 2020): sum of squared singular values of the whitened, mean-free C_0tau.

    Fitted and scored on the same frames, so compare trajectories of like length. The constant function, which adds 1 to
    deeptime's ``score``, is left out: 0 means that nothing is remembered after a lag, n that n processes stand still.

    Parameters
    ----------
    features : ndarray, shape (T, F), or sequence of them
    lag : int
        Frames.
    dimensions : int, optional
        Largest singular values that count; all by default.

    Returns
    -------
    float
        0 where no feature varies.
    """
    estimator = VAMP(lagtime=lag, dim=dimensions)
    for pair in lagged_pairs(as_trajectories(features), lag):
        estimator.partial_fit(pair)
    try:
        return float((estimator.fetch_model().singular_values[:dimensions] ** 2).sum())
    except ZeroRankError:
        return 0.0


def stride_consistency(
    short: np.ndarray | Sequence[np.ndarray],
    long: np.ndarray | Sequence[np.ndarray],
    jumps: int = 10,
    periods: np.ndarray | float = TWO_PI,
) -> tuple[np.ndarray, np.ndarray]:
    """Does one jump of a long stride do what ``jumps`` jumps of a short one do together?

    Parameters
    ----------
    short, long : ndarray, shape (T, K) and (T', K), or sequences of them
        Torsions, radian, at the short stride dt and at ``jumps`` dt.
    jumps : int
    periods : ndarray, shape (K,), or float

    Returns
    -------
    displacements, ends : ndarray, shape (K,)
        Jensen-Shannon divergences, bits: of the turns within ``jumps`` dt, and of the torsions after them. The same
        for MD, strided by ``jumps`` for the long side, tells how much of it is due to finite samples.
    """
    turns, ends = [], []
    for trajectories, lag in ((as_trajectories(short), jumps), (as_trajectories(long), 1)):
        pairs = list(lagged_pairs(trajectories, lag))
        turns.append(np.concatenate([y - x for x, y in pairs]))
        ends.append(np.concatenate([y for _, y in pairs]))
    return torsion_jsd(*turns, periods), torsion_jsd(*ends, periods)


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
    """Bootstrap interval of a statistic of a correlated series.

    For a statistic of several arrays, let ``values`` be frame numbers, and look the arrays up with the pieces.

    Parameters
    ----------
    statistic : callable
        Takes a list of contiguous pieces of ``values`` and returns a number or an array.
    values : ndarray, shape (T, ...), or sequence of them
    n_blocks : int
        Contiguous blocks drawn with replacement, about as many from all trajectories together; each should be longer
        than the correlation time.
    n_resamples : int
    confidence : float
    seed : int

    Returns
    -------
    low, high : ndarray, of the statistic's shape
        Draws in which the statistic is nan do not count; nan where it is so in all.
    """
    generator = np.random.default_rng(seed)
    blocks = [block for v in as_trajectories(values) for block in np.array_split(v, _pieces(v, values, n_blocks))]
    n = len(blocks)
    draws = [statistic([blocks[i] for i in generator.integers(n, size=n)]) for _ in range(n_resamples)]
    return percentile_interval(np.asarray(draws), confidence)


def _pieces(trajectory: np.ndarray, everything: np.ndarray | Sequence[np.ndarray], n_blocks: int) -> int:
    """Blocks of one trajectory, by its share of all frames: one at least, and none without a frame."""
    share = len(trajectory) / max(1, sum(map(len, as_trajectories(everything))))
    return max(1, min(len(trajectory), round(n_blocks * share)))


def percentile_interval(draws: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Central interval of draws (R, ...) -> low and high of shape (...); nan draws are left out."""
    draws = np.asarray(draws, dtype=np.float64)
    nowhere = np.isnan(draws).all(0)
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(np.where(nowhere, 0.0, draws), [tail, 1 - tail], axis=0)
    return np.where(nowhere, np.nan, low), np.where(nowhere, np.nan, high)
