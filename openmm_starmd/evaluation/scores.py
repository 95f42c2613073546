"""A score beside its ceiling and its floor: MD against itself, and models that know nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

GREEN, AMBER, RED, UNCLEAR, NONE = "green", "amber", "red", "unclear", "none"
MEANING = {
    GREEN: "within MD's own spread",
    AMBER: "worse than MD against itself, better than models that know nothing",
    RED: "no better than models that know nothing; validity: far from MD",
    UNCLEAR: "the reference is too short to judge",
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
N_RESAMPLES = 200


@dataclass(frozen=True)
class Score:
    """One number about the generated trajectories and what it means.

    Parameters
    ----------
    name : str
    group : str
        "distributions", "kinetics" or "validity".
    value : float
        Of the generated trajectories; nan where it cannot be told.
    low, high : float
        95 % bootstrap interval over pieces of the generated trajectories, centred on the value.
    oracle : float
        The same score of MD against itself: second half of the reference against the first, or half of the reference's
        files against the others.
    frozen, shuffled : float
        The same score of a first frame that never moves, and of the reference's frames in random order.
    unit : str
    direction : str
        "lower" (0 is best), "higher" (1 is best) or "one" (a ratio).
    light : str
        "green", "amber", "red", "unclear" or "none", see `MEANING`.
    """

    name: str
    group: str
    value: float
    low: float
    high: float
    oracle: float
    frozen: float
    shuffled: float
    unit: str
    direction: str
    light: str


@dataclass(frozen=True)
class Measure:
    """How to get a score from sums over pieces of trajectories.

    Whatever adds up over pieces (histograms, counts of transitions, covariances, numbers of sound frames) is summed
    once for every piece. Bootstrap resamples, halves and totals are then sums of these sums, however long the
    trajectories are.

    Parameters
    ----------
    name, group, unit, direction : str
        As of `Score`.
    summarize : callable
        Frames -> ndarray that adds up over pieces.
    compare : callable
        Two such sums, of the reference and the generated trajectories -> float.
    floors : tuple of str
        Null models, "frozen" or "shuffled", that a model has to beat; the others are right by construction.
    per_frame : bool
        Whether the order of the frames does not matter, so that MD may be thinned to as few frames as were generated.
    slack : float
        Errors up to this much above MD's own are amber where there are no floors.
    most : float
        Where MD's own error is larger than this, the reference is too short to judge.
    """

    name: str
    group: str
    unit: str
    direction: str
    summarize: Callable[..., np.ndarray]
    compare: Callable[[np.ndarray, np.ndarray], float]
    floors: tuple[str, ...] = ("frozen",)
    per_frame: bool = True
    slack: float = 0.0
    most: float = math.inf


def error_of(value: float, direction: str) -> float:
    """Distance from the best value: 0 is perfect; ratios as |ln|."""
    if direction == "higher":
        return 1 - value
    if direction == "one":
        return abs(math.log(value)) if value > 0 else math.inf
    return abs(value)


def light(measure: Measure, value: float, low: float, high: float, oracle: float, nulls: dict[str, float]) -> str:
    """Traffic light of a value with its interval, beside MD's own and those of the null models."""
    if math.isnan(value):
        return NONE
    error, own = error_of(value, measure.direction), error_of(oracle, measure.direction)
    floors = [error_of(nulls[name], measure.direction) for name in measure.floors]
    floor = min((f for f in floors if not math.isnan(f)), default=math.nan)
    ends = [error_of(end, measure.direction) for end in (low, high)]
    inside = measure.direction == "one" and low <= 1 <= high
    best, worst = (0.0 if inside else min(ends)), max(ends)
    least = NEGLIGIBLE.get(measure.unit, 0.0) if measure.floors else 0.0
    weak = math.isnan(own) or own > max(WEAK * floor, least) or own > measure.most
    if weak:
        return UNCLEAR
    if error <= max(own, least) or (best <= own and not worst >= floor):
        return GREEN
    if math.isnan(floor):
        return AMBER if error <= own + measure.slack else RED
    return AMBER if worst < floor else RED


def resampled(sums: list[np.ndarray], compare: Callable[[np.ndarray], float], seed: int = 0) -> tuple[float, float]:
    """95 % interval of a comparison by drawing pieces with replacement, shifted so that its median is the value.

    The shift takes out that a resample, which holds pieces twice, looks more uneven than the whole.
    """
    sums, generator = np.stack(sums), np.random.default_rng(seed)
    value = compare(sums.sum(0))
    n = len(sums)
    draws = [compare(sums[generator.integers(n, size=n)].sum(0)) for _ in range(N_RESAMPLES if n > 1 else 0)]
    draws = np.array([draw for draw in draws if math.isfinite(draw)])
    if not len(draws) or not math.isfinite(value):
        return value, value
    low, middle, high = np.quantile(draws, [0.025, 0.5, 0.975])
    return float(value + low - middle), float(value + high - middle)


def clipped(low: float, high: float, direction: str, unit: str) -> tuple[float, float]:
    """An interval cut to what the score can be."""
    most = 1.0 if unit in ("bits", "share") or direction == "higher" else math.inf
    least = -1.0 if direction == "higher" and unit != "share" else 0.0
    return max(low, least), min(high, most)
