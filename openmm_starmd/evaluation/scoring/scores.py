"""A score beside its ceiling and its floor: MD against itself, and models that know nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

GREEN, AMBER, RED, UNCLEAR, NONE = "green", "amber", "red", "unclear", "none"
MEANING = {
    GREEN: "within MD's own spread",
    AMBER: "worse than MD against itself, better than models that know nothing",
    RED: "no better than models that know nothing; validity: far from MD",
    UNCLEAR: "cannot be judged: too little data",
    NONE: "for information",
}
WEAK = 0.5  # of the error of the best null model: a reference whose halves differ by more cannot judge
NEGLIGIBLE = {
    "bits": 0.01,
    "kJ/mol": 0.5,
    "share": 0.01,
    "r": 0.02,
    "ratio": 0.1,
    "correlation": 0.03,
    "nm": 0.005,
    "score": 0.05,
}
"""By unit: errors that nobody needs to care about. They are green, but for checks of validity."""
CLOSE = 0.8  # of the error of the best null model: from here on a score is no better than it
N_RESAMPLES = 100


@dataclass(frozen=True)
class Score:
    """One number about the generated trajectories and what it means."""

    name: str
    group: str  # "distributions", "kinetics" or "validity"
    value: float  # of the generated trajectories; nan where it cannot be told
    low: float  # limits of the 95 % bootstrap interval over pieces of the generated trajectories, centred on the value
    high: float
    # the same score of MD against itself: second half of the reference against the first, or half of the reference's
    # files against the others
    oracle: float
    frozen: float  # the same score of a first frame that never moves
    shuffled: float  # the same score of the reference's frames in random order
    unit: str
    direction: str  # "lower" (0 is best), "higher" (1 is best) or "one" (a ratio)
    light: str  # "green", "amber", "red", "unclear" or "none", see `MEANING`

    @classmethod
    def noted(cls, name, group, value, unit, oracle=math.nan, *, frozen=math.nan, light=NONE) -> Score:
        """A score without interval, the higher the better; for information by default."""
        nan = math.nan
        return cls(name, group, value, nan, nan, oracle, frozen, nan, unit, "higher", light)


@dataclass(frozen=True)
class Measure:
    """Recipe of a score from sums over pieces of trajectories.

    Whatever adds up over pieces (histograms, counts of transitions, covariances, numbers of sound frames) is summed
    once for every piece. Bootstrap resamples, halves and totals are then sums of these sums, however long the
    trajectories are.
    """

    name: str
    group: str
    unit: str
    direction: str  # all four as of `Score`
    summarize: Callable[..., np.ndarray]  # Frames -> ndarray that adds up over pieces
    # two such sums, of the reference and the generated trajectories -> float
    compare: Callable[[np.ndarray, np.ndarray], float]
    # null models, "frozen" or "shuffled", that a model has to beat; the others are right by construction
    floors: tuple[str, ...] = ("frozen",)
    # whether the order of the frames does not matter, so that MD may be thinned to as few frames as were generated
    per_frame: bool = True
    slack: float = 0.0  # errors up to this much above MD's own are amber where there are no floors
    most: float = math.inf  # where MD's own error is larger than this, the reference is too short to judge


def error_of(value: float, direction: str) -> float:
    """Distance from the best value: 0 is perfect; ratios as |ln|."""
    if direction == "higher":
        return 1 - value
    if direction == "one":
        return abs(math.log(value)) if value > 0 else math.inf
    return abs(value)


class Estimate(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    def errors(self, direction: str) -> tuple[float, float, float]:
        """Errors of the value, and the smallest and largest within the interval."""
        ends = [error_of(end, direction) for end in self]
        inside = direction == "one" and self.low <= 1 <= self.high
        return ends[0], 0.0 if inside else min(ends), max(ends)


def light(measure: Measure, generated: Estimate, oracle: Estimate, nulls: dict[str, float]) -> str:
    """Traffic light of a value with its interval, beside those of MD against itself and values of the null models."""
    if math.isnan(generated.value):
        return UNCLEAR
    error, best, worst = generated.errors(measure.direction)
    own, _, spread = oracle.errors(measure.direction)
    floors = [error_of(nulls[name], measure.direction) for name in measure.floors]
    floor = min((f for f in floors if not math.isnan(f)), default=math.nan)
    if measure.floors and error <= NEGLIGIBLE.get(measure.unit, 0.0):
        return GREEN
    if math.isnan(own) or own > WEAK * floor or own > measure.most:
        return UNCLEAR
    if error <= spread or (best <= spread and not worst >= floor):
        return UNCLEAR if error >= CLOSE * floor else GREEN  # MD's own spread may reach to the null models
    if math.isnan(floor):
        return AMBER if error <= spread + measure.slack else RED
    return RED if error >= CLOSE * floor else AMBER if worst < floor else UNCLEAR


def estimate(sums: list[np.ndarray], measure: Measure, reference: np.ndarray, seed: int = 0) -> Estimate:
    """Score of sums of pieces against one of the reference, with its interval by drawing pieces with replacement.

    The interval is shifted so that the median of the draws is the value: this takes out that a resample, which holds
    pieces twice, looks more uneven than the whole.
    """
    sums, generator = np.stack(sums), np.random.default_rng(seed)
    value, n = float(measure.compare(reference, sums.sum(0))), len(sums)
    drawn = (sums[generator.integers(n, size=n)].sum(0) for _ in range(N_RESAMPLES if n > 1 else 0))
    draws = np.array([found for s in drawn if math.isfinite(found := measure.compare(reference, s))])
    if not math.isfinite(value) or (n > 1 and len(draws) < N_RESAMPLES / 2):  # what one piece alone tells is unknown
        return Estimate(math.nan, math.nan, math.nan)
    if not len(draws):
        return Estimate(value, value, value)
    low, middle, high = np.quantile(draws, [0.025, 0.5, 0.975])
    shift = value - middle
    return Estimate(value, *clipped(low + shift, high + shift, measure.direction, measure.unit))


def clipped(low: float, high: float, direction: str, unit: str) -> tuple[float, float]:
    """An interval cut to what the score can be."""
    most = 1.0 if unit in ("bits", "share") or direction == "higher" else math.inf
    least = -1.0 if direction == "higher" and unit != "share" else 0.0
    return float(max(low, least)), float(min(high, most))


def percent(share: float) -> str:
    """A share in per cent, rounded but never to 0 or to all of it."""
    value = 100 * share
    if 0 < value < 0.1:
        return "under 0.1 %"
    if 99.9 < value < 100:
        return "over 99.9 %"
    return f"{value:.1f}".removesuffix(".0") + " %"


def written(value: float, unit: str = "") -> str:
    """A value for a table, shares in per cent; a dash where there is none."""
    if not math.isfinite(value):
        return "–"
    if unit == "share":
        return percent(value) if value >= 0 else f"-{percent(-value)}"
    if value != 0 and abs(value) < 1e-3:
        text = f"{value:.0e}"
    else:
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{text} {unit}" if unit in ("bits", "nm", "kJ/mol") else text


def interval(score: Score) -> str:
    """The interval of a score for a table; a dash where there is none."""
    low, high = written(score.low, score.unit), written(score.high, score.unit)
    return "–" if math.isnan(score.low) else f"{low} to {high}"
