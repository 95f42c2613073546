"""One conformation and one standard name of each residue in a structure file."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from string import ascii_lowercase, ascii_uppercase, digits

import numpy as np

from openmm_starmd.errors import UnsupportedTopologyError
from openmm_starmd.protein.bond_graph import chain_label
from openmm_starmd.protein.residues import HEAVY_ATOMS, RESIDUE_TYPES, canonical_name, protonation_name

Place = tuple[str, str, str]
"""Chain, residue number and insertion code."""

# atoms of the caps that CHARMM counts as part of the first and of the last residue
_N_CAP = {"CAY", "CY", "OY", "HY1", "HY2", "HY3"}
_C_CAP = {"NT", "HNT", "CAT", "HT1", "HT2", "HT3"}
# caps under their names in GROMACS and CHARMM, with the elements of their heavy atoms
_CAP_NAMES = {"NAC": ("NME", "CN"), "NMA": ("NME", "CN"), "CT3": ("NME", "CN"), "CT2": ("NH2", "N")}
_END_OXYGENS = {"OXT", "OT1", "OT2", "OC1", "OC2", "O1", "O2"}
_OTHER_NAMES = {"ILE": {"CD"}}
_BACKBONE = {"N", "CA", "C"}


@dataclass(frozen=True)
class AtomRow:
    """Identity of an atom among those of a file; ``segment`` grows at each TER and chain of an mmCIF file."""

    segment: int
    place: Place
    residue: str
    name: str
    alternate: str
    occupancy: float

    @property
    def is_hydrogen(self) -> bool:
        """True if the name is one of a hydrogen or deuterium atom of an amino acid."""
        return self.name.lstrip("0123456789")[:1] in ("H", "D")


@dataclass
class Selection:
    """The atoms that stay."""

    # for each atom its row under the standard residue name; None for an atom that is left out
    rows: list[AtomRow | None]
    # Amber's name of the protonation state of each place whose residue is named after one
    protonation: dict[Place, str] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)  # which conformations were kept


def select(rows: list[AtomRow]) -> Selection:
    """Keep one conformation of each residue, the one of the highest occupancy, and name residues in the standard way.

    Of equal occupancies the letter that has the more in the whole file is kept, as it fits to the neighbours, or else
    the first.
    """
    totals = Counter()
    for row in rows:
        totals[row.alternate] += row.occupancy
    selection = Selection([None] * len(rows))
    kept_letters, with_copies = defaultdict(list), defaultdict(list)
    for numbers in _residues(rows):
        residue, place = [rows[i] for i in numbers], rows[numbers[0]].place
        letters = sorted({row.alternate for row in residue} - {""})
        if letters:
            letter = max(letters, key=lambda x: (round(_occupancy(residue, x), 3), totals[x]))
            numbers = _of_conformation(rows, numbers, letter)
            name, others = rows[numbers[0]].residue, sorted({row.residue for row in residue})
            others.remove(name)
            if not _BACKBONE <= {row.name for row in residue}:
                pass  # water and ligands do not stay
            elif others:
                text = f"kept {_label(name, place)}, not {' or '.join(others)} in its place"
                selection.changes.append(f"{text} (occupancy {_occupancy(residue, letter):.2f})")
            elif len(letters) > 1:
                kept_letters[letter, place[0]].append(f"{name} {place[1]}{place[2]}")
        elif len(first := {rows[i].name: i for i in reversed(numbers)}) < len(numbers):
            numbers = sorted(first.values())
            with_copies[place[0]].append(f"{residue[0].residue} {place[1]}{place[2]}")
        _rename(rows, numbers, selection)
    selection.changes += [
        f"kept conformation {letter}, of the highest occupancy, of {', '.join(residues)} of chain {chain_label(chain)}"
        for (letter, chain), residues in kept_letters.items()
    ]
    deuterium = sum(new is not None and new.name != old.name for old, new in zip(rows, selection.rows, strict=True))
    if deuterium:
        selection.changes.append(f"took {deuterium} deuterium atoms for hydrogen")
    selection.changes += [
        f"kept the first of the atoms that are there several times under one name in {', '.join(residues)} of chain "
        f"{chain_label(chain)}"
        for chain, residues in with_copies.items()
    ]
    return selection


def name_chains_apart(rows: list[AtomRow], taken: set[str]) -> tuple[list[AtomRow], list[str]]:
    """Rows in which no two protein residues have one chain, number and insertion code; tells which chains were renamed.

    A residue whose place another one bears, without being its alternate or its neighbour, begins a chain with a name
    that is free, and none of those ``taken``.
    """
    taken = taken | {row.place[0] for row in rows}
    free = (name for name in ascii_uppercase + ascii_lowercase + digits if name not in taken)
    owned, names, renamed, changes = set(), {}, [], []
    for run in _runs(rows):
        first = rows[run[0]]
        chain, *place = first.place
        key = first.segment, chain
        atoms = {rows[i].name for i in run if not rows[i].alternate}
        if canonical_name(first.residue) and _BACKBONE <= atoms:
            beside = renamed and (renamed[-1].segment, *renamed[-1].place[1:]) == (first.segment, *place)
            if (names.get(key, chain), *place) in owned and not beside:
                names[key] = next(free, None)
                if names[key] is None:
                    raise UnsupportedTopologyError(
                        f"{_label(first.residue, first.place)} is there too often; give each chain a name of its own."
                    )
                start = f"{first.residue} {''.join(place)}"
                changes.append(
                    f"renamed the chain {chain_label(chain)} from {start} on to {names[key]}, as its residue numbers "
                    "are there before"
                )
            owned.add((names.get(key, chain), *place))
        renamed += [replace(rows[i], place=(names[key], *place)) if key in names else rows[i] for i in run]
    return renamed, changes


def _runs(rows: list[AtomRow]) -> list[list[int]]:
    """Neighbours in the file with one place and residue name."""
    runs: list[list[int]] = []
    for number, row in enumerate(rows):
        before = rows[number - 1] if number else None
        same = before and (before.segment, before.place, before.residue) == (row.segment, row.place, row.residue)
        if not same:
            runs.append([])
        runs[-1].append(number)
    return runs


def _residues(rows: list[AtomRow]) -> list[list[int]]:
    """Atoms of each residue: neighbours in the file with one place and name, and their alternates anywhere."""
    residues, lettered = [], {}
    for run in _runs(rows):
        key = rows[run[0]].segment, rows[run[0]].place
        if any(rows[i].alternate for i in run) and key in lettered:
            lettered[key] += run
        else:
            residues.append(run)
            if any(rows[i].alternate for i in run):
                lettered[key] = run
    return residues


def _hydrogen_name(row: AtomRow) -> str:
    """Name of an atom of an amino acid, deuterium named as hydrogen."""
    stem = row.name.lstrip("0123456789")
    return row.name.replace("D", "H", 1) if stem.startswith("D") else row.name


def _label(name: str, place: Place) -> str:
    chain, number, insertion = place
    return f"{name} {number}{insertion} of chain {chain_label(chain)}"


def _occupancy(residue: list[AtomRow], letter: str) -> float:
    """Mean occupancy of the heavy atoms of a conformation."""
    atoms = [row for row in residue if row.alternate == letter]
    return float(np.mean([row.occupancy for row in atoms if not row.is_hydrogen] or [row.occupancy for row in atoms]))


def _of_conformation(rows: list[AtomRow], numbers: list[int], letter: str) -> list[int]:
    """Atoms of one conformation; heavy atoms that it lacks come from the others of the same residue."""
    residue = next(rows[i].residue for i in numbers if rows[i].alternate == letter)
    rank = {letter: 0, "": 1}
    chosen: dict[str, int] = {}
    for i in sorted(numbers, key=lambda i: rank.get(rows[i].alternate, 2)):
        elsewhere = rank.get(rows[i].alternate, 2) == 2 and rows[i].is_hydrogen
        if rows[i].residue == residue and not elsewhere:
            chosen.setdefault(rows[i].name, i)
    return sorted(chosen.values())


def _rename(rows: list[AtomRow], numbers: list[int], selection: Selection) -> None:
    """Enter the atoms of one residue under its standard name, CHARMM's caps as residues of their own."""
    names = {rows[i].name for i in numbers}
    name, place = rows[numbers[0]].residue, rows[numbers[0]].place
    standard = canonical_name(name)
    if standard is None:
        cap, elements = _CAP_NAMES.get(name, (name, ""))
        heavy = "".join(sorted(rows[i].name[0] for i in numbers if not rows[i].is_hydrogen))
        for i in numbers:
            selection.rows[i] = replace(rows[i], residue=cap if heavy == elements else name, alternate="")
        return
    caps = {}
    if {"CY", "CAY"} <= names:
        caps |= dict.fromkeys(_N_CAP, ("ACE", -1))
    if "NT" in names:
        caps |= dict.fromkeys(_C_CAP, ("NME" if "CAT" in names else "NH2", 1))
    heavy = {rows[i].name for i in numbers if not rows[i].is_hydrogen} - caps.keys()
    known = HEAVY_ATOMS[standard] | _END_OXYGENS | _OTHER_NAMES.get(standard, set())
    if name not in RESIDUE_TYPES and not heavy <= known:
        standard = name  # HIP is also phosphohistidine, HSE homoserine
    elif state := protonation_name(name):
        selection.protonation[place] = state
    for i in numbers:
        cap, step = caps.get(rows[i].name, (standard, 0))
        chain, number, insertion = place
        where = (chain, str(int(number) + step), "") if step else place
        selection.rows[i] = replace(rows[i], place=where, name=_hydrogen_name(rows[i]), residue=cap, alternate="")
