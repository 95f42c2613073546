"""Shapes of trajectories: superposition, principal components, fluctuations and RMSD.

Positions are (T, N, 3), nm. Fits look at 20,000 evenly spaced frames at most. Sums add up over pieces of trajectories.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.decomposition import PCA

from openmm_starmd.evaluation.metrics.samples import subsample
from openmm_starmd.geometry import rigid

PCA_BINS = 10


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
    """First two principal components of a reference."""

    mean: np.ndarray  # (N, 3): structure that everything is superposed on
    pca: PCA
    edges: tuple[np.ndarray, np.ndarray]  # two of (bins + 1,): bins of the reference's range of PC1 and PC2

    def transform(self, positions: np.ndarray) -> np.ndarray:
        """Positions (T, N, 3) -> (T, 2): PC1 and PC2, nm."""
        return _project(self.pca, self.mean, positions)

    def counts(self, plane: np.ndarray) -> np.ndarray:
        """Points (T, 2) in each bin, and as one more number those outside the range, (bins**2 + 1,)."""
        inside = np.histogramdd(plane, self.edges)[0].ravel()
        return np.append(inside, len(plane) - inside.sum())


def _project(pca: PCA, mean: np.ndarray, positions: np.ndarray, chunk: int = 20_000) -> np.ndarray:
    parts = (superpose(positions[i : i + chunk], mean) for i in range(0, len(positions), chunk))
    return np.concatenate([pca.transform(part.reshape(len(part), -1)) for part in parts])


def fit_pca(reference: np.ndarray, bins: int = PCA_BINS) -> PrincipalPlane:
    """Principal components of superposed reference positions (T, N, 3), and bins of the plane (ATLAS: 10 per axis).

    A ValueError refuses fewer than 3 frames or 3 atoms.
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


def recall(reference: np.ndarray, generated: np.ndarray) -> float:
    """Share of the bins with frames of the reference that have generated ones, from `PrincipalPlane.counts` of both."""
    return float((generated[:-1][reference[:-1] > 0] > 0).mean())


def paired_rmsd(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Smallest RMSD of structures (P, N, 3) and (P, N, 3), pair by pair, (P,) nm.

    The singular values of the covariance tell the residual of the best superposition; no structure has to be turned
    (Kabsch, Acta Cryst. A34, 827, 1978).
    """
    x, y = (z - z.mean(1, keepdims=True) for z in (np.asarray(z, np.float64) for z in (first, second)))
    covariance = x.transpose(0, 2, 1) @ y
    singular = np.linalg.svd(covariance, compute_uv=False)
    singular[:, 2] *= np.sign(np.linalg.det(covariance))  # a mirror image is no superposition
    residual = (x**2).sum((1, 2)) + (y**2).sum((1, 2)) - 2 * singular.sum(1)
    return np.sqrt(np.maximum(residual, 0) / x.shape[1])


def rmsd_sums(before: np.ndarray, after: np.ndarray, max_pairs: int) -> np.ndarray:
    """Sum of the RMSD of structures (P, N, 3) and (P, N, 3), nm, and number of pairs, (2,).

    Of more than ``max_pairs`` only as many evenly spaced ones are looked at, and stand for all.
    """
    rows = subsample(np.arange(len(before)), max_pairs)
    found = paired_rmsd(before[rows], after[rows]) if len(rows) else np.zeros(0)
    return np.array([len(before) / max(1, len(found)) * found.sum(), len(before)])


def mean_rmsd(sums: np.ndarray) -> np.ndarray:
    """Mean RMSD at each lag, nm, from `rmsd_sums` (L, 2) -> (L,); nan where there is no pair."""
    return sums[:, 0] / np.where(sums[:, 1] > 0, sums[:, 1], np.nan)


def moments(positions: np.ndarray) -> np.ndarray:
    """Sums over superposed frames (T, N, 3) of x, y, z, their square and 1, (N, 5)."""
    positions = positions.astype(np.float64)
    square = (positions**2).sum((0, 2))
    return np.column_stack([positions.sum(0), square, np.full(len(square), len(positions))])


def rmsf(sums: np.ndarray) -> np.ndarray:
    """Root mean square fluctuation of each atom about its mean, nm, from `moments` (N, 5) -> (N,)."""
    mean = sums[:, :4] / sums[:, 4:]
    return np.sqrt(np.maximum(mean[:, 3] - (mean[:, :3] ** 2).sum(1), 0))


def radius_of_gyration(positions: np.ndarray) -> np.ndarray:
    """Unweighted radius of gyration, (T, A, 3) -> (T,), nm."""
    return np.sqrt(((positions - positions.mean(1, keepdims=True)) ** 2).sum(-1).mean(1))
