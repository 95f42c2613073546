"""20 ns of a peptide in a run that may be killed at any time: start this script again and it goes on."""

from openmm import unit
from openmm.app import CheckpointReporter, Simulation, StateDataReporter, XTCReporter

from openmm_starmd import StarMDIntegrator, StarMDReporter, resume
from openmm_starmd.systems import build_peptide, peptide_system

topology, positions = build_peptide("DWGR", seed=1)
integrator = StarMDIntegrator(topology, 300 * unit.kelvin, 100 * unit.picoseconds, "starmd-peptide")
simulation = Simulation(topology, peptide_system(topology), integrator)
simulation.context.setPositions(positions)
simulation.minimizeEnergy()

done = resume(simulation, "run.chk", "trajectory.xtc", "log.csv", "starmd.csv")
print(f"from step {done}")
simulation.reporters += [
    XTCReporter("trajectory.xtc", 1, append=done > 0),
    StateDataReporter("log.csv", 10, step=True, time=True, potentialEnergy=True, append=done > 0),
    StarMDReporter("starmd.csv", 10, append=done > 0),
    CheckpointReporter("run.chk", 10),  # the last one, and no more often than the others
]
simulation.step(200 - simulation.currentStep)
