"""From a structure file to a protein that can be simulated, and the list of all that was changed on the way."""

from __future__ import annotations

import os

from openmm import unit
from openmm.app import Element, Topology
from pdbfixer import PDBFixer

from openmm_starmd.errors import UnsupportedTopologyError, listed
from openmm_starmd.protein.bond_graph import label
from openmm_starmd.protein.residues import canonical_name
from openmm_starmd.systems import chains, links
from openmm_starmd.systems.build import force_field
from openmm_starmd.systems.completion import build_missing_atoms, refuse_pierced_rings
from openmm_starmd.systems.protonation import add_hydrogens, bond_disulfides
from openmm_starmd.systems.structure_file import StructureFile, read_structure


def prepare(
    path: str | os.PathLike, *, ph: float = 7.0, disulfides: bool = True
) -> tuple[Topology, unit.Quantity, list[str]]:
    """Make a structure file ready for a force field, in implicit solvent.

    Of several models the first is used, of several conformations of a residue the one of the highest occupancy. Known
    modified residues are replaced (SEP by SER, ...), and all but proteins and their caps is removed. Missing atoms are
    built, residues missing inside a chain, and side chains of ILE and THR whose CB is mirrored; chains are ended at the
    other gaps. Names of protonation states (HIP, ASH, ...) are honoured, with and without hydrogens; ASP, GLU, LYS and
    CYS at chain ends stay as at pH 7.

    Parameters
    ----------
    path : path
        PDB or mmCIF.
    ph : float
        Decides about hydrogens that neither the file's hydrogens nor its residue names tell; a CYS with hydrogens but
        none on its sulfur is a thiolate.
    disulfides : bool
        Bond the sulfur atoms of CYS that a record of the file bonds, or that stand closer than 0.3 nm and bear no
        hydrogen; False keeps all as thiols.

    Returns
    -------
    topology : Topology
    positions : Quantity
        Not yet minimised.
    changes : list of str
        All that was left out, replaced, removed, built and decided; every line names the residues.

    Raises
    ------
    UnsupportedTopologyError
        If the file cannot be read or holds no protein, or a residue cannot be simulated, mapped to a standard one or
        built with the configuration of nature; names it.
    ValueError
        If ``ph`` does not lie between 0 and 14.
    """
    if not 0 <= ph <= 14:
        raise ValueError(f"ph: expected a number from 0 to 14, found {ph:g}.")
    structure = read_structure(path)
    try:
        return _prepare(structure, ph, disulfides)
    except UnsupportedTopologyError as error:
        raise UnsupportedTopologyError(f"{path}: {error}") from error


def _prepare(structure: StructureFile, ph: float, disulfides: bool):
    fixer, changes = structure.fixer, structure.changes
    bonds, others = links.bonds_between_residues(fixer, structure.links)
    replacements = chains.find_replacements(fixer)
    residues = {r for r in fixer.topology.residues() if chains.is_protein(r)} | replacements.keys()
    if not any(canonical_name(r.name) or r in replacements for r in residues):
        raise UnsupportedTopologyError("The file holds no protein: none of its residues is a standard amino acid.")
    links.refuse_links(bonds, residues)
    changes += links.tell_impossible_bonds(others, residues)
    recorded = [(a.residue, b.residue) for a, b, _ in bonds if {a.name, b.name} == {"SG"}]
    recorded = dict.fromkeys(tuple(sorted(pair, key=lambda residue: residue.index)) for pair in recorded)
    recorded = [tuple(map(chains.place_of, pair)) for pair in recorded]
    names = {chains.place_of(residue): name for residue, name in replacements.items()}
    changes += chains.remove_strangers(fixer, bonds, residues)
    chains.refuse_traces(fixer)
    fixer.findMissingResidues()  # by the names that the file's sequence has
    originals, more = _replace(fixer, names)
    changes += more
    changes += chains.mend_elements(fixer)
    chains.refuse_foreign_atoms(fixer)
    changes += chains.split_at_gaps(fixer)
    chains.refuse_stretched_bonds(fixer)
    chains.refuse_unknown_bonds(fixer)
    built, more = build_missing_atoms(fixer, originals)
    changes += more
    thiols, more = bond_disulfides(fixer, recorded, disulfides)
    changes += more
    topology, positions, more = add_hydrogens(fixer, structure.protonation, ph, thiols)
    changes += more
    _refuse_unmatched(topology)
    refuse_pierced_rings(topology, positions, built)
    return topology, positions, changes


def _replace(fixer: PDBFixer, names: dict[chains.Place, str]) -> tuple[dict[chains.Place, str], list[str]]:
    """Turn modified residues into standard ones; tells what each place held, and what that changes."""
    residues = {chains.place_of(r): r for r in fixer.topology.residues() if chains.place_of(r) in names}
    originals = {place: chains.names_of([residue]) for place, residue in residues.items()}
    on_n = chains.bonded_to_n(fixer, residues.values())
    first = {residue for residue in on_n if residue is next(residue.chain.residues())}
    for residue in residues.values():
        for atom in residue.atoms():
            if residue.name == "MSE" and atom.name == "SE":
                atom.name, atom.element = "SD", Element.getBySymbol("S")
    fixer.nonstandardResidues = [(residue, names[place]) for place, residue in residues.items()]
    fixer.replaceNonstandardResidues()
    changes = []
    for place, text in originals.items():
        change = ""
        if residues[place] in on_n and names[place] != "PRO":
            atom, in_ring = on_n[residues[place]]
            change = f", which opens its ring of N and {atom}" if in_ring else f", which takes {atom} from its N"
            change += " and leaves a free N end" if residues[place] in first else ""
        changes.append(f"replaced {text} by {names[place]}{change}")
    return originals, changes


def _refuse_unmatched(topology: Topology) -> None:
    for chain in topology.chains():
        residues = list(chain.residues())
        if len(residues) == 1:
            raise UnsupportedTopologyError(
                f"{label(residues[0])} stands alone, and ff14SB has no template of a free amino acid. Remove it, or "
                "cap it by ACE and NME."
            )
    unmatched = force_field().getUnmatchedResidues(topology)
    if unmatched:
        raise UnsupportedTopologyError(
            f"the atoms and bonds of {listed(list(map(label, unmatched)))} match no template of ff14SB. "
            f"{_why_unmatched(topology)}Look there for unknown residues and for missing, doubled or wrongly named "
            "atoms."
        )


def _why_unmatched(topology: Topology) -> str:
    """Reason that OpenMM gives for the first residue without a template, such as a hydrogen atom too many."""
    try:
        force_field().createSystem(topology)
    except ValueError as error:
        text = str(error).split("For more information")[0]
        _, _, reason = " ".join(text.split()).partition("). ")
        return f"{reason} " if reason else ""
    return ""
