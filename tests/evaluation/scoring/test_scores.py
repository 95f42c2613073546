"""Traffic lights and intervals of made-up scores."""

import math

import numpy as np
import pytest

from openmm_starmd.evaluation.scoring import scores
from openmm_starmd.evaluation.scoring.scorer import drift
from openmm_starmd.evaluation.scoring.scores import AMBER, GREEN, NONE, RED, UNCLEAR, Estimate, Measure, Score
from openmm_starmd.evaluation.scoring.verdict import verdict


def compared(function):
    return Measure("made up", "kinetics", "ratio", "one", None, lambda reference, generated: function(generated))


def measure(direction="lower", unit="bits", **options):
    return Measure("made up", "distributions", unit, direction, None, None, **options)


@pytest.mark.parametrize(
    ("value", "low", "high", "oracle", "frozen", "expected"),
    [
        (0.10, 0.09, 0.11, 0.12, 0.9, GREEN),  # better than MD against itself
        (0.16, 0.13, 0.19, 0.12, 0.9, GREEN),  # its interval reaches MD's
        (0.135, 0.135, 0.135, 0.12, 0.9, GREEN),
        (0.20, 0.18, 0.22, 0.12, 0.9, AMBER),
        (0.95, 0.94, 0.96, 0.12, 0.9, RED),
        (0.60, 0.30, 0.95, 0.12, 0.9, UNCLEAR),  # perhaps as bad as a frozen frame
        (0.50, 0.48, 0.52, 0.60, 0.9, UNCLEAR),  # MD itself is hardly better than a frozen frame
        (0.95, 0.94, 0.96, 0.60, 0.9, UNCLEAR),
        (0.009, 0.0, 0.02, 0.60, 0.9, GREEN),  # nobody would care
        (math.nan, math.nan, math.nan, 0.1, 0.9, UNCLEAR),
    ],
)
def test_light_of_a_divergence(value, low, high, oracle, frozen, expected):
    known = Estimate(oracle, oracle - 0.02, oracle + 0.02)
    nulls = {"frozen": frozen, "shuffled": 0.0}
    assert scores.light(measure(), Estimate(value, low, high), known, nulls) == expected


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (0.7, 0.6, 0.8, GREEN),
        (1 / 0.7, 1.2, 1.5, GREEN),
        (0.3, 0.25, 0.4, AMBER),
        (1e-4, 1e-4, 1e-4, RED),
        (0, 0, 0, RED),
    ],
)
def test_light_of_a_ratio_looks_at_its_logarithm(value, low, high, expected):
    kinetic = measure("one", "ratio", floors=("frozen", "shuffled"))
    known = Estimate(1.5, 1.4, 1.6)
    assert scores.light(kinetic, Estimate(value, low, high), known, {"frozen": 0.0, "shuffled": 0.01}) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(0.3, GREEN), (0.47, GREEN), (0.5, UNCLEAR), (0.73, UNCLEAR), (0.9, RED)]
)
def test_what_is_no_better_than_a_null_model_is_not_green(value, expected):
    """Where the spread of a reference that is short reaches as far as the models that know nothing."""
    known, nulls = Estimate(0.2, 0.1, 0.8), {"frozen": 0.6, "shuffled": 0.0}
    assert scores.light(measure(), Estimate(value, value, value), known, nulls) == expected


def test_light_without_null_models_goes_by_the_slack():
    check = measure("higher", "share", floors=(), slack=0.05)

    def lamp(value):
        return scores.light(check, Estimate(value, value, value), Estimate(0.99, 0.99, 0.99), {})

    assert [lamp(v) for v in (1.0, 0.99, 0.95, 0.93)] == [GREEN, GREEN, AMBER, RED]
    weak = measure("lower", "share", floors=(), most=0.05)
    assert scores.light(weak, Estimate(0.1, 0.1, 0.1), Estimate(0.08, 0.08, 0.08), {}) == UNCLEAR


def test_interval_of_a_mean_is_that_of_theory_and_centred():
    rng = np.random.default_rng(0)
    pieces = [np.array([x, 1.0]) for x in rng.normal(3.0, 1.0, 400)]
    _, low, high = scores.estimate(pieces, compared(lambda s: s[0] / s[1]), None)
    mean = np.mean([p[0] for p in pieces])
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.2)
    assert (low + high) / 2 == pytest.approx(mean, abs=0.02)
    # a square is biased upwards by resampling; the interval is not
    centred = [np.array([x - mean, 1.0]) for x, _ in pieces]
    value, low, high = scores.estimate(centred, compared(lambda s: (s[0] / s[1]) ** 2), None)
    assert low <= value <= high and value == pytest.approx(0, abs=1e-12) and low == 0
    assert scores.estimate(pieces[:1], compared(lambda s: s[0]), None) == (pieces[0][0],) * 3


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (1, "100 %"), (0.995, "99.5 %"), (0.9999, "over 99.9 %"), (0.1, "10 %"), (0.0002, "under 0.1 %")],
)
def test_shares_are_never_rounded_to_none_or_all(share, text):
    assert scores.percent(share) == text


@pytest.mark.parametrize("unit", ["ratio", "share", "bits", "p", ""])
def test_what_is_no_number_is_written_as_a_dash(unit):
    assert scores.written(math.nan, unit) == scores.written(math.inf, unit) == "–"


def test_a_value_that_most_resamples_do_not_confirm_is_unknown():
    """Two basins that are joined by what a single piece holds."""
    pieces = [np.array([1.0, 0.0])] * 19 + [np.array([1.0, 1.0])]
    fragile = compared(lambda s: s[0] if s[1] == 1 else math.nan)
    assert fragile.compare(None, sum(pieces)) == 20
    assert math.isnan(scores.estimate(pieces, fragile, None).value)
    assert scores.estimate(pieces, compared(lambda s: s[0]), None).value == 20


def test_drift_of_ramps_and_of_noise():
    rng = np.random.default_rng(1)
    ramp = np.linspace(0, 0.5, 400) + rng.normal(0, 0.02, 400)
    value, error = drift([ramp, ramp, np.zeros(3)])
    assert value == pytest.approx(0.5, abs=0.02) and error < 0.02
    value, error = drift([rng.normal(0, 0.1, 1000)])
    assert abs(value) < 3 * error
    assert math.isnan(drift([np.zeros(5)])[0])


def score(name, group, value, oracle, light):
    return Score(name, group, value, value, value, oracle, 0.0, 0.0, "", "lower", light)


def test_verdict_says_what_the_scores_say():
    kinds = ("distributions", "kinetics", "validity", "kinetics")
    names = ("backbone torsions", "slowest timescale, ratio to MD", "sound frames (x)", "independent samples of tICA-0")

    def text(values, lights, oracles=(0.1, 1.1, 1.0, 500.0)):
        rows = zip(names, kinds, values, oracles, lights, strict=True)
        return verdict([score(*row) for row in rows])

    assert text((0.1, 0.25, 0.988, 1), (GREEN, AMBER, AMBER, NONE)) == (
        "Distributions: within MD's own error. Kinetics: 4.0x too fast. 1.2 % of frames broken."
    )
    assert "5.0x too slow (MD differs 2.0x from itself)" in text(
        (0.1, 5.0, 1, 1), (RED, RED, GREEN, NONE), (0.1, 0.5, 1.0, 500)
    )
    assert "Kinetics: slowest timescale (4.0x faster) within MD's own error." in text((0.1, 0.25, 1, 1), (GREEN,) * 4)
    assert "Kinetics: slowest timescale within MD's own error." in text((0.1, 1.1, 1, 1), (GREEN,) * 4)
    short = text((0.1, 0.25, 1, 1), (UNCLEAR, UNCLEAR, GREEN, NONE), (0.5, 5.0, 1.0, 4.0))
    assert short == (
        "Kinetics: cannot be judged: the slowest timescale is 4.0x shorter than in this MD, "
        "which differs 5.0x from itself. "
        "No frame is broken. "
        "Too little data to judge backbone torsions, slowest timescale: the reference holds "
        "about 4 independent samples of its slowest motion."
    )
