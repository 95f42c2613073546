"""Trajectories of states of a swarm and of a learned run -> `Refinement`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from openmm_starmd.errors import StarMDError
from openmm_starmd.evaluation.metrics import markov
from openmm_starmd.evaluation.metrics.differences import GAS_CONSTANT
from openmm_starmd.evaluation.metrics.samples import block_bootstrap
from openmm_starmd.refinement.connections import NONE_SEEN, Connections, find_connections
from openmm_starmd.refinement.posterior import Posterior, markovian_lag, sample_posterior, set_populations
from openmm_starmd.refinement.refined import Quantity, Refinement, Shortage

MOST_SETS = 4
EVENTS = 10  # transitions that make a rate known to a factor of two
NEGLIGIBLE = 0.02  # population of states that MD left and never entered
CK_TOLERANCE = 0.05
CK_MULTIPLES = (1, 2, 3)


def estimate(
    states: Sequence[np.ndarray],
    interval: float,
    *,
    learned: Sequence[np.ndarray] = (),
    learned_interval: float | None = None,
    temperature: float = 300.0,
    lag: float | None = None,
    precision: float = 2.0,
    confidence: float = 0.95,
    seed: int = 0,
) -> Refinement:
    """Markov state model of the force field by a swarm, judged, beside the learned run's on the same states.

    Parameters
    ----------
    states : sequence of ndarray of int, shape (T,)
        State, from 0 on, in every frame of each trajectory of MD. Their starts need follow no distribution.
    interval : float
        ps between their frames.
    learned : sequence of ndarray of int, shape (T',)
        The same states in the learned run.
    learned_interval : float, optional
        ps between its frames, its stride.
    temperature : float
        K.
    lag : float, optional
        ps; by default the shortest at which the slowest timescale no longer depends on it.
    precision : float
        Factor within which the slowest timescale, and the ratio of the populations of a set and of the rest, have to be
        known to be judged.
    confidence : float
    seed : int

    Raises
    ------
    StarMDError
        If no trajectory has five frames, or none is longer than the lag.
    """
    states = [np.asarray(s) for s in states if len(s)]
    learned = [np.asarray(s) for s in learned if len(s)]
    longest = max(map(len, states), default=0)
    if longest < 5:
        raise StarMDError(f"The longest trajectory of MD has {longest} frames; run longer pieces, at least 5 frames.")
    n_states = 1 + int(max(s.max() for s in [*states, *learned]))
    nanoseconds = sum(map(len, states)) * interval / 1000
    shortages = []
    if lag is None:
        frames, markovian = markovian_lag(states, n_states, seed=seed)
    else:
        frames, markovian = max(1, round(lag / interval)), True
        if frames >= longest:
            raise StarMDError(f"A lag of {lag:g} ps needs longer trajectories than {longest * interval:g} ps.")
    connections = find_connections(states, frames, n_states)
    posterior = sample_posterior(states, frames, n_states, seed=seed)
    moves = posterior.best.n_states > 1
    if not moves:
        more = (EVENTS / NONE_SEEN - 1) * nanoseconds
        shortages.append(Shortage("MD connects no two states in both directions", more))
    elif not markovian:
        found = f"the slowest timescale still depends on the lag at {frames * interval:g} ps"
        reason = f"{found}: the trajectories are too short"
        shortages.append(Shortage(reason, nanoseconds))
    shortages += _unconnected(connections, states, learned, learned_interval, nanoseconds)
    sets, quantities, test = np.where(connections.main, 0, -1), [], None
    if moves:
        sets = _metastable_sets(posterior, n_states)
        own = _learned_posterior(learned, learned_interval, frames * interval, n_states, seed)
        times = _times(posterior, own, sets, (interval, learned_interval), confidence)
        quantities = [*times[:1], *_shares(posterior, learned, sets, temperature, confidence, seed), *times[1:]]
        test = _chapman_kolmogorov(states, frames, sets, confidence, seed)
        shortages += _imprecise(quantities, precision, nanoseconds) + _not_markovian(test, nanoseconds)
    populations = np.array([markov.populations(msm, n_states) for msm in (posterior.best, *posterior.draws)])
    lags, timescales = _timescales_by_lag(states, n_states, longest)
    return Refinement(
        quantities=tuple(quantities),
        shortages=tuple(shortages),
        nanoseconds=nanoseconds,
        horizon=nanoseconds / NONE_SEEN,
        unseen_population=connections.bound,
        lag=frames * interval,
        lags=lags * interval,
        timescales=timescales * interval / 1000,
        chapman_kolmogorov=test,
        sets=sets,
        states=tuple(states),
        populations=populations,
        settings={"temperature": temperature, "precision": precision, "confidence": confidence, "seed": seed},
    )


def _unconnected(connections: Connections, states, learned, learned_interval, nanoseconds: float) -> list[Shortage]:
    """Shortages of states that do not connect: none seen in T bounds a rate by 3 / T, ten take 10 T / 3."""
    shortages = []
    if connections.apart.any():
        more = (EVENTS / NONE_SEEN - 1) * nanoseconds
        passage = _learned_passage(connections, learned, learned_interval)
        seen = f"; the learned run takes {passage:.3g} ns from one to the other" if passage else ""
        reason = (
            f"{connections.apart.sum()} of {(connections.main | connections.apart | connections.only_left).sum()} "
            f"visited states do not connect with the others in both directions{seen}"
        )
        shortages.append(Shortage(reason, max(more, EVENTS * passage - nanoseconds)))
    if connections.bound > NEGLIGIBLE:
        reason = (
            f"MD left {connections.only_left.sum()} starting states and did not come back, so that these may hold up "
            f"to {connections.bound:.2g} of the population"
        )
        more = min(EVENTS / NONE_SEEN, connections.bound / NEGLIGIBLE) - 1
        shortages.append(Shortage(reason, more * nanoseconds))
    return shortages


def _learned_passage(connections: Connections, learned, learned_interval) -> float:
    """The longer of the learned run's mean first passage times, ns, between the main states and those apart; else 0."""
    if not learned:
        return 0.0
    sets = np.where(connections.main, 0, np.where(connections.apart, 1, -1))
    try:
        model = markov.fit_counts(markov.transition_counts(learned, 1, len(sets))[0], 1)
    except ValueError:
        return 0.0
    times = markov.first_passage_times(model, sets)
    return float(np.nan_to_num(np.nanmax(times))) * learned_interval / 1000 if np.isfinite(times).any() else 0.0


def _metastable_sets(posterior: Posterior, n_states: int) -> np.ndarray:
    """Sets by PCCA+, as many as there are timescales before their widest gap, the most populated first."""
    times = np.nan_to_num(markov.timescales(posterior.best, MOST_SETS), nan=1e-3)
    most = min(MOST_SETS, posterior.best.n_states)
    gaps = times[: most - 1] / np.maximum(times[1:most], 1e-3)
    sets = markov.metastable_sets(posterior.best, 2 + int(gaps.argmax()) if most > 2 else 2, n_states)
    sets = np.where(sets < 0, -1, np.unique(sets, return_inverse=True)[1] - int((sets < 0).any()))
    rank = np.argsort(np.argsort(-set_populations(posterior.best, sets)))
    return np.where(sets < 0, -1, rank[sets])


def _learned_posterior(learned, learned_interval, lag: float, n_states: int, seed: int) -> Posterior | None:
    """The learned run's own model, at its number of strides nearest to the lag (ps); None where it connects nothing."""
    if not learned:
        return None
    frames = max(1, round(lag / learned_interval))
    if max(map(len, learned)) <= frames:
        return None
    posterior = sample_posterior(learned, frames, n_states, seed=seed)
    return posterior if posterior.best.n_states > 1 else None


def _shares(posterior: Posterior, learned, sets, temperature: float, confidence: float, seed: int) -> list[Quantity]:
    """Populations and free energies of the sets; of the learned run by its frames, with a block bootstrap."""
    m, thermal = int(sets.max()) + 1, GAS_CONSTANT * temperature

    def with_energies(populations):
        with np.errstate(divide="ignore", invalid="ignore"):
            energies = thermal * np.log(populations[0] / populations[1:])
        return np.concatenate([populations, np.where(np.isfinite(energies), energies, np.nan)])

    def of_model(model):
        return with_energies(set_populations(model, sets))

    def of_frames(pieces):
        return with_energies(np.bincount(np.concatenate(pieces) + 1, minlength=m + 1)[1:] / sum(map(len, pieces)))

    rows = [*posterior.interval(of_model, confidence), *(3 * [np.full(2 * m - 1, np.nan)])]
    if learned:
        visited = [sets[s] for s in learned]
        rows[3:] = of_frames(visited), *block_bootstrap(of_frames, visited, confidence=confidence, seed=seed)
    names = [(f"population of set {k}", "") for k in range(m)]
    names += [(f"free energy of set {k} over set 0", "kJ/mol") for k in range(1, m)]
    return [Quantity(*name, *map(float, row)) for name, row in zip(names, np.transpose(rows), strict=True)]


def _times(posterior: Posterior, own: Posterior | None, sets, intervals, confidence: float) -> list[Quantity]:
    """Slowest timescale and passage times of both sides, whose frames are ``intervals`` (ps) apart."""
    m = int(sets.max()) + 1
    pairs = [(a, b) for a in range(m) for b in range(m) if a != b]

    def of_model(model):
        passages = markov.first_passage_times(model, sets)
        return np.array([markov.timescales(model, 1)[0], *(passages[pair] for pair in pairs)])

    rows = [*np.array(posterior.interval(of_model, confidence)) * intervals[0] / 1000]
    if own is None:
        rows += 3 * [np.full(1 + len(pairs), np.nan)]
    else:
        rows += [*np.array(own.interval(of_model, confidence)) * intervals[1] / 1000]
    names = ["slowest timescale", *(f"mean first passage time from set {a} to set {b}" for a, b in pairs)]
    return [Quantity(name, "ns", *map(float, row)) for name, row in zip(names, np.transpose(rows), strict=True)]


def _chapman_kolmogorov(states, lag: int, sets, confidence, seed) -> markov.ChapmanKolmogorov | None:
    """Test between the metastable sets up to three lags; None where no trajectory is longer than two."""
    longest = max(map(len, states))
    multiples = [k for k in CK_MULTIPLES if k * lag < longest]
    if len(multiples) < 2:
        return None
    return markov.chapman_kolmogorov(states, lag, sets, multiples, n_resamples=20, confidence=confidence, seed=seed)


def _not_markovian(test: markov.ChapmanKolmogorov | None, nanoseconds: float) -> list[Shortage]:
    if test is None:
        return [Shortage("the trajectories are too short for a Chapman-Kolmogorov test", nanoseconds)]
    outside = (test.predicted < test.low) | (test.predicted > test.high)
    wrong = outside & (np.abs(test.predicted - test.estimated) > CK_TOLERANCE)
    if not wrong.any():
        return []
    reason = f"the model fails the Chapman-Kolmogorov test by {test.error:.2f}: the trajectories are too short"
    return [Shortage(reason, nanoseconds)]


def _imprecise(quantities: Sequence[Quantity], precision: float, nanoseconds: float) -> list[Shortage]:
    """Widths of intervals go with the square root of the length of the swarm."""
    allowed, shortages = 2 * np.log(precision), []
    for q in quantities:
        if q.name == "slowest timescale":
            width = np.log(q.high / q.low)
        elif q.name.startswith("population"):
            width = np.log(q.high / (1 - q.high)) - np.log(q.low / (1 - q.low))
        else:
            continue
        if not width <= allowed:
            more = nanoseconds * ((width / allowed) ** 2 - 1) if np.isfinite(width) else nanoseconds
            reason = f"the {q.name} is between {q.low:.3g} and {q.high:.3g} {q.unit}".rstrip()
            shortages.append(Shortage(reason, float(more), wide=True))
    return shortages


def _timescales_by_lag(states, n_states: int, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Lags (L,) and slowest timescales (L,), frames."""
    lags = np.unique(np.round(np.geomspace(1, max(1, longest // 2), 8)).astype(int))
    models = (markov.fit_counts(markov.transition_counts(states, lag, n_states)[0], lag) for lag in lags.tolist())
    return lags, np.array([markov.timescales(msm, 1)[0] for msm in models])
