"""Relaxation: from the atoms that a jump has moved to a structure with the energy of ordinary dynamics.

It runs in the user's own Context, so that every force of the user's System acts, with parameters changed later. A force
added after a Context exists would be invisible; the restraint therefore stands in the integrator's own expressions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from openmm import CompoundIntegrator, Context, CustomIntegrator, unit

from openmm_starmd.binding.arguments import require, valueIn, wholeNumber

MODES = ("minimize", "none")
LARGEST_MOVE = 0.02  # nm per step and axis; thermal motion stays below it
LARGEST_TIME_STEP = 2.5  # in units of timeStep; minimisation of heavy-atom bonds becomes unstable beyond it
UNITS = {
    "restraintConstant": unit.kilojoules_per_mole / unit.nanometer**2,
    "timeStep": unit.picoseconds,
    "friction": unit.picoseconds**-1,
}


@dataclass(frozen=True)
class Relaxation:
    """What happens to the atoms after each learned jump.

    First a minimisation by FIRE (Bitzek et al., Phys. Rev. Lett. 97, 170201, 2006) removes clashes and strained bonds,
    then short dynamics gives bonds and angles their thermal energy back. During both, the backbone atoms N, CA and C
    are held by harmonic restraints at the positions to which the model moved them::

        integrator = StarMDIntegrator(topology, 300*kelvin, 100*picoseconds, relaxation=Relaxation(dynamicsSteps=200))

    The dynamics is velocity Verlet whose velocities are drawn anew at the rate ``friction`` (Andersen, J. Chem. Phys.
    72, 2384, 1980): its random numbers come from the integrator's seed alone, so that a restart from a State continues
    bit for bit. Time and step count of the Context are the integrator's business; relaxation does not count as time.

    Parameters
    ----------
    mode : {"minimize", "none"}
        "none" leaves the atoms where the jump and the constraints put them.
    minimizationSteps : int
        Steps of minimisation, one force evaluation each.
    restraintConstant : energy/length^2
        Force constant k of the restraint k/2 (x - x0)^2, kJ/mol/nm^2.
    dynamicsSteps : int
        Steps of dynamics, one force evaluation each.
    timeStep : time
        Time step of the dynamics and first time step of the minimisation, ps.
    friction : 1/time
        Rate at which velocities are drawn anew, 1/ps.
    """

    mode: str = "minimize"
    minimizationSteps: int = 50
    restraintConstant: float = 5000.0
    dynamicsSteps: int = 100
    timeStep: float = 0.002
    friction: float = 40.0

    def __post_init__(self):
        for name, target in UNITS.items():
            object.__setattr__(self, name, valueIn(getattr(self, name), target))
        for name in ("minimizationSteps", "dynamicsSteps"):
            object.__setattr__(self, name, wholeNumber(name, getattr(self, name)))
        require(self.mode in MODES, f"mode must be one of {', '.join(MODES)}; got {self.mode!r}")
        require(self.restraintConstant >= 0, f"restraintConstant must be >= 0; got {self.restraintConstant}")
        require(self.timeStep > 0, f"timeStep must be > 0; got {self.timeStep} ps")
        require(self.friction > 0, f"friction must be > 0; got {self.friction}/ps")

    @property
    def active(self) -> bool:
        """Whether there is anything to do."""
        return self.mode != "none" and self.minimizationSteps + self.dynamicsSteps > 0

    def createIntegrator(self, numParticles: int, restrained: Sequence[int]) -> CustomIntegrator:
        """Program of the relaxation, to be a child of a CompoundIntegrator.

        Parameters
        ----------
        numParticles : int
            Number of particles of the System.
        restrained : sequence of int
            Indices of the restrained atoms.
        """
        integrator = CustomIntegrator(self.timeStep)
        # h: time step in use; alpha: FIRE's mixing parameter; downhill: its count of steps since the last uphill one
        for name in ("starting", "minimizing", "h", "alpha", "downhill", "power", "forces", "velocities"):
            integrator.addGlobalVariable(name, 0)
        for name in ("restraint", "reference", "force", "unconstrained"):
            integrator.addPerDofVariable(name, 0)
        constants = np.zeros((numParticles, 3))
        constants[np.asarray(restrained)] = self.restraintConstant
        integrator.setPerDofVariableByName("restraint", constants)

        integrator.beginIfBlock("starting = 1")
        integrator.addComputePerDof("reference", "x")
        integrator.addComputePerDof("v", "v*(1-minimizing)")
        integrator.addComputeGlobal("starting", "0")
        integrator.endBlock()
        self._addVelocityVerlet(integrator)
        integrator.beginIfBlock("minimizing = 1")
        self._addMixing(integrator)
        integrator.endBlock()
        return integrator

    def _addVelocityVerlet(self, integrator: CustomIntegrator):
        """One restrained velocity Verlet step of length h with constraints."""
        integrator.addComputePerDof("v", "v + 0.5*h*(f - restraint*(x-reference))/m")
        integrator.addComputePerDof("v", f"max(-{LARGEST_MOVE}, min({LARGEST_MOVE}, h*v))/h")
        integrator.addComputePerDof("x", "x + h*v")
        integrator.addComputePerDof("unconstrained", "x")
        integrator.addConstrainPositions()
        integrator.addComputePerDof("force", "f - restraint*(x-reference)")
        integrator.addComputePerDof("v", "v + 0.5*h*force/m + (x-unconstrained)/h")
        integrator.addConstrainVelocities()

    def _addMixing(self, integrator: CustomIntegrator):
        """FIRE: turn the velocity towards the force, speed up downhill, stop uphill (parameters of the paper)."""
        integrator.addComputeSum("power", "force*v")
        integrator.addComputeSum("forces", "force*force")
        integrator.addComputeSum("velocities", "v*v")
        integrator.addComputePerDof("v", "step(power)*((1-alpha)*v + alpha*force*sqrt(velocities/(forces+1e-30)))")
        integrator.addComputeGlobal("downhill", "step(power)*(downhill+1)")
        fastest = LARGEST_TIME_STEP * self.timeStep
        faster = f"select(step(downhill-5), min(1.1*h, {fastest}), h)"
        integrator.addComputeGlobal("h", f"select(step(power), {faster}, 0.5*h)")
        integrator.addComputeGlobal("alpha", "select(step(power), select(step(downhill-5), 0.99*alpha, alpha), 0.1)")

    @property
    def stepsPerDraw(self) -> int:
        """Steps of dynamics between two draws of the velocities."""
        return max(1, round(1 / (self.friction * self.timeStep)))

    def relax(self, context: Context, child: int, temperature: float, seed: int):
        """Relax the positions of a Context; velocities, time and step count are left changed.

        Parameters
        ----------
        context : Context
            Its integrator is a CompoundIntegrator.
        child : int
            Index of the child that `createIntegrator` made.
        temperature : float
            K.
        seed : int
            Seed of the velocities, between 1 and 2^30.
        """
        compound = context.getIntegrator()
        program = compound.getIntegrator(child)
        start = {"starting": 1, "minimizing": 1, "h": self.timeStep, "alpha": 0.1, "downhill": 0}
        current = compound.getCurrentIntegrator()
        compound.setCurrentIntegrator(child)
        try:
            for name, value in start.items():
                program.setGlobalVariableByName(name, value)
            CompoundIntegrator.step(compound, self.minimizationSteps)
            program.setGlobalVariableByName("minimizing", 0)
            program.setGlobalVariableByName("h", self.timeStep)
            for draw, done in enumerate(range(0, self.dynamicsSteps, self.stepsPerDraw)):
                context.setVelocitiesToTemperature(temperature, seed + draw)
                CompoundIntegrator.step(compound, min(self.stepsPerDraw, self.dynamicsSteps - done))
        finally:
            compound.setCurrentIntegrator(current)
