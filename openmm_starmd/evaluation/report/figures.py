"""Figures of an `Evaluation`, for its page."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from deeptime.util.exceptions import NotConvergedWarning
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from openmm_starmd.evaluation.metrics import arrays as metrics
from openmm_starmd.evaluation.metrics import kinetics, markov
from openmm_starmd.evaluation.metrics import shapes as ensemble
from openmm_starmd.evaluation.report import plots
from openmm_starmd.evaluation.scoring.measures import surface, torsion_divergences

if TYPE_CHECKING:
    from openmm_starmd.evaluation.report.evaluation import Evaluation
    from openmm_starmd.evaluation.scoring.judge import Judge

MAX_POINTS = 20_000
MAX_LAGS = 300
N_SETS = 3
MD, GENERATED = "MD", "generated"


@dataclass(frozen=True)
class Drawn:
    """A figure with its words; ``wide`` ones take the whole width of the page. None where there is nothing to draw."""

    title: str
    caption: str
    figure: Figure | None
    wide: bool = False


def _both(judge: Judge) -> dict[str, list]:
    return {MD: judge.reference, GENERATED: judge.generated}


def _axes(n: int = 1):
    """One figure for half the page, or two side by side for all of it."""
    figure, axes = plt.subplots(1, n, figsize=(5.2 * n, 3.9), layout="constrained")
    return figure, axes


def _states(judge: Judge, name: str) -> list[np.ndarray]:
    return [frames.states for frames in _both(judge)[name]]


def ramachandran(judge: Judge) -> tuple[Figure, str] | None:
    """phi and psi of every residue that has both."""
    labels = judge.projection.torsions.names
    residues = [name.split()[1] for name in labels if name.startswith("phi") and f"psi {name.split()[1]}" in labels]
    if not residues:
        return None
    figure, axes = _axes(2)
    for ax, (title, side) in zip(axes, _both(judge).items(), strict=True):
        angles = metrics.subsample(np.concatenate([frames.angles for frames in side]), MAX_POINTS)
        phi, psi = (angles[:, [labels.index(f"{kind} {r}") for r in residues]] for kind in ("phi", "psi"))
        for mesh in plots.plot_ramachandran(phi, psi, ax, title).collections:
            mesh.set_rasterized(True)
    return figure, "Backbone torsions of all residues together, logarithmic density."


def free_energies(judge: Judge) -> tuple[Figure, str]:
    """Both sides on the same bins."""
    figure, axes = _axes(2)
    bins, temperature = metrics.TICA_BINS_2D, judge.temperature
    for i, (ax, (title, side)) in enumerate(zip(axes, _both(judge).items(), strict=True)):
        tics = np.concatenate([frames.tics[:, :2] for frames in side])
        counts, *edges = np.histogram2d(*tics.T, bins, judge.limits)
        plots.plot_free_energy(surface(counts, edges, temperature), ax, title, ("tICA-0", "tICA-1"), colorbar=i == 1)
    return figure, "On the two slowest modes of the reference; dark is most populated."


def torsion_bars(judge: Judge) -> tuple[Figure, str] | None:
    """Divergence of each torsion, beside that of MD against itself."""
    names, counts = judge.projection.torsions.names, judge.torsion_counts()
    if not names:
        return None
    divergences = {
        "MD against itself": torsion_divergences(counts["half"], counts["other half"]),
        GENERATED: torsion_divergences(counts["reference"], counts["generated"]),
    }
    figure, ax = plt.subplots(figsize=(10.4, 3.9), layout="constrained")
    most = 40
    chosen = np.sort(np.argsort(-divergences[GENERATED])[:most])
    shown = {name: values[chosen] for name, values in divergences.items()}
    plots.plot_torsion_jsd(shown, [names[i] for i in chosen], ax)
    which = "Each torsion" if len(names) <= most else f"The {most} torsions that differ most, of {len(names)}"
    return figure, f"{which}: 0 for equal distributions, 1 for disjoint ones."


def fluctuations(judge: Judge) -> tuple[Figure, str] | None:
    """RMSF of CA; very short peptides are not compared by these."""
    if not judge.projection.by_alpha:
        return None
    figure, ax = _axes()
    shapes = {name: np.concatenate([frames.shape for frames in side]) for name, side in _both(judge).items()}
    plots.plot_rmsf({name: ensemble.rmsf(shape) for name, shape in shapes.items()}, ax)
    return figure, "Root mean square fluctuation about the mean structure."


def decorrelation(judge: Judge) -> tuple[Figure, str] | None:
    """Autocorrelation of the torsions over a tenth of the shorter side."""
    if not judge.projection.torsions.names:
        return None
    lag, periods = judge.projection.lag_time, judge.projection.torsions.periods
    longest = max(2, judge.multiples[-1]) * lag
    curves, intervals = {}, {}
    for name, side in _both(judge).items():
        step = max(1, int(longest * side[0].lag / lag / MAX_LAGS))
        intervals[name] = step * lag / side[0].lag
        angles = [frames.angles[::step].astype(float) for frames in side]
        reach = min(int(longest / intervals[name]), max(map(len, angles)) - 1)
        curves[name] = kinetics.decorrelation(angles, max(1, reach), periods)
    figure, ax = _axes()
    plots.plot_decorrelation(curves, intervals, ax)
    return figure, "How long torsions remember: mean, and the middle 80 % of them."


def timescales(judge: Judge) -> tuple[Figure, str]:
    """Implied timescales of both sides on the same states."""
    found, intervals = {}, {}
    for name, side in _both(judge).items():
        lags = [multiple * side[0].lag for multiple in judge.multiples[:6]]
        found[name] = markov.implied_timescales(_states(judge, name), lags, 2)
        intervals[name] = judge.projection.lag_time / side[0].lag
    figure, ax = _axes()
    plots.plot_implied_timescales(found, intervals, ax)
    ax.xaxis.set_minor_formatter(NullFormatter())
    return figure, "Of Markov state models on the reference's states, with 95 % intervals; level curves can be trusted."


def chapman_kolmogorov(judge: Judge) -> tuple[Figure, str]:
    """The same metastable sets, of the reference, on both sides."""
    msm = markov.estimate_msm(_states(judge, MD), judge.reference[0].lag)
    sets = markov.metastable_sets(msm, min(N_SETS, msm.n_states), judge.projection.states.n_clusters)
    figure, axes = _axes(2)
    for ax, (name, side) in zip(axes, _both(judge).items(), strict=True):
        lag = side[0].lag
        longest = max(map(len, side)) // lag
        multiples = [k for k in (1, 2, 3, 5, 8) if k < longest // 2]
        test = markov.chapman_kolmogorov(_states(judge, name), lag, sets, multiples)
        plots.plot_chapman_kolmogorov(test, judge.projection.lag_time / lag, ax, name)
    return figure, "Does a Markov model of the shortest lag predict longer ones? Points should lie on the lines."


def validity(judge: Judge) -> tuple[Figure, str]:
    """BioEmu's filter along time, first trajectory of each side."""
    intervals = {name: judge.projection.lag_time / side[0].lag for name, side in _both(judge).items()}
    figure, ax = _axes()
    plots.plot_validity({n: side[0].checks[:, 0] > 0 for n, side in _both(judge).items()}, intervals, ax, title="")
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


def figures(evaluation: Evaluation) -> Iterator[Drawn]:
    """All figures that this comparison has data for, one after another, or why one is not there."""
    for title, draw, wide in FIGURES:
        if draw in KINETIC and not evaluation.judge.kinetic:
            yield Drawn(title, "Not drawn: kinetics are not scored.", None, wide)
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotConvergedWarning)
                drawn = draw(evaluation.judge)
        except ValueError as error:
            plt.close("all")
            yield Drawn(title, f"Not drawn: {error}.", None, wide)
            continue
        if drawn is not None:
            yield Drawn(title, drawn[1], drawn[0], wide)
