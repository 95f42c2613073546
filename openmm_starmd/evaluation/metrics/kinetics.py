"""Memory of trajectories, from sums over pairs of frames a lag apart that add up over pieces."""

from __future__ import annotations

import numpy as np


def correlation_sums(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Sums of x, y, x y, x^2, y^2 and 1 over pairs of features, (P, F) twice -> (6, F)."""
    x, y = before, after
    sums = [part.sum(0, dtype=np.float64) for part in (x, y, x * y, x * x, y * y)]
    return np.stack([*sums, np.full(x.shape[1], len(x))])


def decorrelation(sums: np.ndarray) -> np.ndarray:
    """Autocorrelation at each lag, (L, F), from `correlation_sums` (L, 6, F); 0 for what does not vary."""
    n = np.maximum(sums[:, 5], 1)
    x, y, xy, xx, yy = (sums[:, i] / n for i in range(5))
    spread = np.sqrt(np.maximum((xx - x**2) * (yy - y**2), 0))
    return np.where(spread > 1e-8, (xy - x * y) / np.maximum(spread, 1e-8), 0.0)


def covariance_sums(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Sums of products of (1, x, y) over pairs of features, (P, F) twice -> (2 F + 1, 2 F + 1)."""
    rows = np.concatenate([np.ones((len(before), 1)), before.astype(np.float64), after.astype(np.float64)], 1)
    return rows.T @ rows


def vamp2(sums: np.ndarray) -> float:
    """VAMP-2 score (Wu and Noe 2020) from `covariance_sums`: sum of squared singular values of the whitened C_0tau.

    The constant function, which adds 1 to deeptime's ``score``, is left out: 0 means that nothing is remembered after a
    lag, n that n processes stand still. Fitted and scored on the same frames, so compare trajectories of like length.
    """
    n, d = sums[0, 0], (len(sums) - 1) // 2
    covariance = sums / n - np.outer(sums[0], sums[0]) / n**2
    xx, xy, yy = covariance[1 : d + 1, 1 : d + 1], covariance[1 : d + 1, d + 1 :], covariance[d + 1 :, d + 1 :]
    return float(np.trace(np.linalg.pinv(xx, 1e-6) @ xy @ np.linalg.pinv(yy, 1e-6) @ xy.T))
