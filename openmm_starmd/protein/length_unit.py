"""Positions in the wrong unit of length: angstrom where nm are meant, or nm in a file that holds angstrom."""

from __future__ import annotations

import numpy as np
from openmm.app import Topology

from openmm_starmd.errors import StarMDError

BOND = 0.150  # nm; N-CA has 0.146, CA-C 0.153
ALIKE, MOST = 0.3, 0.75  # relative difference; share of the bonds


def fault_of_scale(scale: float) -> str:
    """Rest of a sentence about coordinates whose lengths are ``scale`` times the usual ones; empty if not by ten."""
    if 5 < scale < 20:
        return "are ten times too large: Angstrom where nm are meant; divide them by 10"
    if 0.05 < scale < 0.2:
        return "are ten times too small: nm where Angstrom are meant; multiply them by 10"
    return ""


def fault_of_unit(positions, backbone) -> str:
    """`fault_of_scale` of positions (A, 3), nm, by the bonds between N, CA and C (N, 3) of residues.

    Bonds of very different lengths are of another order of atoms, not of another unit.
    """
    if not len(backbone):
        return ""
    places = np.asarray(positions, dtype=float)[np.asarray(backbone, dtype=int)]
    lengths = np.linalg.norm(np.diff(places, axis=1), axis=-1)
    median = float(np.median(lengths))
    alike = np.mean(np.abs(lengths - median) < ALIKE * median)
    return fault_of_scale(median / BOND) if alike > MOST else ""


def backbone_of(topology: Topology) -> np.ndarray:
    """Indices (N, 3) of N, CA and C of the residues that have all three."""
    named = [{atom.name: atom.index for atom in residue.atoms()} for residue in topology.residues()]
    whole = [[atoms[name] for name in ("N", "CA", "C")] for atoms in named if {"N", "CA", "C"} <= atoms.keys()]
    return np.array(whole, dtype=int).reshape(-1, 3)


def refuse_wrong_unit(positions, backbone) -> None:
    """Raise a StarMDError where positions (A, 3), nm, with N, CA and C (N, 3) are in the wrong unit."""
    if fault := fault_of_unit(positions, backbone):
        raise StarMDError(f"The positions {fault}. Numbers without a unit are nm; PDB and mmCIF files hold Angstrom.")
