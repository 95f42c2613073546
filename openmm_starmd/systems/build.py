"""Build a peptide from its sequence: backbone by internal coordinates, side chains from PDBFixer's templates.

Every residue starts in the beta or in the alpha basin, drawn from a seed, so that short runs of many peptides see both.
"""

from __future__ import annotations

import math
import random
from contextlib import contextmanager
from functools import lru_cache
from io import StringIO

import numpy as np
from openmm import Platform, unit
from openmm.app import Element, ForceField, Modeller, Topology
from pdbfixer import PDBFixer

from openmm_starmd.errors import StarMDError
from openmm_starmd.protein.residues import ONE_LETTER

FORCE_FIELD = "amber14/protein.ff14SB.xml"
THREE_LETTER = {letter: name for name, letter in ONE_LETTER.items()}
# bond (nm), angle (degrees) with which an atom follows the two before it; Engh & Huber, Acta Cryst. A47, 392 (1991)
_BACKBONE = {"N": (0.1329, 116.2), "CA": (0.1458, 121.7), "C": (0.1525, 111.0)}
_OXYGEN = (0.1231, 123.0)
_OXT = (0.1250, 117.5)
_CLASH = 0.22
# PDBFixer hands out its templates only with a structure
_ONE_ATOM = "ATOM      1  CA  ALA A   1       0.000   0.000   0.000  1.00  0.00           C\nEND\n"
_ATTEMPTS = 200


@lru_cache(maxsize=1)
def force_field() -> ForceField:
    """ff14SB, read once."""
    return ForceField(FORCE_FIELD)


@lru_cache(maxsize=1)
def _templates() -> dict[str, dict[str, np.ndarray]]:
    """Heavy atoms of each residue type, nm, in their order in PDBFixer's template."""
    templates = PDBFixer(pdbfile=StringIO(_ONE_ATOM)).templates
    return {
        name: {
            atom.name: np.array(position)
            for atom, position in zip(
                templates[name].topology.atoms(),
                templates[name].positions.value_in_unit(unit.nanometer),
                strict=True,
            )
        }
        for name in THREE_LETTER.values()
    }


def place(a, b, c, bond, angle, dihedral):
    """Position x with ``bond`` (nm) from c, ``angle`` (degrees) b-c-x and ``dihedral`` (rad) a-b-c-x."""
    axis = (c - b) / np.linalg.norm(c - b)
    normal = np.cross(b - a, axis)
    normal /= np.linalg.norm(normal)
    angle = math.radians(angle)
    local = bond * np.array(
        [-math.cos(angle), math.sin(angle) * math.cos(dihedral), math.sin(angle) * math.sin(dihedral)]
    )
    return c + local @ np.stack([axis, np.cross(normal, axis), normal])


def _draw_torsions(names: list[str], rng: random.Random) -> tuple[list[float], list[float]]:
    """Draw phi and psi (rad) of each residue, beta or alpha; PRO fixes its phi and keeps its predecessor in beta."""
    phi, psi = [], []
    for name, following in zip(names, [*names[1:], ""], strict=True):
        alpha = rng.random() < 0.35 and following != "PRO"
        centre = (-65, -40) if alpha else (-100, 135)
        width = 10 if alpha else 30
        phi.append(math.radians(-65 if name == "PRO" else centre[0] + rng.uniform(-width, width)))
        psi.append(math.radians(centre[1] + rng.uniform(-width, width)))
    return phi, psi


def _backbone(phi, psi) -> list[dict[str, np.ndarray]]:
    """N, CA, C of residues 0 .. n + 1, all peptide bonds trans; the first and the last are (partly) the caps' atoms."""
    atoms = [np.array([0.0, 0.0, 0.0]), np.array([0.1458, 0.0, 0.0]), np.array([0.2, 0.14, 0.0])]
    phi, psi = [0.0, *phi, 0.0], [math.pi, *psi, 0.0]
    for i in range(1, len(phi)):
        for name, dihedral in zip(("N", "CA", "C"), (psi[i - 1], math.pi, phi[i]), strict=True):
            atoms.append(place(*atoms[-3:], *_BACKBONE[name], dihedral))
    return [dict(zip(("N", "CA", "C"), atoms[3 * i : 3 * i + 3], strict=True)) for i in range(len(phi))]


def _frame(n, ca, c) -> np.ndarray:
    """Rows: axes of the residue frame."""
    x = (c - ca) / np.linalg.norm(c - ca)
    y = n - ca - np.dot(n - ca, x) * x
    y /= np.linalg.norm(y)
    return np.stack([x, y, np.cross(x, y)])


def _heavy_atoms(names, phi, psi, n_cap, c_cap) -> list[tuple[str, dict[str, np.ndarray]]]:
    """(residue name, atom name -> position in nm) along the chain."""
    backbone = _backbone(phi, psi)
    residues = []

    def oxygen(i):
        return place(backbone[i + 1]["CA"], backbone[i + 1]["N"], backbone[i]["C"], *_OXYGEN, 0.0)

    if n_cap:
        residues.append(("ACE", {"CH3": backbone[0]["CA"], "C": backbone[0]["C"], "O": oxygen(0)}))
    for i, name in enumerate(names, 1):
        template, own = _templates()[name], backbone[i]
        rotation = _frame(template["N"], template["CA"], template["C"]).T @ _frame(own["N"], own["CA"], own["C"])
        atoms = {k: (x - template["CA"]) @ rotation + own["CA"] for k, x in template.items()}
        atoms |= own | {"O": oxygen(i)}
        residues.append((name, atoms))
    if c_cap:
        residues.append(("NME", {"N": backbone[-1]["N"], "C": backbone[-1]["CA"]}))
    else:
        last = residues[-1][1]
        last["OXT"] = place(last["N"], last["CA"], last["C"], *_OXT, psi[-1])
    return residues


def _clashes(residues) -> bool:
    """True if heavy atoms of residues that are not neighbours, or side chains of neighbours, come too close."""
    for i, (_, first) in enumerate(residues):
        for j in range(i + 1, len(residues)):
            skip = {"N", "CA", "C", "O", "CH3", "CB", "CD"} if j == i + 1 else set()
            a = [x for name, x in first.items() if name not in skip]
            b = [x for name, x in residues[j][1].items() if name not in skip]
            if a and b and np.linalg.norm(np.array(a)[:, None] - np.array(b), axis=-1).min() < _CLASH:
                return True
    return False


@contextmanager
def global_random(seed: int):
    """Seed Python's global generator, from which ``Modeller.addHydrogens`` draws, and put its state back."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def build_peptide(sequence: str, n_cap: bool = False, c_cap: bool = False, seed: int = 0):
    """Build a peptide with all hydrogens (pH 7) from its sequence.

    Parameters
    ----------
    sequence : str
        One-letter codes of the 20 standard residues.
    n_cap, c_cap : bool
        Put ACE before, NME behind; otherwise the end is charged.
    seed : int
        Chooses the backbone torsions; the same seed gives the same positions.

    Returns
    -------
    topology : openmm.app.Topology
    positions : Quantity, (A, 3), length
        Free of clashes between heavy atoms, not minimised.

    Examples
    --------
    >>> topology, positions = build_peptide("AGVD", seed=1)
    >>> topology.getNumResidues()
    4
    """
    unknown = sorted(set(sequence) - set(THREE_LETTER))
    if unknown or not sequence:
        raise StarMDError(
            f"expected a sequence of the one-letter codes {''.join(THREE_LETTER)}, found {sequence!r}"
            + (f" with {', '.join(unknown)}" if unknown else "")
        )
    rng = random.Random(seed)
    names = [THREE_LETTER[letter] for letter in sequence]
    for _ in range(_ATTEMPTS):
        residues = _heavy_atoms(names, *_draw_torsions(names, rng), n_cap, c_cap)
        if not _clashes(residues):
            break
    else:
        raise StarMDError(f"found no backbone of {sequence} free of clashes in {_ATTEMPTS} attempts; try another seed")
    topology, positions = Topology(), []
    chain = topology.addChain("A")
    for name, atoms in residues:
        residue = topology.addResidue(name, chain)
        for atom, position in atoms.items():
            topology.addAtom(atom, Element.getBySymbol(atom[0]), residue)
            positions.append(position)
    topology.createStandardBonds()
    modeller = Modeller(topology, np.array(positions) * unit.nanometer)
    with global_random(seed):
        modeller.addHydrogens(force_field(), pH=7.0, platform=Platform.getPlatform("Reference"))
    return modeller.topology, modeller.positions
