"""Markov chains whose populations, timescales and passage times follow from linear algebra."""

import numpy as np
import pytest
from scipy.stats import norm

from openmm_starmd.evaluation.metrics import markov

# two wells of two states; reversible, since it is a birth-death chain
CHAIN = np.array(
    [
        [0.80, 0.20, 0.00, 0.00],
        [0.10, 0.88, 0.02, 0.00],
        [0.00, 0.03, 0.77, 0.20],
        [0.00, 0.00, 0.30, 0.70],
    ]
)
CYCLE = np.array([[0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.8, 0.1, 0.1]])
SETS = np.array([0, 0, 1, 1])


def simulate(matrix, n, rng, start=0):
    cumulative, uniform, states = matrix.cumsum(1).tolist(), rng.random(n).tolist(), [start]
    for u in uniform[1:]:
        row, j = cumulative[states[-1]], 0
        while u > row[j] and j < len(row) - 1:
            j += 1
        states.append(j)
    return np.array(states)


def stationary(matrix):
    values, vectors = np.linalg.eig(matrix.T)
    vector = np.real(vectors[:, np.argmax(values.real)])
    return vector / vector.sum()


def slowest(states, lag=1):
    return np.nan_to_num(markov.timescales(markov.fit_counts(markov.transition_counts(states, lag)[0], lag), 1))[0]


def populations(states, lag, n_states):
    return markov.populations(markov.fit_counts(markov.transition_counts(states, lag, n_states)[0]), n_states)


def fit(states, lag=1):
    return markov.fit_counts(markov.transition_counts(states, lag)[0], lag)


@pytest.fixture
def rng():
    return np.random.default_rng(12)


@pytest.fixture(scope="module")
def states():
    return simulate(CHAIN, 300_000, np.random.default_rng(2))


@pytest.mark.parametrize("lag", [1, 4])
def test_implied_timescale_of_a_two_state_chain(rng, lag):
    p, q = 0.02, 0.05
    states = simulate(np.array([[1 - p, p], [q, 1 - q]]), 200_000, rng)
    assert slowest(states, lag) == pytest.approx(-1 / np.log(1 - p - q), rel=0.05)


def test_trajectories_are_not_joined_across_their_ends():
    apart = [np.repeat([0, 1], 50), np.repeat([1, 0], 50)]
    joined = slowest(np.concatenate([np.repeat([0, 1], 50), np.repeat([0, 1], 50)]))
    assert slowest(apart) != pytest.approx(joined, rel=0.01)
    assert slowest(apart) == pytest.approx(-1 / np.log(1 - 2 / 99), rel=1e-3)


def test_a_frozen_trajectory_has_no_timescale():
    still = np.full(100, 3)
    assert slowest(still) == 0.0
    assert np.isnan(markov.implied_timescales(still, [1, 5]).values).all()
    assert populations(still, 1, 5).tolist() == [0, 0, 0, 1, 0]
    with pytest.raises(ValueError, match="metastable sets"):
        markov.metastable_sets(fit(still), 2, 5)


def test_states_that_only_alternate_have_no_metastable_sets():
    with pytest.raises(ValueError, match="PCCA\\+ finds no 2 metastable sets"):
        markov.metastable_sets(fit(np.arange(100) % 2), 2, 5)


def test_states_of_separate_clusters(rng):
    centres = np.array([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    labels = rng.integers(0, 3, 600)
    states = markov.fit_states(centres[labels] + rng.normal(0, 0.1, (600, 2)), 3, seed=1)
    assert sorted(states.transform(centres)) == [0, 1, 2]


def test_fewer_points_than_states():
    states = markov.fit_states(np.repeat([[0.0], [1.0]], 30, 0), 20)
    assert set(states.transform(np.array([[0.0], [1.0]]))) == {0, 1}
    for nothing in (np.ones((0, 2)), np.ones((5, 0)), np.full((5, 2), np.nan)):
        with pytest.raises(ValueError, match="expected finite points"):
            markov.fit_states(nothing)
    assert markov.fit_states(np.ones((1, 2)), 20).transform(np.ones((4, 2))).tolist() == [0, 0, 0, 0]


def test_blocks_hold_every_transition_once(rng):
    trajectories = [rng.integers(0, 3, 40), rng.integers(0, 3, 2), rng.integers(0, 3, 25)]
    whole = markov.transition_counts(trajectories, 3)
    blocks = markov.transition_counts(trajectories, 3, n_blocks=7)
    assert whole.sum() == 37 + 22 and (blocks.sum(0) == whole[0]).all()
    assert np.ptp(blocks.sum((1, 2))) <= 1
    expected = sum(((t[:-3] == 1) & (t[3:] == 2)).sum() for t in trajectories)
    assert whole[0, 1, 2] == expected
    with pytest.raises(ValueError, match="lag of 40 frames, and 40 frames at most"):
        markov.transition_counts(trajectories, 40)
    with pytest.raises(ValueError, match="lag of 0 frames"):
        markov.transition_counts(trajectories, 0)


def test_populations_of_a_known_chain(states):
    assert populations(states, 2, 6) == pytest.approx([*stationary(CHAIN), 0, 0], abs=0.02)


@pytest.mark.slow
def test_populations_are_those_of_equilibrium_though_the_runs_all_start_in_one_well(rng):
    runs = [simulate(CHAIN, 40, rng, start=0) for _ in range(3_000)]
    exact, visited = stationary(CHAIN), np.bincount(np.concatenate(runs)) / 120_000
    assert np.abs(visited - exact).max() > 0.1
    assert populations(runs, 1, 4) == pytest.approx(exact, abs=0.04)


def test_implied_timescales_and_their_intervals(states):
    exact = -1 / np.log(np.sort(np.linalg.eigvals(CHAIN).real)[::-1][1:3])
    found = markov.implied_timescales(states[:100_000], [1, 2, 5], 2)
    assert found.values[:, 0] == pytest.approx(exact[0], rel=0.08)
    assert found.values[:2, 1] == pytest.approx(exact[1], rel=0.08)
    assert (found.low < found.values).all() and (found.values < found.high).all()
    assert (found.low[:, 0] < exact[0]).all() and (exact[0] < found.high[:, 0]).all()
    shorter = markov.implied_timescales(states[:10_000], [1, 2, 5], 2)
    assert (shorter.high - shorter.low)[0, 0] > 1.5 * (found.high - found.low)[0, 0]
    assert np.isnan(markov.implied_timescales(states[:1_000], [1], 6).values[0, 3:]).all()


@pytest.mark.slow
def test_intervals_of_implied_timescales_cover_the_truth(rng):
    exact = -1 / np.log(np.sort(np.linalg.eigvals(CHAIN).real)[-2])
    covered = 0
    for seed in range(30):
        found = markov.implied_timescales(simulate(CHAIN, 10_000, rng), [1], 1, n_resamples=40, seed=seed)
        covered += found.low[0, 0] <= exact <= found.high[0, 0]
    assert 23 <= covered


def test_pcca_finds_the_wells_and_passes_over_unconnected_states(states):
    sets = markov.metastable_sets(fit(states), 2, 5)
    assert sets[0] == sets[1] != sets[2] == sets[3] and sets[4] == -1 and set(sets[:4]) == {0, 1}


def test_first_passage_times_by_linear_algebra(states):
    def exact(start, end):
        rest = np.setdiff1d(np.arange(4), end)
        times = np.linalg.solve(np.eye(len(rest)) - CHAIN[np.ix_(rest, rest)], np.ones(len(rest)))
        weight = stationary(CHAIN)[start]
        return (weight * times[np.searchsorted(rest, start)]).sum() / weight.sum()

    times = markov.first_passage_times(fit(states), SETS)
    assert times[0, 1] == pytest.approx(exact([0, 1], [2, 3]), rel=0.06)
    assert times[1, 0] == pytest.approx(exact([2, 3], [0, 1]), rel=0.06)
    assert times[0, 0] == times[1, 1] == 0
    single = markov.first_passage_times(fit(states), np.array([0, -1, -1, 1]))
    assert single[0, 1] == pytest.approx(exact([0], [3]), rel=0.06)
    slower = markov.first_passage_times(fit(states, 3), SETS)
    assert slower[0, 1] == pytest.approx(times[0, 1], rel=0.1)  # in frames, whatever the lag


def test_sets_that_are_not_reached_have_no_passage_time(rng):
    one_well = simulate(CHAIN[:2, :2] / CHAIN[:2, :2].sum(1, keepdims=True), 2_000, rng)
    times = markov.first_passage_times(fit(one_well), SETS)
    assert times[0, 0] == 0 and np.isnan([times[0, 1], times[1, 0], times[1, 1]]).all()
    test = markov.chapman_kolmogorov(one_well, 1, SETS, n_resamples=5)
    assert np.isnan(test.predicted[:, 1]).all() and test.predicted[:, 0, 0] == pytest.approx(1) and test.error < 1e-6


def test_disconnected_wells_count_the_larger_one(rng):
    apart = [np.tile([0, 1], 40), np.tile([2, 3], 20)]
    assert populations(apart, 1, 4) == pytest.approx([0.5, 0.5, 0, 0])


def test_the_set_with_most_frames_counts_not_that_with_most_states():
    trip = np.concatenate([np.tile([0, 1, 2], 5), np.tile([3, 4], 50)])
    assert populations(trip, 1, 6) == pytest.approx([0, 0, 0, 0.5, 0.5, 0])
    never_back = np.arange(10)
    assert slowest(never_back) == 0
    assert populations(never_back, 1, 10).sum() == 1
    assert np.isnan(markov.implied_timescales(never_back, [1, 9]).values).all()


def test_chapman_kolmogorov_holds_for_a_markov_chain(states):
    test = markov.chapman_kolmogorov(states, 2, SETS, [1, 2, 4])
    pi = stationary(CHAIN)
    weight = pi[:, None] * (SETS[:, None] == [0, 1])
    for lag, predicted, estimated in zip(test.lags, test.predicted, test.estimated, strict=True):
        flow = weight.T @ np.linalg.matrix_power(CHAIN, lag) @ (SETS[:, None] == [0, 1])
        exact = flow / weight.sum(0)[:, None]
        assert predicted == pytest.approx(exact, abs=0.02) and estimated == pytest.approx(exact, abs=0.02)
    assert test.lags.tolist() == [2, 4, 8] and test.error < 0.01
    assert (test.low <= test.estimated).all() and (test.estimated <= test.high).all()


def test_chapman_kolmogorov_fails_for_a_lumped_chain(rng):
    # leaving and coming back within one state that hides a slow and a fast part
    hidden = np.array([[0.5, 0.5, 0.0], [0.5, 0.49, 0.01], [0.0, 0.01, 0.99]])
    lumped = np.array([0, 1, 1])[simulate(hidden, 100_000, rng)]
    assert markov.chapman_kolmogorov(lumped, 1, np.array([0, 1]), [1, 5, 20], n_resamples=5).error > 0.1


def test_detailed_balance_holds_in_a_reversible_chain(rng):
    assert min(markov.detailed_balance(simulate(CHAIN, 20_000, rng), 2) for _ in range(20)) > 0.001


def test_detailed_balance_is_broken_by_a_cycle(rng):
    states = simulate(CYCLE, 3_000, rng)
    assert markov.detailed_balance(states, 1) < 1e-10
    assert markov.detailed_balance(states[::-1], 1) == markov.detailed_balance(states, 1)


def test_transitions_for_balance_do_not_share_time():
    there_and_back = np.tile([0, 0, 0, 1, 1, 1], 100)
    assert markov.detailed_balance(there_and_back, 3) == pytest.approx(2 * norm.sf(1 / np.sqrt(199)))
    round_trip = np.repeat(np.tile([0, 1, 2], 100), 3)  # 299 transitions, 100 one way and 0 back at most
    assert markov.detailed_balance(round_trip, 3) == pytest.approx(3 * 2 * norm.sf(10))
    assert np.isnan(markov.detailed_balance(np.zeros(50, dtype=int), 1))
    with pytest.raises(ValueError, match="lag"):
        markov.detailed_balance(there_and_back, 600)
