"""Settings that all replicas share, and the steps of some of them: the work of one process."""

from __future__ import annotations

import logging
import socket
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from openmm import System
from openmm.app import Topology

from openmm_starmd.binding.context import checkSystem
from openmm_starmd.binding.forces import unknownForces
from openmm_starmd.binding.gate import Failures, ValidityGate
from openmm_starmd.domain import Violation
from openmm_starmd.errors import StarMDError
from openmm_starmd.interface import JumpPropagator
from openmm_starmd.plugins import NewPropagator
from openmm_starmd.protein.history import History
from openmm_starmd.protein.length_unit import refuse_wrong_unit
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.relaxation import Relaxation, RelaxationPool
from openmm_starmd.rollout.replica import LOCKS, Replica
from openmm_starmd.rollout.rounds import BatchSampler
from openmm_starmd.systems.run_settings import hash_of_molecule, hash_of_positions, hash_of_system

logger = logging.getLogger(__name__)


class Reached(NamedTuple):
    """Progress of a replica, why it has stopped there, if it has, and what it has sampled on the way."""

    number: int
    step: int
    rejection: str | None
    counts: Counter


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Settings of a rollout; the arguments of `rollout`, checked and in internal units. It can be sent elsewhere."""

    folder: Path  # where the files are
    new_propagator: NewPropagator
    topology: Topology
    starts: np.ndarray  # (B, A, 3): nm
    stride: float
    temperature: float
    seed: int
    system: System | None
    relaxation: Relaxation
    denoising_steps: int | None
    context_frames: int | None
    max_retries: int
    checkpoint_steps: int
    workers: int

    @cached_property
    def tokens(self) -> ResidueTokens:
        """Residue tokens of the topology."""
        return ResidueTokens.from_topology(self.topology)

    def _create_propagator(self) -> JumpPropagator:
        settings = {"context_frames": self.context_frames, "denoising_steps": self.denoising_steps}
        return self.new_propagator(self.tokens, self.stride, self.temperature, **settings)

    def on(self, device: str) -> Ensemble:
        """Equal ensemble with its propagators on another device."""
        return replace(self, new_propagator=self.new_propagator.on(device))

    @cached_property
    def _settings(self) -> dict:
        """Settings that all replicas are made with, their starts left out."""
        propagator = self._create_propagator()
        return {
            "model or protein": propagator.identity.hex(),
            "molecule": hash_of_molecule(self.topology),
            "stride": self.stride,
            "temperature": self.temperature,
            "seed": self.seed,
            "context_frames": propagator.context_frames,
            "denoising_steps": self.denoising_steps,
            "relaxation": repr(self.relaxation) if self._relaxes else None,
            "System": hash_of_system(self.system) if self._relaxes else None,
        }

    @property
    def _relaxes(self) -> bool:
        return self.system is not None and self.relaxation.active

    @property
    def gate(self) -> ValidityGate:
        """The checks of conformations."""
        return ValidityGate(self.topology, self.tokens, self.temperature, self._relaxes)

    @cached_property
    def outside(self) -> list[Violation]:
        """Violations of the domain of the model, positions aside."""
        return self.new_propagator.outside(self.tokens, self.stride, self.temperature)

    def check(self):
        """Raise ModelDomainError for protein, settings, starts and forces outside the domain, before anything slow.

        A ValueError or UnsupportedTopologyError refuses a System that does not belong to the Topology.
        """
        new, settings = self.new_propagator, (self.tokens, self.stride, self.temperature)
        new.require(*settings)
        if self._relaxes:
            checkSystem(self.system, self.topology.getNumAtoms(), self.tokens)
        starts = np.unique(self.starts, axis=0)
        for start in starts:
            refuse_wrong_unit(start, self.tokens.backbone)
        found = [told for start in starts for told in new.outside(*settings, start)]
        of_starts = list(dict.fromkeys(told for told in found if told not in self.outside))
        new.refuse(of_starts[:1])
        if self._relaxes and (unknown := unknownForces(self.system, self.topology, self.tokens, new.force_field)):
            warnings.warn(
                f"Model {new.name!r} was not trained with {'; '.join(unknown)}. This acts in the relaxation after each "
                "jump; the jumps know nothing of it.",
                stacklevel=3,
            )

    def sampler(self) -> BatchSampler:
        """Sampler of the steps; ModelDomainError or ValueError if protein, settings or System do not fit."""
        pool = None
        if self._relaxes:
            pool = RelaxationPool(
                self.system, self.topology, self.tokens, self.relaxation, self.temperature, self.workers
            )
        return BatchSampler(self._create_propagator, self.gate, pool, self.seed)

    def replica(self, number: int) -> Replica:
        """One of the replicas, at its start."""
        return Replica(
            self.folder,
            number,
            self.topology,
            self.tokens.features.torsion_mask,
            self.stride,
            self._settings | {"start": hash_of_positions(self.starts[number])},
            self.starts[number],
        )

    def steps(self) -> list[int]:
        """Steps that the replicas have in the folder; HistoryError if a state is damaged or of other settings."""
        return [self.replica(number).look() for number in range(len(self.starts))]

    def advance(
        self,
        numbers: Sequence[int],
        until: int,
        sampler: BatchSampler,
        wait: bool = False,
        progress: Callable[[int], None] = lambda frames: None,
    ) -> list[Reached]:
        """Bring replicas from their last states to the step ``until``.

        In every round those that can be sampled together, having windows alike, try a jump each; those with the
        shortest windows come first. What fails waits for the next round. One whose jump is rejected stops with its last
        state saved; the others go on. Whatever ends this, the states are those of the last steps.

        With ``wait`` another process that is writing the same replicas is waited for, rather than refused. ``progress``
        gets the number of new frames after each round.
        """
        if not (self.folder / LOCKS).is_dir():
            raise StarMDError(
                f"{socket.gethostname()} sees no {self.folder}; name a folder that all machines share, under one path."
            )
        batch = [self.replica(number) for number in numbers]
        with ExitStack() as held:
            for replica in batch:
                held.enter_context(replica.held(wait))
            for replica in batch:
                replica.load()
            try:
                for replica in batch:
                    if replica.history is None:
                        replica.positions = sampler.minimized(replica.positions)
                        replica.history = sampler.start(replica.positions[None])
                going = [replica for replica in batch if replica.step < until]
                while shortest := min((r.window for r in going if r.step < until), default=None):
                    progress(self._round(sampler, [r for r in going if r.window == shortest], until))
                    going = [replica for replica in going if not replica.rejection]
            finally:
                for replica in batch:
                    replica.save()
        return [Reached(replica.number, replica.step, replica.rejection, replica.counts) for replica in batch]

    def _round(self, sampler: BatchSampler, group: list[Replica], until: int) -> int:
        """A try of a jump for each of a group of replicas whose windows are alike; the number of new frames.

        Those that have arrived stay in the batch: how the others' numbers are rounded depends on its size.
        """
        history, before = History.join([r.history for r in group]), np.stack([r.positions for r in group])
        keys = [(replica.number, replica.step, len(replica.failures)) for replica in group]
        asked = [k for k, replica in enumerate(group) if replica.step < until]
        excess = [replica.excess for replica in group]
        positions, excess, failures, repaired = sampler.sample(history, before, excess, keys, asked)
        histories = sampler.extend(history, positions, keys).split()
        for k in asked:
            if k in failures:
                self._fail(group[k], failures[k])
            else:
                group[k].accept(positions[k], histories[k], excess[k])
                group[k].counts.update(steps=1, repaired=int(k in repaired))
                if group[k].step % self.checkpoint_steps == 0:
                    group[k].save()
        return len(asked) - len(failures)

    def _fail(self, replica: Replica, failure: Failures):
        """Note the failure of a try, and stop the replica if it was the last."""
        replica.failures.append(failure)
        replica.counts["resampled"] += 1
        tries = len(replica.failures)
        if tries > self.max_retries:
            counts = Counter(name for failure in replica.failures for name in failure)
            reason = self.gate.rejection(replica.positions, tries, counts, failure, self.outside)
            replica.rejection = f"Replica {replica.number}, step {replica.step + 1}: {reason}"
            replica.save()
            logger.error("%s", replica.rejection)
