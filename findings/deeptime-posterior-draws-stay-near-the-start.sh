#!/usr/bin/env bash
# deeptime 0.5.0: BayesianMSM gives error bars of populations that are several times too narrow where MD is long.
#
# What happens: a chain of 60 states in a double well; 270,000 steps, nearly all of them within a well.
# The logarithm of the ratio of the wells' populations differs between independent data sets by far more than the draws
# of BayesianMSM of one data set say, and intervals of 90 % seldom hold the truth. Nothing warns.
# Why: the sampler of reversible matrices changes one element after the other. With many counts an element moves little
# in a sweep, and moving a whole well's population takes all of them: sqrt(n states) sweeps between draws, the default,
# are too few by orders of magnitude, and draws stay near the matrix of maximum likelihood, from which they start.
#
# Seen with deeptime 0.5.0 (Python 3.11, Linux), whose draws take no seed here and differ a little from run to run:
#   standard deviation over data sets 0.55, of the draws 0.09; intervals of 90 % that hold the truth: 1 of 10
# The script exits with an error if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet deeptime==0.5.0 "numpy<3"
cat > "$folder/show.py" <<'PYTHON'
import numpy as np
from deeptime.markov import TransitionCountModel
from deeptime.markov.msm import BayesianMSM

n = 60
x = np.linspace(-1.4, 1.4, n)
energy = 6 * (x**2 - 1) ** 2 + 0.5 * x  # kT
weights = np.exp(-energy)
matrix = np.zeros((n, n))
for i in range(n - 1):
    matrix[i, i + 1] = 0.45 * min(1, weights[i + 1] / weights[i])
    matrix[i + 1, i] = 0.45 * min(1, weights[i] / weights[i + 1])
matrix += np.diag(1 - matrix.sum(1))
left = np.arange(n) < n // 2
truth = np.log(weights[left].sum() / weights[~left].sum())


def log_ratio(model):
    return np.log(model.stationary_distribution[left].sum() / model.stationary_distribution[~left].sum())


best, spreads, hits = [], [], 0
for seed in range(10):
    random = np.random.default_rng(seed)
    state, counts, cumulated = np.tile(np.arange(n), 3), np.zeros((n, n)), matrix.cumsum(1)
    for _ in range(1500):
        later = (random.random(len(state))[:, None] > cumulated[state]).sum(1).clip(0, n - 1)
        np.add.at(counts, (state, later), 1)
        state = later
    posterior = BayesianMSM(n_samples=100).fit_fetch(TransitionCountModel(counts, "effective", 1))
    drawn = [log_ratio(model) for model in posterior.samples]
    low, high = np.percentile(drawn, [5, 95])
    best.append(log_ratio(posterior.prior))
    spreads.append(np.std(drawn))
    hits += low <= truth <= high
print(
    f"standard deviation over data sets {np.std(best):.2f}, of the draws {np.mean(spreads):.2f}; "
    f"intervals of 90 % that hold the truth: {hits} of 10"
)
assert np.mean(spreads) < 0.4 * np.std(best) and hits <= 4, "the draws are wider now"
PYTHON
"$folder/env/bin/python" "$folder/show.py"
