"""Known Markov chains, refined from swarms that start from the wrong populations, come back inside the intervals."""

import numpy as np
import pytest

pytest.importorskip("deeptime")

from openmm_starmd.errors import StarMDError  # noqa: E402
from openmm_starmd.evaluation.metrics import markov  # noqa: E402
from openmm_starmd.refinement import estimate  # noqa: E402
from openmm_starmd.refinement.posterior import sample_posterior, set_populations  # noqa: E402
from openmm_starmd.refinement.reversible import sample_reversible  # noqa: E402

INTERVAL = 2.0  # ps


def double_well(barrier=4.0, tilt=0.5, rate=0.25, n=15):
    """Transition matrix and populations of hops between the bins of a tilted double well, kT."""
    x = np.linspace(-1.4, 1.4, n)
    energy = barrier * (x**2 - 1) ** 2 + tilt * x
    populations = np.exp(-energy) / np.exp(-energy).sum()
    matrix = np.zeros((n, n))
    for i in range(n - 1):
        ratio = populations[i + 1] / populations[i]
        matrix[i, i + 1], matrix[i + 1, i] = rate * min(1, ratio), rate * min(1, 1 / ratio)
    return matrix + np.diag(1 - matrix.sum(1)), populations


def run(matrix, starts, length, seed):
    """Trajectories (length,) of a chain from each of the starts."""
    generator = np.random.default_rng(seed)
    cumulated, states = matrix.cumsum(1), np.empty((length, len(starts)), dtype=int)
    states[0] = starts
    for t in range(1, length):
        later = (generator.random(len(starts))[:, None] > cumulated[states[t - 1]]).sum(1)
        states[t] = later.clip(0, len(matrix) - 1)
    return list(states.T)


def truth(matrix, populations):
    """Slowest timescale (ns), population of the left basin, passage time from left to right (ns)."""
    eigenvalue = np.sort(np.linalg.eigvals(matrix).real)[-2]
    left, right = np.arange(7), np.arange(8, 15)
    stay = np.setdiff1d(np.arange(15), right)
    passage = np.zeros(15)
    passage[stay] = np.linalg.solve(np.eye(len(stay)) - matrix[np.ix_(stay, stay)], np.ones(len(stay)))
    unit = INTERVAL / 1000
    mean = passage[left] @ populations[left] / populations[left].sum()
    return -unit / np.log(eigenvalue), populations[left].sum(), unit * mean


MATRIX, POPULATIONS = double_well()
WRONG = np.tile(np.arange(15), 12)  # every bin as often: the proposal knows nothing of populations


@pytest.mark.slow
def test_truth_lies_within_the_intervals_as_often_as_they_say():
    """Intervals of 90 % of twenty swarms miss a quantity more than five times in one test of fifty."""
    timescale, left, _ = truth(MATRIX, POPULATIONS)
    basin, missed = np.where(np.arange(15) < 7, 0, 1), np.zeros(2)
    functions = slowest, lambda model: set_populations(model, basin)[0]
    for seed in range(20):
        posterior = sample_posterior(run(MATRIX, WRONG, 150, seed), 5, 15, n_draws=100, seed=seed)
        for k, expected in enumerate((timescale, left)):
            value, low, high = posterior.interval(functions[k], 0.9)
            assert low < value < high
            missed[k] += not low <= expected <= high
    assert (missed <= 5).all() and missed.sum() > 0


@pytest.mark.slow
def test_intervals_of_much_md_with_few_crossings_hold_the_truth():
    """A chain of 60 fine states: nearly all steps are within a basin, few between them."""
    matrix, populations = double_well(barrier=6.0, rate=0.45, n=60)
    basin, missed = np.where(np.arange(60) < 30, 0, 1), 0
    for seed in range(20):
        posterior = sample_posterior(run(matrix, np.tile(np.arange(60), 3), 1500, seed), 1, 60, n_draws=100, seed=seed)
        _, low, high = posterior.interval(lambda model: set_populations(model, basin)[0], 0.9)
        missed += not low <= populations[:30].sum() <= high
    assert 0 < missed <= 5


def test_draws_of_two_states_have_the_exact_posterior():
    """Moments of the logarithms of populations and rates are those by integration over all reversible models."""
    counts = np.array([[40.0, 3.0], [5.0, 12.0]])
    stay, hop = np.meshgrid(*2 * [(np.arange(2000) + 0.5) / 2000], indexing="ij")
    hop = 0.5 * (1 - stay) * hop  # x(0, 0), x(0, 1) = x(1, 0) and x(1, 1), whose sum is 1
    other = 1 - stay - 2 * hop
    density = (40 - 1) * np.log(stay) + (8 - 1) * np.log(hop) + (12 - 1) * np.log(other)
    density -= 43 * np.log(stay + hop) + 17 * np.log(hop + other)
    weight = np.exp(density - density.max()) * (1 - stay)
    exact = np.array([np.log((stay + hop) / (hop + other)), np.log(hop / (stay + hop))])
    mean = (exact * weight).sum((1, 2)) / weight.sum()
    spread = np.sqrt(((exact - mean[:, None, None]) ** 2 * weight).sum((1, 2)) / weight.sum())
    best = np.array([5 / 17, 3 / 43])  # the stationary distribution of the rows' frequencies
    matrices, stationary = sample_reversible(counts, best / best.sum(), 4000, np.random.default_rng(0))
    drawn = np.log([stationary[:, 0] / stationary[:, 1], matrices[:, 0, 1]])
    np.testing.assert_allclose(drawn.mean(1), mean, atol=0.04)
    np.testing.assert_allclose(drawn.std(1), spread, rtol=0.05)


def test_draws_are_reversible_and_do_not_depend_on_each_other():
    counts = 2e4 * POPULATIONS[:, None] * MATRIX
    matrices, stationary = sample_reversible(counts, POPULATIONS, 400, np.random.default_rng(1))
    flux = stationary[:, :, None] * matrices
    np.testing.assert_allclose(flux, flux.swapaxes(1, 2), atol=1e-12)
    np.testing.assert_allclose(matrices.sum(2), 1)
    left = np.log(stationary[:, :7].sum(1))
    left = left - left.mean()
    assert abs((left[1:] * left[:-1]).mean() / left.var()) < 0.2


def slowest(model):
    return INTERVAL / 1000 * markov.timescales(model, 1)[0]


def test_a_wrong_proposal_is_corrected_and_shown_beside():
    timescale, left, passage = truth(MATRIX, POPULATIONS)
    fast, _ = double_well(barrier=2.0, tilt=-0.5)  # too fast, and tilted to the other side
    proposal = run(fast, [3, 11] * 8, 6000, seed=1)
    result = estimate(
        run(MATRIX, WRONG, 300, seed=2), INTERVAL, learned=proposal, learned_interval=INTERVAL, precision=2.0
    )
    assert result.judged and result.more_nanoseconds == 0
    found = result["slowest timescale"]
    assert found.low <= timescale <= found.high
    assert found.learned_high < timescale
    major, minor = result["population of set 0"], result["population of set 1"]
    assert result.sets[3] == 0 and result.sets[11] == 1  # the left basin is the populated one
    assert major.low <= left + POPULATIONS[7] / 2 <= major.high
    assert major.value + minor.value == pytest.approx(1)
    assert minor.learned_low > 0.5 > minor.high  # the proposal has it the other way round
    there = result["mean first passage time from set 0 to set 1"]
    assert there.low <= passage <= there.high
    energy = result["free energy of set 1 over set 0"]
    assert energy.value == pytest.approx(8.314462618e-3 * 300 * np.log(major.value / minor.value))
    assert energy.low < energy.value < energy.high and energy.learned < 0
    assert sum(w.sum() for w in result.weights()) == pytest.approx(1)
    assert "cannot be judged" not in result.markdown()


def test_too_short_a_swarm_says_how_much_is_missing():
    """With as much more as it asks for, it can be judged, and not with half of that."""
    few = estimate(run(MATRIX, WRONG[:60], 60, seed=5), INTERVAL, lag=10.0)
    assert not few.judged and few.more_nanoseconds > 0
    assert "cannot be judged" in few.verdict and f"{few.more_nanoseconds:.3g} ns more" in few.verdict
    assert all(row[1] == "cannot be judged" for row in few.table())
    share = 1 + few.more_nanoseconds / few.nanoseconds
    enough = run(MATRIX, np.tile(WRONG[:60], int(np.ceil(1.3 * share))), 60, seed=6)
    assert estimate(enough, INTERVAL, lag=10.0).judged


def test_a_model_that_still_depends_on_the_lag_asks_for_longer_trajectories():
    """Each of two bins hides a trap; the projected chain is Markovian at lags only that the pieces do not reach."""
    matrix = np.array([[0.77, 0.03, 0, 0.2], [0.005, 0.995, 0, 0], [0, 0, 0.995, 0.005], [0.2, 0, 0.03, 0.77]])
    hidden = np.array([0, 0, 1, 1])
    pieces = [hidden[s] for s in run(matrix, np.tile(np.arange(4), 300), 41, seed=3)]
    result = estimate(pieces, INTERVAL)
    assert not result.judged and "too short" in result.verdict
    assert result.more_nanoseconds >= result.nanoseconds


def test_states_that_do_not_connect_cannot_be_judged():
    """A proposal without the right basin: MD enters it and does not come back within the swarm."""
    matrix, _ = double_well(barrier=9.0)
    pieces = run(matrix, np.full(60, 3), 100, seed=0)
    crossed = run(matrix, np.full(1, 9), 100, seed=1)[0]
    missed = estimate([*pieces, np.concatenate([[6, 7, 8], crossed])], INTERVAL, lag=4.0)
    assert not missed.judged and "do not connect" in missed.verdict
    assert missed.more_nanoseconds > 2 * missed.nanoseconds
    assert all(row[1] == "cannot be judged" for row in missed.table())


def test_the_learned_rate_tells_how_long_a_connection_takes():
    matrix, _ = double_well(barrier=9.0)
    pieces = [*run(matrix, np.full(30, 3), 100, seed=0), *run(matrix, np.full(30, 11), 100, seed=1)]
    learned = run(double_well(barrier=6.0)[0], [3] * 4, 20_000, seed=2)
    slow = estimate(pieces, INTERVAL, learned=learned, learned_interval=100.0, lag=4.0)
    alone = estimate(pieces, INTERVAL, lag=4.0)
    assert "the learned run takes" in slow.verdict
    assert slow.more_nanoseconds > alone.more_nanoseconds


def test_a_start_that_md_leaves_at_once_does_not_count():
    """It is no state of the force field: its population has a small limit, and the others are judged."""
    spurious = [np.concatenate([[15, 15], s]) for s in run(MATRIX, [7] * 4, 296, seed=4)]
    result = estimate([*run(MATRIX, WRONG, 298, seed=2), *spurious], INTERVAL, lag=4.0)
    assert result.judged and result.sets[15] == -1
    assert 0 < result.unseen_population < 0.001


def test_a_basin_that_nobody_visited_is_named_by_its_horizon():
    """Nothing tells that there is a right basin; what the result claims stays true."""
    matrix, populations = double_well(barrier=12.0)
    result = estimate(run(matrix, np.tile(np.arange(6), 20), 100, seed=0), INTERVAL, lag=4.0)
    assert all(s.max() < 8 for s in result.states)
    assert result.horizon == pytest.approx(result.nanoseconds / 3)
    assert result.horizon < truth(matrix, populations)[2]


def test_a_seed_gives_the_same_result():
    pieces = run(MATRIX, WRONG, 60, seed=1)
    one, same, other = (estimate(pieces, INTERVAL, lag=4.0, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.populations, same.populations)
    assert not np.array_equal(one.populations, other.populations)


def test_where_no_two_states_connect_nothing_can_be_judged():
    result = estimate([np.zeros(50, dtype=int), np.ones(50, dtype=int)], INTERVAL)
    assert not result.judged and "no two states" in result.verdict and result.more_nanoseconds > 0.2
    assert result.table() == []


def test_too_few_frames_are_refused():
    with pytest.raises(StarMDError, match="at least 5 frames"):
        estimate([np.zeros(3, dtype=int)], INTERVAL)


def test_files_hold_the_verdict(tmp_path):
    result = estimate(run(MATRIX, WRONG, 60, seed=1), INTERVAL, lag=4.0)
    text = result.write(tmp_path).read_text()
    assert result.verdict in text and (tmp_path / "refined.json").is_file()
