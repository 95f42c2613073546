"""Markov state models of discretised trajectories: arrays of visited states in, arrays out.

``states`` are integers (T,) from 0 on, or a list of such trajectories; times are in frames. Models are deeptime's
maximum-likelihood reversible ones, from counts in a sliding window, on the connected set of states with most of them.
Intervals come from drawing blocks of time: deeptime's Bayesian models take counts for independent, which those of a
sliding window are not, and its Chapman-Kolmogorov test takes for granted that all models connect the same states.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from deeptime.clustering import KMeans
from deeptime.markov import TransitionCountModel
from deeptime.markov.msm import MarkovStateModel, MaximumLikelihoodMSM
from deeptime.markov.tools.analysis import mfpt
from deeptime.util.exceptions import NotConvergedWarning
from scipy.sparse.csgraph import connected_components
from scipy.stats import norm

from openmm_starmd.evaluation.metrics.samples import as_trajectories, percentile_interval, subsample

States = np.ndarray | Sequence[np.ndarray]


def fit_states(reference: np.ndarray, n_states: int = 20, seed: int = 0):
    """K-means model of deeptime of reference points (T, D): the states that both sides of a comparison share.

    Fitted to 20,000 evenly spaced points at most; fewer states where there are fewer different points.
    """
    points = subsample(np.asarray(reference, dtype=np.float64))
    if points.size == 0 or not np.isfinite(points).all():
        raise ValueError(f"expected finite points with features, found none or no numbers in shape {points.shape}")
    n_states = min(n_states, len(np.unique(points, axis=0)))
    return KMeans(n_states, max_iter=200, fixed_seed=seed).fit_fetch(points)


def pair_counts(before: np.ndarray, after: np.ndarray, n_states: int, n_blocks: int = 1) -> np.ndarray:
    """Transitions between states (P,) and (P,), shape (n_blocks, n_states, n_states), in blocks of equal length."""
    block = np.arange(len(before)) * n_blocks // max(1, len(before))
    moves = (block * n_states + before) * n_states + after
    return np.bincount(moves, minlength=n_blocks * n_states**2).reshape(n_blocks, n_states, n_states)


def transition_counts(states: States, lag: int, n_states: int | None = None, n_blocks: int = 1) -> np.ndarray:
    """Transitions i -> j within a lag, from every frame, shape (n_blocks, n_states, n_states).

    Equal shares of the transitions, in their order in time, fall into each block.
    """
    trajectories = [t.astype(np.int64) for t in as_trajectories(states)]
    longest = max(map(len, trajectories), default=0)
    if not 1 <= lag < longest:
        raise ValueError(
            f"expected a lag of at least 1 frame and a trajectory longer than it, found a lag of {lag} frames, and "
            f"{longest} frames at most"
        )
    n = 1 + int(max(t.max(initial=-1) for t in trajectories)) if n_states is None else n_states
    before, after = (np.concatenate(x) for x in zip(*((t[:-lag], t[lag:]) for t in trajectories), strict=True))
    return pair_counts(before, after, n, n_blocks)


def connected(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts (n, n) within strongly connected sets, and which states (n,) are in the set that holds most of them."""
    _, component = connected_components(counts, connection="strong")
    inside = counts * (component[:, None] == component)
    return inside, component == np.bincount(component, inside.sum(1)).argmax()


def connected_share(counts: np.ndarray) -> float:
    """Share of the transitions of counts (n, n) within the strongly connected set that holds most; nan without any."""
    inside, most = connected(counts)
    total = counts.sum()
    return float(inside[most].sum() / total) if total else float("nan")


def fit_counts(counts: np.ndarray, lag: int = 1) -> MarkovStateModel:
    """Markov state model of counts (n, n) on the strongly connected set that holds most of them."""
    inside, most = connected(counts)
    if not inside.any():  # every state was left for good: the first stands for all
        inside[most, most] = 1
    model = TransitionCountModel(inside.astype(np.float64), "sliding", lag)
    with warnings.catch_warnings():  # resamples may take long to converge
        warnings.simplefilter("ignore", NotConvergedWarning)
        return MaximumLikelihoodMSM().fit_fetch(model.submodel(np.flatnonzero(most)))


def populations(msm: MarkovStateModel, n_states: int) -> np.ndarray:
    """Equilibrium population of each state, (n_states,); 0 outside the connected set."""
    found = np.zeros(n_states)
    found[msm.count_model.state_symbols] = msm.stationary_distribution
    return found


def timescales(msm: MarkovStateModel, n: int) -> np.ndarray:
    """Slowest ``n`` implied timescales of a reversible model, frames; nan where there is none, or no eigenvalue > 0."""
    root = np.sqrt(msm.stationary_distribution)
    eigenvalues = np.linalg.eigvalsh(msm.transition_matrix * root[:, None] / root)[::-1][1 : n + 1]
    found = np.full(n, np.nan)
    decays = (eigenvalues > 0) & (eigenvalues < 1)
    found[: len(eigenvalues)][decays] = -msm.lagtime / np.log(eigenvalues[decays])
    return found


def _bootstrapped(
    function, states: States, lags, n_states: int | None, *, n_blocks=20, n_resamples=50, confidence=0.95, seed=0
) -> np.ndarray:
    """Value, low and high of a function of counts (n, n) and lag, at each lag, by drawing blocks of transitions."""
    draws = np.random.default_rng(seed).integers(n_blocks, size=(n_resamples, n_blocks))
    found = []
    for lag in lags:
        blocks = transition_counts(states, lag, n_states, n_blocks)
        resampled = [function(blocks[draw].sum(0), lag) for draw in draws]
        found.append((function(blocks.sum(0), lag), *percentile_interval(np.array(resampled), confidence)))
    return np.array(found).swapaxes(0, 1)


@dataclass(frozen=True)
class ImpliedTimescales:
    """Implied timescales at several lags."""

    lags: np.ndarray  # (L,): frames
    values: np.ndarray  # (L, n): frames, the slowest first; nan where there is none
    low: np.ndarray  # (L, n): the limits of the interval
    high: np.ndarray


def implied_timescales(states: States, lags: Sequence[int], n_timescales: int = 3, **bootstrap) -> ImpliedTimescales:
    """Slowest implied timescales of states (T,) at several lags (frames), with block-bootstrap intervals.

    Every lag is shorter than the longest trajectory. The transitions of ``n_blocks`` stretches of time are drawn
    together, with replacement, ``n_resamples`` times; ``confidence`` and ``seed`` belong to this ``bootstrap``, too.
    """

    def slowest(counts, lag):
        return timescales(fit_counts(counts, lag), n_timescales)

    return ImpliedTimescales(np.asarray(lags), *_bootstrapped(slowest, states, lags, None, **bootstrap))


def metastable_sets(msm: MarkovStateModel, n_sets: int, n_states: int) -> np.ndarray:
    """Set 0 to ``n_sets`` - 1 of each state by PCCA+, (n_states,); -1 for states that the model does not connect.

    A ValueError refuses more sets than the model has states, and states in which PCCA+ finds none: they may alternate.
    """
    if not 2 <= n_sets <= msm.n_states:
        raise ValueError(f"expected 2 to {msm.n_states} metastable sets, one a connected state at most, found {n_sets}")
    sets = np.full(n_states, -1)
    try:
        sets[msm.count_model.state_symbols] = msm.pcca(n_sets).assignments
    except AssertionError as error:  # of deeptime 0.5, where an eigenvalue of -1 comes before that of equilibrium
        raise ValueError(f"PCCA+ finds no {n_sets} metastable sets") from error
    return sets


def first_passage_times(msm: MarkovStateModel, sets: np.ndarray) -> np.ndarray:
    """Mean first passage times (m, m) from set to set of states, frames, starting from equilibrium within the first.

    ``sets`` (n_states,) holds the set of each state, -1 for none; those of the reference serve for every model on the
    same states. Times are 0 on the diagonal and nan where the model does not connect one of the two.
    """
    active = sets[msm.count_model.state_symbols]
    n_sets = sets.max() + 1
    times = np.full((n_sets, n_sets), np.nan)
    for a in set(active) - {-1}:
        for b in set(active) - {-1}:
            start, end = np.flatnonzero(active == a), np.flatnonzero(active == b)
            times[a, b] = (
                0.0
                if a == b
                else mfpt(msm.transition_matrix, end, origin=start, tau=msm.lagtime, mu=msm.stationary_distribution)
            )
    return times


@dataclass(frozen=True)
class ChapmanKolmogorov:
    """Probability to be in set j some time after i, as a model of one lag says and as models of each lag say."""

    lags: np.ndarray  # (L,): frames
    predicted: np.ndarray  # (L, m, m): the model of the first lag, propagated; nan where a set is not connected
    estimated: np.ndarray  # (L, m, m): models of each lag
    low: np.ndarray  # (L, m, m): the limits of their bootstrap interval
    high: np.ndarray

    @property
    def error(self) -> float:
        """Largest absolute difference of prediction and estimate; nan if there are none."""
        difference = np.abs(self.predicted - self.estimated)
        return float(np.nanmax(difference)) if np.isfinite(difference).any() else float("nan")


def _between_sets(msm: MarkovStateModel, sets: np.ndarray, power: int = 1) -> np.ndarray:
    """Transition probabilities between sets, shape (m, m), from equilibrium within each; nan from an empty set."""
    member = sets[msm.count_model.state_symbols][:, None] == np.arange(sets.max() + 1)
    weight = msm.stationary_distribution[:, None] * member
    flow = weight.T @ np.linalg.matrix_power(msm.transition_matrix, power) @ member
    population = weight.sum(0)[:, None]
    return np.divide(flow, population, out=np.full_like(flow, np.nan), where=population > 0)


def chapman_kolmogorov(
    states: States, lag: int, sets: np.ndarray, multiples: Sequence[int] = (1, 2, 3, 4, 5), **bootstrap
) -> ChapmanKolmogorov:
    """Chapman-Kolmogorov test, P(k lag) against P(lag)^k, between metastable sets (Prinz et al. 2011).

    The model of states (T,) at a lag (frames) is tested at each of the ``multiples`` k, of which the longest trajectory
    is longer than every k lag. ``sets`` (n_states,) are those of `metastable_sets`. The other arguments are those of
    the block bootstrap of `implied_timescales`.
    """

    def between(counts, lag):
        return _between_sets(fit_counts(counts, lag), sets)

    lags = lag * np.asarray(multiples)
    estimated = _bootstrapped(between, states, lags, len(sets), **bootstrap)
    tested = fit_counts(transition_counts(states, lag, len(sets))[0], lag)
    predicted = np.array([_between_sets(tested, sets, k) for k in multiples])
    return ChapmanKolmogorov(lags, predicted, *estimated)


def detailed_balance(states: States, lag: int, min_count: int = 10) -> float:
    """p-value of a z-test of the counts C_ij against C_ji of an equilibrium trajectory; nan if no pair can be tested.

    Transitions of states (T,) within a lag (frames) are counted one after another, not in a sliding window, so that
    none shares its time with another. In a reversible Markov chain returns make the difference vary less than that of
    independent counts: the test errs on the side of balance.

    Pairs with fewer than ``min_count`` transitions, both ways together, are not tested. The p-value is that of the
    largest |C_ij - C_ji| / sqrt(C_ij + C_ji), times the number of pairs (Bonferroni), at most 1.
    """
    n = transition_counts(states, lag).shape[-1]  # or says what is wrong with the lag
    apart = [t[::lag] for t in as_trajectories(states) if len(t) > lag]
    counts = transition_counts(apart, 1, n)[0].astype(np.float64)
    tested = np.triu(counts + counts.T >= min_count, 1)
    if not tested.any():
        return float("nan")
    z = np.abs(counts - counts.T)[tested] / np.sqrt((counts + counts.T)[tested])
    return float(min(1.0, 2 * norm.sf(z.max()) * tested.sum()))
