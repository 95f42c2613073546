"""Figures of an `Evaluation`, for its page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from openmm_starmd.evaluation import metrics, plots

if TYPE_CHECKING:
    from openmm_starmd.evaluation.judge import Judge
    from openmm_starmd.evaluation.report import Evaluation

MAX_POINTS = 20_000


@dataclass(frozen=True)
class Drawn:
    """A figure with its words; ``wide`` ones take the whole width of the page."""

    title: str
    caption: str
    figure: Figure
    wide: bool = False


def _angles(trajectories, names: list[str], labels: tuple[str, ...]) -> np.ndarray:
    columns = [labels.index(name) for name in names]
    return metrics.subsample(np.concatenate([frames.angles[:, columns] for frames in trajectories]), MAX_POINTS)


def ramachandran(judge: Judge) -> Drawn | None:
    """phi and psi of every residue that has both, on both sides."""
    labels = judge.projection.torsions.names
    residues = [name.split()[1] for name in labels if name.startswith("phi") and f"psi {name.split()[1]}" in labels]
    if not residues:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.4), layout="constrained")
    for ax, side, title in zip(axes, (judge.reference, judge.generated), ("MD", "generated"), strict=True):
        phi, psi = (_angles(side, [f"{kind} {residue}" for residue in residues], labels) for kind in ("phi", "psi"))
        plots.plot_ramachandran(phi, psi, ax, title)
    for ax in axes:
        for mesh in ax.collections:
            mesh.set_rasterized(True)
    return Drawn("Ramachandran maps", "Backbone torsions of all residues, logarithmic density.", figure, wide=True)


def figures(evaluation: Evaluation) -> Iterator[Drawn]:
    """All figures that this comparison has the data for, one after another."""
    for draw in (ramachandran,):
        drawn = draw(evaluation.judge)
        if drawn is not None:
            yield drawn
