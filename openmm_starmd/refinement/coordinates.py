"""Frames as points in slow coordinates, and as states."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mdtraj
import numpy as np

from openmm_starmd.errors import TrajectoryError
from openmm_starmd.evaluation.metrics import dihedrals, filters, markov, slow_modes
from openmm_starmd.evaluation.scoring.projection import PEPTIDE_RESIDUES

Features = Callable[[mdtraj.Trajectory], np.ndarray]
"""Takes a piece of a trajectory of T frames and returns what describes each, shape (T, F)."""

DIMENSIONS = 4
FRAMES_A_STATE = 100  # on the mean; fewer, and chance leaves states that are entered and not left
MOST_STATES = 100


def protein_features(trajectory: mdtraj.Trajectory) -> np.ndarray:
    """Cosines and sines of all torsions of a peptide, or CA distances (nm) of a protein, as `evaluate` takes them.

    A TrajectoryError refuses a topology that holds neither.
    """
    torsions = dihedrals.measure_torsions(trajectory)
    if torsions.names and trajectory.topology.n_residues <= PEPTIDE_RESIDUES + 2:
        return dihedrals.torsion_features(torsions.angles, torsions.periods)
    ca = trajectory.xyz[:, filters.ca_atoms(trajectory.topology)[0]]
    if ca.shape[1] < 2:
        raise TrajectoryError(
            "The topology holds no torsions and fewer than two CA: expected a peptide or a protein; give `features`, "
            "a function of an mdtraj.Trajectory."
        )
    return slow_modes.ca_distances(ca, 3 if ca.shape[1] > 6 else 1)


def slow_coordinates(features: Sequence[np.ndarray], lag: int) -> slow_modes.SlowModes:
    """Time-lagged independent components of trajectories (T, F) that are longer than the lag (frames).

    A TrajectoryError says that none is longer, or that nothing moves.
    """
    try:
        return slow_modes.fit_tica(list(features), lag, DIMENSIONS)
    except ValueError as error:
        raise TrajectoryError(f"Slow coordinates cannot be found: {error}.") from None


def cut_into_states(points: Sequence[np.ndarray], n_states: int | None = None, seed: int = 0):
    """k-means model of points (T, D) of all trajectories; by default a state per 100 frames, 100 states at most."""
    everything = np.concatenate(points)
    if n_states is None:
        n_states = int(np.clip(len(everything) // FRAMES_A_STATE, 2, MOST_STATES))
    return markov.fit_states(everything, n_states, seed)
