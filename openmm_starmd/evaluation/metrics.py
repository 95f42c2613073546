"""How close generated conformations are to reference ones: arrays in, arrays out.

Jensen-Shannon divergences are in bits (base 2: 0 for equal, 1 for disjoint distributions): the square of what SciPy's
``jensenshannon(p, q, base=2)`` returns, which itself is nan where rounding makes the divergence of equals negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mdtraj
import numpy as np
from deeptime.decomposition import TICA
from scipy.spatial.distance import pdist
from scipy.special import rel_entr

from openmm_starmd.protein.residues import canonical_name, torsion_period
from openmm_starmd.protein.validity import MAX_ADJACENT_CA, MAX_PEPTIDE_BOND, MIN_CA, MIN_HEAVY

TWO_PI = 2 * np.pi
TORSION_BINS = 100
TICA_BINS = 100
TICA_BINS_2D = 50
MAX_VALID_CA_STEP = 0.42  # nm, ConfDiff


@dataclass(frozen=True)
class Torsions:
    """Torsions of one trajectory.

    Parameters
    ----------
    angles : ndarray, shape (T, K)
        Radian, in (-period/2, period/2].
    names : tuple of str
        K labels such as ``"phi ALA2"``.
    periods : ndarray, shape (K,)
        pi where a half turn changes nothing (chi2 of PHE, TYR, ASP, chi3 of GLU), else 2 pi.
    backbone : ndarray of bool, shape (K,)
        True for phi and psi, False for side chains.
    """

    angles: np.ndarray
    names: tuple[str, ...]
    periods: np.ndarray
    backbone: np.ndarray


def wrap(angles: np.ndarray, periods: np.ndarray | float = TWO_PI) -> np.ndarray:
    """Angles (..., K) brought to [-period/2, period/2)."""
    return (angles + periods / 2) % periods - periods / 2


def measure_torsions(trajectory: mdtraj.Trajectory) -> Torsions:
    """Every phi, psi and chi1 to chi4 of one trajectory that mdtraj finds; residues of the 20 standard types."""
    angles, names, periods, backbone = [], [], [], []
    for torsion in ("phi", "psi", "chi1", "chi2", "chi3", "chi4"):
        indices, values = getattr(mdtraj, f"compute_{torsion}")(trajectory, periodic=False)
        if len(indices) == 0:
            continue
        angles.append(values)
        for quartet in indices:
            # the second atom belongs to the residue of every torsion: N of phi, CA of psi and chi
            residue = trajectory.topology.atom(quartet[1]).residue
            names.append(f"{torsion} {residue}")
            periods.append(torsion_period(canonical_name(residue.name), torsion))
            backbone.append(torsion in ("phi", "psi"))
    periods = np.array(periods)
    return Torsions(wrap(np.concatenate(angles, 1), periods), tuple(names), periods, np.array(backbone))


def torsion_features(angles: np.ndarray, periods: np.ndarray | float = TWO_PI) -> np.ndarray:
    """Cosine and sine of torsions (T, K) -> (T, 2K), smooth across the period."""
    phase = angles * (TWO_PI / periods)
    return np.concatenate([np.cos(phase), np.sin(phase)], axis=-1)


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> float:
    """Jensen-Shannon divergence, in bits, of two histograms of one shape (counts or probabilities)."""
    p, q = (np.ravel(x) / np.sum(x) for x in (p, q))
    mean = (p + q) / 2
    return float(max(0.0, rel_entr(p, mean).sum() + rel_entr(q, mean).sum()) / (2 * np.log(2)))


def torsion_jsd(
    reference: np.ndarray, generated: np.ndarray, periods: np.ndarray | float = TWO_PI, bins: int = TORSION_BINS
) -> np.ndarray:
    """Jensen-Shannon divergence of each torsion, (T, K) and (T', K) -> (K,), bits.

    Histograms of ``bins`` over one period (MDGen, Jing et al. 2024: 100 bins).
    """
    periods = np.broadcast_to(periods, reference.shape[-1:])
    divergences = []
    for k, period in enumerate(periods):
        edges = np.linspace(-period / 2, period / 2, bins + 1)
        counts = [np.histogram(wrap(x[:, k], period), edges)[0] for x in (reference, generated)]
        divergences.append(jensen_shannon(*counts))
    return np.array(divergences)


def histogram_jsd(reference: np.ndarray, generated: np.ndarray, bins: int) -> float:
    """Divergence, in bits, of points (T, D) and (T', D) on a grid of ``bins`` per axis of their joint range."""
    both = np.concatenate([reference, generated])
    limits = list(zip(both.min(0), both.max(0), strict=True))
    return jensen_shannon(*(np.histogramdd(x, bins, range=limits)[0] for x in (reference, generated)))


def fit_tica(features: np.ndarray | Sequence[np.ndarray], lag: int, dimensions: int = 2):
    """deeptime TICA model (kinetic map) of the reference.

    Parameters
    ----------
    features : ndarray, shape (T, F), or sequence of them
        Of the reference; several trajectories are not joined across their ends.
    lag : int
        Frames.
    dimensions : int
        Components kept.
    """
    trajectories = features if isinstance(features, list | tuple) else [features]
    estimator = TICA(lagtime=lag, dim=dimensions, scaling="kinetic_map")
    for trajectory in trajectories:
        estimator.partial_fit((trajectory[:-lag], trajectory[lag:]))
    return estimator.fetch_model()


def tica_jsd(reference: np.ndarray, generated: np.ndarray) -> tuple[float, float]:
    """Divergences, in bits, of (T, >=2) and (T', >=2) on tICA-0 (100 bins) and (tICA-0, tICA-1) (50 x 50 bins)."""
    return (
        histogram_jsd(reference[:, :1], generated[:, :1], TICA_BINS),
        histogram_jsd(reference[:, :2], generated[:, :2], TICA_BINS_2D),
    )


def bioemu_valid(positions: np.ndarray, ca: np.ndarray, peptide_bonds: np.ndarray) -> np.ndarray:
    """BioEmu's filter of unphysical structures (Lewis et al. 2024): which frames pass.

    Parameters
    ----------
    positions : ndarray, shape (T, A, 3)
        Heavy atoms, nm.
    ca : ndarray of int, shape (N,)
        CA of each residue of one unbroken chain, in order.
    peptide_bonds : ndarray of int, shape (N - 1, 2)
        C and the N bonded to it.

    Returns
    -------
    ndarray of bool, shape (T,)
        Adjacent CA within 0.45 nm, C-N within 0.2 nm, and no two heavy atoms closer than 0.1 nm.
    """
    steps = np.linalg.norm(np.diff(positions[:, ca], axis=1), axis=-1)
    bonds = np.linalg.norm(positions[:, peptide_bonds[:, 0]] - positions[:, peptide_bonds[:, 1]], axis=-1)
    closest = np.array([pdist(frame).min() for frame in positions])
    return (steps <= MAX_ADJACENT_CA).all(1) & (bonds <= MAX_PEPTIDE_BOND).all(1) & (closest >= MIN_HEAVY)


def ca_valid(ca_positions: np.ndarray) -> np.ndarray:
    """ConfDiff's CA filter (Wang et al. 2024), positions (T, N, 3) in nm of one chain -> (T,) bool.

    No two CA closer than 0.3 nm, adjacent ones within 0.42 nm.
    """
    steps = np.linalg.norm(np.diff(ca_positions, axis=1), axis=-1)
    closest = np.array([pdist(frame).min() for frame in ca_positions])
    return (steps <= MAX_VALID_CA_STEP).all(1) & (closest >= MIN_CA)


def heavy_atom_arrays(trajectory: mdtraj.Trajectory) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Input of ``bioemu_valid`` from an mdtraj trajectory of one chain: positions (T, A, 3), CA and C-N indices."""
    heavy = trajectory.topology.select("element != H")
    place = {atom: i for i, atom in enumerate(heavy)}
    topology = trajectory.topology
    ca = np.array([place[i] for i in topology.select("name CA and protein")])
    bonds = [
        sorted((a, b), key=lambda atom: atom.name)
        for a, b in topology.bonds
        if {a.name, b.name} == {"C", "N"} and a.residue is not b.residue
    ]
    return trajectory.xyz[:, heavy], ca, np.array([[place[a.index] for a in bond] for bond in bonds]).reshape(-1, 2)


def radius_of_gyration(positions: np.ndarray) -> np.ndarray:
    """Unweighted radius of gyration, (T, A, 3) -> (T,), nm."""
    return np.sqrt(((positions - positions.mean(1, keepdims=True)) ** 2).sum(-1).mean(1))
