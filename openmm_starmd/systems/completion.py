"""Build missing atoms by PDBFixer, with the configuration that nature has: L residues, trans peptide bonds.

PDBFixer overlays templates by a Kabsch rotation that may be a reflection, and its force field for new atoms holds
neither centres nor peptide bonds; both are put right in that force field with terms for them.
"""

from __future__ import annotations

import numpy as np
import torch
from openmm import (
    Context,
    CustomCompoundBondForce,
    LangevinMiddleIntegrator,
    LocalEnergyMinimizer,
    OpenMMException,
    PeriodicTorsionForce,
    Platform,
    unit,
)
from openmm.app import Modeller, Topology
from pdbfixer import PDBFixer
from scipy.spatial import cKDTree

from openmm_starmd.errors import UnsupportedTopologyError
from openmm_starmd.protein.bond_graph import ProteinBondGraph, label
from openmm_starmd.protein.residues import canonical_name
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.protein.validity import MAX_PEPTIDE_BOND, check_positions, cis_planes, flat_centres, left_handed
from openmm_starmd.systems.chains import Place, coordinates, is_heavy, names_of, place_of

HAND = 0.0026  # nm^3; scalar product of the three bonds of a natural centre, in the order of `chiral_centres`
STIFFNESS = 7e7  # kJ/mol/nm^6
STIFF_ANGLES = 40  # times PDBFixer's, in which three atoms can come to stand in a line
TRANS = 100.0  # kJ/mol
HARD, FREE = 1e5, 0.25  # kJ/mol/nm^2 and nm; atoms without a bond or an angle between them, soft in PDBFixer's
OVERLAP = 0.18  # nm; only bonded heavy atoms are nearer to each other
ROUNDS, STEPS, HOT = 8, 2000, 600  # of fs, K
_CENTRES_OF_SIDE_CHAINS = {"ILE": ["CB", "CA", "CG1", "CG2"], "THR": ["CB", "CA", "OG1", "CG2"]}
_UP_TO_CB = {"N", "CA", "C", "O", "OXT", "CB"}
_ON_N = {"H", "H1", "H2", "H3"}

Built = set[tuple[Place, str]]
"""Place and name of each atom that was built."""


def build_missing_atoms(fixer: PDBFixer, originals: dict[Place, str]) -> tuple[Built, list[str]]:
    """Build missing heavy atoms and residues; tells which.

    An UnsupportedTopologyError says that something cannot be built as nature has it, or that an atom that is not built
    makes a residue D.
    """
    known = {tuple(x) for x in coordinates(fixer)}
    changes = _open_mirrored_side_chains(fixer, originals)
    _find_missing_atoms(fixer)
    fixer.platform = Platform.getPlatform("Reference")
    missing = [*fixer.missingAtoms, *fixer.missingTerminals]
    try:
        fixer.addMissingAtoms(seed=1)
    except OpenMMException as error:
        raise UnsupportedTopologyError(
            f"PDBFixer found no place for the missing atoms of {names_of(missing)} ({error})."
        ) from error
    new = np.array([tuple(x) not in known for x in coordinates(fixer)])
    changes += _tell(fixer.topology, new)
    _mend(fixer, new, originals)
    built = {(place_of(atom.residue), atom.name) for atom in fixer.topology.atoms() if new[atom.index]}
    return built, changes + _cis_bonds(fixer)


def _open_mirrored_side_chains(fixer: PDBFixer, originals: dict[Place, str]) -> list[str]:
    """Take away what lies beyond a CB that is the mirror image of nature's, so that it is built; tells where.

    Only ILE and THR have such a CB. A residue that the file names otherwise (allo-threonine) keeps it, and is refused.
    """
    x, residues = coordinates(fixer), []
    for residue in fixer.topology.residues():
        at = {atom.name: atom.index for atom in residue.atoms()}
        names = _CENTRES_OF_SIDE_CHAINS.get(residue.name, ())
        if not names or not at.keys() >= set(names) or place_of(residue) in originals:
            continue
        if left_handed(x[None], np.array([[at[name] for name in names]]))[0, 0]:
            residues.append(residue)
    if not residues:
        return []
    modeller = Modeller(fixer.topology, fixer.positions)
    modeller.delete([a for r in residues for a in r.atoms() if is_heavy(a) and a.name not in _UP_TO_CB])
    fixer.topology, fixer.positions = modeller.topology, modeller.positions
    return [f"took away what lies beyond CB of {names_of(residues)}, where CB is the mirror image of nature's"]


def _find_missing_atoms(fixer: PDBFixer) -> None:
    """Find missing atoms; hydrogens of a side chain that is to be built go, as they stand where its atoms will."""
    fixer.findMissingAtoms()
    in_the_way = [a for r in fixer.missingAtoms for a in r.atoms() if not is_heavy(a) and a.name not in _ON_N]
    if in_the_way:
        modeller = Modeller(fixer.topology, fixer.positions)
        modeller.delete(in_the_way)
        fixer.topology, fixer.positions = modeller.topology, modeller.positions
        fixer.findMissingAtoms()


def _tell(topology: Topology, new: np.ndarray) -> list[str]:
    whole, parts = [], {}
    for residue in topology.residues():
        names = [atom.name for atom in residue.atoms() if new[atom.index]]
        if len(names) == len(list(residue.atoms())):
            whole.append(residue)
        elif names:
            parts.setdefault(", ".join(names), []).append(residue)
    changes = [f"built the residues {names_of(whole)}"] if whole else []
    return changes + [f"built {names} of {names_of(residues)}" for names, residues in parts.items()]


class _Skeleton:
    """Heavy atoms of a fixer, with the centres, peptide planes and peptide bonds of the protein."""

    def __init__(self, fixer: PDBFixer, new: np.ndarray):
        modeller = Modeller(fixer.topology, fixer.positions)
        self.heavy = np.array([is_heavy(atom) for atom in fixer.topology.atoms()])
        modeller.delete([atom for atom in fixer.topology.atoms() if not self.heavy[atom.index]])
        self.topology, self.new = modeller.topology, new[self.heavy]
        self.atoms = list(self.topology.atoms())
        graph = ProteinBondGraph(self.topology)
        self.centres = np.array(graph.chiral_centres(), dtype=int).reshape(-1, 4)
        self.planes = np.array(graph.peptide_planes(), dtype=int).reshape(-1, 4)
        self.bonds = {frozenset((a.index, b.index)) for a, b in self.topology.bonds()}

    def overlapping(self, x: np.ndarray) -> list[int]:
        """The built atoms that stand as near to another atom as only bonded ones do."""
        pairs = (pair for pair in cKDTree(x).query_pairs(OVERLAP) if frozenset(pair) not in self.bonds)
        return sorted({i for pair in pairs for i in pair if self.new[i]})

    def inverted(self, x: np.ndarray) -> np.ndarray:
        """True for the centres of the other hand, shape (K,)."""
        return left_handed(x[None], self.centres)[0]

    def cis(self, x: np.ndarray) -> np.ndarray:
        """True for the peptide planes that are nearer to cis than to trans, shape (K,)."""
        return cis_planes(x[None], self.planes)[0]

    def wrong(self, x: np.ndarray) -> list[int]:
        """Of what was built: an atom of each centre, peptide plane and bond unlike nature's, and all that overlap."""
        length = np.linalg.norm(x[self.planes[:, 1]] - x[self.planes[:, 2]], axis=-1)
        centres = self.inverted(x) & self.new[self.centres].any(-1)
        planes = (self.cis(x) | (length > MAX_PEPTIDE_BOND)) & self.new[self.planes].any(-1)
        return [*self.centres[centres, 0], *self.planes[planes, 2], *self.overlapping(x)]

    def residues(self, atoms) -> str:
        """The residues of some atoms."""
        return names_of(dict.fromkeys(self.atoms[i].residue for i in sorted(atoms)))


def _mend(fixer: PDBFixer, new: np.ndarray, originals: dict[Place, str]) -> None:
    """Turn what was built into L residues and trans peptide bonds, or refuse it."""
    skeleton, x = _Skeleton(fixer, new), coordinates(fixer)
    heavy = x[skeleton.heavy]
    _refuse_foreign_hands(skeleton, heavy, originals)
    if not skeleton.wrong(heavy):
        return
    x[skeleton.heavy] = _with_natural_geometry(fixer, skeleton, heavy)
    if wrong := skeleton.wrong(x[skeleton.heavy]):
        raise UnsupportedTopologyError(
            f"what is missing at {skeleton.residues(wrong)} could not be built with L residues, trans peptide bonds "
            "and room for all atoms between its neighbours. Build it with a program for loops, or remove its residues: "
            "the chain is then ended there."
        )
    fixer.positions = x * unit.nanometer


def _refuse_foreign_hands(skeleton: _Skeleton, x: np.ndarray, originals: dict[Place, str]) -> None:
    given = ~skeleton.new[skeleton.centres].any(-1)
    for atom in (skeleton.atoms[i] for i in skeleton.centres[flat_centres(x[None], skeleton.centres)[0] & given, 0]):
        raise UnsupportedTopologyError(
            f"the bonds of {atom.name} of {label(atom.residue)} lie in a plane, so that it has neither the L nor the D "
            "configuration. Relax the model in the program that made it, or remove the side chain: it is then built."
        )
    wrong = skeleton.inverted(x) & given
    for atom in (skeleton.atoms[i] for i in skeleton.centres[wrong, 0]):
        was = originals.get(place_of(atom.residue))
        raise UnsupportedTopologyError(
            f"{atom.name} of {label(atom.residue)}{f' ({was} in the file)' if was else ''} has the "
            f"{'D configuration' if atom.name == 'CA' else 'configuration that nature does not have'}, which is not "
            "supported."
        )


def _with_natural_geometry(fixer: PDBFixer, skeleton: _Skeleton, x: np.ndarray) -> np.ndarray:
    """Positions of least energy of the built atoms, in PDBFixer's force field with terms for hands and planes."""
    system = fixer._createForceField(skeleton.topology, False).createSystem(skeleton.topology)
    for atom in np.flatnonzero(~skeleton.new):
        system.setParticleMass(int(atom), 0.0)
    forces = {type(force).__name__: force for force in system.getForces()}
    built = np.flatnonzero(skeleton.new).tolist()
    repulsion = forces["CustomNonbondedForce"]
    repulsion.addInteractionGroup(built, range(len(x)))
    repulsion.setEnergyFunction(f"{repulsion.getEnergyFunction()} + hard*max(0, {FREE}-r)^2")
    repulsion.addGlobalParameter("hard", HARD)
    angles = forces["HarmonicAngleForce"]
    for i in range(angles.getNumAngles()):
        *atoms, angle, stiffness = angles.getAngleParameters(i)
        angles.setAngleParameters(i, *atoms, angle, STIFF_ANGLES * stiffness)
    hands = CustomCompoundBondForce(4, f"{STIFFNESS}*(hand - {HAND})^2; hand = {_TRIPLE_PRODUCT}")
    for atoms in skeleton.centres[skeleton.new[skeleton.centres].any(-1)]:
        hands.addBond(atoms.tolist())
    planes = PeriodicTorsionForce()
    for atoms in skeleton.planes[skeleton.new[skeleton.planes].any(-1)]:
        planes.addTorsion(*atoms.tolist(), 1, 0.0, TRANS)
    system.addForce(hands)
    system.addForce(planes)
    integrator = LangevinMiddleIntegrator(HOT, 10, 0.001)
    integrator.setRandomNumberSeed(1)
    context = Context(system, integrator, Platform.getPlatform("CPU"), {"Threads": "1"})
    context.setPositions(x)
    for attempt in range(ROUNDS):
        if attempt:
            context.setParameter("hard", 0.0)  # so that what is caught behind another atom can come past it
            context.setVelocitiesToTemperature(HOT, attempt)
            integrator.step(STEPS)
            context.setParameter("hard", HARD)
        LocalEnergyMinimizer.minimize(context)
        x = context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        if not skeleton.wrong(x):
            break
    return x


_TRIPLE_PRODUCT = (
    "(x2-x1)*((y3-y1)*(z4-z1)-(z3-z1)*(y4-y1))"
    "+(y2-y1)*((z3-z1)*(x4-x1)-(x3-x1)*(z4-z1))"
    "+(z2-z1)*((x3-x1)*(y4-y1)-(y3-y1)*(x4-x1))"
)


def _cis_bonds(fixer: PDBFixer) -> list[str]:
    """Cis peptide bonds of the file that do not precede a proline."""
    skeleton = _Skeleton(fixer, np.zeros(fixer.topology.getNumAtoms(), dtype=bool))
    cis = skeleton.planes[skeleton.cis(coordinates(fixer)[skeleton.heavy])]
    residues = (skeleton.atoms[i].residue for i in cis[:, 2])
    found = [residue for residue in residues if canonical_name(residue.name) != "PRO"]
    return [f"left the cis peptide bond before {names_of(found)}, as in the file"] if found else []


def refuse_pierced_rings(topology: Topology, positions, built: Built) -> None:
    """Refuse what was built through a ring, or around one."""
    if not built:
        return
    x = torch.tensor(np.array(positions.value_in_unit(unit.nanometer)))
    tokens = ResidueTokens.from_topology(topology)
    frames, bonds = check_positions(x[None], tokens).offenders["ring_piercings"]
    atoms = list(topology.atoms())
    for first, second in bonds:
        ends = atoms[first], atoms[second]
        if any((place_of(atom.residue), atom.name) in built for atom in ends):
            raise UnsupportedTopologyError(
                f"the bond {ends[0].name}-{ends[1].name} of {label(ends[0].residue)} was built through a ring. Build "
                "the missing atoms with another program, or remove what is in their way."
            )
