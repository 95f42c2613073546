"""Every measure adds up over pieces, and says 0 difference (or 1) for equals."""

import numpy as np
import pytest

from openmm_starmd.evaluation.scoring import measures
from openmm_starmd.evaluation.scoring.judge import Judge
from openmm_starmd.evaluation.scoring.projection import Projection, halves, join, split
from openmm_starmd.evaluation.scoring.scores import error_of
from openmm_starmd.trajectories.sides import read_sides


@pytest.fixture(scope="module")
def judge(hopping):
    sides = read_sides([hopping(0.05, 1, 500), hopping(0.05, 2, 300)], hopping(0.05, 3, 600))
    projection = Projection(sides[0], 100.0)
    return Judge(projection, projection.frames(sides[1]), 300.0)


def test_sums_over_pieces_are_the_sum_over_the_whole(judge, monkeypatch):
    monkeypatch.setattr(measures, "PAIRS", 10**9)  # every pair, where else evenly spaced ones are taken
    whole = judge.generated[0]
    pieces = split([whole], 7, judge.multiples[-1] * whole.lag)
    assert len(pieces) == 7 and sum(piece.core for piece in pieces) == len(whole)
    assert max(map(len, pieces)) > max(piece.core for piece in pieces)
    for measure in judge.measures:
        parts = sum(measure.summarize(piece).astype(float) for piece in pieces)
        assert np.allclose(parts, measure.summarize(whole), rtol=1e-5, atol=1e-6), measure.name


def test_equal_sums_are_compared_as_equal(judge):
    for measure in judge.measures:
        total = sum(measure.summarize(frames) for frames in judge.generated)
        if measure.group != "validity":
            assert error_of(measure.compare(total, total), measure.direction) == pytest.approx(0, abs=1e-9)


def test_pairs_never_reach_into_another_trajectory(judge):
    pieces = split(judge.reference, 20, 50)
    found = sum(len(piece.pairs("states", 10)[0]) for piece in pieces)
    assert found == sum(len(frames) - 10 for frames in judge.reference)
    before, after = join(judge.reference).pairs("states", 10)
    assert len(before) == len(after) == sum(map(len, judge.reference)) - 10


def test_halves_are_files_or_halves_in_time(judge):
    one, two = halves(judge.reference)
    assert [len(f) for f in one] == [500] and [len(f) for f in two] == [300]
    one, two = halves(judge.generated)
    assert np.array_equal(np.concatenate([one[0].states, two[0].states]), judge.generated[0].states)
    assert len(one[0]) == len(two[0]) == 300


def two_wells(rate: float) -> np.ndarray:
    """Counts of four states, two in each of two wells, that cross between them at a rate."""
    transitions = np.array([[0.7, 0.3, 0, 0], [0.2, 0.8 - rate, rate, 0], [0, rate, 0.8 - rate, 0.2], [0, 0, 0.3, 0.7]])
    return 1e6 * np.array([0.2, 0.3, 0.3, 0.2])[:, None] * transitions


def test_passage_between_wells_takes_as_many_times_longer_as_the_chain_is_slower():
    fast, lazy = two_wells(0.01), two_wells(0.01)
    lazy = (lazy + np.diag(lazy.sum(1))) / 2  # every second step stands still
    assert measures.passage_ratio(fast, fast) == pytest.approx(1)
    assert measures.passage_ratio(fast, lazy) == pytest.approx(2, rel=1e-6)
    assert measures.passage_ratio(lazy, fast) == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("ratio", [measures.passage_ratio, measures.timescale_ratio])
def test_rates_are_unknown_where_states_do_not_reach_each_other(ratio):
    counts, stuck, apart = two_wells(0.01), two_wells(0.0), two_wells(0.0)
    stuck[2:] = 0
    for wrong in (apart, np.diag([5.0, 0, 0, 0]), np.diag([5.0, 3.0, 0, 0])):
        assert np.isnan(ratio(counts, wrong)) and np.isnan(ratio(wrong, counts))
    assert np.isnan(measures.passage_ratio(counts, stuck))  # the other well is never reached
    assert np.isfinite(ratio(counts, counts))
    assert measures.timescale_ratio(counts, np.full((4, 4), 1e3)) == pytest.approx(0, abs=1e-2)  # no memory


def test_populations_are_unknown_where_states_do_not_reach_each_other():
    counts, apart = two_wells(0.01), two_wells(0.0)
    assert np.isnan(measures._population_divergence(counts, apart))
    assert measures._population_divergence(counts, counts) == 0
