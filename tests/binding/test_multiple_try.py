"""The rule by which a bias accepts: exact for a reversible kernel, with one candidate and with several."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from openmm_starmd.binding import bias as module
from openmm_starmd.binding.bias import Bias
from openmm_starmd.binding.context import KB
from openmm_starmd.seeds import derived

SPREAD, KEPT = 0.25, 0.8  # of an Ornstein-Uhlenbeck process about 0: the unbiased ensemble, and what a jump keeps
CENTRE, STIFFNESS = 0.6, 32.0  # of the harmonic bias, kT
STEPS, TEMPERATURE = 6000, 300.0


class Line:
    """A kernel on a line, whose Context is one number; it fails a share of the samples."""

    temperature, maxRetries = TEMPERATURE, 50

    def __init__(self, failing=0.0):
        self.failing = failing

    def renewed(self, origin, seed):
        return origin

    def arrived(self, origin, proposal, checkpoint):
        return SimpleNamespace(history=proposal.x, checkpoint=checkpoint)

    def sampled(self, histories, randoms, attempt):
        radii = [math.sqrt(-2 * math.log(1 - random("radius", attempt) / 2**63)) for random in randoms]
        turns = [2 * math.pi * random("turn", attempt) / 2**63 for random in randoms]
        noise = [math.sqrt(1 - KEPT**2) * SPREAD * r * math.cos(t) for r, t in zip(radii, turns, strict=True)]
        return [(KEPT * x + n, None) for x, n in zip(histories, noise, strict=True)]

    def realised(self, context, origin, x, generator, random, attempt):
        if random("failure", attempt) / 2**63 < self.failing:
            return None
        context.x = x
        return SimpleNamespace(x=x)


class Place(SimpleNamespace):
    """What stands for a Context."""

    def getState(self, energy, groups):
        value = 0.5 * STIFFNESS * KB * TEMPERATURE * (self.x - CENTRE) ** 2
        return SimpleNamespace(getPotentialEnergy=lambda: SimpleNamespace(_value=value))

    def createCheckpoint(self):
        return self.x


@pytest.fixture
def walk(monkeypatch):
    """Function (candidates, failing=0) -> positions (STEPS,) of a biased walk."""
    monkeypatch.setattr(module, "unwatched", lambda context, name, saved: setattr(context, "x", saved))

    def run(candidates, failing=0.0):
        bias, kernel, x, walked = Bias(frozenset({7}), candidates), Line(failing), CENTRE, []
        for step in range(STEPS):
            context, origin = Place(x=x), SimpleNamespace(history=x, checkpoint=x)
            _, accepted = bias.propose(kernel, context, origin, lambda name, k, step=step: derived(step, name, k))
            x = context.x if accepted else x
            walked.append(x)
        return np.array(walked)

    return run


@pytest.mark.parametrize("candidates, failing", [(1, 0.0), (3, 0.0), (3, 0.4)])
def test_the_biased_ensemble_is_exact(walk, candidates, failing):
    """Mean and variance within four standard errors, of 50 blocks; references from the wrong place are eight off."""
    precision = 1 / SPREAD**2 + STIFFNESS
    mean, values = CENTRE * STIFFNESS / precision, walk(candidates, failing)
    for samples, exact, largest in ((values, mean, 0.009), ((values - mean) ** 2, 1 / precision, 0.0015)):
        blocks = samples.reshape(50, -1).mean(1)
        error = blocks.std(ddof=1) / math.sqrt(50)
        assert error < largest and abs(blocks.mean() - exact) < 4 * error
