"""Bonds between residues that records of a structure file name: which can be made, which are refused."""

from __future__ import annotations

import numpy as np
from openmm.app import Residue
from pdbfixer import PDBFixer

from openmm_starmd.errors import UnsupportedTopologyError
from openmm_starmd.protein.bond_graph import label
from openmm_starmd.systems.chains import coordinates, names_of, place_of
from openmm_starmd.systems.structure_file import Link

LINKED = 0.30  # nm; atoms farther apart are not bonded, whatever a record says


def bonds_between_residues(fixer: PDBFixer, links: list[Link]) -> tuple[list[tuple], list[tuple]]:
    """Bonds between residues that the file names: those that are there, and those that cannot be.

    The first are (atom, atom, record). The second are (atom, atom, record, distance): bonds over too long a distance
    (nm), and bonds to symmetry copies, whose distance is None.
    """
    atoms = {(place_of(atom.residue), atom.name): atom for atom in fixer.topology.atoms()}
    made_by_names = {("SG", "SG"), ("C", "N")}  # OpenMM's reader makes them without a record
    named = [
        (a, b, "CONECT", False)
        for a, b in fixer.topology.bonds()
        if a.residue is not b.residue and (a.name, b.name) not in made_by_names
    ]
    for link in links:
        if link.first in atoms and link.second in atoms:
            named.append((atoms[link.first], atoms[link.second], link.record, link.to_copy))
    x, bonds, others = coordinates(fixer), [], []
    for a, b, record, to_copy in named:
        distance = None if to_copy else float(np.linalg.norm(x[a.index] - x[b.index]))
        if distance is not None and distance < LINKED:
            bonds.append((a, b, record))
        else:
            others.append((a, b, record, distance))
    return bonds, others


def tell_impossible_bonds(others: list[tuple], chain_residues: set[Residue]) -> list[str]:
    """Messages about the protein's bonds that a record names, but that cannot be made.

    An UnsupportedTopologyError says that such a bond to a symmetry copy is no disulfide: the molecule is not whole.
    """
    changes = []
    for a, b, record, distance in others:
        if not {a.residue, b.residue} <= chain_residues:
            continue
        ends = f"{a.name} of {names_of([a.residue])}", f"{b.name} of {names_of([b.residue])}"
        if distance is not None:
            changes.append(f"left out the bond of {record} between {ends[0]} and {ends[1]}, {distance:.2f} nm apart")
        elif {a.name, b.name} == {"SG"}:
            changes.append(f"left out the disulfide ({record}) of {ends[0]} to {ends[1]} in a symmetry copy")
        else:
            raise UnsupportedTopologyError(
                f"{record} bonds {ends[0]} to {ends[1]} in a symmetry copy. Between residues only peptide bonds in "
                "sequence and disulfides are supported."
            )
    return changes


def refuse_links(bonds: list[tuple], chain_residues: set[Residue]) -> None:
    """Refuse bonds between residues of the protein other than peptide bonds in sequence and disulfides."""
    for a, b, record in bonds:
        if not {a.residue, b.residue} <= chain_residues:
            continue
        first, second = sorted((a, b), key=lambda atom: atom.residue.index)
        in_sequence = first.residue.chain is second.residue.chain and second.residue.index - first.residue.index == 1
        if in_sequence and (first.name, second.name) == ("C", "N") or {a.name, b.name} == {"SG"}:
            continue
        raise UnsupportedTopologyError(
            f"{record} bonds {a.name} of {label(a.residue)} to {b.name} of {label(b.residue)}. Between residues only "
            "peptide bonds in sequence and disulfides are supported: no staples, rings of residues or cross-links."
        )
