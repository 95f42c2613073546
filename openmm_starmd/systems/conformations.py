"""One conformation and one standard name of each residue in a structure file."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace

import numpy as np

from openmm_starmd.protein.residues import HEAVY_ATOMS, RESIDUE_TYPES, canonical_name, protonation_name

Place = tuple[str, str, str]
"""Chain, residue number and insertion code."""

# atoms of the caps that CHARMM counts as part of the first and of the last residue
_N_CAP = {"CAY", "CY", "OY", "HY1", "HY2", "HY3"}
_C_CAP = {"NT", "HNT", "CAT", "HT1", "HT2", "HT3"}
_END_OXYGENS = {"OXT", "OT1", "OT2", "OC1", "OC2", "O1", "O2"}
_OTHER_NAMES = {"ILE": {"CD"}}


@dataclass(frozen=True)
class AtomRow:
    """What tells one atom of a file from another; ``segment`` grows at each TER and chain of an mmCIF file."""

    segment: int
    place: Place
    residue: str
    name: str
    alternate: str
    occupancy: float

    @property
    def is_hydrogen(self) -> bool:
        """Whether the name is one of a hydrogen or deuterium atom of an amino acid."""
        return self.name.lstrip("0123456789")[:1] in ("H", "D")


@dataclass
class Selection:
    """The atoms that stay.

    Attributes
    ----------
    rows : list of AtomRow or None
        For each atom its row under the standard residue name; None for an atom that is left out.
    protonation : dict
        Amber's name of the protonation state of each place whose residue is named after one.
    changes : list of str
        Which conformations were kept.
    """

    rows: list[AtomRow | None]
    protonation: dict[Place, str] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)


def select(rows: list[AtomRow]) -> Selection:
    """Keep one conformation of each residue, the one of the highest occupancy, and name residues in the standard way.

    Of equal occupancies the letter that has the more in the whole file is kept, as it fits to the neighbours, or else
    the first.
    """
    totals = Counter()
    for row in rows:
        totals[row.alternate] += row.occupancy
    selection, kept_letters = Selection([None] * len(rows)), defaultdict(list)
    for numbers in _residues(rows):
        residue, place = [rows[i] for i in numbers], rows[numbers[0]].place
        letters = sorted({row.alternate for row in residue} - {""})
        if letters:
            letter = max(letters, key=lambda x: (round(_occupancy(residue, x), 3), totals[x]))
            numbers = _of_conformation(rows, numbers, letter)
            name, others = rows[numbers[0]].residue, sorted({row.residue for row in residue})
            others.remove(name)
            if not {"N", "CA", "C"} <= {row.name for row in residue}:
                pass  # water and ligands do not stay
            elif others:
                text = f"kept {_label(name, place)}, not {' or '.join(others)} in its place"
                selection.changes.append(f"{text} (occupancy {_occupancy(residue, letter):.2f})")
            elif len(letters) > 1:
                kept_letters[letter, place[0]].append(f"{name} {place[1]}{place[2]}")
        else:
            numbers = _without_copies(rows, numbers, selection)
        _rename(rows, numbers, selection)
    selection.changes += [
        f"kept conformation {letter}, of the highest occupancy, of {', '.join(residues)} of chain {chain}"
        for (letter, chain), residues in kept_letters.items()
    ]
    return selection


def _residues(rows: list[AtomRow]) -> list[list[int]]:
    """Atoms of each residue: neighbours in the file with one place and name, and their alternates anywhere."""
    runs: list[list[int]] = []
    for number, row in enumerate(rows):
        before = rows[number - 1] if number else None
        same = before and (before.segment, before.place, before.residue) == (row.segment, row.place, row.residue)
        if not same:
            runs.append([])
        runs[-1].append(number)
    residues, lettered = [], {}
    for run in runs:
        key = rows[run[0]].segment, rows[run[0]].place
        if any(rows[i].alternate for i in run) and key in lettered:
            lettered[key] += run
        else:
            residues.append(run)
            if any(rows[i].alternate for i in run):
                lettered[key] = run
    return residues


def _without_copies(rows: list[AtomRow], numbers: list[int], selection: Selection) -> list[int]:
    """Atoms of a residue without alternates; of those with one name the first."""
    first: dict[str, int] = {}
    for i in numbers:
        first.setdefault(rows[i].name, i)
    if len(first) < len(numbers):
        counts = Counter(rows[i].name for i in numbers)
        twice = ", ".join(name for name, n in counts.items() if n > 1)
        label = _label(rows[numbers[0]].residue, rows[numbers[0]].place)
        selection.changes.append(f"kept the first of the atoms {twice} that are there several times in {label}")
    return list(first.values())


def _label(name: str, place: Place) -> str:
    chain, number, insertion = place
    return f"{name} {number}{insertion} of chain {chain}"


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
        foreign = rank.get(rows[i].alternate, 2) == 2 and rows[i].is_hydrogen
        if rows[i].residue == residue and not foreign:
            chosen.setdefault(rows[i].name, i)
    return sorted(chosen.values())


def _rename(rows: list[AtomRow], numbers: list[int], selection: Selection) -> None:
    """Enter the atoms of one residue under its standard name, CHARMM's caps as residues of their own."""
    names = {rows[i].name for i in numbers}
    name, place = rows[numbers[0]].residue, rows[numbers[0]].place
    standard = canonical_name(name)
    if standard is None:
        for i in numbers:
            selection.rows[i] = replace(rows[i], alternate="")
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
        selection.rows[i] = replace(rows[i], place=where, residue=cap, alternate="")
