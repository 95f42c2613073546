"""One jump: from an origin in a Context to a proposal, atoms that a learned model has moved and physics has relaxed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from openmm import Context, OpenMMException, State

from openmm_starmd.binding.context import unwatched
from openmm_starmd.binding.gate import Failures, ValidityGate
from openmm_starmd.binding.history_tracker import HistoryTracker
from openmm_starmd.binding.particles import Particles
from openmm_starmd.binding.repair import repair
from openmm_starmd.binding.statistics import JumpStatistics
from openmm_starmd.domain import Violation
from openmm_starmd.errors import JumpRejectedError, StarMDError
from openmm_starmd.geometry.rigid import superpose
from openmm_starmd.interface import JumpPropagator
from openmm_starmd.protein.clashes import resolve_clashes
from openmm_starmd.protein.conformation import Conformation, from_positions
from openmm_starmd.protein.displacement import path_between
from openmm_starmd.protein.history import History
from openmm_starmd.protein.length_unit import refuse_wrong_unit

NOT_FINITE = (OpenMMException, StarMDError)
Random = Callable[[str, int], int]  # from a purpose and a number to a seed


@dataclass(frozen=True)
class Origin:
    """Start of a jump: positions, the history that leads there, and the Context.

    Parameters
    ----------
    positions : array, shape (A, 3)
        Of whole molecules, nm.
    shifts : array, shape (A, 3)
        By how much they differ from the positions in the Context, nm.
    base : float
        Energy that the energy of a relaxed conformation is compared with, kJ/mol; see `ValidityGate.relaxed`.
    history : History
        What leads to the positions, of one replica.
    checkpoint : bytes
        Of the Context.
    """

    positions: np.ndarray
    shifts: np.ndarray
    base: float
    history: History
    checkpoint: bytes


@dataclass(frozen=True)
class Proposal:
    """A conformation that has passed all checks; its atoms are in the Context.

    Parameters
    ----------
    positions, shifts : array, shape (A, 3)
        As of an Origin.
    energies : list of float
        Potential energies before and after relaxation, kJ/mol.
    attempt : int
        Number of conformations that were given up before.
    repaired : bool
        Whether some of its residues were sampled again.
    generator : torch.Generator
        Goes on with the random numbers of the conformation.
    """

    positions: np.ndarray
    shifts: np.ndarray
    energies: list[float]
    attempt: int
    repaired: bool
    generator: torch.Generator


@dataclass(frozen=True)
class JumpKernel:
    """The transition of one stride, without clock and velocities.

    Parameters
    ----------
    propagator : JumpPropagator
    gate : ValidityGate
    tracker : HistoryTracker
    relaxation : Relaxation
    held : array of int
        Atoms that the relaxation restrains.
    child : int
        Which integrator of the Context's CompoundIntegrator has the program of the relaxation.
    particles : Particles
    temperature : float
        K.
    maxRetries : int
    statistics : JumpStatistics
    outside : callable
        Returns the violations of the model's domain, for the error.
    groups : set of int
        Force groups of the energies; all but those of a bias.
    """

    propagator: JumpPropagator
    gate: ValidityGate
    tracker: HistoryTracker
    relaxation: object
    held: np.ndarray
    child: int
    particles: Particles
    temperature: float
    maxRetries: int
    statistics: JumpStatistics
    outside: Callable[[], list[Violation]]
    groups: set[int]

    def origin(self, context: Context, excess: float, check: Callable[[np.ndarray], None], checkpoint: bytes) -> Origin:
        """Make an Origin of the positions in the Context.

        Parameters
        ----------
        context : Context
        excess : float
            Energy of a conformation that the history knows, above its base, kJ/mol.
        check : callable
            Called with positions (A, 3) that the history does not know.
        checkpoint : bytes
            Of the Context.
        """
        if self.particles.hasVirtualSites:
            context.computeVirtualSites()
        positions, shifts = self.particles.wholeMolecules(context.getState(positions=True))
        base = self._energy(context.getState(energy=True, groups=self.groups))
        if self.tracker.known(positions - shifts) is None:
            refuse_wrong_unit(positions, self.propagator.tokens.backbone)
            check(positions)
        else:
            base -= excess
        return Origin(positions, shifts, base, self.tracker.history(self.propagator, positions, shifts), checkpoint)

    def arrived(self, origin: Origin, proposal: Proposal, checkpoint: bytes) -> Origin:
        """Make an Origin of a proposal whose atoms a checkpoint holds."""
        base = proposal.energies[-1] - self.gate.excess(proposal.energies[-1] - origin.base, self.particles.freedoms)
        after = self.tracker.measured(proposal.positions)
        history = self.propagator.extend(origin.history, after, proposal.generator)
        return Origin(proposal.positions, proposal.shifts, base, history, checkpoint)

    def renewed(self, origin: Origin, seed: int) -> Origin:
        """The origin with another context copy of its last conformation."""
        generator = torch.Generator(self.propagator.device).manual_seed(seed)
        here = self.tracker.measured(origin.positions)
        return replace(origin, history=self.propagator.replace(origin.history, here, 0.0, generator))

    def propose(self, context: Context, origin: Origin, random: Random) -> Proposal:
        """Sample, check and relax until a conformation passes; the Context is at the origin before.

        Raises
        ------
        JumpRejectedError
            If no acceptable conformation was sampled within ``maxRetries``. The Context is at the origin.
        """
        for attempt in range(self.maxRetries + 1):
            (sample,) = self.sampled([origin.history], [random], attempt)
            if proposal := self.realised(context, origin, *sample, random, attempt):
                return proposal
        raise self.rejection(origin)

    def rejection(self, origin: Origin) -> JumpRejectedError:
        """The error that tells why no conformation has passed."""
        counts, last = self.statistics.failedNow, self.statistics.failedLast
        reason = self.gate.rejection(origin.positions, self.maxRetries + 1, counts, last, self.outside())
        return JumpRejectedError(f"{reason} The Context is in its last good state.")

    def sampled(self, histories: Sequence[History], randoms: Sequence[Random], attempt: int):
        """Conformations (1, N) after each of the histories, in one batch, and the generator of each."""
        generators = [torch.Generator(self.propagator.device).manual_seed(r("jump", attempt)) for r in randoms]
        with self.statistics.timed("network"):
            if len(histories) == 1:
                conformations = self.propagator.step(histories[0], generators[0])
            else:
                conformations = self.propagator.step(History.join(histories), generators)
        return [(conformations[k : k + 1], generator) for k, generator in enumerate(generators)]

    def realised(self, context: Context, origin: Origin, conformation, generator, random: Random, attempt: int):
        """Proposal made of a conformation (1, N), repaired once if it fails the checks; None if it fails again.

        The Context is at the origin before; with the result None it is there afterwards.
        """
        relaxed, energies, failures = self._tried(context, origin, conformation, random, attempt)
        found = failures
        if failures:
            unwatched(context, "loadCheckpoint", origin.checkpoint)
            self.statistics.fail(failures)
            repaired = self._repaired(origin, conformation, failures, partial(random, f"repair {attempt}"))
            if repaired is not None:
                relaxed, energies, found = self._tried(context, origin, repaired, random, attempt)
        if not found:
            self.statistics.accept(bool(failures))
            return Proposal(*relaxed, energies, attempt, bool(failures), generator)
        unwatched(context, "loadCheckpoint", origin.checkpoint)
        self.statistics.reject()
        return None

    def _repaired(self, origin: Origin, conformation: Conformation, failures: Failures, seed) -> Conformation | None:
        with self.statistics.timed("network"):
            given = self.propagator, self.gate, origin.history, conformation, origin.positions
            return repair(*given, failures, seed)

    def _tried(self, context: Context, origin: Origin, conformation: Conformation, random: Random, attempt: int):
        """Result of `_relaxed` for a conformation (1, N), or the checks that fail before it."""
        with self.statistics.timed("backmapping"):
            path, failures = self._toPositions(conformation, origin.positions)
        return (None, None, failures) if failures else self._relaxed(context, origin, path, random, attempt)

    def _toPositions(self, conformation: Conformation, positions: np.ndarray):
        """The path of all atoms (A, 3) to a conformation (1, N), and the checks that fail at its end.

        Where no relaxation steers, the path is its end.
        """
        tokens, before = self.propagator.tokens, torch.from_numpy(positions)
        resolved, atoms = resolve_clashes(conformation, before[None], tokens)
        if self.relaxation.steers:
            old, new = from_positions(before, tokens), resolved[0]
            new = new.moved(superpose(new.frames.translations, old.frames.translations))
            path = path_between(old, new, before, tokens)
        else:

            def path(fraction: float) -> torch.Tensor:
                return atoms[0]

        (failures,) = self.gate.sampled(path(1.0)[None], positions[None])
        return path, failures

    def _relaxed(self, context: Context, origin: Origin, path, random: Random, attempt: int):
        """Write and relax positions, and compare the energy with the base.

        Returns
        -------
        positions : (array, array), each (A, 3)
            Those of whole molecules, and what was added to the Context's for that.
        energies : list of float
            Potential energies before and after relaxation, kJ/mol.
        failures : dict
            Checks that the result fails, and atoms where it does.
        """

        def at(fraction: float) -> np.ndarray:
            return path(fraction).numpy() - origin.shifts

        try:
            if not self.relaxation.steers:
                context.setPositions(at(1.0))
                context.computeVirtualSites()
                context.applyConstraints(context.getIntegrator().getConstraintTolerance())
                context.computeVirtualSites()
            states: list[State] = [context.getState(energy=True, groups=self.groups)]
            with self.statistics.timed("relaxation"):
                if self.relaxation.active:
                    seed = random("relaxation", attempt)
                    self.relaxation.relax(context, self.child, self.held, at, self.temperature, seed)
                states.append(context.getState(positions=True, energy=True, groups=self.groups))
            positions = self.particles.wholeMolecules(states[-1])
        except NOT_FINITE as error:
            if isinstance(error, OpenMMException) and "NaN" not in str(error):
                raise
            return None, None, {"not_finite": []}
        energies = [self._energy(state) for state in states]
        compared = [[origin.base, *energies]]
        (failures,) = self.gate.relaxed(positions[0][None], origin.positions[None], compared, self.particles.freedoms)
        return positions, energies, failures

    @staticmethod
    def _energy(state: State) -> float:
        return state.getPotentialEnergy()._value
