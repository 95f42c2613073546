"""Figures of arrays that the other modules of this room compute."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm


def plot_ramachandran(phi: np.ndarray, psi: np.ndarray, ax=None, title: str = "", bins: int = 60):
    """Ramachandran map: logarithmic density of all (phi, psi) pairs.

    Parameters
    ----------
    phi, psi : ndarray, any one shape
        Radian.
    ax : matplotlib Axes, optional
        Drawn into the current figure's axes by default.
    title : str
    bins : int
        Per axis.

    Returns
    -------
    matplotlib Axes
    """
    ax = plt.gca() if ax is None else ax
    limits = [[-180, 180], [-180, 180]]
    density, x, y = np.histogram2d(
        np.degrees(np.ravel(phi)), np.degrees(np.ravel(psi)), bins=bins, range=limits, density=True
    )
    ax.pcolormesh(x, y, np.ma.masked_equal(density, 0).T, norm=LogNorm(1e-7, 1e-3), cmap="viridis")
    ax.set(xlim=(-180, 180), ylim=(-180, 180), xlabel="phi (degrees)", ylabel="psi (degrees)", title=title)
    ax.set_xticks([-180, -90, 0, 90, 180])
    ax.set_yticks([-180, -90, 0, 90, 180])
    ax.set_aspect("equal")
    return ax
