"""What a score means: trajectories that know nothing, and MD against itself. Of any array (T, ...)."""

from __future__ import annotations

import numpy as np


def frozen(values: np.ndarray) -> np.ndarray:
    """The first frame at every time: what a model that never moves would score."""
    return np.repeat(values[:1], len(values), axis=0)


def shuffled(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """The frames in random order: right distributions, no kinetics."""
    return np.random.default_rng(seed).permutation(values)


def halves(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and second half, of equal length (a last odd frame is left out): MD as its own model."""
    half = len(values) // 2
    if half == 0:
        raise ValueError(f"expected at least 2 frames to halve, found {len(values)}")
    return values[:half], values[half : 2 * half]
