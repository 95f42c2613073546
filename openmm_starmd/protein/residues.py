"""Residue types of the model: names, side-chain torsions and their symmetry.

The atoms of a type come from the residue templates that MDTraj ships, the torsions from `mdtraj.geometry.dihedral`.
"""

from __future__ import annotations

import math
from importlib.resources import files
from xml.etree import ElementTree

from mdtraj.geometry import dihedral

ONE_LETTER = {
    "ALA": "A", "ARG": "R", "ASN": "N", "ASP": "D", "CYS": "C", "GLN": "Q", "GLU": "E", "GLY": "G", "HIS": "H",
    "ILE": "I", "LEU": "L", "LYS": "K", "MET": "M", "PHE": "F", "PRO": "P", "SER": "S", "THR": "T", "TRP": "W",
    "TYR": "Y", "VAL": "V",
}  # fmt: skip
"""One-letter code of each residue type."""

RESIDUE_TYPES = tuple(sorted(ONE_LETTER))
"""The 20 standard residues; a residue type is an index into this tuple."""

TORSIONS = ("phi", "psi", "chi1", "chi2", "chi3", "chi4")
"""Torsions of a conformation, in the order of its last axis."""

N_CAPS = frozenset({"ACE", "FOR"})
C_CAPS = frozenset({"NME", "NMA", "NH2", "NHE"})

# protonation states under Amber's name, and their names in CHARMM and GROMACS
_PROTONATION = {
    "ASP": {"ASH": ("ASPP", "ASPH")},
    "CYS": {"CYM": (), "CYX": ("CYS2",)},
    "GLU": {"GLH": ("GLUP", "GLUH")},
    "HIS": {"HID": ("HSD", "HISD", "HISA"), "HIE": ("HSE", "HISE", "HISB"), "HIP": ("HSP", "HISH")},
    "LYS": {"LYN": ("LSN",)},
}
_AMBER_NAME = {
    alias: name for states in _PROTONATION.values() for name, aliases in states.items() for alias in (name, *aliases)
}
_CANONICAL = (
    {name: name for name in RESIDUE_TYPES}
    | {"CYSH": "CYS", "LYSH": "LYS"}
    | {alias: name for name, states in _PROTONATION.items() for alias in _AMBER_NAME if _AMBER_NAME[alias] in states}
)

VARIANTS = (
    "", "ARN", "ASH", "CYM", "CYX", "GLH", "HIE", "HIP", "LYN", "TYM", "formyl cap", "amide cap", "neutral N end",
    "neutral C end", "other",
)  # fmt: skip
"""Chemical variants of a residue: protonation, disulfide (CYX), and ends other than charged ones, ACE and NME.

The first is that of the free amino acid at pH 7 (histidine: HID). "other" is any further one, and two at once. New ones
are added at the end: a variant is an index into this tuple, which networks embed.
"""

# hydrogens on N, O and S of the side chain -> variant; histidine's tautomers are told apart by their place
POLAR_HYDROGENS = {
    "ARG": {5: "", 4: "ARN"},
    "ASN": {2: ""},
    "ASP": {0: "", 1: "ASH"},
    "CYS": {1: "", 0: "CYM"},
    "GLN": {2: ""},
    "GLU": {0: "", 1: "GLH"},
    "HIS": {1: "", 2: "HIP"},
    "LYS": {3: "", 2: "LYN"},
    "SER": {1: ""},
    "THR": {1: ""},
    "TRP": {1: ""},
    "TYR": {1: "", 0: "TYM"},
}

# other names of an atom, in Amber, CHARMM and GROMACS
_ALIASES = {"O": ("OT1", "OC1", "O1")}
_ALIASES_OF_TYPE = {("ILE", "CD1"): ("CD",)}

# two exchangeable atoms at the end of the torsion
_SYMMETRIC = {("ASP", "chi2"), ("GLU", "chi3"), ("PHE", "chi2"), ("TYR", "chi2")}


def canonical_name(name: str) -> str | None:
    """Standard three-letter name of a residue under any Amber, CHARMM or GROMACS name; None if it is none of the 20.

    Amber's names of terminal residues (NALA, CSER, ...) are known, too.
    """
    return _CANONICAL.get(_without_end(name))


def protonation_name(name: str) -> str | None:
    """Amber's name of the protonation state that a residue name stands for (HIP for HSP, ...); None for the others."""
    return _AMBER_NAME.get(_without_end(name))


def _without_end(name: str) -> str:
    """NALA and CALA as ALA; other names in capital letters."""
    name = name.strip().upper()
    terminal = len(name) == 4 and name[0] in "NC" and name not in _CANONICAL
    return name[1:] if terminal and name[1:] in _CANONICAL else name


def named_variant(name: str) -> str:
    """Variant that the name of a residue tells, for files without hydrogens."""
    name = protonation_name(name)
    return name if name in VARIANTS else ""


def variant_name(residue_type: str, variant: int) -> str:
    """Name of a residue of a type and variant: ``"ASH"``, ``"GLY (amide cap)"``."""
    name = VARIANTS[variant]
    if name.isupper():
        return name
    plain = "HID" if residue_type == "HIS" else residue_type
    return f"{residue_type} ({name})" if name else plain


def atom_names(residue_type: str, name: str) -> tuple[str, ...]:
    """Names under which atom ``name`` of a residue type may appear, the standard one first."""
    return (name, *_ALIASES.get(name, ()), *_ALIASES_OF_TYPE.get((residue_type, name), ()))


def torsion_period(residue_type: str, torsion: str) -> float:
    """Period of a torsion, radian: pi where it only exchanges equivalent atoms (chi2 of ASP, PHE, TYR; chi3 of GLU).

    psi has the period pi, too, where the C terminus carries two oxygens; that is decided in `protein.tokens`.
    """
    return math.pi if (residue_type, torsion) in _SYMMETRIC else 2 * math.pi


def _template_bonds() -> dict[str, list[set[str]]]:
    """Names of both atoms of each bond of the residue types in MDTraj's templates."""
    root = ElementTree.fromstring((files("mdtraj.formats.pdb") / "data" / "residues.xml").read_text())
    return {
        residue.get("name"): [{bond.get("from"), bond.get("to")} for bond in residue.iter("Bond")]
        for residue in root.iter("Residue")
    }


def _template_atoms() -> dict[str, set[str]]:
    """Atom names of each residue type in MDTraj's templates."""
    return {name: set().union(*bonds) for name, bonds in _template_bonds().items()}


def _chi_atoms() -> dict[str, tuple[tuple[str, str, str, str], ...]]:
    """For each residue type the first of MDTraj's alternatives whose atoms it has, chi by chi."""
    atoms = _template_atoms()
    tables = (dihedral.CHI1_ATOMS, dihedral.CHI2_ATOMS, dihedral.CHI3_ATOMS, dihedral.CHI4_ATOMS)
    chi = {}
    for name in RESIDUE_TYPES:
        matches = (next((tuple(a) for a in table if atoms[name].issuperset(a)), None) for table in tables)
        chi[name] = tuple(match for match in matches if match)
    return chi


HEAVY_ATOMS = {
    name: frozenset(atom for atom in atoms if not atom.startswith("H") and atom not in ("OXT", "-C"))
    for name, atoms in _template_atoms().items()
    if name in ONE_LETTER
}
"""Names of the heavy atoms of each residue type inside a chain."""

CARBON_HYDROGENS = {
    name: sum({atom[0] for atom in bond} == {"C", "H"} for bond in bonds)
    for name, bonds in _template_bonds().items()
    if name in ONE_LETTER
}
"""Number of hydrogens on carbon of each residue type, the same in every protonation state."""

CHI_ATOMS = _chi_atoms()
"""Atom names of chi1, chi2, ... of each residue type."""
