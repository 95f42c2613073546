"""Relaxation: from the atoms that a jump has moved to a structure with the energy of ordinary dynamics.

It runs in the user's own Context, so that every force of the user's System acts, with parameters changed later. A force
added after a Context exists would be invisible; the restraint therefore stands in the integrator's own expressions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
from openmm import (
    CompoundIntegrator,
    Context,
    CustomIntegrator,
    LocalEnergyMinimizer,
    OpenMMException,
    Platform,
    System,
    unit,
)
from openmm.app import Topology

from openmm_starmd.binding.context import KB, freedomsOf
from openmm_starmd.binding.store import AT_WORK, PREFIX, scratchName
from openmm_starmd.errors import require
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.units import valueIn, wholeNumber

MODES = ("minimize", "steer", "none")
IDLE, MINIMIZING, STEERING, RELEASED = range(4)
LARGEST_MOVE = 0.02  # nm per step and axis; thermal motion stays below it
LARGEST_TIME_STEP = 0.004  # ps; minimisation of heavy-atom bonds loses its way not far beyond it
STABLE = 0.01  # ps; no dynamics of a protein stands a longer time step
REFILLED = 0.048  # ps at twice the temperature; benchmarks/results/relaxation.md
TURN = 0.2  # first share of the force in the velocity of the minimisation
WAYPOINTS, ARRIVAL = 40, 32  # the restraints stand still at the end of their way for the atoms to catch up
FREE = 1e6  # nm; what stands in place of a reference position where an atom is not restrained
UNITS = {
    "restraintConstant": unit.kilojoules_per_mole / unit.nanometer**2,
    "timeStep": unit.picoseconds,
    "friction": unit.picoseconds**-1,
}
# step length, FIRE's mixing parameter and its count of steps since the last uphill one; sums over all particles
STAGE, H, ALPHA, DOWNHILL, POWER, FORCES, VELOCITIES, THERMAL = (
    PREFIX + name for name in ("stage", "h", "alpha", "downhill", "power", "forces", "velocities", "thermal")
)
REFERENCE = scratchName(0)


@dataclass(frozen=True)
class Relaxation:
    """Relaxation of the atoms after each learned jump.

    ``"minimize"`` is for implicit solvent and vacuum: a minimisation by FIRE (Bitzek et al., Phys. Rev. Lett. 97,
    170201, 2006), in which harmonic restraints hold the backbone atoms N, CA and C where the model has put them,
    removes clashes and strained bonds; then short dynamics without restraint gives every degree of freedom its thermal
    energy back. Minimisation has taken the potential half of that energy from the stiff ones, so the first velocities,
    of 0.048 ps or half of the dynamics if that is less, are drawn at twice the temperature. Before dynamics the
    minimisation is short: it takes the strain of stiff bonds and angles, but leaves slow motions their thermal energy,
    which short dynamics would not give back. With ``dynamicsSteps=0`` the frames are minimised ones: their energies lie
    far below those of MD.

    ``"steer"`` is for explicit solvent and ligands: the heavy atoms of the protein are pulled by moving restraints
    along the way from the old conformation to the new one, which is superposed on the old one before, while everything
    else moves as physics tells; then the restraints are released::

        integrator = StarMDIntegrator(topology, 300*kelvin, 100*picoseconds, relaxation=Relaxation(mode="steer"))

    Dynamics is leapfrog with velocities drawn anew at random times, at the rate ``friction`` (Andersen, J. Chem. Phys.
    72, 2384, 1980). They are drawn in the middle of a step, so that the time step leaves no error in the positions of a
    harmonic well (Zhang et al., J. Phys. Chem. A 123, 6056, 2019), and from the integrator's seed alone, so that a
    restart from a State continues bit for bit. Barostats and the like act while nothing is restrained. Time and step
    count of the Context are the integrator's business; relaxation does not count as time.

    Parameters
    ----------
    mode : {"minimize", "steer", "none"}
        "none" leaves the atoms where the jump and the constraints put them.
    minimizationSteps : int, optional
        Steps of minimisation, one force evaluation each; by default 25 before dynamics and 140 without.
    restraintConstant : energy/length^2, optional
        Force constant k of the restraint k/2 (x - x0)^2, kJ/mol/nm^2; by default 1000 to minimise and 5000 to steer.
    dynamicsSteps : int
        Steps of dynamics after the restraints have been released, one force evaluation each.
    timeStep : time
        Time step of the dynamics and first time step of the minimisation, which grows to twice as much, ps.
    friction : 1/time
        Rate at which velocities are drawn anew, 1/ps.
    steeringSteps : int
        Steps of dynamics under moving restraints, one force evaluation each.
    """

    mode: str = "minimize"
    minimizationSteps: int | None = None
    restraintConstant: float | None = None
    dynamicsSteps: int = 60
    timeStep: float = 0.002
    friction: float = 80.0
    steeringSteps: int = 2000

    def __post_init__(self):
        if self.minimizationSteps is None:
            object.__setattr__(self, "minimizationSteps", 25 if self.dynamicsSteps else 140)
        if self.restraintConstant is None:
            object.__setattr__(self, "restraintConstant", 5000.0 if self.mode == "steer" else 1000.0)
        for name, target in UNITS.items():
            object.__setattr__(self, name, valueIn(getattr(self, name), target))
        for name in ("minimizationSteps", "dynamicsSteps", "steeringSteps"):
            object.__setattr__(self, name, wholeNumber(name, getattr(self, name)))
        require(self.mode in MODES, f"mode must be one of {', '.join(MODES)}; got {self.mode!r}")
        require(self.restraintConstant >= 0, f"restraintConstant must be >= 0; got {self.restraintConstant}")
        require(
            0 < self.timeStep <= STABLE,
            f"timeStep must be above 0 and at most {STABLE} ps, beyond which no dynamics of a protein is stable; got "
            f"{self.timeStep:g} ps (a number without a unit is in ps)",
        )
        require(self.friction > 0, f"friction must be > 0; got {self.friction}/ps")

    @property
    def active(self) -> bool:
        """True if there is anything to do."""
        return self.steers or (self.mode == "minimize" and self.minimizationSteps + self.dynamicsSteps > 0)

    @property
    def steers(self) -> bool:
        """True if atoms reach their new positions by steered dynamics, rather than by being put there."""
        return self.mode == "steer"

    @property
    def scratch(self) -> int:
        """Number of per-DOF variables that the program needs, named by `scratchName`."""
        return 0 if not self.active else 2 if self.steers else 1

    def addProgram(self, integrator: CustomIntegrator):
        """Add the program of the relaxation to an integrator that has the per-DOF variables for it."""
        for name in (STAGE, H, ALPHA, DOWNHILL, POWER, FORCES, VELOCITIES, THERMAL):
            integrator.addGlobalVariable(name, 0)
        restrained = f"(f - step({FREE / 2}-{REFERENCE})*{self.restraintConstant}*(x-{REFERENCE}))"
        if self.steers:
            integrator.beginIfBlock(f"{STAGE} = {STEERING}")
            self._addDynamics(integrator, restrained)
            integrator.endBlock()
        else:
            integrator.beginIfBlock(f"{STAGE} = {MINIMIZING}")
            self._addMinimization(integrator, restrained)
            integrator.endBlock()
        integrator.beginIfBlock(f"{STAGE} = {RELEASED}")
        integrator.addUpdateContextState()
        self._addDynamics(integrator, "f")
        integrator.endBlock()

    @property
    def _noise(self) -> str:
        """The last variable: where nothing is restrained, that of the reference positions is free."""
        return scratchName(self.scratch - 1)

    def _addDynamics(self, integrator: CustomIntegrator, force: str):
        """One step of leapfrog; where THERMAL is kT and not 0, velocities are drawn half way of its drift."""
        noise = self._noise
        integrator.addComputePerDof("v", f"v + {H}*{force}/m")
        integrator.addComputePerDof("v", f"max(-{LARGEST_MOVE}, min({LARGEST_MOVE}, {H}*v))/{H}")
        integrator.addConstrainVelocities()
        integrator.addComputePerDof("x", f"x + 0.5*{H}*v")
        integrator.beginIfBlock(f"{THERMAL} > 0")
        integrator.addComputePerDof("v", f"sqrt({THERMAL}/m)*{noise}")
        integrator.addConstrainVelocities()
        integrator.addComputeGlobal(THERMAL, "0")
        integrator.endBlock()
        integrator.addComputePerDof("x", f"x + 0.5*{H}*v")
        integrator.addComputePerDof(noise, "x")
        integrator.addConstrainPositions()
        integrator.addComputePerDof("v", f"v + (x-{noise})/{H}")

    def _addMinimization(self, integrator: CustomIntegrator, force: str):
        """One step of FIRE: turn the velocity towards the force, speed up downhill, stop uphill."""
        integrator.addComputeSum(POWER, f"{force}*v")
        integrator.addComputeSum(FORCES, f"{force}*{force}")
        integrator.addComputeSum(VELOCITIES, "v*v")
        integrator.addComputeGlobal(DOWNHILL, f"step({POWER})*({DOWNHILL}+1)")
        faster = f"select(step({DOWNHILL}-2), min(1.1*{H}, {min(2 * self.timeStep, LARGEST_TIME_STEP)}), {H})"
        integrator.addComputeGlobal(H, f"select(step({POWER}), {faster}, 0.8*{H})")
        less = f"select(step({DOWNHILL}-2), 0.95*{ALPHA}, {ALPHA})"
        integrator.addComputeGlobal(ALPHA, f"select(step({POWER}), {less}, {TURN})")
        turned = f"(1-{ALPHA})*v + {ALPHA}*{force}*sqrt({VELOCITIES}/({FORCES}+1e-30))"
        integrator.addComputePerDof("v", f"step({POWER})*({turned}) + {H}*{force}/m")
        integrator.addComputePerDof("v", f"max(-{LARGEST_MOVE}, min({LARGEST_MOVE}, {H}*v))/{H}")
        integrator.addComputePerDof("x", f"x + {H}*v")
        integrator.addConstrainPositions()
        integrator.addConstrainVelocities()

    def relax(
        self,
        context: Context,
        child: int,
        held: Sequence[int],
        path: Callable[[float], np.ndarray],
        temperature: float,
        seed: int,
    ):
        """Relax the positions of a Context; velocities, time and step count are left changed.

        The integrator of the Context is a CompoundIntegrator whose ``child`` has the program. ``path`` gives positions
        (A, 3), nm, a fraction of the way from the old conformation to the new; those of the atoms ``held`` by the
        restraint count. The temperature is in K; the seed of the velocities lies between 1 and 2^30.
        """
        compound = context.getIntegrator()
        program = compound.getIntegrator(child)
        generator = np.random.default_rng(seed)
        current = compound.getCurrentIntegrator()
        compound.setCurrentIntegrator(child)
        program.setGlobalVariableByName(AT_WORK, 1)
        try:
            if self.steers:
                for k in range(WAYPOINTS):
                    self._enter(program, STEERING)
                    self._hold(program, held, path(min(1.0, (k + 1) / ARRIVAL)))
                    steps = self.steeringSteps * (k + 1) // WAYPOINTS - self.steeringSteps * k // WAYPOINTS
                    self._dynamics(context, program, steps, temperature, generator)
            else:
                context.setVelocities(np.zeros((context.getSystem().getNumParticles(), 3)))
                self._enter(program, MINIMIZING)
                self._hold(program, held, path(1.0))
                CompoundIntegrator.step(compound, self.minimizationSteps)
            self._enter(program, RELEASED)
            drained = self.minimizationSteps > 0 and not self.steers
            hot = min(self.dynamicsSteps // 2, round(REFILLED / self.timeStep)) if drained else 0
            self._dynamics(context, program, hot, 2 * temperature, generator)
            self._dynamics(context, program, self.dynamicsSteps - hot, temperature, generator)
        finally:
            program.setGlobalVariableByName(AT_WORK, 0)
            compound.setCurrentIntegrator(current)

    def _enter(self, program: CustomIntegrator, stage: int):
        for name, value in {STAGE: stage, H: self.timeStep, ALPHA: TURN, DOWNHILL: 0}.items():
            program.setGlobalVariableByName(name, value)

    def _hold(self, program: CustomIntegrator, held: Sequence[int], positions: np.ndarray):
        reference = np.full_like(positions, FREE)
        reference[held] = positions[held]
        program.setPerDofVariableByName(REFERENCE, reference)

    def _dynamics(self, context: Context, program: CustomIntegrator, steps: int, temperature: float, generator):
        """Dynamics in pieces of random length, in the first step of each of which the velocities are drawn anew.

        Pieces of one length would leave out vibrations of twice that period: they only change sign.
        """
        mean = max(1, round(1 / (self.friction * self.timeStep)))
        while steps > 0:
            piece = min(steps, int(generator.integers(1, 2 * mean)))
            noise = generator.normal(size=(context.getSystem().getNumParticles(), 3))
            program.setPerDofVariableByName(self._noise, noise)
            program.setGlobalVariableByName(THERMAL, KB * temperature)
            CompoundIntegrator.step(context.getIntegrator(), piece)
            steps -= piece


class RelaxationPool:
    """Contexts that relax conformations side by side, each with one thread of the CPU platform."""

    def __init__(self, system: System, topology: Topology, tokens: ResidueTokens, relaxation, temperature, workers):
        if relaxation.steers:
            raise ValueError("A rollout relaxes by minimisation and dynamics; for steering use StarMDIntegrator.")
        self._relaxation, self._temperature = relaxation, temperature
        self._held = tokens.backbone.flatten().numpy()
        self.freedoms = freedomsOf(system)
        self._free: SimpleQueue[Context] = SimpleQueue()
        for _ in range(workers):
            self._free.put(self._newContext(system))
        self._threads = ThreadPoolExecutor(workers)

    def _newContext(self, system: System) -> Context:
        program, compound = CustomIntegrator(self._relaxation.timeStep), CompoundIntegrator()
        program.addGlobalVariable(AT_WORK, 0)
        for index in range(self._relaxation.scratch):
            program.addPerDofVariable(scratchName(index), 0)
        self._relaxation.addProgram(program)
        compound.addIntegrator(program)
        return Context(system, compound, Platform.getPlatform("CPU"), {"Threads": "1"})

    def minimized(self, positions: np.ndarray) -> np.ndarray:
        """Positions (A, 3) after a minimisation to its end."""
        context = self._free.get()
        self._place(context, positions)
        LocalEnergyMinimizer.minimize(context)
        self._free.put(context)
        return np.array(context.getState(positions=True).getPositions(asNumpy=True)._value)

    def relax(self, jobs) -> list[tuple[np.ndarray, list[float]]]:
        """Relaxed positions, and energies (kJ/mol) before the jump, before and after relaxation, of each job."""
        return list(self._threads.map(self._relax, jobs))

    def _relax(self, job):
        sampled, old, seed = job
        context = self._free.get()
        try:
            energies = [self._place(context, x) for x in (old, sampled)]
            self._relaxation.relax(context, 0, self._held, lambda fraction: sampled, self._temperature, seed)
            state = context.getState(positions=True, energy=True)
            energies.append(state.getPotentialEnergy()._value)
            return np.array(state.getPositions(asNumpy=True)._value), energies
        except OpenMMException as error:
            if "NaN" not in str(error):
                raise
            return np.full_like(sampled, np.nan), 3 * [np.nan]
        finally:
            self._free.put(context)

    @staticmethod
    def _place(context: Context, positions: np.ndarray) -> float:
        context.setPositions(positions)
        context.computeVirtualSites()
        context.applyConstraints(context.getIntegrator().getConstraintTolerance())
        return context.getState(energy=True).getPotentialEnergy()._value
