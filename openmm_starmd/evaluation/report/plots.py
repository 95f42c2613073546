"""Figures of arrays that the other modules of this room compute.

Functions of several ensembles take ``{name: data}``; the first is drawn in grey and meant to be the reference.
``interval`` is the time between two frames in ps, one number or ``{name: number}``. Everything is drawn into
``ax``, which is returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import LogNorm

if TYPE_CHECKING:  # the example of the README draws without the libraries that these modules need
    from openmm_starmd.evaluation.metrics.markov import ChapmanKolmogorov, ImpliedTimescales

COLOURS = ("#4d4d4d", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")  # told apart by colour-blind eyes, too
MAX_ENERGY = 15.0  # kJ/mol, 6 kT at 300 K: where 10,000 frames leave off

Interval = float | dict[str, float]


def plot_ramachandran(phi: np.ndarray, psi: np.ndarray, ax, title: str = "", bins: int = 60):
    """Ramachandran map: logarithmic density of all (phi, psi) pairs, radian, in so many bins per axis."""
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


def _nanoseconds(interval: Interval, name: str) -> float:
    return (interval[name] if isinstance(interval, dict) else interval) / 1000


def _clean(ax, columns: int = 1, place: str = "best"):
    """The look that all curves share, and a legend."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="0.92", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.legend(frameon=False, fontsize="small", ncol=columns, loc=place)
    return ax


def plot_free_energy(energy: np.ndarray, edges: Sequence[np.ndarray], ax, title: str = "", colorbar: bool = True):
    """Free energy (X, Y), kJ/mol, on the bins of tICA-0 and tICA-1, in one colour scale (0 to `MAX_ENERGY`) for all."""
    energy = np.ma.masked_invalid(energy).T
    mesh = ax.pcolormesh(*edges, energy, vmin=0, vmax=MAX_ENERGY, cmap="viridis", rasterized=True)
    ax.set(xlabel="tICA-0", ylabel="tICA-1", title=title)
    ax.spines[["top", "right"]].set_visible(False)
    if colorbar:
        extend = "max" if energy.max() > MAX_ENERGY else "neither"
        ax.figure.colorbar(mesh, ax=ax, label="free energy (kJ/mol)", extend=extend)
    return ax


def plot_rmsf(profiles: dict[str, np.ndarray], ax, title: str = ""):
    """RMSF (N,), nm, of each CA in several ensembles."""
    n = max(map(len, profiles.values()))
    for colour, (name, profile) in zip(COLOURS, profiles.items(), strict=False):
        marker = "o" if n <= 50 else None
        ax.plot(np.arange(1, len(profile) + 1), profile, color=colour, label=name, marker=marker, markersize=4)
    ax.set(xlabel="residue", ylabel="RMSF of CA (nm)", title=title, ylim=(0, None))
    if n <= 20:
        ax.set_xticks(np.arange(1, n + 1))
    return _clean(ax)


def plot_implied_timescales(timescales: dict[str, ImpliedTimescales], interval: Interval, ax, title: str = ""):
    """Implied timescales against lag with their intervals; hatched: faster than the lag, so not to be seen."""
    ax.set(xscale="log", yscale="log", xlabel="lag time (ns)", ylabel="implied timescale (ns)", title=title)
    shown = []
    for colour, (name, data) in zip(COLOURS, timescales.items(), strict=False):
        unit = _nanoseconds(interval, name)
        lags = data.lags * unit
        shown.append(lags)
        for k, (value, low, high) in enumerate(zip(data.values.T, data.low.T, data.high.T, strict=True)):
            strength = 1 - 0.6 * k / max(1, data.values.shape[1] - 1)
            label = name if k == 0 else None
            ax.plot(lags, value * unit, color=colour, alpha=strength, marker="o", markersize=4, label=label)
            ax.fill_between(lags, low * unit, high * unit, color=colour, alpha=0.2 * strength, linewidth=0)
    lags = np.array([min(map(np.min, shown)), max(map(np.max, shown))])
    bottom, top = ax.get_ylim()
    bottom = min(bottom, lags[0] / 2)
    ax.fill_between(lags, bottom, lags, facecolor="none", edgecolor="0.75", hatch="///", linewidth=0, zorder=0)
    ax.set_ylim(bottom, top)
    return _clean(ax)


def plot_chapman_kolmogorov(test: ChapmanKolmogorov, interval: float, ax, title: str = ""):
    """Probability to be in the same metastable set later: prediction (lines) and estimate (points, with intervals)."""
    lags = test.lags * interval / 1000
    for i in range(test.estimated.shape[1]):
        colour = COLOURS[(i + 1) % len(COLOURS)]
        value, low, high = (x[:, i, i] for x in (test.estimated, test.low, test.high))
        error = np.maximum([value - low, high - value], 0)  # the estimate of all may lie outside that of draws
        ax.plot(lags, test.predicted[:, i, i], color=colour, linestyle="--")
        ax.errorbar(lags, value, error, color=colour, fmt="o", markersize=5, capsize=3, label=f"set {i + 1}")
    ax.plot([], [], color="0.4", linestyle="--", label="predicted")
    ax.set(xlabel="lag time (ns)", ylabel="probability to be in the same set", ylim=(-0.02, 1.3), title=title)
    ax.set_yticks(np.linspace(0, 1, 6))
    return _clean(ax, 3, "upper center")


def plot_validity(
    valid: dict[str, np.ndarray], interval: Interval, ax, n_windows: int = 50, title: str = "valid frames"
):
    """Share of valid frames, each (T,) bool, in equal windows along time."""
    lowest = 100.0
    for colour, (name, frames) in zip(COLOURS, valid.items(), strict=False):
        windows = np.array_split(np.asarray(frames, dtype=float), min(n_windows, len(frames)))
        middle = np.cumsum([len(w) for w in windows]) - [len(w) / 2 for w in windows]
        share = 100 * np.array([w.mean() for w in windows])
        lowest = min(lowest, share.min())
        label = f"{name}: {100 * np.mean(frames):.1f} %"
        marker = "o" if len(windows) < 2 else None
        ax.plot(middle * _nanoseconds(interval, name), share, color=colour, label=label, marker=marker)
    ax.set(xlabel="time (ns)", ylabel="valid frames (%)", ylim=(min(lowest - 10, 80), 101), title=title)
    return _clean(ax, len(valid), "lower center")


def plot_decorrelation(curves: dict[str, np.ndarray], lags: np.ndarray, ax, title: str = ""):
    """Autocorrelation (L, K) of torsions at ``lags`` (L,), ps: mean, and the band of the middle 80 % of them."""
    for colour, (name, curve) in zip(COLOURS, curves.items(), strict=False):
        low, high = np.quantile(curve, [0.1, 0.9], axis=1)
        ax.plot(lags / 1000, curve.mean(1), color=colour, label=name)
        ax.fill_between(lags / 1000, low, high, color=colour, alpha=0.15, linewidth=0)
    ax.axhline(0, color="0.6", linewidth=0.8)
    ax.set(xscale="log", xlabel="lag time (ns)", ylabel="autocorrelation of torsions", title=title)
    return _clean(ax)


def plot_torsion_jsd(divergences: dict[str, np.ndarray], names: Sequence[str], ax, title: str = ""):
    """Bars of the Jensen-Shannon divergence, bits, (K,) of each torsion, for several ensembles (MD halves first)."""
    width = 0.8 / len(divergences)
    places = np.arange(len(names))
    for i, (colour, (name, values)) in enumerate(zip(COLOURS, divergences.items(), strict=False)):
        ax.bar(places - 0.4 + (i + 0.5) * width, values, width, color=colour, label=name)
    size = "medium" if len(names) <= 20 else "x-small"
    ax.set_xticks(places, names, rotation=60, ha="right", rotation_mode="anchor", fontsize=size)
    highest = max(float(np.max(v, initial=0)) for v in divergences.values())
    ax.set(ylabel="JSD to MD (bits)", title=title, ylim=(0, max(1.2 * highest, 0.01)))
    _clean(ax, len(divergences), "upper center").grid(visible=False, axis="x")
    return ax
