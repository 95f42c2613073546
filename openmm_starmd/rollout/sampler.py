"""One step of a batch of replicas."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable

import numpy as np
import torch

from openmm_starmd.binding.gate import ValidityGate
from openmm_starmd.propagator import Propagator
from openmm_starmd.protein.conformation import from_positions, to_positions
from openmm_starmd.protein.history import History
from openmm_starmd.relaxation import RelaxationPool

OFTEN = 4  # parts of a batch up to this size have propagators of their own


def _random(*key) -> int:
    """Counter-based random numbers: a hash of the key."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little") >> 1


class BatchSampler:
    """Sample, move the atoms, check, relax, check; what fails is sampled again on its own.

    Parameters
    ----------
    new_propagator : callable
        Makes a `Propagator`: one for the whole batch, and others for parts of it, because each keeps what belongs to
        the size of its batch.
    gate : ValidityGate
    pool : RelaxationPool or None
    seed : int
    max_retries : int
    """

    def __init__(
        self,
        new_propagator: Callable[[], Propagator],
        gate: ValidityGate,
        pool: RelaxationPool | None,
        seed: int,
        max_retries: int,
    ):
        self._propagator = new_propagator()
        self._again: defaultdict[int, Propagator] = defaultdict(new_propagator)
        self._gate, self._pool, self._seed, self._max_retries = gate, pool, seed, max_retries
        self._tokens = self._propagator.tokens
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
        return self._propagator.start(self._measured(positions))

    def sample(self, history: History, positions: np.ndarray, numbers: list[int], step: int):
        """Positions (B, A, 3) a stride after ``positions``; and why, by their places in the batch, some have none."""
        new, waiting = positions.copy(), np.arange(len(numbers))
        failed = [Counter() for _ in numbers]
        for attempt in range(self._max_retries + 1):
            whole = len(waiting) == len(numbers)
            part = history if whole else history.replicas(waiting)
            propagator = self._propagator if whole else self._again[min(len(waiting), OFTEN)]
            keys = [(self._seed, numbers[k], step, attempt) for k in waiting]
            conformation = propagator.step(part, self._generators("jump", keys)).to("cpu", torch.float64)
            old = positions[waiting]
            sampled = to_positions(conformation, torch.from_numpy(old), self._tokens).numpy()
            found, failures = self._judged(sampled, old, keys)
            for k, atoms, failure in zip(waiting, found, failures, strict=True):
                new[k] = positions[k] if failure else atoms
                failed[k].update(list(failure))
            waiting, failures = waiting[[bool(failure) for failure in failures]], [f for f in failures if f]
            if not len(waiting):
                break
        reasons = [
            self._gate.rejection(positions[k], self._max_retries + 1, failed[k], failure)
            for k, failure in zip(waiting, failures, strict=True)
        ]
        return new, dict(zip(waiting.tolist(), reasons, strict=True))

    def extend(self, history: History, positions: np.ndarray, numbers: list[int], step: int) -> History:
        """History with the positions (B, A, 3) that `sample` has found after ``step`` steps."""
        noise = self._generators("context", [(self._seed, number, step, 0) for number in numbers])
        return self._propagator.extend(history, self._measured(positions), noise)

    def _judged(self, sampled: np.ndarray, old: np.ndarray, keys):
        """Positions, relaxed where that is asked for, and the checks that each of them fails."""
        failures = self._gate.sampled(sampled, old)
        if self._pool is None:
            return sampled, failures
        sound = [k for k, failure in enumerate(failures) if not failure]
        jobs = [(sampled[k], old[k], _random("relaxation", *keys[k])) for k in sound]
        if jobs:
            sampled[sound], energies = map(np.array, zip(*self._pool.relax(jobs), strict=True))
            found = self._gate.relaxed(sampled[sound], old[sound], energies, self._pool.freedoms)
            for k, failure in zip(sound, found, strict=True):
                failures[k] = failure
        return sampled, failures

    def _measured(self, positions: np.ndarray):
        return from_positions(torch.from_numpy(positions), self._tokens)

    def _generators(self, purpose: str, keys) -> list[torch.Generator]:
        device = self._propagator.model.device
        return [torch.Generator(device).manual_seed(_random(purpose, *key)) for key in keys]
