"""Markov state model of the force field: maximum likelihood, and draws from the posterior of reversible models.

Trajectories of a swarm start anywhere, so that nothing is taken from how often a state is visited: only transition
probabilities count, and these make the populations (Prinz et al. 2011; Trendelkamp-Schroer et al. 2015).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from deeptime.markov import TransitionCountModel
from deeptime.markov.msm import MarkovStateModel

from openmm_starmd.evaluation.metrics import markov
from openmm_starmd.evaluation.metrics.samples import percentile_interval
from openmm_starmd.refinement.reversible import sample_reversible
from openmm_starmd.seeds import derived

N_DRAWS = 200


@dataclass(frozen=True)
class Posterior:
    """Maximum-likelihood model on the connected states, and draws from the posterior of reversible models."""

    best: MarkovStateModel  # deeptime's; ``best.count_model.state_symbols`` are the connected states
    draws: list[MarkovStateModel]

    def interval(self, function: Callable[[MarkovStateModel], np.ndarray | float], confidence: float = 0.95):
        """Value of a function of a model, with the low and high limit of its posterior interval."""
        low, high = percentile_interval(np.array([function(model) for model in self.draws]), confidence)
        return np.asarray(function(self.best), dtype=np.float64), low, high


def sample_posterior(
    states: Sequence[np.ndarray], lag: int, n_states: int, n_draws: int = N_DRAWS, seed: int = 0
) -> Posterior:
    """Posterior of the largest strongly connected set of trajectories of states (T,).

    Transitions in a sliding window share their time: their number over the lag (frames) is what counts as independent.
    """
    best = markov.fit_counts(markov.transition_counts(states, lag, n_states)[0], lag)
    if best.n_states == 1:
        return Posterior(best, [best])
    counts = best.count_model.count_matrix / lag
    generator = np.random.default_rng(derived("posterior", seed))
    matrices, stationary = sample_reversible(counts, best.stationary_distribution, n_draws, generator)
    symbols = best.count_model.state_symbols
    model = TransitionCountModel(counts, "effective", lag, state_symbols=symbols)
    draws = [
        MarkovStateModel(m, stationary_distribution=s, reversible=True, count_model=model)
        for m, s in zip(matrices, stationary, strict=True)
    ]
    return Posterior(best, draws)


def set_populations(model: MarkovStateModel, sets: np.ndarray) -> np.ndarray:
    """Equilibrium populations (m,) of sets of states; ``sets`` (n_states,) holds the set of each state, -1 for none."""
    own = sets[model.count_model.state_symbols]
    return np.bincount(own[own >= 0], model.stationary_distribution[own >= 0], minlength=sets.max() + 1)


def markovian_lag(states: Sequence[np.ndarray], n_states: int, drift: float = 0.1, seed: int = 0) -> tuple[int, bool]:
    """Shortest lag (frames) at which the slowest timescale is that of twice the lag, and whether there is one.

    The two may differ by the share ``drift``, or by half of the half-width of the posterior interval. A lag is at most
    a quarter of the longest trajectory, so that a Chapman-Kolmogorov test has something to go by; the longest such lag
    stands where no lag passes.
    """
    longest = max(1, (max(map(len, states)) - 1) // 4)
    lags = sorted({int(round(lag)) for lag in np.geomspace(1, longest, 12)})
    for lag in lags:
        counts = [markov.transition_counts(states, k * lag, n_states)[0] for k in (1, 2)]
        times = [markov.timescales(markov.fit_counts(c, k * lag), 1)[0] for k, c in zip((1, 2), counts, strict=True)]
        if not np.isfinite(times).all():
            continue
        change = abs(np.log(times[1] / times[0]))
        if change > drift:
            posterior = sample_posterior(states, lag, n_states, 50, seed)
            _, low, high = posterior.interval(lambda model: markov.timescales(model, 1)[0])
            drift_allowed = max(drift, np.log(high / low) / 4)
            if not change <= drift_allowed:
                continue
        return lag, True
    return lags[-1], False
