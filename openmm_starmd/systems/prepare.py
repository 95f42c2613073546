"""From a structure file to a protein that can be simulated: PDBFixer, and one clear error where it cannot be."""

from __future__ import annotations

import os
import random
from collections import Counter

import numpy as np
from openmm import OpenMMException, unit
from openmm.app import ForceField, Modeller, Topology
from pdbfixer import PDBFixer
from scipy.spatial import cKDTree

from openmm_starmd.errors import UnsupportedTopologyError
from openmm_starmd.protein.bond_graph import label
from openmm_starmd.protein.residues import C_CAPS, N_CAPS, canonical_name

NUCLEOTIDES = {"A", "C", "G", "U", "DA", "DC", "DG", "DT"}
ONE_PLACE = 0.08  # nm; heavy atoms of two residues that are closer are two copies of one
NO_BOND = 0.16  # nm; those of two elements that are closer are bonded; two carbon atoms may be a clash
LONG_BOND = 0.25  # nm


def prepare(path: str | os.PathLike) -> tuple[Topology, unit.Quantity, list[str]]:
    """Make a structure file ready for a force field, in implicit solvent.

    Known modified residues are replaced (SEP by SER, ...), missing atoms, hydrogens (pH 7) and residues missing inside
    a chain are built, and all but proteins, their caps and nucleic acids is removed. Of several models the first is
    used.

    Parameters
    ----------
    path : path
        PDB or mmCIF.

    Returns
    -------
    topology : Topology
    positions : Quantity
        Not yet minimised.
    changes : list of str
        What was replaced, removed and built, for the reader of the result.

    Raises
    ------
    UnsupportedTopologyError
        If the file cannot be read or holds no protein, or a residue cannot be simulated; names it.
    """
    fixer = _read(path)
    changes = _replace_and_remove(fixer, path)
    _refuse_unknown_bonds(fixer, path)
    built = [name for names in fixer.missingResidues.values() for name in names]
    changes += [f"built {len(built)} residues"] if built else _long_bonds(fixer.topology, fixer.positions)
    fixer.findMissingAtoms()
    try:
        fixer.addMissingAtoms(seed=1)
    except OpenMMException as error:
        missing = _some([*fixer.missingAtoms, *fixer.missingTerminals])
        raise UnsupportedTopologyError(
            f"{path}: PDBFixer found no place for the missing atoms of {missing} ({error})."
        ) from error
    state = random.getstate()
    random.seed(1)  # Modeller.addHydrogens draws from the global state
    modeller = Modeller(fixer.topology, fixer.positions)  # PDBFixer's own method asks the network about unknown names
    modeller.addHydrogens(pH=7.0)
    random.setstate(state)
    unmatched = ForceField("amber14-all.xml").getUnmatchedResidues(modeller.topology)
    if unmatched:
        raise UnsupportedTopologyError(
            f"{path}: the atoms and bonds of {_some(unmatched)} match no template of ff14SB; look there for unknown "
            "residues and for missing, doubled or wrongly named atoms."
        )
    return modeller.topology, modeller.positions, changes


def _read(path) -> PDBFixer:
    if not os.path.isfile(path):
        raise UnsupportedTopologyError(f"{path}: there is no such file.")
    if os.path.getsize(path) == 0:
        raise UnsupportedTopologyError(f"{path} is empty.")
    try:
        return PDBFixer(filename=str(path))
    except Exception as error:  # whatever the readers stumble over
        raise UnsupportedTopologyError(
            f"{path} cannot be read as a PDB or mmCIF file with atoms in it ({type(error).__name__}: {error})."
        ) from error


def _replace_and_remove(fixer: PDBFixer, path) -> list[str]:
    """Leave proteins and nucleic acids of standard residues; tells what was changed."""
    fixer.findMissingResidues()
    lengths = [len(list(chain.residues())) for chain in fixer.topology.chains()]
    fixer.missingResidues = {k: v for k, v in fixer.missingResidues.items() if 0 < k[1] < lengths[k[0]]}
    fixer.findNonstandardResidues()
    replaced = [f"{residue.name} to {new}" for residue, new in fixer.nonstandardResidues]
    fixer.replaceNonstandardResidues()
    strangers = [residue for residue in fixer.topology.residues() if not _stays(residue)]
    modeller = Modeller(fixer.topology, fixer.positions)
    modeller.delete(strangers)
    fixer.topology, fixer.positions = modeller.topology, modeller.positions
    if not any(canonical_name(residue.name) for residue in fixer.topology.residues()):
        raise UnsupportedTopologyError(f"{path} holds no protein: none of its residues is a standard amino acid.")
    return _counted("replaced", replaced) + _counted("removed", [residue.name for residue in strangers])


def _stays(residue) -> bool:
    """Whether a residue belongs to a protein chain (also where nobody knows it) or to a nucleic acid."""
    amino_acid = {"N", "CA", "C"} <= {atom.name for atom in residue.atoms()}
    return amino_acid or is_protein(residue) or residue.name in NUCLEOTIDES


def is_protein(residue) -> bool:
    """Whether a residue is an amino acid or a cap by its name."""
    return canonical_name(residue.name) is not None or residue.name in N_CAPS | C_CAPS


def _some(residues) -> str:
    return ", ".join(map(label, residues[:3])) + (f" and {len(residues) - 3} more" if len(residues) > 3 else "")


def _counted(verb: str, names: list[str]) -> list[str]:
    counts = Counter(names)
    return [f"{verb} " + ", ".join(f"{n} {name}" for name, n in counts.items())] if counts else []


def _refuse_unknown_bonds(fixer: PDBFixer, path):
    """Residues in one place, and bonds between residues that the reader does not know (closed rings, cross-links)."""
    x = np.array(fixer.positions.value_in_unit(unit.nanometer))
    atoms = [atom for atom in fixer.topology.atoms() if atom.element is not None and atom.element.symbol != "H"]
    bonded = {frozenset((a.index, b.index)) for a, b in fixer.topology.bonds()}
    for i, j in sorted(cKDTree(x[[atom.index for atom in atoms]]).query_pairs(NO_BOND)):
        first, second = sorted((atoms[i], atoms[j]), key=lambda atom: atom.residue.index)
        neighbours = first.residue.chain is second.residue.chain and second.residue.index - first.residue.index == 1
        peptide = neighbours and (first.name, second.name) == ("C", "N")  # PDBFixer will bond what it has replaced
        if first.residue is second.residue or peptide:
            continue
        distance = np.linalg.norm(x[first.index] - x[second.index])
        suspect = distance < ONE_PLACE or first.element is not second.element
        if suspect and frozenset((first.index, second.index)) not in bonded:
            raise UnsupportedTopologyError(
                f"{path}: {first.name} of {label(first.residue)} and {second.name} of {label(second.residue)} stand "
                f"{distance:.2f} nm apart without a known bond. Remove what is there twice; rings of residues and "
                "cross-links other than disulfides are not supported."
            )


def _long_bonds(topology: Topology, positions) -> list[str]:
    """Bonds between residues across which the reader bridged a gap of the chain."""
    x = np.array(positions.value_in_unit(unit.nanometer))
    bonds = [(a, b, float(np.linalg.norm(x[a.index] - x[b.index]))) for a, b in topology.bonds()]
    return [
        f"{a.residue.name} {a.residue.id} bonded to {b.residue.name} {b.residue.id} over {length:.2f} nm"
        for a, b, length in bonds
        if length > LONG_BOND
    ]
