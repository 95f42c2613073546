"""Protein chains of a structure file: bonds to other residues, what is removed, where a chain ends."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
from openmm import unit
from openmm.app import Element, Modeller, Residue, Topology
from pdbfixer import PDBFixer
from scipy.spatial import cKDTree

from openmm_starmd.errors import UnsupportedTopologyError, listed
from openmm_starmd.protein.bond_graph import chain_label, label, symbol_of
from openmm_starmd.protein.length_unit import backbone_of, fault_of_unit
from openmm_starmd.protein.residues import C_CAPS, HEAVY_ATOMS, N_CAPS, RESIDUE_TYPES, canonical_name
from openmm_starmd.systems.structure_file import Place

BACKBONE = {"N", "CA", "C"}
COVALENT = 0.17  # nm; heavy atoms of a peptide bond, or of a bond to a chain, that are closer are bonded
COVALENT_SULFUR = 0.20  # nm; the same with sulfur
LONG_BOND = 0.25  # nm; a longer C-N distance is a gap of the chain
SHORT_BOND = 0.05  # nm; so close are not even the atoms of a bond to hydrogen
RISE = 0.38  # nm; largest distance of neighbouring CA atoms
ONE_PLACE = 0.08  # nm; equal atoms of two residues that are closer are two copies of one
NO_BOND = 0.16  # nm; those of two elements that are closer are bonded; two carbon atoms may be a clash

# names of D amino acids in the Protein Data Bank
D_RESIDUES = frozenset("DAL DAR DAS DCY DGL DGN DHI DIL DLE DLY DPN DPR DSG DSN DTH DTR DTY DVA MED".split())


def is_protein(residue: Residue) -> bool:
    """True if a residue is an amino acid or a cap by its name."""
    return canonical_name(residue.name) is not None or residue.name in N_CAPS | C_CAPS


def place_of(residue: Residue) -> Place:
    """Chain, residue number and insertion code."""
    return residue.chain.id, residue.id, residue.insertionCode.strip()


def names_of(residues) -> str:
    """Residues chain by chain: MET 1, GLU 2 of chain A; ALA 4 of chain B."""
    chains = defaultdict(list)
    for residue in residues:
        chains[residue.chain.id].append(f"{residue.name} {residue.id}{residue.insertionCode.strip()}")
    return "; ".join(f"{', '.join(names)} of chain {chain_label(chain)}" for chain, names in chains.items())


def coordinates(fixer: PDBFixer) -> np.ndarray:
    """Positions, nm."""
    return np.array(fixer.positions.value_in_unit(unit.nanometer))


def is_heavy(atom) -> bool:
    """True if an atom is neither hydrogen nor a virtual site."""
    return symbol_of(atom) not in ("", "H", "D")


def find_replacements(fixer: PDBFixer) -> dict[Residue, str]:
    """Standard residue in place of each modified amino acid with a whole backbone.

    A residue with just the heavy atoms of one of the 20 is that one (Amber's NLN is ASN, whatever its name means in the
    Protein Data Bank); the others are taken from PDBFixer's table and from MODRES records. An UnsupportedTopologyError
    refuses a residue that is named after a D amino acid.
    """
    for residue in fixer.topology.residues():
        if residue.name in D_RESIDUES and _has_backbone(residue):
            raise UnsupportedTopologyError(
                f"{label(residue)} has the D configuration by its name; only L is supported."
            )
    fixer.findNonstandardResidues()
    replacements = {residue: name for residue, name in fixer.nonstandardResidues if name in RESIDUE_TYPES}
    for residue in fixer.topology.residues():
        heavy = frozenset(atom.name for atom in residue.atoms() if is_heavy(atom)) - {"OXT"}
        same = [name for name, atoms in HEAVY_ATOMS.items() if atoms == heavy and name not in ("ALA", "GLY")]
        if same and not is_protein(residue):
            replacements[residue] = same[0]
    return {residue: name for residue, name in replacements.items() if _has_backbone(residue)}


def bonded_to_n(fixer: PDBFixer, residues) -> dict[Residue, tuple[str, bool]]:
    """Name of the atom beside CA that N is bonded to, of the residues where there is one, and whether it is in a ring.

    CD of PCA is in a ring of N and CA; the methyl of SAR and the formyl of FME are not.
    """
    x, found = coordinates(fixer), {}
    for residue in residues:
        places = {atom.name: x[atom.index] for atom in residue.atoms() if is_heavy(atom)}

        def near(name, places=places):
            return {k for k, place in places.items() if 0 < np.linalg.norm(place - places[name]) < COVALENT}

        for name in sorted(near("N") - {"CA"}):
            reached, ends = {name}, [name]
            while ends:
                new = near(ends.pop()) - reached - {"N"}
                reached |= new
                ends += new
            found[residue] = name, "CA" in reached
    return found


def _has_backbone(residue: Residue) -> bool:
    return BACKBONE <= {atom.name for atom in residue.atoms()}


def remove_strangers(fixer: PDBFixer, bonds: list[tuple], chain_residues: set[Residue]) -> list[str]:
    """Remove what is not part of a protein chain; tells what.

    An UnsupportedTopologyError says that a chain would lose a link of its backbone, or an amino acid.
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
    """Protein atoms that each of the strangers is bonded to, by a record or by distance.

    Single atoms (water, ions) are bonded by distance to the ends of a backbone alone; some overlap with side chains.
    """
    partners = defaultdict(dict)
    for a, b, _ in bonds:
        for one, other in ((a, b), (b, a)):
            if one.residue in strangers and other.residue in chain_residues:
                partners[one.residue][other] = None
    x = coordinates(fixer)
    others = [atom for residue in strangers for atom in residue.atoms() if is_heavy(atom)]
    size = Counter(atom.residue for atom in others)
    protein = [atom for residue in chain_residues for atom in residue.atoms() if is_heavy(atom)]
    if others and protein:
        trees = (cKDTree(x[[atom.index for atom in atoms]]) for atoms in (others, protein))
        for one, close in zip(others, next(trees).query_ball_tree(next(trees), COVALENT_SULFUR), strict=True):
            lengths = {protein[k]: np.linalg.norm(x[one.index] - x[protein[k].index]) for k in close}
            nearest = min(lengths, key=lengths.get, default=None)
            for other, length in lengths.items():
                reach = COVALENT_SULFUR if "S" in (one.element.symbol, other.element.symbol) else COVALENT
                if length < reach and (other.name in ("N", "C") or (other is nearest and size[one.residue] > 1)):
                    partners[one.residue][other] = None
    return defaultdict(list, {r: sorted(atoms, key=lambda atom: atom.index) for r, atoms in partners.items()})


def refuse_traces(fixer: PDBFixer) -> None:
    """Refuse residues that are only a CA atom, or less: no library builds a backbone about them."""
    traces = []
    for residue in fixer.topology.residues():
        present = {atom.name for atom in residue.atoms()}
        if canonical_name(residue.name) and ("CA" not in present or not present & {"N", "C"}):
            traces.append(residue)
    if traces:
        raise UnsupportedTopologyError(
            f"backbone atoms (of N, CA, C) that side chains are built on are missing in "
            f"{listed(list(map(label, traces)))}. Build the backbone with another program, or remove the "
            "residues."
        )


def mend_elements(fixer: PDBFixer) -> list[str]:
    """Give heavy atoms of amino acids the element of their name; tells where a file has another (calcium for CA)."""
    wrong = defaultdict(list)
    for residue in fixer.topology.residues():
        for atom in residue.atoms():
            if atom.name in HEAVY_ATOMS.get(residue.name, ()) and symbol_of(atom) != atom.name[0]:
                wrong[f"{symbol_of(atom) or 'no element'} for {atom.name[0]}"].append(atom)
                atom.element = Element.getBySymbol(atom.name[0])
    return [
        f"mended the element, {text}, of {listed(sorted({a.name for a in atoms}))} in "
        f"{names_of(dict.fromkeys(a.residue for a in atoms))}"
        for text, atoms in wrong.items()
    ]


def refuse_foreign_atoms(fixer: PDBFixer) -> None:
    """Refuse amino acids with heavy atoms that their type does not have."""
    for residue in fixer.topology.residues():
        known = HEAVY_ATOMS.get(residue.name)
        heavy = [atom.name for atom in residue.atoms() if is_heavy(atom)]
        unmatched = [name for name in heavy if name not in {*(known or ()), "OXT"}]
        if known and unmatched:
            raise UnsupportedTopologyError(
                f"the atoms {', '.join(unmatched)} of {label(residue)} match no template: {residue.name} has none of "
                "these names. Rename the residue if it is a modified one, or remove the atoms."
            )


def split_at_gaps(fixer: PDBFixer) -> list[str]:
    """End chains at their gaps, where residues that the file's sequence names do not fit in.

    The answer tells where, and what of the sequence is missing at the ends of chains.
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
            ends = f"{names_of([before])} and {names_of([after])}"
            if _is_end(before) or after.name in N_CAPS:
                changes.append(f"began a chain between {ends}, {length:.2f} nm apart: two molecules")
            else:
                changes.append(f"ended the chain at a gap of {length:.2f} nm between {ends}, with charged ends")
        for i, side in ((0, "before"), (len(residues), "behind")):
            if missing := fixer.missingResidues.get((chain.index, i)):
                end = names_of([residues[-1 if i else 0]])
                changes.append(f"left out {' '.join(missing)}, which the sequence has {side} {end}")
    rebuild(fixer, cuts=cuts)
    fixer.missingResidues = {}
    starts = {place_of(residue): names for residue, names in loops.items()}
    for chain in fixer.topology.chains():
        for i, residue in enumerate(chain.residues()):
            if i and place_of(residue) in starts:
                fixer.missingResidues[chain.index, i] = starts.pop(place_of(residue))
    return changes


def _is_end(residue: Residue) -> bool:
    """True if a residue is the last of a molecule: a cap, or one with two oxygen atoms on C."""
    return residue.name in C_CAPS or any(atom.name == "OXT" for atom in residue.atoms())


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


def refuse_stretched_bonds(fixer: PDBFixer) -> None:
    """Refuse atoms that stand nowhere: no number, on top of an atom that they are bonded to, or far from it."""
    x = coordinates(fixer)
    for atom in fixer.topology.atoms():
        if not np.isfinite(x[atom.index]).all():
            raise UnsupportedTopologyError(
                f"{atom.name} of {label(atom.residue)} has no position. Remove it from the file: it is then built."
            )
    if fault := fault_of_unit(x, backbone_of(fixer.topology)):
        raise UnsupportedTopologyError(f"the positions {fault}.")
    for a, b in fixer.topology.bonds():
        length = float(np.linalg.norm(x[a.index] - x[b.index]))
        if a.residue is b.residue and not SHORT_BOND < length < LONG_BOND:
            raise UnsupportedTopologyError(
                f"{a.name} and {b.name} of {label(a.residue)} are bonded, but stand {length:.3g} nm apart. Remove the "
                "atoms that are in the wrong place from the file: they are then built."
            )


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
        if (a.name, b.name) == ("C", "N") and b.residue.index - a.residue.index == 1:
            raise UnsupportedTopologyError(
                f"{label(a.residue)} and {label(b.residue)} are bonded, but a TER record or another chain name stands "
                "between them. Remove it."
            )
        if d < ONE_PLACE or a.element is not b.element:
            raise UnsupportedTopologyError(
                f"{a.name} of {label(a.residue)} and {b.name} of {label(b.residue)} stand {d:.2f} nm apart without a "
                "known bond. If the model has clashes, relax it first, in the program that made it; rings of residues "
                "and cross-links other than disulfides are not supported."
            )
