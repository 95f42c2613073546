"""One round of a batch of replicas."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch

from openmm_starmd.binding.gate import ValidityGate
from openmm_starmd.binding.repair import repair
from openmm_starmd.interface import JumpPropagator
from openmm_starmd.protein.clashes import resolve_clashes
from openmm_starmd.protein.conformation import Conformation, from_positions
from openmm_starmd.protein.history import History
from openmm_starmd.relaxation import RelaxationPool
from openmm_starmd.seeds import derived


class BatchSampler:
    """Sample, move the atoms, check, relax, check; what fails is repaired once.

    Batches of about one size share a `JumpPropagator`, because it keeps what belongs to the size.
    """

    def __init__(
        self, new_propagator: Callable[[], JumpPropagator], gate: ValidityGate, pool: RelaxationPool | None, seed: int
    ):
        self._propagators: defaultdict[int, JumpPropagator] = defaultdict(new_propagator)
        self._gate, self._pool, self._seed = gate, pool, seed
        self._tokens, self._device = self._of(1).tokens, self._of(1).device
        self._minimized: dict[bytes, np.ndarray] = {}

    def minimized(self, positions: np.ndarray) -> np.ndarray:
        """Positions (A, 3) to start from: minimised if there is relaxation, equal ones once."""
        if self._pool is None:
            return positions
        key = positions.tobytes()
        if key not in self._minimized:
            self._minimized[key] = self._pool.minimized(positions)
        return self._minimized[key]

    def start(self, positions: np.ndarray) -> History:
        """History of positions (B, A, 3)."""
        return self._of(len(positions)).start(self._measured(positions))

    def sample(self, history: History, positions: np.ndarray, excess: list[float], keys: list[tuple], asked: list[int]):
        """One try of a jump from positions (B, A, 3), nm, and energies ``excess`` above the base of each run, kJ/mol.

        The random numbers of a replica belong to its number, step and attempt, its ``keys``. Replicas at the places
        ``asked`` jump; the others are along for the size of the batch.

        The result is positions (those before, where no jump has been asked for or it fails the checks), excess, the
        checks that jumps fail with the atoms where they do, by places in the batch, and the places of jumps that were
        repaired.
        """
        conformation = self._of(len(keys)).step(history, self._generators("jump", keys))
        new, before, excess = positions.copy(), np.array(excess), list(excess)
        judged = self._judged(conformation[asked], positions, before, keys, asked)
        failures = {}
        for k, atoms, energy, failure in zip(asked, *judged, strict=True):
            if failure:
                failures[k] = failure
            else:
                new[k], excess[k] = atoms, energy
        repaired = self._repaired(history, conformation, positions, before, keys, failures)
        for k, (atoms, energy) in repaired.items():
            new[k], excess[k] = atoms, energy
            del failures[k]
        return new, excess, failures, set(repaired)

    def _repaired(self, history: History, conformation: Conformation, positions, excess, keys, failures) -> dict:
        """Positions (A, 3) and excess of the jumps with ``failures`` that a repair makes acceptable, by places."""
        candidates, histories = {}, history.split() if failures else []
        for k, failure in failures.items():
            seed = functools.partial(derived, "repair", self._seed, *keys[k])
            given = self._of(1), self._gate, histories[k]
            candidates[k] = repair(*given, conformation[k : k + 1], positions[k], failure, seed)
        mended = [k for k, candidate in candidates.items() if candidate is not None]
        if not mended:
            return {}
        conformation = Conformation.cat([candidates[k] for k in mended])
        judged = self._judged(conformation, positions, excess, keys, mended)
        return {k: (atoms, energy) for k, atoms, energy, failure in zip(mended, *judged, strict=True) if not failure}

    def extend(self, history: History, positions: np.ndarray, keys: list[tuple]) -> History:
        """History with the positions (B, A, 3) that `sample` has found."""
        noise = self._generators("context", [(number, step, 0) for number, step, _ in keys])
        return self._of(len(keys)).extend(history, self._measured(positions), noise)

    def _judged(self, conformation: Conformation, before: np.ndarray, excess: np.ndarray, keys, places: list[int]):
        """Positions (P, A, 3) of conformations (P, N) of some places, relaxed where that is asked for.

        Beside them the excess (P,) of their energies, and the checks that each of them fails.
        """
        old, excess = before[places], excess[places]
        sampled = resolve_clashes(conformation, torch.from_numpy(old), self._tokens)[1].numpy()
        failures = self._gate.sampled(sampled, old)
        if self._pool is None:
            return sampled, excess, failures
        sound = [k for k, failure in enumerate(failures) if not failure]
        jobs = [(sampled[k], old[k], derived("relaxation", self._seed, *keys[places[k]])) for k in sound]
        if jobs:
            sampled[sound], energies = map(np.array, zip(*self._pool.relax(jobs), strict=True))
            energies[:, 0] -= excess[sound]
            found = self._gate.relaxed(sampled[sound], old[sound], energies, self._pool.freedoms)
            for k, (base, _, end), failure in zip(sound, energies.tolist(), found, strict=True):
                excess[k], failures[k] = self._gate.excess(end - base, self._pool.freedoms), failure
        return sampled, excess, failures

    def _measured(self, positions: np.ndarray):
        return from_positions(torch.from_numpy(positions), self._tokens)

    def _generators(self, purpose: str, keys) -> list[torch.Generator]:
        return [torch.Generator(self._device).manual_seed(derived(purpose, self._seed, *key)) for key in keys]

    def _of(self, batch: int) -> JumpPropagator:
        return self._propagators[batch.bit_length()]
