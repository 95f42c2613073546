"""Bond graph of the protein in a Topology, cut between residue tokens.

Groups of atoms that turn together come from bonds, never from atom tables: so hydrogens, protonation, caps and terminal
variants need no names. Bonds between residues (peptide bonds, disulfides) and proline's N-CD are cut, so the graph of a
token holds its residue and the caps beside it. The module is long because every question that it answers, from the
variant of a token to the rings, walks over the same private bonds.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING

from openmm_starmd.errors import UnsupportedTopologyError
from openmm_starmd.protein.residues import (
    C_CAPS,
    CHI_ATOMS,
    N_CAPS,
    POLAR_HYDROGENS,
    TORSIONS,
    VARIANTS,
    atom_names,
    canonical_name,
    named_variant,
    torsion_period,
)

if TYPE_CHECKING:
    from openmm.app import Residue, Topology
    from openmm.app.topology import Atom

BONDED, FREE, CAPPED = range(3)
"""State of a token's end: bonded to the neighbouring token, free or broken, capped."""


def label(residue: Residue) -> str:
    """Name of a residue in errors."""
    number = f"{residue.id}{residue.insertionCode.strip()}"
    return f"residue {residue.name} {number} of chain {chain_label(residue.chain.id)}"


def short_label(residue: Residue) -> str:
    """Name of a residue in lists: ``"A:GLY 12"``, or ``"GLY 12"`` where its chain has no name."""
    chain = residue.chain.id.strip()
    return f"{chain}:{residue.name} {residue.id}{residue.insertionCode.strip()}".removeprefix(":")


def chain_label(name: str) -> str:
    """Name of a chain in messages; it may have none of its own."""
    return name.strip() or "' '"


def how_to_build(missing: Collection[str]) -> str:
    """Advice for a residue that lacks atoms: no library builds a backbone without CA, or without both N and C."""
    if "CA" in missing or {"N", "C"} <= {*missing}:
        return "build the backbone with another program, or remove the residue"
    return "`starmd prepare FILE` builds them"


def symbol_of(atom: Atom) -> str:
    """Symbol of an atom's element; empty for a virtual site."""
    return "" if atom.element is None else atom.element.symbol


class ProteinBondGraph:
    """Tokens, their atoms and the bonds inside each.

    Attributes
    ----------
    atoms : list of openmm.app.Atom
        All atoms of the Topology.
    residues : list of openmm.app.Residue
        One a token.
    types : list of str
        Standard three-letter name of each token.
    named : list of dict
        Atom index of each backbone and torsion atom of a token, under its standard name.
    owner : dict
        Token of each atom of protein residues and caps.
    bonds : list of (int, int)
        Atoms of every bond between heavy atoms of the protein, be it cut or not.
    disulfides : list of (int, int)
        Pairs of tokens.
    """

    def __init__(self, topology: Topology):
        self.atoms = list(topology.atoms())
        self.residues = [r for r in topology.residues() if canonical_name(r.name)]
        if not self.residues:
            raise UnsupportedTopologyError(
                "The Topology holds no protein: none of its residues is one of the 20 standard amino acids."
            )
        self.types = [canonical_name(r.name) for r in self.residues]
        self.named = [_name_atoms(r, name) for r, name in zip(self.residues, self.types, strict=True)]
        self.owner = {atom.index: i for i, r in enumerate(self.residues) for atom in r.atoms()}
        bonds = [(a.index, b.index) for a, b in topology.bonds()]
        self._adopt_caps(bonds)
        _refuse_unbonded_strangers(topology)
        self._neighbours: dict[int, set[int]] = {atom: set() for atom in self.owner}
        self._follows = [False] * len(self.residues)
        self.disulfides: list[tuple[int, int]] = []
        bonds = [(a, b) for a, b in bonds if a in self.owner and b in self.owner]
        for a, b in bonds:
            self._add_bond(a, b)
        self._check_connected()
        self.bonds = [(a, b) for a, b in bonds if self.is_heavy(a) and self.is_heavy(b)]

    def _adopt_caps(self, bonds: list[tuple[int, int]]) -> None:
        """Give caps to the token that they are bonded to; refuse anything else that is bonded to a token."""
        caps = {}
        for a, b in bonds + [(b, a) for a, b in bonds]:
            if a in self.owner and b not in self.owner:
                residue = self.atoms[b].residue
                if residue.name not in N_CAPS | C_CAPS:
                    raise UnsupportedTopologyError(
                        f"The {label(residue)} is bonded to the {label(self.atoms[a].residue)}, but is neither one "
                        f"of the 20 standard amino acids nor a cap ({', '.join(sorted(N_CAPS | C_CAPS))})."
                    )
                caps[residue] = self.owner[a]
        self.owner |= {atom.index: i for residue, i in caps.items() for atom in residue.atoms()}

    def _add_bond(self, a: int, b: int) -> None:
        """Enter a bond inside a token; note a bond between two of them."""
        i, j = self.owner[a], self.owner[b]
        if i > j:
            a, b, i, j = b, a, j, i
        if i == j:
            if not (self.types[i] == "PRO" and {a, b} == {self.named[i]["N"], self.named[i]["CD"]}):
                self._neighbours[a].add(b)
                self._neighbours[b].add(a)
        elif j == i + 1 and (a, b) == (self.named[i]["C"], self.named[j]["N"]):
            self._follows[j] = True
        elif self.types[i] == self.types[j] == "CYS" and (a, b) == (self.named[i]["SG"], self.named[j]["SG"]):
            self.disulfides.append((i, j))
        else:
            raise UnsupportedTopologyError(
                f"Atom {self.atoms[a].name} of {label(self.residues[i])} is bonded to {self.atoms[b].name} of "
                f"{label(self.residues[j])}; between residues only peptide bonds in sequence and disulfides are known."
            )

    def _check_connected(self) -> None:
        """Every atom but virtual sites must hang on CA, or it would not know what to follow."""
        reached = set().union(*(self._reachable(named["CA"], None) for named in self.named))
        lost = [a for a in sorted(self.owner.keys() - reached) if self.atoms[a].element is not None]
        if lost:
            residue = self.atoms[lost[0]].residue
            names = ", ".join(self.atoms[a].name for a in lost if self.atoms[a].residue is residue)
            raise UnsupportedTopologyError(
                f"In {label(residue)} no bonds lead from CA to {names}. What turns together is found through bonds: "
                "call topology.createStandardBonds(), or add the bonds; `starmd prepare FILE` mends names of other "
                "programs and two residues in one place."
            )

    def _reachable(self, start: int, barred: int | None) -> set[int]:
        """Atoms that bonds inside the token lead to from ``start``, the bond to ``barred`` being cut."""
        found, frontier = {start}, [start]
        while frontier:
            atom = frontier.pop()
            steps = self._neighbours[atom] - found - ({barred} if atom == start else set())
            found |= steps
            frontier.extend(steps)
        return found

    def is_heavy(self, atom: int) -> bool:
        """True if an atom is neither hydrogen nor a virtual site."""
        return self._symbol(atom) not in ("", "H", "D")

    def _symbol(self, atom: int) -> str:
        return symbol_of(self.atoms[atom])

    def _beside(self, atom: int, *others: int) -> int | None:
        """First heavy atom but oxygen that is bonded to ``atom`` inside its token and is none of the ``others``."""
        beside = sorted(self._neighbours[atom].difference(others))
        return next((a for a in beside if self.is_heavy(a) and self._symbol(a) != "O"), None)

    def _cap_atom(self, i: int, end: str) -> int | None:
        """Atom of a cap that is bonded to N or C of token ``i``; CHARMM's caps belong to the residue itself."""
        return self._beside(self.named[i][end], self.named[i]["CA"])

    def _before(self, i: int) -> int | None:
        """Atom C of the token or cap before token ``i``."""
        return self.named[i - 1]["C"] if self._follows[i] else self._cap_atom(i, "N")

    def ends(self, i: int) -> tuple[int, int]:
        """State of the N and the C end of token ``i``."""
        n_end = BONDED if self._follows[i] else FREE if self._cap_atom(i, "N") is None else CAPPED
        if i + 1 < len(self.residues) and self._follows[i + 1]:
            return n_end, BONDED
        return n_end, FREE if self._cap_atom(i, "C") is None else CAPPED

    def variant(self, i: int) -> int:
        """Index into `VARIANTS` of token ``i``, from its hydrogens and bonds; without hydrogens from its name."""
        found = [self._side_chain_variant(i), self._end_variant(i, "N"), self._end_variant(i, "C")]
        unusual = [name for name in found if name]
        return VARIANTS.index(unusual[0] if len(unusual) == 1 else "other" if unusual else "")

    def _side_chain_variant(self, i: int) -> str:
        if any(i in pair for pair in self.disulfides):
            return "CYX"
        if not self._has_hydrogens(i):
            return named_variant(self.residues[i].name)
        named, residue_type = self.named[i], self.types[i]
        beta = self._beside(named["CA"], named["N"], named["C"])
        side_chain = set() if beta is None else self._reachable(beta, named["CA"])
        counts = {a: self._count(a, "H") for a in side_chain if self._symbol(a) in ("N", "O", "S")}
        variant = POLAR_HYDROGENS.get(residue_type, {0: ""}).get(sum(counts.values()), "other")
        return "HIE" if residue_type == "HIS" and not variant and not counts[named["ND1"]] else variant

    def _end_variant(self, i: int, end: str) -> str:
        """Variant of an unusual end: a cap other than ACE and NME, or a free one without its charge."""
        atom, cap = self.named[i][end], self._cap_atom(i, end)
        if self.ends(i)[end == "C"] == BONDED:
            return ""
        if cap is not None:
            if self._beside(cap, atom) is not None:
                return ""
            return "formyl cap" if end == "N" else "amide cap"
        if not self._has_hydrogens(i) or self._open(i, end):
            return ""
        if end == "N":
            return "" if self._count(atom, "H") == self._charged(i) else "neutral N end"
        oxygens = [a for a in self._neighbours[atom] if self._symbol(a) == "O"]
        return "neutral C end" if any(self._count(a, "H") for a in oxygens) else ""

    def _charged(self, i: int) -> int:
        """Hydrogens on a charged N end."""
        return 2 if self.types[i] == "PRO" else 3

    def _has_hydrogens(self, i: int) -> bool:
        return any(self._symbol(atom.index) in ("H", "D") for atom in self.residues[i].atoms())

    def _count(self, atom: int, symbol: str) -> int:
        """Atoms of an element (deuterium counts as hydrogen) that are bonded to an atom inside its token."""
        return sum(self._symbol(a) in (symbol, symbol.replace("H", "D")) for a in self._neighbours[atom])

    def torsion_atoms(self, i: int) -> list[list[int]]:
        """Four atoms of each of the six torsions of token ``i``, -1 where it is absent."""
        named, before = self.named[i], self._before(i)
        phi = [-1] * 4 if before is None else [before, named["N"], named["CA"], named["C"]]
        psi = [named[name] for name in ("N", "CA", "C", "O")]
        chi = [[named[name] for name in names] for names in CHI_ATOMS[self.types[i]]]
        return [phi, psi, *chi] + [[-1] * 4] * (len(TORSIONS) - 2 - len(chi))

    def periods(self, i: int) -> list[float]:
        """Period of each torsion of token ``i``; psi only exchanges two oxygens at a free C terminus."""
        periods = [torsion_period(self.types[i], name) for name in TORSIONS]
        oxygens = [a for a in self._neighbours[self.named[i]["C"]] if self._symbol(a) == "O"]
        if len(oxygens) == 2:
            periods[TORSIONS.index("psi")] = math.pi
        return periods

    def turning(self, i: int, name: str) -> tuple[tuple[int, int], list[int]]:
        """Axis and atoms that turn in token ``i`` with the N-CA-C angle or a torsion.

        The axis leads from the resting to the turning end of the bond, (CA, N) for the angle. The atoms hang on the
        turning end; for the angle it is one of them. There are none where the torsion is absent.
        """
        rows = dict(zip(TORSIONS, self.torsion_atoms(i), strict=True))
        if name == "angle":
            axis = self.named[i]["CA"], self.named[i]["N"]
        elif name == "phi":
            axis = rows[name][2], rows[name][1]
        else:
            axis = rows[name][1], rows[name][2]
        if axis[0] < 0:
            return axis, []
        side = self._reachable(axis[1], axis[0])
        if axis[0] in side:
            raise UnsupportedTopologyError(f"In {label(self.residues[i])} the bond of {name} is part of a ring.")
        return axis, sorted(side if name == "angle" else side - {axis[1]})

    def rings(self) -> list[tuple[int, ...]]:
        """Atoms of each ring of five or six, in their order around it; proline's among them."""
        beside: dict[int, list[int]] = {}
        for a, b in self.bonds:
            beside.setdefault(a, []).append(b)
            beside.setdefault(b, []).append(a)
        rings, paths = {}, [(atom,) for atom in beside]
        while paths:
            path = paths.pop()
            for atom in beside[path[-1]]:
                if atom == path[0] and len(path) > 2:
                    rings.setdefault(frozenset(path), path)
                elif atom > path[0] and atom not in path and len(path) < 6:
                    paths.append((*path, atom))
        return sorted(rings.values())

    def chiral_centres(self) -> list[list[int]]:
        """Each chiral centre and three of its neighbours, which go round the same way at all natural centres.

        CA with N, C, CB; in ILE and THR CB with CA, CG1 or OG1, CG2.
        """
        centres = []
        for residue_type, named in zip(self.types, self.named, strict=True):
            if residue_type != "GLY":
                centres.append([named["CA"], named["N"], named["C"]])
            if residue_type in ("ILE", "THR"):
                centres.append([named["CB"], named["CA"], named[CHI_ATOMS[residue_type][0][-1]]])
        return [[*atoms, last] for atoms in centres if (last := self._beside(*atoms)) is not None]

    def peptide_planes(self) -> list[list[int]]:
        """CA, C, N, CA about each peptide bond; of caps the atom in the place of CA, where they have one."""
        planes = []
        for i, named in enumerate(self.named):
            before, after = self._before(i), self._cap_atom(i, "C")
            if before is not None:
                planes.append([self._beside(before, named["N"]), before, named["N"], named["CA"]])
            if after is not None:
                planes.append([named["CA"], named["C"], after, self._beside(after, named["C"])])
        return [plane for plane in planes if None not in plane]

    def gaps(self) -> list[int]:
        """Tokens before which residues are missing in their chain: an end is open there, or residue numbers jump."""
        return [i for i in self._breaks() if self._open(i - 1, "C") or self._open(i, "N") or self._jumps(i)]

    def numbering_gaps(self) -> list[int]:
        """Tokens that are bonded to the one before them although residue numbers between the two are left out."""
        return [i for i in range(1, len(self.residues)) if self._follows[i] and self._jumps(i)]

    def molecules(self) -> list[int]:
        """Number of the protein molecule of each token: chains, and within one what has ends of its own."""
        gaps, breaks, numbers = set(self.gaps()), set(self._breaks()), [0]
        for i in range(1, len(self.residues)):
            other = self.residues[i].chain is not self.residues[i - 1].chain or i in breaks - gaps
            numbers.append(numbers[-1] + other)
        return numbers

    def _breaks(self) -> list[int]:
        """Tokens that are not bonded to the one before them in their chain."""
        chains = [residue.chain for residue in self.residues]
        return [i for i in range(1, len(chains)) if chains[i] is chains[i - 1] and not self._follows[i]]

    def _open(self, i: int, end: str) -> bool:
        """True if an end lacks what a free or capped one has: the second oxygen of C, the further hydrogens of N."""
        if self._cap_atom(i, end) is not None:
            return False
        atom = self.named[i][end]
        if end == "C":
            return self._count(atom, "O") < 2
        return self._has_hydrogens(i) and self._count(atom, "H") < self._charged(i) - 1

    def _jumps(self, i: int) -> bool:
        """True if the residue number rises by more than the residues, caps among them, that stand in the chain."""
        before, residue = self.residues[i - 1], self.residues[i]
        numbered = (before.id + residue.id).isdigit()
        return numbered and int(residue.id) - int(before.id) > residue.index - before.index

    def residue_indices(self) -> list[int]:
        """Running number of each token.

        It grows by 1 over a peptide bond, by what the residue numbers say (but at least 2) over a chain break, and by 2
        to the next chain.
        """
        indices = [0]
        for i in range(1, len(self.residues)):
            before, residue = self.residues[i - 1], self.residues[i]
            step = 1 if self._follows[i] else 2
            if not self._follows[i] and residue.chain is before.chain and (before.id + residue.id).isdigit():
                step = max(step, int(residue.id) - int(before.id))
            indices.append(indices[-1] + step)
        return indices


def _name_atoms(residue: Residue, residue_type: str) -> dict[str, int]:
    """Atom index of each backbone and torsion atom, under its standard name."""
    present = {atom.name: atom.index for atom in residue.atoms()}
    needed = dict.fromkeys(("N", "CA", "C", "O", *(name for chi in CHI_ATOMS[residue_type] for name in chi)))
    found = {name: next((present[n] for n in atom_names(residue_type, name) if n in present), -1) for name in needed}
    missing = [name for name, index in found.items() if index < 0]
    if missing:
        raise UnsupportedTopologyError(
            f"In {label(residue)} the atoms {', '.join(missing)} are missing; {how_to_build(missing)}."
        )
    return found


def _refuse_unbonded_strangers(topology: Topology) -> None:
    """Refuse an unknown amino acid in the row of a chain, whose bonds the file's reader did not know either."""
    for chain in topology.chains():
        row = [None, *chain.residues(), None]
        for before, residue, after in zip(row, row[1:], row[2:], strict=False):
            beside_protein = any(r is not None and canonical_name(r.name) for r in (before, after))
            if not beside_protein or canonical_name(residue.name):
                continue
            if {"N", "CA", "C"} <= {atom.name for atom in residue.atoms()}:
                raise UnsupportedTopologyError(
                    f"The {label(residue)} stands beside protein residues, but is none of the 20 standard amino acids "
                    "that residue tokens describe."
                )
