"""Do all atoms of a generated trajectory look like those of the reference? Limits from reference MD, then checks.

`calibrate` looks at a reference, `check_structure` applies what it found. Only heavy atoms count, in trajectories of
one protein (no water). A check whose atoms are not there (side chains of a backbone trajectory, say) is absent.

clash score
    pairs of heavy atoms more than three bonds apart whose distance is less than 0.8 times the sum of their van der
    Waals radii, per 1,000 heavy atoms; MD hardly ever comes so close
Ramachandran outliers
    share of residues with (phi, psi) outside the reference's region (see `Region`), one region each for GLY, PRO,
    residues before PRO, and all others
rotamer outliers
    share of side chains with (chi1, chi2), or chi1 alone, outside the region of their residue type
bond outliers, angle outliers
    share of bond lengths and angles farther than 4 standard deviations of the reference from its mean, each for itself.
    A multiple of sigma, as in MolProbity, and no percentile: that would call as many of the reference's own bonds
    outliers, and hangs on few frames of a short run. Sigma counts as 0.001 nm or 0.5 degrees at least, about the
    precision of XTC files
inverted centres
    number of CA, and CB of ILE and THR, that are not of the natural (L) hand
cis peptides
    number of peptide bonds with an omega within 90 degrees of 0, those before PRO not counted
twisted peptides
    number of peptide bonds with an omega farther than 30 degrees from both 0 and 180 degrees

A region is only as wide as what the reference has visited: a short one makes good rotamers outliers, so compare the
rates with those of another half of the reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest

import mdtraj
import numpy as np
from mdtraj.geometry import dihedral
from mdtraj.geometry.distance import compute_distances_core
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array, eye_array

from openmm_starmd.evaluation.metrics.dihedrals import TWO_PI
from openmm_starmd.evaluation.metrics.filters import heavy_atoms
from openmm_starmd.evaluation.metrics.samples import subsample
from openmm_starmd.protein.residues import canonical_name, torsion_period
from openmm_starmd.protein.validity import left_handed

CLASH_FRACTION = 0.8
N_SIGMA = 4.0
LEAST_SIGMA = {"bond outliers": 0.001, "angle outliers": np.radians(0.5)}  # nm, radian
REGION_SHARE = 0.99
REGION_BINS = 36
QUANTILE = 0.99
MIN_FRAMES = 10

_CHUNK = 16_000_000  # distances at a time: 64 MB in float32
# neighbours of each chiral centre, so that (a x b) . c > 0 in the natural hand
_CENTRES = {"CA": ("N", "C", "CB"), ("ILE", "CB"): ("CA", "CG1", "CG2"), ("THR", "CB"): ("CA", "OG1", "CG2")}


@dataclass(frozen=True)
class Region:
    """Part of the circle or torus where the reference has 99 % of its density.

    Bins of 10 degrees (one 36th of the period), counted, smoothed by a Gaussian of one bin, and taken from the densest
    on until 99 % of the reference lies in them.
    """

    allowed: np.ndarray  # (36,) or (36, 36) of bool
    periods: np.ndarray  # (D,): radian

    @classmethod
    def fit(cls, angles: np.ndarray, periods: np.ndarray) -> Region:
        """Region of angles (n, D), radian."""
        counts = np.zeros((REGION_BINS,) * angles.shape[-1])
        np.add.at(counts, _bins(angles, periods), 1)
        order = np.argsort(-gaussian_filter(counts, 1.0, mode="wrap"), axis=None, kind="stable")
        inside = np.cumsum(counts.ravel()[order])
        enough = np.searchsorted(inside, REGION_SHARE * inside[-1]) + 1
        allowed = np.zeros(counts.size, dtype=bool)
        allowed[order[:enough]] = True
        return cls(allowed.reshape(counts.shape), periods)

    def outside(self, angles: np.ndarray) -> np.ndarray:
        """Mask of angles (..., D) that lie outside, shape (...)."""
        return ~self.allowed[_bins(angles, self.periods)]


def _bins(angles: np.ndarray, periods: np.ndarray) -> tuple[np.ndarray, ...]:
    number = np.floor(angles / periods % 1.0 * REGION_BINS).astype(int)
    return tuple(np.moveaxis(np.minimum(number, REGION_BINS - 1), -1, 0))


class Terms:
    """Terms to measure in a topology of heavy atoms; all arrays hold atom indices."""

    def __init__(self, topology: mdtraj.Topology):
        if topology.n_bonds == 0:
            topology = topology.copy()
            topology.create_standard_bonds()
        self.n_atoms = topology.n_atoms
        self.residues = [
            (canonical_name(r.name) or r.name, {a.name: a.index for a in r.atoms}) for r in topology.residues
        ]
        self.labels = tuple((a.residue.index, a.name) for a in topology.atoms)
        self.bonds = np.array([sorted((a.index, b.index)) for a, b in topology.bonds], dtype=np.int32).reshape(-1, 2)
        graph = coo_array((np.ones(len(self.bonds)), self.bonds.T), shape=(self.n_atoms, self.n_atoms)).tocsr()
        graph = graph + graph.T
        self.angles = _angles(graph)
        self.pairs = _apart(graph)
        radii = np.array([a.element.radius for a in topology.atoms], dtype=np.float32)
        self.contacts = CLASH_FRACTION * radii[self.pairs].sum(1)
        self.omega, self.before_proline = self._peptides(topology)
        self.centres = self._centres()
        self.torsions = {
            "Ramachandran outliers": self._backbone(topology),
            "rotamer outliers": self._rotamers(topology),
        }

    def _peptides(self, topology) -> tuple[np.ndarray, np.ndarray]:
        omega = dihedral.indices_omega(topology)
        proline = [self.residues[topology.atom(q[3]).residue.index][0] == "PRO" for q in omega]
        return omega, np.array(proline, dtype=bool)

    def _centres(self) -> np.ndarray:
        found = []
        for name, atoms in self.residues:
            for key, others in _CENTRES.items():
                kind, centre = key if isinstance(key, tuple) else (canonical_name(name), key)
                if kind == name and atoms.keys() >= {centre, *others}:
                    found.append([atoms[centre], *(atoms[other] for other in others)])
        return np.array(found, dtype=int).reshape(-1, 4)

    def _backbone(self, topology) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """(class, torsions (D, 4), periods (D,)) of each residue with phi and psi."""
        phi, psi = (_by_residue(topology, find) for find in (dihedral.indices_phi, dihedral.indices_psi))
        after = {i: topology.atom(q[3]).residue.index for i, q in psi.items()}
        found = []
        for i in sorted(phi.keys() & psi.keys()):
            kind = self.residues[i][0]
            if kind not in ("GLY", "PRO"):
                kind = "before PRO" if self.residues[after[i]][0] == "PRO" else "other"
            found.append((kind, np.stack([phi[i], psi[i]]), np.full(2, TWO_PI)))
        return found

    def _rotamers(self, topology) -> list[tuple[str, np.ndarray, np.ndarray]]:
        chi1, chi2 = (_by_residue(topology, find) for find in (dihedral.indices_chi1, dihedral.indices_chi2))
        found = []
        for i, quartet in chi1.items():
            kind = self.residues[i][0]
            quartets = np.stack([quartet, chi2[i]]) if i in chi2 else quartet[None]
            periods = [torsion_period(kind, f"chi{k + 1}") for k in range(len(quartets))]
            found.append((f"{kind} {len(quartets)}", quartets, np.array(periods)))
        return found


def _by_residue(topology: mdtraj.Topology, find) -> dict[int, np.ndarray]:
    """Four atoms of the torsion of each residue that has it, which is that of the second atom."""
    return {topology.atom(quartet[1]).residue.index: quartet for quartet in find(topology)}


def _angles(graph) -> np.ndarray:
    """Every two bonds that share an atom, (G, 3), from a symmetric bond graph (A, A)."""
    neighbours = np.split(graph.indices, graph.indptr[1:-1])
    found = [(a, centre, b) for centre, near in enumerate(neighbours) for a in near for b in near if a < b]
    return np.array(found, dtype=int).reshape(-1, 3)


def _apart(graph) -> np.ndarray:
    """Pairs of atoms more than three bonds apart, (P, 2)."""
    step = graph + eye_array(graph.shape[0], format="csr")
    far = (step @ step @ step).toarray() == 0
    return np.argwhere(np.triu(far, 1)).astype(np.int32)


def _heavy(trajectory: mdtraj.Trajectory) -> mdtraj.Trajectory:
    atoms = heavy_atoms(trajectory.topology)
    return trajectory if len(atoms) == trajectory.n_atoms else trajectory.atom_slice(atoms)


@dataclass(frozen=True)
class StructureLimits:
    """Limits that `calibrate` found in a reference."""

    terms: Terms  # what there is to measure
    ranges: dict[str, np.ndarray]  # least and largest value, (2, K), of each bond (nm) and angle (radian)
    regions: dict[tuple[str, str], Region]  # `Region` of each (check, class) of torsions
    thresholds: dict[str, float]  # for each check the 99th percentile of the reference's frames
    reference: dict[str, float]  # for each check the mean of the reference's frames


@dataclass(frozen=True)
class StructureChecks:
    """Checks of each frame."""

    # each check of the module's table, (T,); nan in frames with coordinates that are no numbers
    rates: dict[str, np.ndarray]
    thresholds: dict[str, float]  # largest rate with which a frame passes

    @cached_property
    def failed(self) -> dict[str, np.ndarray]:
        """For each check the frames over the threshold, shape (T,) bool."""
        return {name: ~(rate <= self.thresholds[name]) for name, rate in self.rates.items()}

    @cached_property
    def valid(self) -> np.ndarray:
        """Frames that fail no check, shape (T,) bool."""
        return ~np.any(list(self.failed.values()), axis=0)


def calibrate(reference: mdtraj.Trajectory) -> StructureLimits:
    """Limits of `check_structure` from reference MD, 20,000 evenly spaced frames of it at most.

    A ValueError refuses fewer than 10 frames, or coordinates that are no numbers.
    """
    if reference.n_frames < MIN_FRAMES:
        raise ValueError(
            f"expected at least {MIN_FRAMES} frames of the reference to draw limits from, found {reference.n_frames}"
        )
    few = _heavy(reference[subsample(np.arange(reference.n_frames))])
    if not np.isfinite(few.xyz).all():
        raise ValueError("expected finite coordinates of the reference, found some that are no numbers; remove them")
    terms = Terms(few.topology)
    ranges = {}
    for name, values in _lengths_and_angles(few, terms).items():
        mean, sigma = values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64)
        reach = N_SIGMA * np.maximum(sigma, LEAST_SIGMA[name])
        ranges[name] = np.stack([mean - reach, mean + reach])
    regions = {}
    for check, residues in terms.torsions.items():
        for kind in {kind for kind, _, _ in residues}:
            alike = [(quartets, periods) for other, quartets, periods in residues if other == kind]
            angles = np.concatenate([_measure(few, quartets) for quartets, _ in alike])
            regions[check, kind] = Region.fit(angles, alike[0][1])
    rates = _rates(few, terms, ranges, regions)
    thresholds = {name: float(np.quantile(rate, QUANTILE)) for name, rate in rates.items()}
    return StructureLimits(terms, ranges, regions, thresholds, {name: float(r.mean()) for name, r in rates.items()})


def check_structure(trajectory: mdtraj.Trajectory, limits: StructureLimits) -> StructureChecks:
    """Check every frame of a trajectory of the reference's heavy atoms, in its order; ValueError if they are others."""
    trajectory = _heavy(trajectory)
    labels = tuple((a.residue.index, a.name) for a in trajectory.topology.atoms)
    if labels != limits.terms.labels:
        pairs = zip_longest(labels, limits.terms.labels)
        found, expected = next((a, b) for a, b in pairs if a != b)
        raise ValueError(
            f"expected the heavy atoms of the reference in its order, found {found} instead of {expected} (number of "
            "the residue, atom); keep the atoms that both have"
        )
    rates = _rates(trajectory, limits.terms, limits.ranges, limits.regions)
    return StructureChecks(rates, limits.thresholds)


def _measure(trajectory: mdtraj.Trajectory, quartets: np.ndarray) -> np.ndarray:
    """Torsions (T, D), radian, as double so that bins of exact multiples do not depend on rounding."""
    return mdtraj.compute_dihedrals(trajectory, quartets, periodic=False).astype(np.float64)


def _lengths_and_angles(trajectory: mdtraj.Trajectory, terms: Terms) -> dict[str, np.ndarray]:
    found = {}
    if len(terms.bonds):
        found["bond outliers"] = compute_distances_core(trajectory.xyz, terms.bonds, periodic=False)
    if len(terms.angles):
        found["angle outliers"] = mdtraj.compute_angles(trajectory, terms.angles, periodic=False)
    return found


def _rates(trajectory: mdtraj.Trajectory, terms: Terms, ranges: dict, regions: dict) -> dict[str, np.ndarray]:
    """Every check of every frame, in pieces; nan where a coordinate is no number."""
    step = max(1, _CHUNK // max(len(terms.pairs), 10 * terms.n_atoms))
    finite = np.isfinite(trajectory.xyz).all((1, 2))
    frames = np.flatnonzero(finite)
    rates: dict[str, np.ndarray] = {}
    for start in range(0, max(1, len(frames)), step):
        piece = frames[start : start + step]
        for name, rate in _rates_of_piece(trajectory[piece], terms, ranges, regions).items():
            rates.setdefault(name, np.full(len(finite), np.nan))[piece] = rate
    return rates


def _rates_of_piece(piece: mdtraj.Trajectory, terms: Terms, ranges: dict, regions: dict) -> dict[str, np.ndarray]:
    rates = {}
    if len(terms.pairs):
        close = compute_distances_core(piece.xyz, terms.pairs, periodic=False) < terms.contacts
        rates["clash score"] = close.sum(1) * (1000 / terms.n_atoms)
    for check, residues in terms.torsions.items():
        if residues:
            outside = [regions[check, kind].outside(_measure(piece, quartets)) for kind, quartets, _ in residues]
            rates[check] = np.mean(outside, axis=0)
    for name, values in _lengths_and_angles(piece, terms).items():
        low, high = ranges[name]
        rates[name] = ((values < low) | (values > high)).mean(1)
    if len(terms.centres):
        rates["inverted centres"] = left_handed(piece.xyz, terms.centres).sum(1)
    if len(terms.omega):
        omega = np.abs(_measure(piece, terms.omega))
        rates["cis peptides"] = ((omega < np.pi / 2) & ~terms.before_proline).sum(1)
        rates["twisted peptides"] = ((omega > np.pi / 6) & (omega < 5 * np.pi / 6)).sum(1)
    return rates
