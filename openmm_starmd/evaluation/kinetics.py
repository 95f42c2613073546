"""How fast generated trajectories move and whether they drift: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from deeptime.clustering import KMeans
from deeptime.markov import TransitionCountEstimator
from deeptime.markov.msm import MaximumLikelihoodMSM
from scipy.stats import linregress

from openmm_starmd.evaluation.metrics import TWO_PI, wrap

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
    return (np.abs(wrap(angles[lag:] - angles[:-lag], periods)) > threshold).mean(0)


def fit_states(reference: np.ndarray, n_states: int = 20, seed: int = 0):
    """deeptime k-means model of reference points (T, D): the states that both sides of a comparison share."""
    return KMeans(n_states, max_iter=200, fixed_seed=seed).fit_fetch(np.asarray(reference, dtype=np.float64))


def slowest_timescale(states: np.ndarray | Sequence[np.ndarray], lag: int = 1) -> float:
    """Slowest implied timescale of a reversible Markov state model, in units of the lag's frames.

    Parameters
    ----------
    states : ndarray of int, shape (T,), or sequence of them
        Visited states; frames on both sides of the end of a trajectory are not counted as a transition.
    lag : int
        Frames of one step (sliding window).

    Returns
    -------
    float
        -lag / ln(lambda_2) of the largest connected set; 0 where that is a single state, or lambda_2 <= 0.
    """
    states = list(states) if isinstance(states, list | tuple) else [states]
    counts = TransitionCountEstimator(lag, "sliding").fit_fetch([np.asarray(s, dtype=np.int32) for s in states])
    connected = counts.submodel_largest()
    if connected.n_states < 2:
        return 0.0
    eigenvalue = np.sort(np.real(MaximumLikelihoodMSM().fit_fetch(connected).eigenvalues()))[-2]
    return float(-lag / np.log(eigenvalue)) if eigenvalue > 0 else 0.0


def autocorrelation(values: np.ndarray, max_lag: int) -> np.ndarray:
    """Normalised autocorrelation of each column, (T, K) -> (max_lag + 1, K); 0 for a constant column."""
    values = values - values.mean(0)
    n = len(values)
    spectrum = np.fft.rfft(values, 2 * n, axis=0)
    covariance = np.fft.irfft(np.abs(spectrum) ** 2, axis=0)[: max_lag + 1]
    covariance /= (n - np.arange(max_lag + 1))[:, None]
    variance = np.where(covariance[0] > 1e-12, covariance[0], np.inf)
    return covariance / variance


def decorrelation(angles: np.ndarray, max_lag: int, periods: np.ndarray | float = TWO_PI) -> np.ndarray:
    """Mean of the autocorrelations of cosine and sine of each torsion, (T, K) -> (max_lag + 1, K)."""
    phase = angles * (TWO_PI / periods)
    return (autocorrelation(np.cos(phase), max_lag) + autocorrelation(np.sin(phase), max_lag)) / 2


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
    values: np.ndarray,
    *,
    n_blocks: int = 20,
    n_resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap interval of a statistic of a correlated series.

    Parameters
    ----------
    statistic : callable
        Takes a list of contiguous pieces of ``values`` and returns a number or an array.
    values : ndarray, shape (T, ...)
    n_blocks : int
        Contiguous blocks drawn with replacement; each should be longer than the correlation time.
    n_resamples : int
    confidence : float
    seed : int

    Returns
    -------
    low, high : ndarray, of the statistic's shape
    """
    generator = np.random.default_rng(seed)
    blocks = np.array_split(values, n_blocks)
    draws = [statistic([blocks[i] for i in generator.integers(n_blocks, size=n_blocks)]) for _ in range(n_resamples)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.asarray(draws), [tail, 1 - tail], axis=0)
    return low, high
