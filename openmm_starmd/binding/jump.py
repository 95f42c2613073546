"""One jump: from an origin in a Context to a proposal, atoms that a learned model has moved and physics has relaxed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from openmm import Context, OpenMMException, State

from openmm_starmd.binding.context import unwatched
from openmm_starmd.binding.gate import Failures, ValidityGate
from openmm_starmd.binding.particles import Particles
from openmm_starmd.binding.repair import repair
from openmm_starmd.binding.statistics import JumpStatistics
from openmm_starmd.domain import Violation
from openmm_starmd.errors import JumpRejectedError, StarMDError
from openmm_starmd.geometry.rigid import superpose
from openmm_starmd.interface import JumpPropagator
from openmm_starmd.protein.conformation import Conformation, from_positions
from openmm_starmd.protein.displacement import path_between
from openmm_starmd.protein.history import History

NOT_FINITE = (OpenMMException, StarMDError)
Random = Callable[[str, int], int]  # from a purpose and a number to a seed


@dataclass(frozen=True)
class Origin:
    """Where a jump starts.

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
    retries : int
        Conformations that were given up before.
    repaired : bool
        Whether some of its residues were sampled again.
    generator : torch.Generator
        Goes on with the random numbers of the conformation.
    """

    positions: np.ndarray
    shifts: np.ndarray
    energies: list[float]
    retries: int
    repaired: bool
    generator: torch.Generator


@dataclass(frozen=True)
class JumpKernel:
    """The transition of one stride, without clock and velocities.

    A conformation that fails the checks is repaired once; if it fails again, a new one is sampled.

    Parameters
    ----------
    propagator : JumpPropagator
    gate : ValidityGate
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
    """

    propagator: JumpPropagator
    gate: ValidityGate
    relaxation: object
    held: np.ndarray
    child: int
    particles: Particles
    temperature: float
    maxRetries: int
    statistics: JumpStatistics
    outside: Callable[[], list[Violation]]

    def propose(self, context: Context, origin: Origin, random: Random) -> Proposal:
        """Sample, check and relax until a conformation passes; the Context is at the origin before.

        Raises
        ------
        JumpRejectedError
            If no acceptable conformation was sampled within ``maxRetries``. The Context is at the origin.
        """
        for attempt in range(self.maxRetries + 1):
            generator = torch.Generator(self.propagator.device).manual_seed(random("jump", attempt))
            with self.statistics.timed("network"):
                conformation = self.propagator.step(origin.history, generator)
            relaxed, energies, failures = self._tried(context, origin, conformation, random, attempt)
            found = failures
            if failures:
                unwatched(context, "loadCheckpoint", origin.checkpoint)
                self.statistics.fail(failures)
                repaired = self._repaired(origin, conformation, failures, partial(random, f"repair {attempt}"))
                if repaired is not None:
                    relaxed, energies, found = self._tried(context, origin, repaired, random, attempt)
            if not found:
                return Proposal(*relaxed, energies, attempt, bool(failures), generator)
            unwatched(context, "loadCheckpoint", origin.checkpoint)
            self.statistics.reject()
        counts = self.statistics.failedNow
        reason = self.gate.rejection(origin.positions, self.maxRetries + 1, counts, failures, self.outside())
        raise JumpRejectedError(f"{reason} The Context is in its last good state.")

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
        """The path of all atoms (A, 3) to a conformation (1, N), and the checks that fail at its end."""
        tokens = self.propagator.tokens
        old = from_positions(torch.from_numpy(positions), tokens)
        new = conformation[0].to("cpu", torch.float64)
        if self.relaxation.steers:
            new = new.moved(superpose(new.frames.translations, old.frames.translations))
        path = path_between(old, new, torch.from_numpy(positions), tokens)
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
            states: list[State] = [context.getState(energy=True)]
            with self.statistics.timed("relaxation"):
                if self.relaxation.active:
                    seed = random("relaxation", attempt)
                    self.relaxation.relax(context, self.child, self.held, at, self.temperature, seed)
                states.append(context.getState(positions=True, energy=True))
            positions = self.particles.wholeMolecules(states[-1])
        except NOT_FINITE as error:
            if isinstance(error, OpenMMException) and "NaN" not in str(error):
                raise
            return None, None, {"not_finite": []}
        energies = [state.getPotentialEnergy()._value for state in states]
        compared = [[origin.base, *energies]]
        (failures,) = self.gate.relaxed(positions[0][None], origin.positions[None], compared, self.particles.freedoms)
        return positions, energies, failures
