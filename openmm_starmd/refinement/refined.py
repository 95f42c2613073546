"""The result of a refinement: what the force field says beside the learned run, and what cannot be judged."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from openmm_starmd.evaluation.metrics.markov import ChapmanKolmogorov
from openmm_starmd.evaluation.metrics.samples import percentile_interval
from openmm_starmd.files import replacing, write_json

CANNOT = "cannot be judged"


@dataclass(frozen=True)
class Quantity:
    """One number of both sides."""

    name: str
    unit: str
    value: float  # of the force field
    low: float  # limits of its posterior interval
    high: float
    learned: float = math.nan  # of the learned run; nan where there is none
    learned_low: float = math.nan
    learned_high: float = math.nan


@dataclass(frozen=True)
class Shortage:
    """One reason why nothing can be judged, and the nanoseconds of MD (of all starts together) that may cure it."""

    reason: str
    more_nanoseconds: float
    wide: bool = False  # an interval is too wide, and nothing else is wrong with it


@dataclass(frozen=True, eq=False)
class Refinement:
    """Populations, free energies and rates of the force field beside those of a learned run.

    Parameters
    ----------
    quantities : tuple of Quantity
        Of the connected states. Where ``judged`` is false they are no result: `table` does not show them.
    shortages : tuple of Shortage
        Why nothing can be judged; empty where it can.
    nanoseconds : float
        MD of all starts together.
    horizon : float
        ns. A state that neither the learned run nor the swarm has visited, and that MD reaches from the visited ones
        in this mean time or later, can have been missed (95 %).
    unseen_population : float
        Limit (95 %) of the population of states that MD left and never entered; they do not count.
    lag : float
        ps, of the Markov state model.
    lags, timescales : ndarray, shape (L,)
        ps and ns: the slowest implied timescale against the lag.
    chapman_kolmogorov : ChapmanKolmogorov, optional
        Between the metastable sets; lags in frames.
    sets : ndarray of int, shape (n_states,)
        Metastable set of each state, the most populated is 0; -1 for states that do not count.
    states : tuple of ndarray of int
        State of every frame of the swarm.
    populations : ndarray, shape (R, n_states)
        Of the states: maximum likelihood, then R - 1 draws from the posterior.
    settings : dict
    """

    quantities: tuple[Quantity, ...]
    shortages: tuple[Shortage, ...]
    nanoseconds: float
    horizon: float
    unseen_population: float
    lag: float
    lags: np.ndarray
    timescales: np.ndarray
    chapman_kolmogorov: ChapmanKolmogorov | None
    sets: np.ndarray
    states: tuple[np.ndarray, ...]
    populations: np.ndarray
    settings: dict = field(default_factory=dict)

    @property
    def judged(self) -> bool:
        """True if the swarm is long enough, connected and Markovian."""
        return not self.shortages

    @property
    def more_nanoseconds(self) -> float:
        """MD, of all starts together, that is missing, at least; 0 where all can be judged."""
        return max((s.more_nanoseconds for s in self.shortages), default=0.0)

    @property
    def verdict(self) -> str:
        """One paragraph for people."""
        if self.judged:
            return (
                f"The result holds for the states that the swarm of {self.nanoseconds:.4g} ns visited. A state that it "
                f"did not visit can have been missed if MD needs {self.horizon:.3g} ns or more to reach it."
            )
        reasons = "; ".join(shortage.reason for shortage in self.shortages)
        return (
            f"The result {CANNOT}: {reasons}. At least {self.more_nanoseconds:.3g} ns more are needed, of all starts "
            f"together, to the {self.nanoseconds:.4g} ns that there are."
        )

    def __getitem__(self, name: str) -> Quantity:
        """Quantity of a name, such as "population of set 0"."""
        for quantity in self.quantities:
            if quantity.name == name:
                return quantity
        raise KeyError(f"no quantity {name!r}; there are {', '.join(q.name for q in self.quantities)}")

    def weights(self) -> list[np.ndarray]:
        """Equilibrium weight of every frame of the swarm, one array (T,) a trajectory; all sum to one."""
        return [self._share(0)[s] for s in self.states]

    def _share(self, draw: int) -> np.ndarray:
        frames = np.bincount(np.concatenate(self.states), minlength=len(self.sets))
        return self.populations[draw] / np.maximum(frames, 1)

    def expectation(self, values: Sequence[np.ndarray], confidence: float = 0.95) -> tuple[float, float, float]:
        """Equilibrium mean of an observable, with the limits of its posterior interval.

        Parameters
        ----------
        values : sequence of ndarray, shape (T,)
            The observable in every frame of the swarm, one array a trajectory.
        confidence : float
        """
        sums = np.bincount(np.concatenate(self.states), np.concatenate(values), minlength=len(self.sets))
        means = np.array([self._share(draw) @ sums for draw in range(len(self.populations))])
        low, high = percentile_interval(means[1:] if len(means) > 1 else means, confidence)
        return float(means[0]), float(low), float(high)

    def table(self) -> list[tuple[str, str, str]]:
        """Rows of name, force field and learned run, in words."""

        def written(value, low, high):
            return "-" if math.isnan(value) else f"{value:.3g} ({low:.3g} to {high:.3g})"

        rows = []
        for q in self.quantities:
            name = f"{q.name}, {q.unit}" if q.unit else q.name
            physics = written(q.value, q.low, q.high) if self.judged else CANNOT
            rows.append((name, physics, written(q.learned, q.learned_low, q.learned_high)))
        return rows

    def markdown(self) -> str:
        """The whole result as text."""
        lines = ["# Refined by molecular dynamics\n", self.verdict + "\n"]
        lines += ["| | force field | learned run |", "|---|---|---|", *(f"| {' | '.join(r)} |" for r in self.table())]
        lines.append(f"\nMarkov state model at a lag of {self.lag:g} ps. Slowest implied timescale by lag:\n")
        lines += ["| lag, ps | timescale, ns |", "|---|---|"]
        lines += [f"| {lag:g} | {time:.3g} |" for lag, time in zip(self.lags, self.timescales, strict=True)]
        if self.chapman_kolmogorov is not None:
            lines.append(f"\nLargest error of the Chapman-Kolmogorov test: {self.chapman_kolmogorov.error:.3f}.")
        if self.unseen_population:
            lines.append(
                "\nMD left some starting states and never entered them; they hold at most "
                f"{self.unseen_population:.2g} of the population (95 %) and do not count."
            )
        return "\n".join(lines) + "\n"

    def write(self, folder: str | os.PathLike) -> Path:
        """Write ``refined.md`` and ``refined.json``; the path of the first."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "judged": self.judged,
            "verdict": self.verdict,
            "more nanoseconds": self.more_nanoseconds,
            "nanoseconds": self.nanoseconds,
            "horizon, ns": self.horizon,
            "unseen population": self.unseen_population,
            "lag, ps": self.lag,
            "implied timescales, ns": dict(zip(map(str, self.lags.tolist()), self.timescales.tolist(), strict=True)),
            "quantities": [asdict(q) for q in self.quantities],
            "settings": self.settings,
        }
        write_json(content, folder / "refined.json")
        with replacing(folder / "refined.md") as partial:
            partial.write_text(self.markdown(), encoding="utf-8")
        return folder / "refined.md"
