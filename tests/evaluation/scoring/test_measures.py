"""Every measure adds up over pieces, and says 0 difference (or 1) for equals."""

import pickle

import numpy as np
import pytest

from openmm_starmd.evaluation.scoring import measures, scorer
from openmm_starmd.evaluation.scoring.comparison import Comparison
from openmm_starmd.evaluation.scoring.projection import Projection, halves, join, split
from openmm_starmd.evaluation.scoring.scores import error_of
from openmm_starmd.trajectories.sides import read_sides


@pytest.fixture(scope="module")
def comparison(hopping):
    sides = read_sides([hopping(0.05, 1, 500), hopping(0.05, 2, 300)], hopping(0.05, 3, 600))
    projection = Projection(sides[0], 100.0)
    return Comparison(sides, projection, projection.frames(sides[1]), 300.0)


def test_sums_over_pieces_are_the_sum_over_the_whole(comparison, monkeypatch):
    monkeypatch.setattr(measures, "PAIRS", 10**9)  # every pair, where else evenly spaced ones are taken
    whole = comparison.generated[0]
    pieces = split([whole], 7, comparison.multiples[-1] * whole.lag)
    assert len(pieces) == 7 and sum(piece.core for piece in pieces) == len(whole)
    assert max(map(len, pieces)) > max(piece.core for piece in pieces)
    for measure in scorer.measures(comparison):
        parts = sum(measure.summarize(piece).astype(float) for piece in pieces)
        assert np.allclose(parts, measure.summarize(whole), rtol=1e-5, atol=1e-6), measure.name


def test_equal_sums_are_compared_as_equal(comparison):
    for measure in scorer.measures(comparison):
        total = sum(measure.summarize(frames) for frames in comparison.generated)
        if measure.group != "validity":
            assert error_of(measure.compare(total, total), measure.direction) == pytest.approx(0, abs=1e-9)


def test_contacts_differ_by_the_mean_difference_of_shares(comparison):
    measure = next(m for m in scorer.measures(comparison) if m.name.startswith("side chains in contact"))
    assert measure.compare(np.array([5.0, 0, 10]), np.array([1.0, 1, 4])) == pytest.approx((0.25 + 0.25) / 2)


def test_a_comparison_is_plain_data(comparison):
    """A copy through bytes, as between processes, has the same scores."""
    copy = pickle.loads(pickle.dumps(comparison))
    chosen = [m for m in scorer.measures(copy) if m.name in ("free energy on tICA-0,1", "VAMP-2, difference")]
    own = [m for m in scorer.measures(comparison) if m.name in [c.name for c in chosen]]
    for one, other in zip(own, chosen, strict=True):
        assert scorer.score(one, comparison) == scorer.score(other, copy)


def test_pairs_never_reach_into_another_trajectory(comparison):
    pieces = split(comparison.reference, 20, 50)
    found = sum(len(piece.pairs("states", 10)[0]) for piece in pieces)
    assert found == sum(len(frames) - 10 for frames in comparison.reference)
    before, after = join(comparison.reference).pairs("states", 10)
    assert len(before) == len(after) == sum(map(len, comparison.reference)) - 10


def test_halves_are_files_or_halves_in_time(comparison):
    one, two = halves(comparison.reference)
    assert [len(f) for f in one] == [500] and [len(f) for f in two] == [300]
    one, two = halves(comparison.generated)
    assert np.array_equal(np.concatenate([one[0].states, two[0].states]), comparison.generated[0].states)
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
    alternating = np.zeros((4, 4))
    alternating[0, 1] = alternating[1, 0] = 5.0
    assert np.isnan(measures.passage_ratio(alternating, counts))  # what only alternates has no two sets
    assert np.isfinite(ratio(counts, counts))
    assert measures.timescale_ratio(counts, np.full((4, 4), 1e3)) == pytest.approx(0, abs=1e-2)  # no memory


def test_populations_are_unknown_where_states_do_not_reach_each_other():
    counts, apart = two_wells(0.01), two_wells(0.0)
    assert np.isnan(measures.population_divergence(counts, apart))
    assert measures.population_divergence(counts, counts) == 0
