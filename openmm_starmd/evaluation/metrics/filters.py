"""Published filters of unphysical frames; the search for close atoms is that of `openmm_starmd.protein.validity`."""

from __future__ import annotations

import mdtraj
import numpy as np

from openmm_starmd.protein.residues import canonical_name
from openmm_starmd.protein.validity import (
    MAX_ADJACENT_CA,
    MAX_PEPTIDE_BOND,
    MIN_CA,
    MIN_HEAVY,
    close_pairs,
    longer_pairs,
)

MAX_VALID_CA_STEP = 0.42  # nm, ConfDiff

_CHUNK = 500_000  # atoms searched at a time


def ca_atoms(topology: mdtraj.Topology) -> tuple[np.ndarray, np.ndarray]:
    """Indices (N,) of the CA of the standard residues, in order, and the chain (N,) that each belongs to."""
    found = [a for a in topology.atoms if a.name == "CA" and canonical_name(a.residue.name)]
    return np.array([a.index for a in found], dtype=int), np.array([a.residue.chain.index for a in found], dtype=int)


def heavy_atoms(topology: mdtraj.Topology) -> np.ndarray:
    """Indices (A,) of all atoms but hydrogens and virtual sites."""
    return np.array([a.index for a in topology.atoms if a.element is not None and a.element.mass > 2.5], dtype=int)


def _ca_steps(topology: mdtraj.Topology) -> np.ndarray:
    """CA (M, 2) of residues that follow each other in one chain."""
    ca, chains = ca_atoms(topology)
    return np.stack([ca[:-1], ca[1:]], 1)[np.diff(chains) == 0]


def _peptide_bonds(topology: mdtraj.Topology) -> np.ndarray:
    """C and the N of another residue bonded to it, (M, 2)."""
    found = [
        (a.index, b.index) for a, b in topology.bonds if {a.name, b.name} == {"C", "N"} and a.residue is not b.residue
    ]
    return np.array(found, dtype=int).reshape(-1, 2)


def _sound(positions: np.ndarray, atoms: np.ndarray, least: float, limits: list[tuple[np.ndarray, float]]):
    """Mask (T,) of finite frames (T, A, 3) without two of the ``atoms`` too close or a pair beyond its limit."""
    sound = np.isfinite(positions[:, atoms]).all((1, 2))
    frames, step = np.flatnonzero(sound), max(1, _CHUNK // max(1, len(atoms)))
    for start in range(0, len(frames), step):
        own = frames[start : start + step]
        piece = positions[own].astype(np.float64)
        bad = [longer_pairs(piece, pairs, limit)[0] for pairs, limit in limits]
        bad.append(close_pairs(piece[:, atoms], least)[0])
        sound[own[np.concatenate(bad)]] = False
    return sound


def bioemu_valid(trajectory: mdtraj.Trajectory) -> np.ndarray:
    """Mask of frames that pass BioEmu's filter of unphysical structures (Lewis et al. 2024), (T,) bool.

    Adjacent CA of a chain lie within 0.45 nm, C-N within 0.2 nm, and no two heavy atoms closer than 0.1 nm.
    """
    topology = trajectory.topology
    limits = [(_ca_steps(topology), MAX_ADJACENT_CA), (_peptide_bonds(topology), MAX_PEPTIDE_BOND)]
    return _sound(trajectory.xyz, heavy_atoms(topology), MIN_HEAVY, limits)


def ca_valid(trajectory: mdtraj.Trajectory) -> np.ndarray:
    """Mask of frames that pass ConfDiff's filter of CA (Wang et al. 2024), (T,) bool.

    No two CA lie closer than 0.3 nm, and those adjacent in one chain within 0.42 nm.
    """
    limits = [(_ca_steps(trajectory.topology), MAX_VALID_CA_STEP)]
    return _sound(trajectory.xyz, ca_atoms(trajectory.topology)[0], MIN_CA, limits)
