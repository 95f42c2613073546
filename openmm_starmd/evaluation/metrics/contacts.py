"""Contacts of side chains, which no distribution of single torsions shows, salt bridges among them."""

from __future__ import annotations

import warnings
from itertools import combinations

import mdtraj
import numpy as np

from openmm_starmd.evaluation.metrics.samples import subsample

BACKBONE = {"N", "CA", "C", "O", "OXT", "CB", "CH3"}
TOUCH = 0.45  # nm, between heavy atoms
REACH = 1.4  # nm: side chains whose CB never come this near never touch
_PIECE = 2**24  # distances that are measured at once


def only_backbone(topology: mdtraj.Topology) -> bool:
    """True if no atom beyond CB is there although some residue has such atoms."""
    branched = any(residue.name not in ("ALA", "GLY") for residue in topology.residues)
    return branched and {atom.name for atom in topology.atoms} <= BACKBONE


def side_chain_pairs(trajectory: mdtraj.Trajectory) -> np.ndarray:
    """Residues (P, 2), no neighbours along a chain, whose side chains come near each other in a trajectory.

    None where no side chain has more than its CB: files of a backbone would count contacts of CB.
    """
    if only_backbone(trajectory.topology):
        return np.zeros((0, 2), dtype=int)
    found = {a.residue.index: a.index for a in trajectory.topology.atoms if a.name == "CB"}
    residues = [trajectory.topology.residue(index) for index in found]
    pairs = [
        (a.index, b.index) for a, b in combinations(residues, 2) if a.chain is not b.chain or b.index - a.index > 1
    ]
    if not pairs:
        return np.zeros((0, 2), dtype=int)
    atoms = np.array([(found[i], found[j]) for i, j in pairs])
    few = trajectory[subsample(np.arange(len(trajectory)), 500)]
    near = mdtraj.compute_distances(few, atoms, periodic=False).min(0) < REACH
    return np.array(pairs)[near]


def side_chain_contacts(trajectory: mdtraj.Trajectory, pairs: np.ndarray) -> np.ndarray:
    """True where heavy atoms of the side chains of two residues come within `TOUCH`, bool (T, P)."""
    if not len(pairs):
        return np.zeros((len(trajectory), 0), dtype=bool)
    heavy = trajectory.topology.select("sidechain and element != H")
    per_residue = np.bincount([trajectory.topology.atom(i).residue.index for i in heavy])
    length = max(1, _PIECE // int((per_residue[pairs[:, 0]] * per_residue[pairs[:, 1]]).sum()))
    pieces = (trajectory[k : k + length] for k in range(0, len(trajectory), length))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "selected topology includes at least one glycine")  # no pair does
        found = [mdtraj.compute_contacts(p, pairs, "sidechain-heavy", periodic=False)[0] < TOUCH for p in pieces]
    return np.concatenate(found)
