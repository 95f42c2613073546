"""Scores of both sides: value, interval, MD against itself and null models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from openmm_starmd.evaluation.metrics import kinetics as dynamics
from openmm_starmd.evaluation.metrics import markov
from openmm_starmd.evaluation.scoring.measures import (
    KINETICS,
    VALIDITY,
    distributions,
    kinetics,
    torsion_counts,
    transition_counts,
    validity,
)
from openmm_starmd.evaluation.scoring.projection import Frames, Projection, halves, join, split
from openmm_starmd.evaluation.scoring.scores import AMBER, GREEN, NONE, RED, UNCLEAR, Measure, Score, estimate, light
from openmm_starmd.trajectories.sides import Progress

N_PIECES = 20
SAMPLES = "independent samples of tICA-0"
CONNECTED = "connected share of the transitions"
MAX_MULTIPLE = 100
NULL_FRAMES = 20_000


class Judge:
    """Everything that a score is worked out from.

    Parameters
    ----------
    projection : Projection
    generated : list of Frames
        As ``projection.frames`` gives them.
    temperature : float
        K, of free energies.
    kinetic : bool
        Whether pairs of generated frames a lag apart mean anything.

    Attributes
    ----------
    multiples : list of int
        Lag times of the curves, in units of the common lag.
    """

    def __init__(self, projection: Projection, generated: list[Frames], temperature: float, kinetic: bool = True):
        self.projection, self.temperature, self.kinetic = projection, temperature, kinetic
        self.reference, self.generated = projection.reference, generated
        longest = min(max(len(frames) // frames.lag for frames in side) for side in (self.reference, generated))
        most = int(np.clip(longest // 10, 1, MAX_MULTIPLE)) if kinetic else 1
        self.multiples = sorted(set(np.geomspace(1, most, 8).round().astype(int).tolist()))
        tics = np.concatenate([frames.tics[:, :2] for frames in (*self.reference, *generated)])
        self.limits = [(a, max(b, a + 1e-6)) for a, b in zip(tics.min(0).tolist(), tics.max(0).tolist(), strict=True)]
        self.measures = [
            *distributions(projection, self.limits, temperature),
            *(kinetics(projection, self.multiples) if kinetic else ()),
            *validity(projection),
        ]
        self._pieces = {"reference": self._split(self.reference), "generated": self._split(generated)}
        self._halves()
        self._nulls()

    def _split(self, trajectories):
        return split(trajectories, N_PIECES, self.multiples[-1] * trajectories[0].lag)

    def _halves(self):
        """MD against itself: files against files, or the second half of the only one against the first."""
        one, two = halves(self.reference)
        n_frames = sum(map(len, self.generated))
        share = min(1.0, n_frames / sum(map(len, two)))
        thin = [f.rows(np.linspace(0, len(f) - 1, max(1, round(share * len(f)))).astype(int)) for f in two]
        self._half, self._other_half, self._thin_half = self._split(one), self._split(two), self._split(thin)

    def _nulls(self):
        """Frames of the reference, as many and as far apart as the generated ones."""
        n, lag = min(NULL_FRAMES, sum(map(len, self.generated))), self.generated[0].lag
        rng, lengths = np.random.default_rng(0), [len(frames) for frames in self.reference]
        order = rng.permutation(sum(lengths))[:n] if n <= sum(lengths) else rng.integers(sum(lengths), size=n)
        frozen = self.reference[0].rows(np.zeros(n, dtype=int))
        shuffled = join(self.reference).rows(order)
        self._null = {"frozen": [replace(frozen, lag=lag)], "shuffled": [replace(shuffled, lag=lag)]}

    def score(self, measure: Measure) -> Score:
        """One score with all that it has to be seen beside."""

        def sums(pieces):
            return [measure.summarize(piece) for piece in pieces]

        with np.errstate(invalid="ignore", divide="ignore"):
            reference = np.sum(sums(self._pieces["reference"]), axis=0)
            generated = estimate(sums(self._pieces["generated"]), measure, reference)
            other = self._thin_half if measure.per_frame else self._other_half
            oracle = estimate(sums(other), measure, np.sum(sums(self._half), axis=0))
            nulls = {
                name: float(measure.compare(reference, np.sum(sums(frames), axis=0)))
                for name, frames in self._null.items()
            }
        lamp = light(measure, generated, oracle, nulls)
        values = (*generated, oracle.value, nulls["frozen"], nulls["shuffled"])
        return Score(measure.name, measure.group, *values, measure.unit, measure.direction, lamp)

    def scores(self, progress: Progress) -> list[Score]:
        """All of them."""
        found = []
        for number, measure in enumerate(self.measures):
            progress(f"scoring {measure.name}", number / len(self.measures))
            found.append(self.score(measure))
        progress("scoring drift and balance", 1.0)
        kinetic = (self._connection, self._balance, self._drifts) if self.kinetic else ()
        return [*found, *(score for rest in (*kinetic, self._samples) for score in rest())]

    def torsion_counts(self) -> dict[str, np.ndarray]:
        """Histogram (K, bins) of each torsion: of both sides, and of both halves of the reference."""
        count = torsion_counts(self.projection)
        sides = (self.reference, self.generated, self._half, self._thin_half)
        return {
            n: _total(count, s) for n, s in zip(("reference", "generated", "half", "other half"), sides, strict=True)
        }

    def _drifts(self) -> list[Score]:
        size = float(np.mean([frames.gyration.mean() for frames in self.reference]))
        series = (
            ("drift of sound frames", "share", 0.05, lambda frames: frames.checks[:, 0]),
            ("drift of radius of gyration", "nm", 0.1 * size, lambda frames: frames.gyration),
        )
        found = []
        for name, unit, tolerance, pick in series:
            value, error = drift([pick(frames) for frames in self.generated])
            oracle, _ = drift([pick(frames) for frames in self.reference])
            if math.isnan(value):
                continue
            steady = abs(value) <= max(1.96 * error, abs(oracle) if math.isfinite(oracle) else 0.0)
            lamp = GREEN if steady else AMBER if abs(value) <= tolerance else RED
            low, high = value - 1.96 * error, value + 1.96 * error
            found.append(Score(name, VALIDITY, value, low, high, oracle, 0.0, math.nan, unit, "lower", lamp))
        return found

    def _connection(self) -> list[Score]:
        """Share of the transitions between states that reach each other: rates are known only where it is near 1."""
        count, nan = transition_counts(self.projection), math.nan
        value, oracle = (
            markov.connected_share(_total(count, self._pieces[side])) for side in ("generated", "reference")
        )
        return [Score(CONNECTED, KINETICS, value, nan, nan, oracle, nan, nan, "share", "higher", NONE)]

    def _balance(self) -> list[Score]:
        tests = [
            markov.detailed_balance([frames.states for frames in side], side[0].lag)
            for side in (self.generated, self.reference)
        ]
        values = [test.p_value if test.n_pairs else math.nan for test in tests]
        untold, nulls = math.isnan(values[0]), (math.nan, math.nan)
        lamp = UNCLEAR if untold else GREEN if values[0] >= 0.05 else AMBER if values[0] >= 0.001 else RED
        return [Score("detailed balance, p-value", KINETICS, values[0], *nulls, values[1], *nulls, "p", "higher", lamp)]

    def _samples(self) -> list[Score]:
        value, oracle = (
            dynamics.effective_samples([frames.tics[:, 0].astype(float) for frames in side])
            for side in (self.generated, self.reference)
        )
        nan = math.nan
        return [Score(SAMPLES, KINETICS, value, nan, nan, oracle, 1.0, nan, "", "higher", NONE)]


def _total(summarize, pieces: Sequence[Frames]) -> np.ndarray:
    return np.sum([summarize(piece) for piece in pieces], axis=0)


def drift(series: Sequence[np.ndarray], n_blocks: int = 20) -> tuple[float, float]:
    """Change of series over their lengths, mean weighted by length, and its standard error; nan if too short."""
    found = [(len(s), *dynamics.slope(s, n_blocks)) for s in series if len(s) >= 2 * n_blocks]
    if not found:
        return math.nan, math.nan
    lengths, slopes, errors = (np.array(column) for column in zip(*found, strict=True))
    weights = lengths / lengths.sum()
    return float((weights * slopes * lengths).sum()), float(np.sqrt(((weights * errors * lengths) ** 2).sum()))
