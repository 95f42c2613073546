"""40 ns of a peptide in jumps of 100 ps by a learned integrator, and how much faster that is than plain MD here."""

print("Loading OpenMM and PyTorch", flush=True)
import sys
import time

from openmm import LangevinMiddleIntegrator, unit
from openmm.app import Simulation, StateDataReporter, XTCReporter

from openmm_starmd import StarMDIntegrator
from openmm_starmd.systems import build_peptide, peptide_system

topology, positions = build_peptide("DWGR", seed=1)  # a sequence that the model was not trained on
learned = StarMDIntegrator(topology, 300 * unit.kelvin, 100 * unit.picoseconds, "starmd-peptide")
plain = LangevinMiddleIntegrator(300 * unit.kelvin, 1 / unit.picoseconds, 0.004 * unit.picoseconds)
seconds = StateDataReporter(sys.stdout, 10, time=True, progress=True, remainingTime=True, speed=True, totalSteps=400)
speeds = []  # ns/day
for integrator, steps, reporters in (learned, 400, [seconds, XTCReporter("trajectory.xtc", 1)]), (plain, 5000, []):
    simulation = Simulation(topology, peptide_system(topology), integrator)
    simulation.context.setPositions(positions)
    simulation.minimizeEnergy()
    simulation.reporters += reporters
    start = time.perf_counter()
    simulation.step(steps)
    speeds.append(86.4 * steps * integrator.getStepSize()._value / (time.perf_counter() - start))
