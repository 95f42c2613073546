"""Conformations of a learned run that the swarm starts from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def choose_starts(points: Sequence[np.ndarray], n_starts: int) -> list[tuple[int, int]]:
    """Trajectory and number of frames that are spread evenly along each slow coordinate of ``points`` (T, D).

    The variance of a slow eigenvalue is least where starts are drawn as stationary density times gradient of the
    eigenfunction (Hinrichs and Pande 2007), and this product is constant across a barrier: an even spread puts as many
    starts on the barrier as in the basins. The coordinates take turns, the slowest first. No frame is named twice, so a
    run of fewer frames gives fewer starts.
    """
    everything = np.concatenate(points)
    order = np.argsort(everything, axis=0, kind="stable")
    free = np.ones(len(everything), dtype=bool)
    n_starts, n_axes = min(n_starts, len(everything)), everything.shape[1]
    chosen = []
    for axis in range(n_axes):
        values = everything[order[:, axis], axis]
        for wished in np.linspace(values[0], values[-1], (n_starts - axis + n_axes - 1) // n_axes):
            left = np.flatnonzero(free[order[:, axis]])
            frame = order[left[np.abs(values[left] - wished).argmin()], axis]
            free[frame] = False
            chosen.append(int(frame))
    ends = np.cumsum([len(p) for p in points])
    numbers = np.searchsorted(ends, chosen, side="right")
    return [(int(k), int(frame - ends[k] + len(points[k]))) for k, frame in zip(numbers, chosen, strict=True)]
