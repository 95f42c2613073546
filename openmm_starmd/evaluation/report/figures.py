"""Figures of a `Comparison`, for its page."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from deeptime.util.exceptions import NotConvergedWarning
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from openmm_starmd.evaluation.metrics import dihedrals, kinetics, markov, shapes
from openmm_starmd.evaluation.metrics.differences import free_energy
from openmm_starmd.evaluation.metrics.samples import subsample
from openmm_starmd.evaluation.metrics.slow_modes import grid_counts
from openmm_starmd.evaluation.report import plots
from openmm_starmd.evaluation.scoring.comparison import Comparison, total
from openmm_starmd.evaluation.scoring.measures import torsion_counts

MAX_POINTS = 20_000
MAX_BARS = 40
N_LAGS = 30
N_SETS = 3
MD, GENERATED = "MD", "generated"


@dataclass(frozen=True)
class Drawn:
    """A figure with its words; ``wide`` ones take the whole width of the page. None where there is nothing to draw."""

    title: str
    caption: str
    figure: Figure | None
    wide: bool = False


def _both(comparison: Comparison) -> dict[str, list]:
    return {MD: comparison.reference, GENERATED: comparison.generated}


def _intervals(comparison: Comparison) -> dict[str, float]:
    """Interval between the frames of each side, ps."""
    return {name: comparison.projection.lag_time / side[0].lag for name, side in _both(comparison).items()}


def _axes(n: int = 1):
    """One figure for half the page, or two side by side for all of it."""
    return plt.subplots(1, n, figsize=(5.2 * n, 3.9), layout="constrained")


def _joined(side: list, name: str) -> np.ndarray:
    return np.concatenate([getattr(frames, name) for frames in side])


def _states(side: list) -> list[np.ndarray]:
    return [frames.states for frames in side]


def ramachandran(comparison: Comparison) -> tuple[Figure, str] | None:
    """Ramachandran maps of every residue that has phi and psi."""
    labels = comparison.projection.torsions.names
    residues = [name.split()[1] for name in labels if name.startswith("phi") and f"psi {name.split()[1]}" in labels]
    if not residues:
        return None
    figure, axes = _axes(2)
    for ax, (title, side) in zip(axes, _both(comparison).items(), strict=True):
        angles = subsample(_joined(side, "angles"), MAX_POINTS)
        phi, psi = (angles[:, [labels.index(f"{kind} {r}") for r in residues]] for kind in ("phi", "psi"))
        for mesh in plots.plot_ramachandran(phi, psi, ax, title).collections:
            mesh.set_rasterized(True)
    return figure, "Backbone torsions of all residues together, logarithmic density."


def free_energies(comparison: Comparison) -> tuple[Figure, str]:
    """Free energy of both sides on the same bins."""
    figure, axes = _axes(2)
    edges = comparison.edges[2]
    for i, (ax, (title, side)) in enumerate(zip(axes, _both(comparison).items(), strict=True)):
        energy = free_energy(grid_counts(_joined(side, "tics"), edges), comparison.temperature)
        plots.plot_free_energy(energy, edges, ax, title, colorbar=i == 1)
    return figure, "On the two slowest modes of the reference; dark is most populated."


def torsion_bars(comparison: Comparison) -> tuple[Figure, str] | None:
    """Divergence of each torsion, beside that of MD against itself."""
    names, count = comparison.projection.torsions.names, torsion_counts(comparison.projection)
    if not names:
        return None
    half, _, thin = comparison.halves
    pairs = {"MD against itself": (half, thin), GENERATED: (comparison.reference, comparison.generated)}
    divergences = {n: dihedrals.torsion_jsd(*(total(count, side) for side in sides)) for n, sides in pairs.items()}
    figure, ax = plt.subplots(figsize=(10.4, 3.9), layout="constrained")
    chosen = np.sort(np.argsort(-divergences[GENERATED])[:MAX_BARS])
    plots.plot_torsion_jsd({n: values[chosen] for n, values in divergences.items()}, [names[i] for i in chosen], ax)
    few = len(names) <= MAX_BARS
    which = "Each torsion" if few else f"The {MAX_BARS} torsions that differ most, of {len(names)}"
    return figure, f"{which}: 0 for equal distributions, 1 for disjoint ones."


def fluctuations(comparison: Comparison) -> tuple[Figure, str] | None:
    """RMSF of CA; very short peptides are not compared by these."""
    if not comparison.projection.by_alpha:
        return None
    figure, ax = _axes()
    profiles = {n: shapes.rmsf(total(lambda f: shapes.moments(f.shape), s)) for n, s in _both(comparison).items()}
    plots.plot_rmsf(profiles, ax)
    return figure, "Root mean square fluctuation about the mean structure."


def decorrelation(comparison: Comparison) -> tuple[Figure, str] | None:
    """Autocorrelation of the torsions over a tenth of the shorter side."""
    torsions = comparison.projection.torsions
    if not torsions.names:
        return None
    multiples = np.unique(np.geomspace(1, max(2, comparison.multiples[-1]), N_LAGS).round().astype(int))
    curves = {}
    for name, side in _both(comparison).items():
        sums = 0.0
        for frames in side:
            features = dihedrals.torsion_features(frames.angles, torsions.periods.astype(np.float32))
            pairs = [(features[: -k * frames.lag], features[k * frames.lag :]) for k in multiples]
            sums = sums + np.stack([kinetics.correlation_sums(*pair) for pair in pairs])
        curves[name] = kinetics.decorrelation(sums).reshape(len(multiples), 2, -1).mean(1)  # of cosine and sine
    figure, ax = _axes()
    plots.plot_decorrelation(curves, multiples * comparison.projection.lag_time, ax)
    return figure, "How long torsions remember: mean, and the middle 80 % of them."


def timescales(comparison: Comparison) -> tuple[Figure, str]:
    """Implied timescales of both sides on the same states."""
    found = {
        name: markov.implied_timescales(_states(side), [k * side[0].lag for k in comparison.multiples[:6]], 2)
        for name, side in _both(comparison).items()
    }
    figure, ax = _axes()
    plots.plot_implied_timescales(found, _intervals(comparison), ax)
    ax.xaxis.set_minor_formatter(NullFormatter())
    return figure, "Of Markov state models on the reference's states, with 95 % intervals; level curves can be trusted."


def chapman_kolmogorov(comparison: Comparison) -> tuple[Figure, str]:
    """Chapman-Kolmogorov test of both sides between the metastable sets of the reference."""
    lag, n_states = comparison.reference[0].lag, comparison.projection.states.n_clusters
    msm = markov.fit_counts(markov.transition_counts(_states(comparison.reference), lag, n_states)[0], lag)
    sets = markov.metastable_sets(msm, min(N_SETS, msm.n_states), n_states)
    figure, axes = _axes(2)
    for ax, (name, side) in zip(axes, _both(comparison).items(), strict=True):
        lag = side[0].lag
        longest = max(map(len, side)) // lag
        multiples = [k for k in (1, 2, 3, 5, 8) if k < longest // 2]
        test = markov.chapman_kolmogorov(_states(side), lag, sets, multiples)
        plots.plot_chapman_kolmogorov(test, comparison.projection.lag_time / lag, ax, name)
    return figure, "Does a Markov model of the shortest lag predict longer ones? Points should lie on the lines."


def validity(comparison: Comparison) -> tuple[Figure, str]:
    """BioEmu's filter along time, first trajectory of each side."""
    figure, ax = _axes()
    valid = {name: side[0].checks[:, 0] > 0 for name, side in _both(comparison).items()}
    plots.plot_validity(valid, _intervals(comparison), ax, title="")
    return figure, "Frames of the first trajectory of each side that pass BioEmu's filter."


FIGURES: tuple[tuple[str, Callable, bool], ...] = (
    ("Ramachandran maps", ramachandran, True),
    ("Free energy on the slowest modes", free_energies, True),
    ("Divergence of each torsion", torsion_bars, True),
    ("RMSF", fluctuations, False),
    ("Decorrelation of torsions", decorrelation, False),
    ("Implied timescales", timescales, False),
    ("Validity along time", validity, False),
    ("Chapman-Kolmogorov test", chapman_kolmogorov, True),
)
KINETIC = (decorrelation, timescales, chapman_kolmogorov)


def figures(comparison: Comparison) -> Iterator[Drawn]:
    """All figures that a comparison has data for, one after another, or why one is not there."""
    for title, draw, wide in FIGURES:
        if draw in KINETIC and not comparison.kinetic:
            yield Drawn(title, "Not drawn: kinetics are not scored.", None, wide)
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotConvergedWarning)
                drawn = draw(comparison)
        except ValueError as error:
            plt.close("all")
            yield Drawn(title, f"Not drawn: {error}.", None, wide)
            continue
        if drawn is not None:
            yield Drawn(title, drawn[1], drawn[0], wide)
