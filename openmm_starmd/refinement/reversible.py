"""Draws from the posterior of reversible transition matrices.

Let c be the counts, x(i, j) = x(j, i) the joint probabilities of a reversible model, up to a factor, and x(i) their sum
over j. The likelihood is the product of x(i, j)^(c(i, j) + c(j, i)) over pairs and of x(i)^-N(i) over states with N(i)
counts. With the usual prior 1 / x(i, j) and a gamma variable s(i) for each factor x(i)^-N(i), the x(i, j) are
independent gamma variables of the rate s(i) + s(j). What is left is the density of log s, which is that of the
abilities in a tournament in which i beat j c(i, j) times (Bradley and Terry, Biometrika 39, 324, 1952; the gamma
variables: Caron and Doucet, J. Comput. Graph. Stat. 21, 174, 2012). It is log-concave and has one dimension a state.
A Metropolis step draws from the normal density of its curvature at the maximum, and so crosses it in a few steps
(Neal 1999; Cotter et al. 2013). A sampler that changes one x(i, j) after the other takes the longer, the more counts
there are.
"""

from __future__ import annotations

import numpy as np

STEPS, NOISE = 30, 0.5  # Metropolis steps a draw; amplitude of what is new in each
LEAST = 1e-300


def sample_reversible(
    counts: np.ndarray, populations: np.ndarray, n_draws: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Transition matrices (n_draws, n, n) and their stationary distributions (n_draws, n).

    ``counts`` (n, n) are strongly connected; ``populations`` (n,) are those of the model of maximum likelihood.
    """
    own = counts.diagonal()
    first, second = np.nonzero(np.triu(counts + counts.T, 1))
    met, won = counts[first, second] + counts[second, first], counts.sum(1) - own
    centre = np.log(counts.sum(1) / populations)
    roots, curvature = _roots(first, second, met, centre)

    def beyond(x):
        """Minus the logarithm of the density, less what is quadratic in it."""
        return met @ np.logaddexp(*(centre + x)[[first, second]]) - won @ (centre + x) - 0.5 * x @ curvature @ x

    matrices, stationary = np.empty((n_draws, *counts.shape)), np.empty((n_draws, len(counts)))
    x = np.zeros(len(counts))
    here = beyond(x)
    for draw in range(n_draws):
        for _ in range(STEPS):
            new = np.sqrt(1 - NOISE**2) * x + NOISE * roots @ generator.standard_normal(roots.shape[1])
            there = beyond(new)
            if here - there > np.log(generator.random()):
                x, here = new, there
        rates, joint = np.exp(centre + x), np.zeros(counts.shape)
        joint[first, second] = np.maximum(generator.gamma(met) / (rates[first] + rates[second]), LEAST)
        joint += joint.T + np.diag(generator.gamma(own) / rates)
        sums = joint.sum(1)
        matrices[draw], stationary[draw] = joint / sums[:, None], sums / sums.sum()
    return matrices, stationary


def _roots(first, second, met, centre) -> tuple[np.ndarray, np.ndarray]:
    """Square root (n, n - 1) of the covariance, and the curvature (n, n), of the density's logarithm at its maximum."""
    odds = centre[first] - centre[second]
    weights = met / (2 + 2 * np.cosh(odds))
    n = len(centre)
    curvature = np.zeros((n, n))
    curvature[first, second] = curvature[second, first] = -weights
    np.fill_diagonal(curvature, -curvature.sum(1))
    values, vectors = np.linalg.eigh(curvature)
    return vectors[:, 1:] / np.sqrt(np.maximum(values[1:], LEAST)), curvature  # the first is the factor left free
