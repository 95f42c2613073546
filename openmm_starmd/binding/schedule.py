"""Learned jumps and physical segments in turn."""

from __future__ import annotations

from dataclasses import dataclass

from openmm_starmd.errors import require
from openmm_starmd.units import wholeNumber


@dataclass(frozen=True)
class HybridSchedule:
    """Learned steps and physical segments in turn.

    A cycle is ``learnedSteps`` jumps of the model, then ``physicalSteps`` steps of the physical integrator. Each counts
    as one step of the simulation and takes its own time, so that ``simulation.step(n)``, reporters and the clock mean
    what they say::

        schedule = HybridSchedule(1, 500)                                     # a jump, then 1 ps of dynamics
        integrator = StarMDIntegrator(topology, 300*kelvin, 100*picoseconds, schedule=schedule)
        simulation.reporters.append(XTCReporter("trajectory.xtc", 501))      # a frame a cycle
        simulation.step(100*501)

    Parameters
    ----------
    learnedSteps, physicalSteps : int
        Not both 0. Without learned steps the run is plain MD.
    """

    learnedSteps: int
    physicalSteps: int

    def __post_init__(self):
        for name in ("learnedSteps", "physicalSteps"):
            object.__setattr__(self, name, wholeNumber(name, getattr(self, name)))
        require(self.cycle > 0, "A HybridSchedule needs at least one learned or physical step; both are 0.")

    @property
    def cycle(self) -> int:
        """Steps of one cycle."""
        return self.learnedSteps + self.physicalSteps

    def segment(self, phase: int) -> tuple[bool, int]:
        """Tell if step number ``phase`` of a cycle is a learned one, and how many of its kind are left with it."""
        learned = phase < self.learnedSteps
        return learned, (self.learnedSteps if learned else self.cycle) - phase

    def meanStepSize(self, learned: float, physical: float) -> float:
        """Mean time of a step, from the times of a learned and of a physical one."""
        return (self.learnedSteps * learned + self.physicalSteps * physical) / self.cycle
