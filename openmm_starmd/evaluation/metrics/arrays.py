"""How close generated conformations are to reference ones: arrays in, arrays out.

Jensen-Shannon divergences are in bits (base 2: 0 for equal, 1 for disjoint distributions): the square of what SciPy's
``jensenshannon(p, q, base=2)`` returns, which itself is nan where rounding makes the divergence of equals negative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mdtraj
import numpy as np
from deeptime.decomposition import TICA
from deeptime.numeric import ZeroRankError
from mdtraj.geometry.distance import compute_distances_core
from scipy.special import rel_entr

from openmm_starmd.protein.residues import canonical_name, torsion_period
from openmm_starmd.protein.validity import MAX_ADJACENT_CA, MAX_PEPTIDE_BOND, MIN_CA, MIN_HEAVY

TWO_PI = 2 * np.pi
TORSION_BINS = 100
TICA_BINS = 100
TICA_BINS_2D = 50
MAX_VALID_CA_STEP = 0.42  # nm, ConfDiff

_CHUNK = 16_000_000  # numbers of an intermediate array: 64 MB in float32


def as_trajectories(values: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
    """List of arrays, one a trajectory, from one array or a sequence of them."""
    return [np.asarray(v) for v in values] if isinstance(values, list | tuple) else [np.asarray(values)]


def subsample(values: np.ndarray, n: int = 20_000) -> np.ndarray:
    """At most ``n`` evenly spaced frames of ``values``, shape (T, ...): enough to fit a model to."""
    return values if len(values) <= n else values[np.linspace(0, len(values) - 1, n).astype(int)]


def lagged_pairs(trajectories: list[np.ndarray], lag: int, chunk: int = 10_000):
    """Yield (x, y) of shape (<= chunk, F) each, ``lag`` frames apart, never across the end of a trajectory."""
    if lag < 1:
        raise ValueError(f"expected a lag of at least 1 frame, found {lag}")
    longest = max(map(len, trajectories), default=0)
    if longest <= lag:
        raise ValueError(f"expected a trajectory longer than the lag of {lag} frames, found {longest} frames at most")
    if any(trajectory.shape[1:] == (0,) for trajectory in trajectories):
        raise ValueError("expected at least one feature, found none")
    for trajectory in trajectories:
        for start in range(0, len(trajectory) - lag, chunk):
            end = min(start + chunk, len(trajectory) - lag)
            if not np.isfinite(trajectory[start : end + lag]).all():
                raise ValueError("expected finite features, found some that are no numbers; cut the trajectory there")
            yield trajectory[start:end], trajectory[start + lag : end + lag]


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
    if not angles:
        return Torsions(np.zeros((trajectory.n_frames, 0)), (), np.zeros(0), np.zeros(0, dtype=bool))
    periods = np.array(periods)
    return Torsions(wrap(np.concatenate(angles, 1), periods), tuple(names), periods, np.array(backbone))


def torsion_features(angles: np.ndarray, periods: np.ndarray | float = TWO_PI) -> np.ndarray:
    """Cosine and sine of torsions (T, K) -> (T, 2K), smooth across the period."""
    phase = angles * (TWO_PI / periods)
    return np.concatenate([np.cos(phase), np.sin(phase)], axis=-1)


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> float:
    """Jensen-Shannon divergence, in bits, of two histograms of one shape (counts or probabilities)."""
    totals = np.sum(p), np.sum(q)
    if not min(totals) > 0:
        raise ValueError(f"expected two histograms with something in them, found totals of {totals[0]} and {totals[1]}")
    p, q = (np.ravel(x) / total for x, total in zip((p, q), totals, strict=True))
    mean = (p + q) / 2
    return float(max(0.0, rel_entr(p, mean).sum() + rel_entr(q, mean).sum()) / (2 * np.log(2)))


def torsion_jsd(
    reference: np.ndarray, generated: np.ndarray, periods: np.ndarray | float = TWO_PI, bins: int = TORSION_BINS
) -> np.ndarray:
    """Jensen-Shannon divergence of each torsion, (T, K) and (T', K) -> (K,), bits.

    Histograms of ``bins`` over one period (MDGen, Jing et al. 2024: 100 bins).
    """
    if not (np.isfinite(reference).all() and np.isfinite(generated).all()):
        raise ValueError(
            "expected finite torsions, found some that are no numbers; leave these frames out and count them"
        )
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


@dataclass(frozen=True)
class SlowModes:
    """Time-lagged independent components.

    Parameters
    ----------
    model : deeptime TransferOperatorModel
        Of features divided by ``scale``.
    scale : ndarray, shape (F,)
        Standard deviation of each feature, so that those of small scale count like the others: deeptime drops whatever
        varies by less than an absolute 1e-6.
    """

    model: object
    scale: np.ndarray

    def transform(self, features: np.ndarray) -> np.ndarray:
        """Features (T, F) -> components (T, D)."""
        return self.model.transform(features / self.scale)


def _spreads(trajectories: list[np.ndarray]) -> np.ndarray:
    """Standard deviation (F,) of features; 1 for those that vary by no more than rounding does."""
    n = sum(map(len, trajectories))
    mean = sum(t.sum(0, dtype=np.float64) for t in trajectories) / n
    spread = np.sqrt(sum(((t - mean) ** 2).sum(0) for t in trajectories) / n)
    return np.where(spread > 1e-5 * np.maximum(np.abs(mean), spread.max(initial=0)), spread, 1.0)


def fit_tica(features: np.ndarray | Sequence[np.ndarray], lag: int, dimensions: int = 2) -> SlowModes:
    """Time-lagged independent components (deeptime's TICA, kinetic map) of the reference.

    Parameters
    ----------
    features : ndarray, shape (T, F), or sequence of them
        Of the reference; several trajectories are not joined across their ends.
    lag : int
        Frames.
    dimensions : int
        Components kept, or fewer where the features have no more.

    Raises
    ------
    ValueError
        No trajectory is longer than the lag, or no feature varies.
    """
    estimator = TICA(lagtime=lag, dim=dimensions, scaling="kinetic_map")
    trajectories = as_trajectories(features)
    scale = _spreads(trajectories) if all(map(len, trajectories)) else np.ones(1)
    for before, after in lagged_pairs(trajectories, lag):
        estimator.partial_fit((before / scale, after / scale))
    try:
        return SlowModes(estimator.fetch_model(), scale)
    except ZeroRankError:
        raise ValueError("expected features that vary, found constant ones: the reference does not move") from None


def project(model, features: np.ndarray, chunk: int = 20_000) -> np.ndarray:
    """``model.transform`` of features (T, F), some frames at a time for the sake of memory."""
    starts = range(0, max(1, len(features)), chunk)
    return np.concatenate([model.transform(features[i : i + chunk]) for i in starts])


def tica_jsd(reference: np.ndarray, generated: np.ndarray) -> tuple[float, float]:
    """Divergences, in bits, of (T, >=2) and (T', >=2) on tICA-0 (100 bins) and (tICA-0, tICA-1) (50 x 50 bins)."""
    return (
        histogram_jsd(reference[:, :1], generated[:, :1], TICA_BINS),
        histogram_jsd(reference[:, :2], generated[:, :2], TICA_BINS_2D),
    )


def ca_atoms(topology: mdtraj.Topology) -> tuple[np.ndarray, np.ndarray]:
    """Indices (N,) of the CA of the standard residues, in order, and the chain (N,) that each belongs to."""
    found = [a for a in topology.atoms if a.name == "CA" and canonical_name(a.residue.name)]
    return np.array([a.index for a in found], dtype=int), np.array([a.residue.chain.index for a in found], dtype=int)


def heavy_atoms(topology: mdtraj.Topology) -> np.ndarray:
    """Indices (A,) of all atoms but hydrogens and virtual sites."""
    return np.array([a.index for a in topology.atoms if a.element is not None and a.element.mass > 2.5], dtype=int)


def _in_pieces(check: Callable[[np.ndarray], np.ndarray], positions: np.ndarray) -> np.ndarray:
    """``check`` of positions (T, M, 3), some frames at a time for the sake of memory, shape (T,)."""
    step = max(1, _CHUNK // max(1, positions.shape[1] ** 2 // 2))
    return np.concatenate([check(positions[i : i + step]) for i in range(0, max(1, len(positions)), step)])


def _closest(positions: np.ndarray) -> np.ndarray:
    """Distance of the closest two of points (T, M, 3), shape (T,); inf where there is but one."""
    pairs = np.stack(np.triu_indices(positions.shape[1], 1), 1).astype(np.int32)
    if len(pairs) == 0:
        return np.full(len(positions), np.inf)
    return compute_distances_core(np.ascontiguousarray(positions, np.float32), pairs, periodic=False).min(1)


def _longest_step(ca_positions: np.ndarray, chains: np.ndarray | None) -> np.ndarray:
    """Largest distance of neighbours in one chain, (T, N, 3) -> (T,); 0 where nobody has a neighbour."""
    same = slice(None) if chains is None else np.diff(chains) == 0
    return np.linalg.norm(np.diff(ca_positions, axis=1)[:, same], axis=-1).max(1, initial=0)


def bioemu_valid(
    positions: np.ndarray, ca: np.ndarray, peptide_bonds: np.ndarray, chains: np.ndarray | None = None
) -> np.ndarray:
    """BioEmu's filter of unphysical structures (Lewis et al. 2024): which frames pass.

    Parameters
    ----------
    positions : ndarray, shape (T, A, 3)
        Heavy atoms, nm.
    ca : ndarray of int, shape (N,)
        CA of each residue, in order.
    peptide_bonds : ndarray of int, shape (M, 2)
        C and the N bonded to it.
    chains : ndarray of int, shape (N,), optional
        Chain of each CA; by default all belong to one unbroken chain.

    Returns
    -------
    ndarray of bool, shape (T,)
        Adjacent CA within 0.45 nm, C-N within 0.2 nm, and no two heavy atoms closer than 0.1 nm.
    """

    def check(piece):
        bonds = np.linalg.norm(piece[:, peptide_bonds[:, 0]] - piece[:, peptide_bonds[:, 1]], axis=-1)
        steps = _longest_step(piece[:, ca], chains)
        return (steps <= MAX_ADJACENT_CA) & (bonds <= MAX_PEPTIDE_BOND).all(1) & (_closest(piece) >= MIN_HEAVY)

    return _in_pieces(check, positions)


def ca_valid(ca_positions: np.ndarray, chains: np.ndarray | None = None) -> np.ndarray:
    """ConfDiff's CA filter (Wang et al. 2024), positions (T, N, 3) in nm -> (T,) bool.

    No two CA closer than 0.3 nm, those adjacent in one chain within 0.42 nm; ``chains`` as for `bioemu_valid`.
    """
    return _in_pieces(
        lambda piece: (_longest_step(piece, chains) <= MAX_VALID_CA_STEP) & (_closest(piece) >= MIN_CA), ca_positions
    )


def heavy_atom_arrays(trajectory: mdtraj.Trajectory) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Input of ``bioemu_valid`` from an mdtraj trajectory: positions (T, A, 3), CA and C-N indices.

    The chains are the second result of `ca_atoms`.
    """
    topology = trajectory.topology
    heavy = heavy_atoms(topology)
    place = {atom: i for i, atom in enumerate(heavy)}
    ca = np.array([place[i] for i in ca_atoms(topology)[0]], dtype=int)
    bonds = [
        sorted((a, b), key=lambda atom: atom.name)
        for a, b in topology.bonds
        if {a.name, b.name} == {"C", "N"} and a.residue is not b.residue
    ]
    positions = trajectory.xyz if len(heavy) == topology.n_atoms else trajectory.xyz[:, heavy]
    return positions, ca, np.array([[place[a.index] for a in bond] for bond in bonds], dtype=int).reshape(-1, 2)


def radius_of_gyration(positions: np.ndarray) -> np.ndarray:
    """Unweighted radius of gyration, (T, A, 3) -> (T,), nm."""
    return np.sqrt(((positions - positions.mean(1, keepdims=True)) ** 2).sum(-1).mean(1))
