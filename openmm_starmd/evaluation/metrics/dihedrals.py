"""Torsions of trajectories: angles, their distributions and their hops."""

from __future__ import annotations

from dataclasses import dataclass

import mdtraj
import numpy as np

from openmm_starmd.evaluation.metrics.differences import jensen_shannon
from openmm_starmd.protein.residues import TORSIONS, canonical_name, torsion_period

TWO_PI = 2 * np.pi
TORSION_BINS = 100  # MDGen (Jing et al. 2024)
HOP = np.pi / 3


@dataclass(frozen=True)
class Torsions:
    """Torsions of one trajectory."""

    angles: np.ndarray  # (T, K): radian, in (-period/2, period/2]
    names: tuple[str, ...]  # K labels such as ``"phi ALA2"``
    periods: np.ndarray  # (K,): pi where a half turn changes nothing (chi2 of PHE, TYR, ASP, chi3 of GLU), else 2 pi
    backbone: np.ndarray  # (K,) of bool: True for phi and psi, False for side chains


def wrap(angles: np.ndarray, periods: np.ndarray | float = TWO_PI) -> np.ndarray:
    """Angles (..., K) brought to [-period/2, period/2)."""
    return (angles + periods / 2) % periods - periods / 2


def measure_torsions(trajectory: mdtraj.Trajectory) -> Torsions:
    """Every phi, psi and chi1 to chi4 of one trajectory that mdtraj finds; residues of the 20 standard types."""
    angles, names, periods, backbone = [np.zeros((trajectory.n_frames, 0))], [], [], []
    for torsion in TORSIONS:
        indices, values = getattr(mdtraj, f"compute_{torsion}")(trajectory, periodic=False)
        if len(indices) == 0:
            continue
        angles.append(values)
        for quartet in indices:
            # the second atom belongs to the residue of every torsion: N of phi, CA of psi and chi
            residue = trajectory.topology.atom(quartet[1]).residue
            names.append(f"{torsion} {residue}")
            periods.append(torsion_period(canonical_name(residue.name), torsion))
            backbone.append(torsion in ("phi", "psi"))
    periods = np.array(periods)
    angles = np.concatenate(angles[1:] or angles, 1)
    return Torsions(wrap(angles, periods), tuple(names), periods, np.array(backbone, dtype=bool))


def torsion_features(angles: np.ndarray, periods: np.ndarray | float = TWO_PI) -> np.ndarray:
    """Cosine and sine of torsions (T, K) -> (T, 2K), smooth across the period."""
    phase = angles * (TWO_PI / periods)
    return np.concatenate([np.cos(phase), np.sin(phase)], axis=-1)


def torsion_counts(angles: np.ndarray, periods: np.ndarray | float = TWO_PI, bins: int = TORSION_BINS) -> np.ndarray:
    """Histogram of each torsion over its period, (T, K) -> (K, bins); adds up over pieces of trajectories."""
    if not np.isfinite(angles).all():
        raise ValueError(
            "expected finite torsions, found some that are no numbers; leave these frames out and count them"
        )
    place = ((angles / periods + 0.5) % 1.0 * bins).astype(int) % bins + bins * np.arange(angles.shape[1])
    return np.bincount(place.ravel(), minlength=bins * angles.shape[1]).reshape(-1, bins)


def torsion_jsd(reference: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence, bits, of each torsion from its `torsion_counts`, (K, bins) twice -> (K,)."""
    return np.array([jensen_shannon(p, q) for p, q in zip(reference, generated, strict=True)])


def hop_counts(before: np.ndarray, after: np.ndarray, periods: np.ndarray | float = TWO_PI) -> np.ndarray:
    """Pairs of frames between which each torsion turns by more than `HOP`, and all pairs, (P, K) twice -> (2, K).

    Counts add up over pieces of trajectories; their ratio is the share of steps with a hop.
    """
    hops = np.abs(wrap(after - before, periods)) > HOP
    return np.stack([hops.sum(0), np.full(hops.shape[1], len(hops))])
