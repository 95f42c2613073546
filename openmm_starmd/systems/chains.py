"""What belongs to a protein chain in a structure file: bonds to other residues, what is removed, where a chain ends."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
from openmm import unit
from openmm.app import Modeller, Residue, Topology
from pdbfixer import PDBFixer
from scipy.spatial import cKDTree

from openmm_starmd.errors import UnsupportedTopologyError
from openmm_starmd.protein.bond_graph import label
from openmm_starmd.protein.residues import C_CAPS, HEAVY_ATOMS, N_CAPS, RESIDUE_TYPES, canonical_name
from openmm_starmd.systems.structure_file import Link, Place

BACKBONE = {"N", "CA", "C"}
COVALENT = 0.17  # nm; heavy atoms of a peptide bond, or of a bond to a chain, that are closer are bonded
LONG_BOND = 0.25  # nm; a longer C-N distance is a gap of the chain
LINKED = 0.30  # nm; a record that bonds atoms farther apart is of no account
RISE = 0.38  # nm; largest distance of neighbouring CA atoms
ONE_PLACE = 0.08  # nm; equal atoms of two residues that are closer are two copies of one
NO_BOND = 0.16  # nm; those of two elements that are closer are bonded; two carbon atoms may be a clash


def is_protein(residue: Residue) -> bool:
    """Whether a residue is an amino acid or a cap by its name."""
    return canonical_name(residue.name) is not None or residue.name in N_CAPS | C_CAPS


def place_of(residue: Residue) -> Place:
    """Chain, residue number and insertion code."""
    return residue.chain.id, residue.id, residue.insertionCode.strip()


def names_of(residues) -> str:
    """Residues chain by chain: MET 1, GLU 2 of chain A; ALA 4 of chain B."""
    chains = defaultdict(list)
    for residue in residues:
        chains[residue.chain.id].append(f"{residue.name} {residue.id}{residue.insertionCode.strip()}")
    return "; ".join(f"{', '.join(names)} of chain {chain}" for chain, names in chains.items())


def coordinates(fixer: PDBFixer) -> np.ndarray:
    """Positions, nm."""
    return np.array(fixer.positions.value_in_unit(unit.nanometer))


def is_heavy(atom) -> bool:
    """Whether an atom is neither hydrogen nor a virtual site."""
    return atom.element is not None and atom.element.symbol not in ("H", "D")


def find_replacements(fixer: PDBFixer) -> dict[Residue, str]:
    """Standard residue in place of each modified amino acid with a whole backbone.

    A residue with just the heavy atoms of one of the 20 is that one (Amber's NLN is ASN, whatever its name means in the
    Protein Data Bank); the others are taken from PDBFixer's table and from MODRES records.
    """
    fixer.findNonstandardResidues()
    replacements = {residue: name for residue, name in fixer.nonstandardResidues if name in RESIDUE_TYPES}
    for residue in fixer.topology.residues():
        heavy = frozenset(atom.name for atom in residue.atoms() if is_heavy(atom)) - {"OXT"}
        same = [name for name, atoms in HEAVY_ATOMS.items() if atoms == heavy and name not in ("ALA", "GLY")]
        if same and not is_protein(residue):
            replacements[residue] = same[0]
    return {residue: name for residue, name in replacements.items() if _has_backbone(residue)}


def _has_backbone(residue: Residue) -> bool:
    return BACKBONE <= {atom.name for atom in residue.atoms()}


def bonds_between_residues(fixer: PDBFixer, links: list[Link]) -> list[tuple]:
    """(atom, atom, record) of every bond between residues that the file names, but not to symmetry copies."""
    atoms = {(place_of(atom.residue), atom.name): atom for atom in fixer.topology.atoms()}
    bonds = [
        (a, b, "CONECT")
        for a, b in fixer.topology.bonds()
        if a.residue is not b.residue and not a.name == b.name == "SG"  # made by distance
    ]
    for link in links:
        if not link.to_copy and link.first in atoms and link.second in atoms:
            bonds.append((atoms[link.first], atoms[link.second], link.record))
    x = coordinates(fixer)
    return [bond for bond in bonds if np.linalg.norm(x[bond[0].index] - x[bond[1].index]) < LINKED]


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


def remove_strangers(fixer: PDBFixer, bonds: list[tuple], chain_residues: set[Residue]) -> list[str]:
    """Remove what is not part of a protein chain; tells what.

    Raises
    ------
    UnsupportedTopologyError
        If a chain would lose a link of its backbone, or an amino acid.
    """
    strangers = [residue for residue in fixer.topology.residues() if residue not in chain_residues]
    partners = _partners(fixer, bonds, set(strangers), chain_residues)
    for residue in strangers:
        ends = {atom.name for atom in partners[residue]} & {"N", "C"}
        if ends == {"N", "C"} or (ends and _has_backbone(residue)):
            raise UnsupportedTopologyError(
                f"{label(residue)} is bonded to the backbone of {names_of(a.residue for a in partners[residue])}, but "
                "is none of the 20 standard amino acids and has no standard counterpart that is known. Replace it by "
                "one of them in the file."
            )
    bonded = [residue for residue in strangers if partners[residue]]
    counts = Counter(residue.name for residue in strangers if not partners[residue])
    modeller = Modeller(fixer.topology, fixer.positions)
    modeller.delete(strangers)
    fixer.topology, fixer.positions = modeller.topology, modeller.positions
    changes = ["removed " + ", ".join(f"{n} {name}" for name, n in counts.items())] if counts else []
    for residue in bonded:
        atoms = ", ".join(f"{atom.name} of {names_of([atom.residue])}" for atom in partners[residue])
        changes.append(f"removed {names_of([residue])}, which was bonded to {atoms}")
    return changes


def _partners(fixer: PDBFixer, bonds: list[tuple], strangers: set[Residue], chain_residues: set[Residue]) -> dict:
    """Protein atoms that each of the strangers is bonded to, by a record or, if to a backbone, by distance."""
    partners = defaultdict(dict)
    for a, b, _ in bonds:
        for one, other in ((a, b), (b, a)):
            if one.residue in strangers and other.residue in chain_residues:
                partners[one.residue][other] = None
    x = coordinates(fixer)
    others = [atom for residue in strangers for atom in residue.atoms() if is_heavy(atom)]
    ends = [atom for residue in chain_residues for atom in residue.atoms() if atom.name in ("N", "C")]
    if others and ends:
        trees = (cKDTree(x[[atom.index for atom in atoms]]) for atoms in (others, ends))
        for i, close in enumerate(next(trees).query_ball_tree(next(trees), COVALENT)):
            partners[others[i].residue] |= {ends[j]: None for j in close}
    return defaultdict(list, {r: sorted(atoms, key=lambda atom: atom.index) for r, atoms in partners.items()})


def refuse_traces(fixer: PDBFixer) -> None:
    """Refuse residues that are only a CA atom, or less: no library builds a backbone about them."""
    traces = []
    for residue in fixer.topology.residues():
        present = {atom.name for atom in residue.atoms()}
        if canonical_name(residue.name) and ("CA" not in present or not present & {"N", "C"}):
            traces.append(residue)
    if traces:
        more = f" and {len(traces) - 3} more" if len(traces) > 3 else ""
        raise UnsupportedTopologyError(
            f"backbone atoms (of N, CA, C) that side chains are built on are missing in "
            f"{', '.join(map(label, traces[:3]))}{more}. Build the backbone with another program, or remove the "
            "residues."
        )


def refuse_foreign_atoms(fixer: PDBFixer) -> None:
    """Refuse amino acids with heavy atoms that their type does not have."""
    for residue in fixer.topology.residues():
        known = HEAVY_ATOMS.get(residue.name)
        foreign = [atom.name for atom in residue.atoms() if is_heavy(atom) and atom.name not in {*(known or ()), "OXT"}]
        if known and foreign:
            raise UnsupportedTopologyError(
                f"the atoms {', '.join(foreign)} of {label(residue)} match no template: {residue.name} has none of "
                "these names. Rename the residue if it is a modified one, or remove the atoms."
            )


def split_at_gaps(fixer: PDBFixer) -> list[str]:
    """End chains at their gaps, where residues that the file's sequence names do not fit in; tells where.

    ``fixer.missingResidues`` holds afterwards what is to be built inside of chains.
    """
    x, cuts, loops, changes = coordinates(fixer), set(), {}, []
    for chain in fixer.topology.chains():
        residues = list(chain.residues())
        for i, (before, after) in enumerate(zip(residues, residues[1:], strict=False), 1):
            length, reach = _distance(before, after, x)
            missing = fixer.missingResidues.get((chain.index, i), [])
            if length <= LONG_BOND:
                continue
            known = missing and set(missing) <= set(RESIDUE_TYPES)
            if known and reach <= RISE * (len(missing) + 1):
                loops[after] = missing
                continue
            cuts.add(after)
            changes.append(
                f"ended the chain at a gap of {length:.2f} nm between {names_of([before])} and {names_of([after])}, "
                "with charged ends"
            )
    rebuild(fixer, cuts=cuts)
    fixer.missingResidues = {}
    starts = {place_of(residue): names for residue, names in loops.items()}
    for chain in fixer.topology.chains():
        for i, residue in enumerate(chain.residues()):
            if i and place_of(residue) in starts:
                fixer.missingResidues[chain.index, i] = starts.pop(place_of(residue))
    return changes


def _distance(before: Residue, after: Residue, x: np.ndarray) -> tuple[float, float]:
    """C-N distance between two residues, and that of their CA atoms; CA stands for what is missing."""
    first, second = ({atom.name: x[atom.index] for atom in residue.atoms()} for residue in (before, after))
    ca = [atoms.get("CA", next(iter(atoms.values()))) for atoms in (first, second)]
    reach = float(np.linalg.norm(ca[0] - ca[1]))
    if "C" not in first or "N" not in second:
        return (0.0 if reach < RISE + 0.07 else reach), reach
    return float(np.linalg.norm(first["C"] - second["N"])), reach


def rebuild(fixer: PDBFixer, cuts=frozenset(), keep_bond=lambda a, b: True) -> None:
    """The Topology with a new chain from each of the ``cuts`` on, without bonds across them."""
    old, new, copies = fixer.topology, Topology(), {}
    new.setPeriodicBoxVectors(old.getPeriodicBoxVectors())
    for chain in old.chains():
        copy = new.addChain(chain.id)
        for i, residue in enumerate(chain.residues()):
            if i and residue in cuts:
                copy = new.addChain(chain.id)
            target = new.addResidue(residue.name, copy, residue.id, residue.insertionCode)
            for atom in residue.atoms():
                copies[atom] = new.addAtom(atom.name, atom.element, target, atom.id)
    for a, b in old.bonds():
        first, second = sorted((copies[a], copies[b]), key=lambda atom: atom.index)
        across = first.residue.chain is not second.residue.chain and (first.name, second.name) == ("C", "N")
        if keep_bond(a, b) and not across:
            new.addBond(copies[a], copies[b])
    fixer.topology = new


def refuse_unknown_bonds(fixer: PDBFixer) -> None:
    """Refuse residues in one place, clashes, and bonds that no record names (closed rings, cross-links)."""
    x = coordinates(fixer)
    atoms = [atom for atom in fixer.topology.atoms() if is_heavy(atom)]
    bonded = {frozenset((a.index, b.index)) for a, b in fixer.topology.bonds()}
    close = []
    for i, j in sorted(cKDTree(x[[atom.index for atom in atoms]]).query_pairs(NO_BOND)):
        first, second = sorted((atoms[i], atoms[j]), key=lambda atom: atom.residue.index)
        neighbours = first.residue.chain is second.residue.chain and second.residue.index - first.residue.index == 1
        peptide = neighbours and (first.name, second.name) == ("C", "N")  # PDBFixer bonds them
        if first.residue is second.residue or peptide or frozenset((first.index, second.index)) in bonded:
            continue
        close.append((first, second, float(np.linalg.norm(x[first.index] - x[second.index]))))
    copies = Counter((a.residue, b.residue) for a, b, d in close if d < ONE_PLACE and a.name == b.name)
    for (first, second), n in copies.items():
        if n >= min(3, len(list(first.atoms())), len(list(second.atoms()))):
            raise UnsupportedTopologyError(
                f"{label(first)} and {label(second)} stand in one place. Remove what is there twice."
            )
    for a, b, d in close:
        if d < ONE_PLACE or a.element is not b.element:
            raise UnsupportedTopologyError(
                f"{a.name} of {label(a.residue)} and {b.name} of {label(b.residue)} stand {d:.2f} nm apart without a "
                "known bond. If the model has clashes, relax it first, in the program that made it; rings of residues "
                "and cross-links other than disulfides are not supported."
            )
