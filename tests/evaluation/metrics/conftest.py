"""Processes whose exact values are known."""

import numpy as np
import pytest


@pytest.fixture
def ornstein_uhlenbeck():
    """Function (tau, n, rng) -> unit-variance process with autocorrelation exp(-lag / tau)."""

    def process(tau, n, rng):
        decay = np.exp(-1 / tau)
        noise, x = rng.normal(size=n) * np.sqrt(1 - decay**2), np.zeros(n)
        for i in range(1, n):
            x[i] = decay * x[i - 1] + noise[i]
        return x

    return process
