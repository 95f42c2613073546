"""States that molecular dynamics has connected in both directions, and what the others may hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse.csgraph import shortest_path

from openmm_starmd.evaluation.metrics import markov

NONE_SEEN = 3.0  # expected events of which none is seen in one case of twenty: -ln 0.05


@dataclass(frozen=True)
class Connections:
    """Connections among the visited states."""

    main: np.ndarray  # (n,) of bool: the strongly connected states with most transitions
    # (n,) of bool: states that MD left for the main ones, directly or not, and never entered from there
    only_left: np.ndarray
    # (n,) of bool: all other visited states: MD entered them and did not come back, or saw no way between them and the
    # main ones
    apart: np.ndarray
    bound: float  # share of the equilibrium population that the states only left can have at most (95 %)


def find_connections(states: Sequence[np.ndarray], lag: int, n_states: int) -> Connections:
    """Connections of trajectories of states (T,) at a lag (frames).

    The bound holds because at equilibrium as many trajectories enter a set of states as leave it: its population is the
    rate of entering times the mean time in it, and a rate is below 3 / t (95 %) where t passed without an entry.
    """
    counts = markov.transition_counts(states, lag, n_states)[0]
    _, main = markov.connected(counts)
    visited = np.bincount(np.concatenate(states), minlength=n_states) > 0
    reach = np.isfinite(shortest_path(counts > 0, unweighted=True))
    only_left = ~main & reach[:, main].any(1)
    exits = counts[np.ix_(only_left, main)].sum() / lag
    time_in_main, time_there = counts[main].sum(), counts[only_left].sum()
    bound = NONE_SEEN * time_there / (exits * time_in_main) if only_left.any() and time_in_main else 0.0
    return Connections(main, only_left, visited & ~main & ~only_left, float(min(1.0, bound)))
