"""Hydrogens: which atoms bear them, by the file's names and hydrogens, by hydrogen bonds and by the pH."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
from openmm import Platform, unit
from openmm.app import Modeller, Residue, Topology
from pdbfixer import PDBFixer
from scipy.spatial import cKDTree

from openmm_starmd.protein.bond_graph import symbol_of
from openmm_starmd.systems.build import global_random
from openmm_starmd.systems.chains import Place, coordinates, names_of, place_of, rebuild

HYDROGEN_BOND = 0.35  # nm; between donor and acceptor
STRAIGHT = np.cos(np.radians(50))  # cosine between N-H and H-O
HISTIDINE_PKA = 6.5  # below it Modeller protonates both nitrogens
# atoms whose hydrogens tell the protonation state, and the state at pH 7
_TITRATING = {"ASP": ("OD1", "OD2"), "CYS": ("SG",), "GLU": ("OE1", "OE2"), "HIS": ("ND1", "NE2"), "LYS": ("NZ",)}
# states that Amber has inside a chain only: their names, the titrating hydrogens that tell them, and whether Modeller
# chooses them at a pH
_INSIDE = {
    "ASP": ("ASH", 1, lambda ph: ph <= 4.4),
    "CYS": ("CYM", None, lambda ph: ph > 8.5),
    "GLU": ("GLH", 1, lambda ph: ph <= 4.4),
    "LYS": ("LYN", 2, lambda ph: ph > 10),
}


def bond_disulfides(fixer: PDBFixer, recorded: list[tuple[Place, Place]], wanted: bool) -> tuple[set[Place], list[str]]:
    """Set the disulfides of a fixer's Topology: recorded ones, and those of close sulfur atoms without hydrogen.

    ``recorded`` are the residues that a record of the file bonds. Returns the residues that are thiols, where no
    disulfides are ``wanted``, and the changes.
    """
    rebuild(fixer, keep_bond=lambda a, b: not {a.name, b.name} == {"SG"})
    topology, x = fixer.topology, coordinates(fixer)
    sulfur = {place_of(atom.residue): atom for atom in topology.atoms() if atom.name == "SG"}
    pairs = [(sulfur[a], sulfur[b]) for a, b in recorded if a in sulfur and b in sulfur]
    for a, b in pairs:
        topology.addBond(a, b)
    n_bonds = topology.getNumBonds()
    topology.createDisulfideBonds(fixer.positions)
    close = list(topology.bonds())[n_bonds:]
    if not wanted:
        rebuild(fixer, keep_bond=lambda a, b: not {a.name, b.name} == {"SG"})
    verb = "bonded SG of" if wanted else "left as thiols"
    pairs, close = ([sorted(p, key=lambda atom: atom.index) for p in some] for some in (pairs, close))
    told = close if wanted else [*pairs, *close]
    thiols = set() if wanted else {place_of(atom.residue) for pair in told for atom in pair}
    return thiols, [
        f"{verb} {names_of([a.residue, b.residue])}, {np.linalg.norm(x[a.index] - x[b.index]):.3f} nm apart"
        for a, b in told
    ]


def add_hydrogens(
    fixer: PDBFixer, protonation: dict[Place, str], ph: float, thiols: set[Place]
) -> tuple[Topology, unit.Quantity, list[str]]:
    """Add missing hydrogens to all heavy atoms; tells which protonation states were chosen, and why.

    ``protonation`` holds Amber's name of the protonation state of the places whose residue bears one in the file;
    ``thiols`` are cysteines that are neither thiolates nor bonded, whatever the file and the pH say.
    """
    modeller = Modeller(fixer.topology, fixer.positions)
    had = {residue.index: _hydrogens(residue) for residue in modeller.topology.residues()}
    choices = _Choices(modeller.topology, coordinates(fixer), protonation, ph, thiols)
    variants = [choices.variant(residue) for residue in modeller.topology.residues()]
    with _repeatable() as platform:  # PDBFixer's own method asks the network about unknown names
        modeller.addHydrogens(pH=ph, variants=variants, platform=platform)
    changes = _tell(modeller.topology, had, choices.reasons, ph)
    return modeller.topology, modeller.positions, [*changes, *choices.refused()]


class _Choices:
    """Protonation states of the residues of a Topology, with the reason for each that is not usual at pH 7."""

    def __init__(self, topology: Topology, x: np.ndarray, protonation: dict[Place, str], ph: float, thiols: set[Place]):
        self.x, self.protonation, self.ph, self.thiols = x, protonation, ph, thiols
        self.bonded: dict[int, list] = {atom.index: [] for atom in topology.atoms()}
        for a, b in topology.bonds():
            self.bonded[a.index].append(b)
            self.bonded[b.index].append(a)
        self.oxygens = [atom for atom in topology.atoms() if symbol_of(atom) == "O"]
        self.tree = cKDTree(x[[atom.index for atom in self.oxygens]]) if self.oxygens else None
        self.reasons: dict[int, str] = {}
        self.ends: dict[str, list[Residue]] = {}  # state -> residues at chain ends that cannot take it

    def variant(self, residue: Residue) -> str | None:
        """Modeller's name of the state of a residue; None where Modeller finds it by the hydrogens, or by the pH."""
        if residue.name not in _TITRATING:
            return None
        if place_of(residue) in self.thiols:
            return "CYS"
        titrating = [atom for atom in residue.atoms() if atom.name in _TITRATING[residue.name]]
        protons = sum(symbol_of(b) in ("H", "D") for atom in titrating for b in self.bonded[atom.index])
        name = self.protonation.get(place_of(residue))
        if residue.name == "CYS" and any(b.residue is not residue for a in titrating for b in self.bonded[a.index]):
            return "CYX"
        if residue.name in _INSIDE and self._ends_chain(residue):
            state, bears, chosen = _INSIDE[residue.name]
            if name == state or protons == bears or (not protons and chosen(self.ph)):
                self.ends.setdefault(state, []).append(residue)
            return residue.name
        if residue.name == "LYS" and protons == 2:
            self.reasons[residue.index] = "NZ bears two hydrogens in the file"
            return "LYN"
        if protons and residue.name == "HIS" and name:
            return name
        if protons:
            return {"ASP": "ASH", "GLU": "GLH"}.get(residue.name) if _in_place(residue) else None
        if name == "CYX":
            self.reasons[residue.index] = "named CYX in the file, but no sulfur is near SG"
            return "CYS"
        if name:
            self.reasons[residue.index] = f"named {name} in the file"
            return "CYX" if name == "CYM" else name
        if residue.name == "CYS" and {"HB2", "HB3"} <= _hydrogens(residue):
            self.reasons[residue.index] = "SG bears no hydrogen in the file"
            return "CYX"
        if residue.name == "HIS" and self.ph > HISTIDINE_PKA:
            variant, self.reasons[residue.index] = self._by_hydrogen_bond(titrating)
            return variant
        return None

    def refused(self) -> list[str]:
        """Sentences about the residues at chain ends that were to take a state which Amber has inside a chain only."""
        return [f"left {names_of(r)} as at pH 7: ff14SB has no {state} at chain ends" for state, r in self.ends.items()]

    def _ends_chain(self, residue: Residue) -> bool:
        ends = [atom for atom in residue.atoms() if atom.name in ("N", "C")]
        return any(all(b.residue is residue for b in self.bonded[atom.index]) for atom in ends)

    def _by_hydrogen_bond(self, nitrogens: list) -> tuple[str, str]:
        """HID or HIE, whichever hydrogen would point to an oxygen atom; HIE where neither or both would."""
        found = {}
        for nitrogen in nitrogens:
            n = self.x[nitrogen.index]
            away = sum(n - self.x[b.index] for b in self.bonded[nitrogen.index])
            h = n + 0.1 * away / np.linalg.norm(away)
            for j in self.tree.query_ball_point(n, HYDROGEN_BOND) if self.tree else ():
                oxygen = self.oxygens[j]
                to = self.x[oxygen.index] - h
                straight = np.dot(h - n, to) > STRAIGHT * np.linalg.norm(h - n) * np.linalg.norm(to)
                if oxygen.residue is not nitrogen.residue and straight:
                    found.setdefault(nitrogen.name, f"hydrogen bond to {oxygen.name} of {names_of([oxygen.residue])}")
        if len(found) == 1:
            return ("HID" if "ND1" in found else "HIE"), next(iter(found.values()))
        return "HIE", "no hydrogen bond decides"


def _in_place(residue: Residue) -> bool:
    """True if the acid's hydrogen is the one that Modeller knows, so that its variant keeps it."""
    return bool({"HD2", "HE2"} & {atom.name for atom in residue.atoms()})


def _hydrogens(residue: Residue) -> set[str]:
    return {atom.name for atom in residue.atoms() if symbol_of(atom) in ("H", "D")}


@contextmanager
def _repeatable():
    """Seed the generator that Modeller draws from, and let it minimise on one thread, whose sums have one order."""
    platform = Platform.getPlatform("CPU")
    threads = platform.getPropertyDefaultValue("Threads")
    platform.setPropertyDefaultValue("Threads", "1")
    try:
        with global_random(1):
            yield platform
    finally:
        platform.setPropertyDefaultValue("Threads", threads)


def _state(residue: Residue) -> str:
    """Amber's name of a protonation state, found by the hydrogens."""
    names = _hydrogens(residue)
    if residue.name == "HIS":
        return {(True, False): "HID", (False, True): "HIE", (True, True): "HIP"}.get(
            ("HD1" in names, "HE2" in names), "HIN"
        )
    if residue.name in ("ASP", "GLU"):
        acid = {"HD1", "HD2"} if residue.name == "ASP" else {"HE1", "HE2"}
        return {"ASP": "ASH", "GLU": "GLH"}[residue.name] if names & acid else residue.name
    if residue.name == "CYS" and "HG" not in names:
        return "CYM"
    if residue.name == "LYS":
        return "LYS" if {"HZ1", "HZ2", "HZ3"} <= names else "LYN"
    return residue.name


def _tell(topology: Topology, had: dict[int, set[str]], reasons: dict[int, str], ph: float) -> list[str]:
    n_added, completed, removed, states = 0, [], [], {}
    bridged = {atom.residue for bond in topology.bonds() if bond[0].name == bond[1].name == "SG" for atom in bond}
    for residue in topology.residues():
        before, after = had[residue.index], _hydrogens(residue)
        if before and after - before:
            completed.append(residue)
        if before - after:
            removed.append(f"removed {', '.join(sorted(before - after))} of {names_of([residue])}")
        n_added += len(after - before)
        state, titrating = _state(residue), {f"H{atom[1:]}" for atom in _TITRATING.get(residue.name, ())}
        added = any(name.startswith(tuple(titrating)) for name in after - before)
        by_ph = (state == "CYM" and after != before and residue not in bridged) or (state != residue.name and added)
        reason = reasons.get(residue.index, f"pH {ph:g}" if by_ph else None)
        if reason:
            states.setdefault(("is" if before == after else "became", state, reason), []).append(residue)
    changes = [f"added {n_added} hydrogens at pH {ph:g}"] if n_added else []
    if completed:
        changes[-1] += f", also to residues that had some: {names_of(completed)}"
    changes += removed
    return changes + [f"{names_of(r)} {verb} {state}: {reason}" for (verb, state, reason), r in states.items()]
