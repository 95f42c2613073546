"""Shapes that generated trajectories take, beside those of the reference: arrays of CA positions or of any features.

Positions are (T, N, 3), nm. Fits look at 20,000 evenly spaced frames at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from mdtraj.geometry.distance import compute_distances_core
from openmm.unit import MOLAR_GAS_CONSTANT_R, kelvin, kilojoules_per_mole
from scipy.stats import pearsonr
from sklearn.decomposition import PCA

from openmm_starmd.evaluation.metrics.arrays import as_trajectories, jensen_shannon, subsample
from openmm_starmd.geometry import rigid

GAS_CONSTANT = MOLAR_GAS_CONSTANT_R.value_in_unit(kilojoules_per_mole / kelvin)
PCA_BINS = 10
SURFACE_BINS = 50


def superpose(positions: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Positions (T, N, 3) moved as rigid bodies onto ``target`` (N, 3), as float32."""
    positions = np.asarray(positions)
    if positions.shape[1] < 3:
        raise ValueError(f"expected at least 3 atoms to superpose, found {positions.shape[1]}")
    if not np.isfinite(positions).all():
        raise ValueError(
            "expected finite positions, found some that are no numbers; leave these frames out and count them"
        )
    moving = torch.as_tensor(positions, dtype=torch.float64)
    motion = rigid.superpose(moving, torch.as_tensor(target, dtype=torch.float64).expand_as(moving))
    return motion[:, None].apply(moving).to(torch.float32).numpy()


def mean_structure(positions: np.ndarray) -> np.ndarray:
    """Mean (N, 3) of positions (T, N, 3), superposed on the first frame and then on the mean so far."""
    few = subsample(positions)
    if len(few) == 0:
        raise ValueError("expected at least 1 frame, found none")
    mean = few[0]
    for _ in range(2):
        mean = superpose(few, mean).mean(0, dtype=np.float64)
    return mean


@dataclass(frozen=True)
class PrincipalPlane:
    """First two principal components of a reference.

    Parameters
    ----------
    mean : ndarray, shape (N, 3)
        Structure that everything is superposed on.
    pca : sklearn.decomposition.PCA
    edges : tuple of two ndarray, shape (bins + 1,)
        Bins of the reference's range of PC1 and PC2.
    """

    mean: np.ndarray
    pca: PCA
    edges: tuple[np.ndarray, np.ndarray]

    def transform(self, positions: np.ndarray) -> np.ndarray:
        """Positions (T, N, 3) -> (T, 2): PC1 and PC2, nm."""
        return _project(self.pca, self.mean, positions)

    def counts(self, plane: np.ndarray) -> np.ndarray:
        """Points (T, 2) in each bin, shape (bins, bins), and as one more number those outside the range.

        Returns
        -------
        ndarray, shape (bins**2 + 1,)
        """
        inside = np.histogramdd(plane, self.edges)[0].ravel()
        return np.append(inside, len(plane) - inside.sum())


def _project(pca: PCA, mean: np.ndarray, positions: np.ndarray, chunk: int = 20_000) -> np.ndarray:
    parts = (superpose(positions[i : i + chunk], mean) for i in range(0, len(positions), chunk))
    return np.concatenate([pca.transform(part.reshape(len(part), -1)) for part in parts])


def fit_pca(reference: np.ndarray, bins: int = PCA_BINS) -> PrincipalPlane:
    """Principal components of superposed reference positions (T, N, 3), and bins of the plane (ATLAS: 10 per axis).

    Raises
    ------
    ValueError
        Fewer than 3 frames or 3 atoms.
    """
    if len(reference) < 3:
        raise ValueError(
            f"expected at least 3 frames of the reference to find its principal components, found {len(reference)}"
        )
    mean = mean_structure(reference)
    few = superpose(subsample(reference), mean)
    with np.errstate(invalid="ignore", divide="ignore"):  # shares of the variance of a reference that stands still
        pca = PCA(2, random_state=0).fit(few.reshape(len(few), -1).astype(np.float64))
    plane = _project(pca, mean, reference)
    low, high = plane.min(0), plane.max(0)
    high = np.maximum(high, low + 1e-6)
    return PrincipalPlane(mean, pca, tuple(np.linspace(a, b, bins + 1) for a, b in zip(low, high, strict=True)))


def pca_jsd(space: PrincipalPlane, reference: np.ndarray, generated: np.ndarray) -> float:
    """Divergence, in bits, of points (T, 2) and (T', 2) on PC1-PC2.

    All that lies outside the range of the reference that the plane was fitted to falls into one more bin, so that a
    molecule that has come apart scores badly and is not left out.
    """
    return jensen_shannon(space.counts(reference), space.counts(generated))


def recall(space: PrincipalPlane, reference: np.ndarray, generated: np.ndarray) -> float:
    """Share of the PC1-PC2 bins with points (T, 2) of the reference that have points (T', 2) of the generated."""
    occupied = space.counts(reference)[:-1] > 0
    return float((space.counts(generated)[:-1][occupied] > 0).mean())


def paired_rmsd(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Smallest RMSD of structures (P, N, 3) and (P, N, 3), pair by pair, (P,) nm (Kabsch 1976)."""
    x, y = (np.asarray(z, dtype=np.float64) for z in (first, second))
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    covariance = np.einsum("pni,pnj->pij", x, y)
    overlap = np.linalg.svd(covariance, compute_uv=False)
    overlap[:, 2] *= np.sign(np.linalg.det(covariance))  # a rotation, no mirror
    square = (x**2).sum((1, 2)) + (y**2).sum((1, 2)) - 2 * overlap.sum(1)
    return np.sqrt(np.maximum(square, 0) / x.shape[1])


def rmsd_against_lag(
    positions: np.ndarray | Sequence[np.ndarray], lags: Sequence[int], max_pairs: int = 2_000
) -> np.ndarray:
    """Mean RMSD of structures a lag apart, nm.

    Parameters
    ----------
    positions : ndarray, shape (T, N, 3), or sequence of them
    lags : sequence of int
        Frames.
    max_pairs : int
        Evenly spaced pairs of each trajectory at each lag.

    Returns
    -------
    ndarray, shape (L,)
        nan at a lag that no trajectory is longer than.
    """
    curve = []
    for lag in lags:
        found = []
        for trajectory in as_trajectories(positions):
            starts = subsample(np.arange(len(trajectory) - lag), max_pairs)
            if len(starts):
                found.append(paired_rmsd(trajectory[starts], trajectory[starts + lag]))
        curve.append(np.concatenate(found).mean() if found else np.nan)
    return np.array(curve)


def mean_absolute_difference(reference: np.ndarray, generated: np.ndarray) -> float:
    """Mean of the absolute difference of two curves of one shape, where both are numbers; nan if nowhere."""
    both = np.abs(np.asarray(generated, dtype=float) - np.asarray(reference, dtype=float))
    both = both[np.isfinite(both)]
    return float(both.mean()) if both.size else float("nan")


def rmsf(positions: np.ndarray) -> np.ndarray:
    """Root mean square fluctuation of each atom about the mean structure, (T, N, 3) -> (N,), nm."""
    few = subsample(positions)
    moved = superpose(few, mean_structure(few)).astype(np.float64)
    return np.sqrt(moved.var(0).sum(-1))


def correlation(reference: np.ndarray, generated: np.ndarray) -> float:
    """Pearson r of two profiles (N,), such as RMSF; 0 where one of them is flat (to 1e-6) and so explains nothing."""
    if len(reference) < 2 or min(np.std(reference), np.std(generated)) < 1e-6:
        return 0.0
    return float(pearsonr(reference, generated).statistic)


def ca_distances(positions: np.ndarray, min_separation: int = 3, max_pairs: int = 200) -> np.ndarray:
    """Distances of CA, features of a protein's tICA, (T, N, 3) -> (T, P), nm, float32.

    All pairs at least ``min_separation`` places apart in the sequence, or ``max_pairs`` of them, evenly spaced.
    """
    pairs = np.stack(np.triu_indices(positions.shape[1], min_separation), 1)
    if len(pairs) == 0:
        raise ValueError(
            f"expected more than {min_separation} residues for distances of CA, "
            f"found {positions.shape[1]}; use torsions"
        )
    pairs = subsample(pairs, max_pairs).astype(np.int32)
    return compute_distances_core(np.ascontiguousarray(positions, np.float32), pairs, periodic=False)


@dataclass(frozen=True)
class FreeEnergySurface:
    """Free energy on a grid of one or two features.

    Parameters
    ----------
    energy : ndarray, shape (bins,) or (bins, bins)
        kJ/mol above the lowest bin; inf where no frame has been.
    probability : ndarray, same shape
        Share of the frames in each bin.
    edges : tuple of ndarray, shape (bins + 1,)
        Of each feature, in its order.
    n_frames : int
    temperature : float
        Kelvin.
    """

    energy: np.ndarray
    probability: np.ndarray
    edges: tuple[np.ndarray, ...]
    n_frames: int
    temperature: float


def free_energy(
    points: np.ndarray,
    temperature: float,
    bins: int = SURFACE_BINS,
    limits: Sequence[tuple[float, float]] | None = None,
) -> FreeEnergySurface:
    """-kT ln p of points on a grid.

    Parameters
    ----------
    points : ndarray, shape (T, D)
        One or two features.
    temperature : float
        Kelvin.
    bins : int
        Per axis.
    limits : sequence of (float, float), optional
        Range of each feature; by default that of the points. `joint_limits` gives one for several ensembles.
    """
    limits = joint_limits(points) if limits is None else limits
    counts, edges = np.histogramdd(points, bins, range=limits)
    if counts.sum() == 0:
        raise ValueError(f"expected points within {limits}, found none of {len(points)} there")
    probability = counts / len(points)
    with np.errstate(divide="ignore"):
        energy = GAS_CONSTANT * temperature * np.log(probability.max() / probability)
    return FreeEnergySurface(energy, probability, tuple(edges), len(points), temperature)


def joint_limits(*points: np.ndarray) -> list[tuple[float, float]]:
    """Range of each feature over several arrays (T, D), never of width 0."""
    if any(p.size == 0 for p in points):
        raise ValueError(f"expected points with features, found arrays of shape {[p.shape for p in points]}")
    low, high = np.min([p.min(0) for p in points], 0), np.max([p.max(0) for p in points], 0)
    return list(zip(low, np.maximum(high, low + 1e-6), strict=True))


def free_energy_difference(reference: FreeEnergySurface, generated: FreeEnergySurface, below: float = 4.0) -> float:
    """Root mean square difference of -kT ln p, kJ/mol, over the bins of the reference below so many kT.

    Both surfaces have the same grid. Probabilities sum to one over all frames, so no constant is free. A bin where the
    generated trajectory has not been counts as visited by half a frame.
    """
    if any(not np.array_equal(a, b) for a, b in zip(reference.edges, generated.edges, strict=True)):
        raise ValueError("expected two surfaces on one grid, found different edges; give both the same limits")
    thermal = GAS_CONSTANT * reference.temperature
    low = reference.energy < below * thermal
    visited = np.maximum(generated.probability[low], 0.5 / generated.n_frames)
    difference = thermal * np.log(reference.probability[low] / visited)
    return float(np.sqrt((difference**2).mean()))
