"""Atoms that several topologies share: by order of the residues and name of the atom.

Residue numbers, chain names, order of atoms, protonation (HIS, HID, HIE, HIP, CYX, ...), hydrogens, water, ions and
ligands do not matter. What only some topologies have (a terminal OXT, caps, side chains) is left out on all sides.
"""

from __future__ import annotations

from collections.abc import Sequence

import mdtraj
from mdtraj.core.element import Element

from openmm_starmd.errors import TrajectoryError
from openmm_starmd.protein.residues import C_CAPS, N_CAPS, ONE_LETTER, atom_names, canonical_name

Key = tuple[float, str]
"""Place of a residue in the protein (caps at half-integers) and standard name of an atom."""

_BACKBONE = {"N", "CA", "C"}


def _residue_type(residue: mdtraj.core.topology.Residue) -> str | None:
    """Standard name of an amino acid, own name of a modified one, None for anything else."""
    name = canonical_name(residue.name)
    if name is None and {atom.name for atom in residue.atoms} >= _BACKBONE:
        return residue.name
    return name


def protein_sequence(topology: mdtraj.Topology) -> list[str]:
    """Standard names of the amino acids in their order, all chains together, caps left out."""
    return [name for name in map(_residue_type, topology.residues) if name]


def heavy_atoms(topology: mdtraj.Topology) -> dict[Key, int]:
    """Index of every heavy atom of the protein by its key, in the topology's own order."""
    found: dict[Key, int] = {}
    place = 0
    for residue in topology.residues:
        kind = _residue_type(residue)
        if kind:
            place += 1
            key = float(place)
        elif residue.name in N_CAPS | C_CAPS:
            kind, key = residue.name, place + 0.5 - 0.1 * (residue.name in C_CAPS)
        else:
            continue
        standard = {alias: name for name in ("O", "CD1") for alias in atom_names(kind, name)}
        for atom in residue.atoms:
            if atom.element is not None and atom.element.symbol not in ("H", "VS"):
                found.setdefault((key, standard.get(atom.name, atom.name)), atom.index)
    return found


def _letters(sequence: Sequence[str]) -> str:
    return "".join(ONE_LETTER.get(name, "X") for name in sequence)


def check_sequences(reference: mdtraj.Topology, other: mdtraj.Topology, name: str) -> None:
    """Raise a TrajectoryError unless both hold the same amino acids in the same order."""
    one, two = protein_sequence(reference), protein_sequence(other)
    if not one or not two:
        raise TrajectoryError(
            f"{name if one else 'The reference'} holds no protein: expected residues under the names of Amber, CHARMM "
            "or the PDB; give the topology that the trajectory was written with."
        )
    if one != two:
        place = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
        shown = slice(max(0, place - 10), place + 10)
        raise TrajectoryError(
            f"The sequences differ from residue {place + 1} on: the reference has {len(one)} residues "
            f"({_letters(one[shown])}), {name} has {len(two)} ({_letters(two[shown])}); compare trajectories "
            "of one protein."
        )


def common_keys(topologies: Sequence[mdtraj.Topology]) -> list[Key]:
    """Keys of the heavy atoms that all topologies have, in the order of the first.

    A TrajectoryError names a residue that is left without its CA.
    """
    first, *others = [heavy_atoms(topology) for topology in topologies]
    keys = [key for key in first if all(key in other for other in others)]
    alpha = {place for place, name in keys if name == "CA"}
    missing = [place for place in range(1, len(protein_sequence(topologies[0])) + 1) if place not in alpha]
    if missing:
        raise TrajectoryError(
            f"Residue {missing[0]} of the protein has no CA that all sides share ({len(missing)} such residues): "
            "expected at least the CA of every residue, under that name."
        )
    return keys


def common_topology(reference: mdtraj.Topology, keys: Sequence[Key]) -> mdtraj.Topology:
    """Topology of the common atoms: chains and numbers of the reference, standard names, bonds of standard residues."""
    indices, topology = heavy_atoms(reference), mdtraj.Topology()
    chain = residue = None
    chains, residues = None, None
    for key in keys:
        atom = reference.atom(indices[key])
        if atom.residue.chain is not chains:
            chains, chain = atom.residue.chain, topology.add_chain()
        if atom.residue is not residues:
            residues = atom.residue
            residue = topology.add_residue(_residue_type(residues) or residues.name, chain, residues.resSeq)
        topology.add_atom(key[1], Element.getBySymbol(atom.element.symbol), residue)
    topology.create_standard_bonds()
    return topology


def split_chains(topology: mdtraj.Topology, starts: set[int]) -> mdtraj.Topology:
    """Topology of the same atoms with new chains from the residues of these indices on; bonds of standard residues."""
    apart, chain = mdtraj.Topology(), None
    before = None
    for residue in topology.residues:
        if residue.chain is not before or residue.index in starts:
            chain = apart.add_chain()
        before = residue.chain
        copy = apart.add_residue(residue.name, chain, residue.resSeq)
        for atom in residue.atoms:
            apart.add_atom(atom.name, atom.element, copy)
    apart.create_standard_bonds()
    return apart
