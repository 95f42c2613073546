"""Draws from the posterior of reversible transition matrices, each independent of the one before.

Let c be the counts, x(i, j) = x(j, i) the joint probabilities of a reversible model, up to a factor, and x(i) their sum
over j. The likelihood is the product of x(i, j)^(c(i, j) + c(j, i)) over pairs and of x(i)^-N(i) over states with N(i)
counts. With the usual prior 1 / x(i, j) and a gamma variable s(i) for each factor x(i)^-N(i), the x(i, j) are
independent gamma variables of the rate s(i) + s(j). What is left is the density of log s, which is that of the
abilities in a tournament in which i beat j c(i, j) times (Bradley and Terry, Biometrika 39, 324, 1952; the gamma
variables: Caron and Doucet, J. Comput. Graph. Stat. 21, 174, 2012). It is log-concave and has one dimension a state:
steps along the whole of its curvature at the maximum cross it at once. A sampler that changes one x(i, j) after the
other takes the longer, the more counts there are.
"""

from __future__ import annotations

import numpy as np

STEPS, STRETCH = 30, 0.5  # a draw; share of new noise in each
LEAST = 1e-300


def sample_reversible(
    counts: np.ndarray, populations: np.ndarray, n_draws: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Transition matrices (n_draws, n, n) and their stationary distributions (n_draws, n).

    ``counts`` (n, n) are strongly connected; ``populations`` (n,) are those of the model of maximum likelihood.
    """
    pairs = counts + counts.T
    first, second = np.nonzero(np.triu(pairs, 1))
    met, won = pairs[first, second], counts.sum(1) - counts.diagonal()
    centre = np.log(counts.sum(1) / populations)
    roots, curvature = _roots(first, second, met, centre)

    def beyond(x):
        """Minus the logarithm of the density, less what is quadratic in it."""
        return met @ np.logaddexp(*(centre + x)[[first, second]]) - won @ (centre + x) - 0.5 * x @ curvature @ x

    matrices, stationary = np.empty((n_draws, *counts.shape)), np.empty((n_draws, len(counts)))
    x = np.zeros(len(counts))
    here = beyond(x)
    for draw in range(n_draws):
        for _ in range(
            STEPS
        ):  # Metropolis; the proposal leaves the quadratic part as it is (Neal 1999; Cotter et al. 2013)
            new = np.sqrt(1 - STRETCH**2) * x + STRETCH * roots @ generator.standard_normal(roots.shape[1])
            there = beyond(new)
            if here - there > np.log(generator.random()):
                x, here = new, there
        joint = _joint(counts, pairs, np.exp(centre + x), generator)
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


def _joint(counts, pairs, rates, generator: np.random.Generator) -> np.ndarray:
    """Symmetric x (n, n) given the rates (n,)."""
    upper = np.triu(generator.gamma(np.triu(pairs, 1)) / (rates[:, None] + rates), 1)
    upper[np.triu(pairs, 1) > 0] = np.maximum(upper[np.triu(pairs, 1) > 0], LEAST)
    own = generator.gamma(counts.diagonal()) / rates
    return upper + upper.T + np.diag(own)
