"""Slow collective coordinates of a reference by time-lagged independent component analysis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from deeptime.decomposition import TICA
from deeptime.numeric import ZeroRankError
from mdtraj.geometry.distance import compute_distances_core

from openmm_starmd.evaluation.metrics.differences import jensen_shannon
from openmm_starmd.evaluation.metrics.samples import as_trajectories, lagged_pairs, subsample

TICA_BINS = {1: 100, 2: 50}  # per axis, of tICA-0 and of (tICA-0, tICA-1): MDGen (Jing et al. 2024)


@dataclass(frozen=True)
class SlowModes:
    """Time-lagged independent components."""

    model: object  # of features divided by ``scale``
    # (F,): standard deviation of each feature, so that those of small scale count like the others: deeptime drops
    # whatever varies by less than an absolute 1e-6
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
    """Time-lagged independent components (deeptime's TICA, kinetic map) of the reference's features (T, F).

    The lag is in frames; several trajectories are not joined across their ends. So many ``dimensions`` are kept, or
    fewer where the features have no more. A ValueError says that no trajectory is longer than the lag, or no feature
    varies.
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


def tica_edges(*tics: np.ndarray) -> dict[int, list[np.ndarray]]:
    """Bins of tICA-0, and of both of the first two components, over the joint range of arrays (T, >= 2).

    The edges of each stand under the number of components; an axis is never of width 0.
    """
    both = np.concatenate([x[:, :2] for x in tics])
    limits = [(a, max(b, a + 1e-6)) for a, b in zip(both.min(0).tolist(), both.max(0).tolist(), strict=True)]
    return {d: [np.linspace(*limit, bins + 1) for limit in limits[:d]] for d, bins in TICA_BINS.items()}


def grid_counts(points: np.ndarray, edges: Sequence[np.ndarray]) -> np.ndarray:
    """Histogram of the first components of points (T, >= D) on a grid of D axes; adds up over pieces."""
    return np.histogramdd(points[:, : len(edges)], edges)[0]


def tica_jsd(reference: np.ndarray, generated: np.ndarray) -> tuple[float, float]:
    """Divergences, in bits, of (T, >=2) and (T', >=2) on tICA-0 (100 bins) and (tICA-0, tICA-1) (50 x 50 bins)."""
    grids = tica_edges(reference, generated).values()
    return tuple(jensen_shannon(*(grid_counts(x, edges) for x in (reference, generated))) for edges in grids)
