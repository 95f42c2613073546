"""Local repair: the residues at which a sampled conformation fails the checks are sampled again, the rest is held.

One bad residue spoils a whole conformation, so that the share of sound ones falls with the length of the protein as
p^N. A repair costs as much as a few jumps and keeps the N - k residues that were sound.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from openmm_starmd.binding.gate import ValidityGate
from openmm_starmd.interface import JumpPropagator, Resampler
from openmm_starmd.protein.clashes import resolve_clashes
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.history import History

CANDIDATES = 4  # of a repair, in one batch of the network


def repair(
    propagator: JumpPropagator,
    gate: ValidityGate,
    history: History,
    conformation: Conformation,
    before: np.ndarray,
    failures: dict[str, list[list[int]]],
    seed: Callable[[int], int],
) -> Conformation | None:
    """Sample the residues (and neighbours) at which a conformation fails the checks again, the rest held.

    The failing residues and their neighbours along the chain are sampled again, in a batch of `CANDIDATES`; the first
    candidate that passes is the result. The batch has one size whatever else is sampled, so that the result does not
    depend on the company.

    Parameters
    ----------
    propagator : JumpPropagator
    gate : ValidityGate
    history : History
        Of one replica.
    conformation : Conformation, shape (1, N)
        What the propagator has sampled after it.
    before : array, shape (A, 3)
        Atoms before the jump, nm.
    failures : dict
        Checks that have failed, and atoms where.
    seed : callable
        Gives the seed of the candidate of each number.

    Returns
    -------
    Conformation or None
        None where the propagator is no `Resampler`, the failures have no place or leave nothing to hold, or no
        candidate passes.
    """
    residues = gate.residues(failures)
    if not isinstance(propagator, Resampler) or not residues.any() or residues.all():
        return None
    batch = conformation.map(lambda x: x.expand(CANDIDATES, *x.shape[1:]))
    generators = [torch.Generator(propagator.device).manual_seed(seed(k)) for k in range(CANDIDATES)]
    again = residues.expand(CANDIDATES, -1)
    candidates = propagator.resample(History.join([history] * CANDIDATES), batch, again, generators)
    old = torch.from_numpy(before).expand(CANDIDATES, -1, -1)
    candidates, atoms = resolve_clashes(candidates, old, propagator.tokens)
    found = gate.sampled(atoms, before[None])
    return next((candidates[k : k + 1] for k, failure in enumerate(found) if not failure), None)
