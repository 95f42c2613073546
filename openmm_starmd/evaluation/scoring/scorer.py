"""Scores of both sides: value, interval, MD against itself and null models."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from openmm_starmd.evaluation.metrics import markov
from openmm_starmd.evaluation.metrics.samples import effective_samples, slope
from openmm_starmd.evaluation.scoring.comparison import Comparison, total
from openmm_starmd.evaluation.scoring.measures import (
    KINETICS,
    VALIDITY,
    distributions,
    kinetics,
    transition_counts,
    validity,
)
from openmm_starmd.evaluation.scoring.scores import AMBER, GREEN, RED, UNCLEAR, Measure, Score, estimate, light
from openmm_starmd.trajectories.sides import Progress

SAMPLES = "independent samples of tICA-0"
CONNECTED = "connected share of the transitions"


def measures(comparison: Comparison) -> list[Measure]:
    """All measures that a comparison has data for."""
    projection = comparison.projection
    return [
        *distributions(projection, comparison.edges, comparison.temperature),
        *(kinetics(projection, comparison.multiples) if comparison.kinetic else ()),
        *validity(projection),
    ]


def score(measure: Measure, comparison: Comparison) -> Score:
    """One score with all that it has to be seen beside."""

    def sums(trajectories):
        return [measure.summarize(piece) for piece in comparison.pieces(trajectories)]

    one, two, thin = comparison.halves
    with np.errstate(invalid="ignore", divide="ignore"):
        reference = np.sum(sums(comparison.reference), axis=0)
        generated = estimate(sums(comparison.generated), measure, reference)
        oracle = estimate(sums(thin if measure.per_frame else two), measure, np.sum(sums(one), axis=0))
        nulls = {
            name: float(measure.compare(reference, measure.summarize(frames)))
            for name, frames in comparison.nulls.items()
        }
    lamp = light(measure, generated, oracle, nulls)
    values = (*generated, oracle.value, nulls["frozen"], nulls["shuffled"])
    return Score(measure.name, measure.group, *values, measure.unit, measure.direction, lamp)


def scores(comparison: Comparison, progress: Progress) -> list[Score]:
    """All scores of a comparison."""
    found, chosen = [], measures(comparison)
    for number, measure in enumerate(chosen):
        progress(f"scoring {measure.name}", number / len(chosen))
        found.append(score(measure, comparison))
    progress("scoring drift and balance", 1.0)
    if comparison.kinetic:
        found += [_connection(comparison), _balance(comparison), *_drifts(comparison)]
    return [*found, _samples(comparison)]


def _drifts(comparison: Comparison) -> list[Score]:
    size = float(np.mean([frames.gyration.mean() for frames in comparison.reference]))
    series = (
        ("drift of sound frames", "share", 0.05, lambda frames: frames.checks[:, 0]),
        ("drift of radius of gyration", "nm", 0.1 * size, lambda frames: frames.gyration),
    )
    found = []
    for name, unit, tolerance, pick in series:
        value, error = drift([pick(frames) for frames in comparison.generated])
        oracle, _ = drift([pick(frames) for frames in comparison.reference])
        if math.isnan(value):
            continue
        steady = abs(value) <= max(1.96 * error, abs(oracle) if math.isfinite(oracle) else 0.0)
        lamp = GREEN if steady else AMBER if abs(value) <= tolerance else RED
        low, high = value - 1.96 * error, value + 1.96 * error
        found.append(Score(name, VALIDITY, value, low, high, oracle, 0.0, math.nan, unit, "lower", lamp))
    return found


def _connection(comparison: Comparison) -> Score:
    """Share of the transitions between states that reach each other: rates are known only where it is near 1."""
    count = transition_counts(comparison.projection)
    value, oracle = (
        markov.connected_share(total(count, comparison.pieces(side)))
        for side in (comparison.generated, comparison.reference)
    )
    return Score.noted(CONNECTED, KINETICS, value, "share", oracle)


def _balance(comparison: Comparison) -> Score:
    value, oracle = (
        markov.detailed_balance([frames.states for frames in side], side[0].lag)
        for side in (comparison.generated, comparison.reference)
    )
    lamp = UNCLEAR if math.isnan(value) else GREEN if value >= 0.05 else AMBER if value >= 0.001 else RED
    return Score.noted("detailed balance, p-value", KINETICS, value, "p", oracle, light=lamp)


def _samples(comparison: Comparison) -> Score:
    value, oracle = (
        effective_samples([frames.tics[:, 0].astype(float) for frames in side])
        for side in (comparison.generated, comparison.reference)
    )
    return Score.noted(SAMPLES, KINETICS, value, "", oracle, frozen=1.0)


def drift(series: Sequence[np.ndarray], n_blocks: int = 20) -> tuple[float, float]:
    """Change of series over their lengths, mean weighted by length, and its standard error; nan if too short."""
    found = [(len(s), *slope(s, n_blocks)) for s in series if len(s) >= 2 * n_blocks]
    if not found:
        return math.nan, math.nan
    lengths, slopes, errors = (np.array(column) for column in zip(*found, strict=True))
    weights = lengths / lengths.sum()
    return float((weights * slopes * lengths).sum()), float(np.sqrt(((weights * errors * lengths) ** 2).sum()))
