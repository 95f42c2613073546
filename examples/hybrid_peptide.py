"""Learned jumps of 100 ps with 2 ps of plain dynamics after each: one frame a cycle, in one trajectory."""

from sys import stdout

from openmm import LangevinMiddleIntegrator
from openmm.app import Simulation, StateDataReporter, XTCReporter
from openmm.unit import kelvin, picosecond, picoseconds

from openmm_starmd import HybridSchedule, StarMDIntegrator
from openmm_starmd.systems import build_peptide, peptide_system

topology, positions = build_peptide("DWGR", seed=1)
schedule = HybridSchedule(learnedSteps=1, physicalSteps=1000)
cycle = 1001  # steps: each jump and each step of dynamics counts as one
integrator = StarMDIntegrator(
    topology,
    300 * kelvin,
    100 * picoseconds,
    schedule=schedule,
    physicalIntegrator=LangevinMiddleIntegrator(300 * kelvin, 1 / picosecond, 0.002 * picoseconds),
)
simulation = Simulation(topology, peptide_system(topology), integrator)
simulation.context.setPositions(positions)
simulation.minimizeEnergy()
simulation.reporters.append(XTCReporter("hybrid.xtc", cycle))
simulation.reporters.append(StateDataReporter(stdout, cycle, step=True, time=True, temperature=True, speed=True))
simulation.step(50 * cycle)
