"""Exploration by learned jumps, then plain MD from each of ten of its frames."""

import numpy as np
from openmm.app import Simulation, XTCReporter
from openmm.unit import kelvin, picoseconds

from openmm_starmd import StarMDIntegrator
from openmm_starmd.systems import build_peptide, peptide_system

topology, positions = build_peptide("DWGR", seed=1)
integrator = StarMDIntegrator(topology, 300 * kelvin, 1000 * picoseconds)
simulation = Simulation(topology, peptide_system(topology), integrator)
simulation.context.setPositions(positions)
simulation.minimizeEnergy()

starts = []
for _ in range(10):  # a start every 10 ns
    simulation.step(10)
    starts.append(simulation.context.getState(positions=True))

for number, start in enumerate(starts):
    simulation.context.setPositions(start.getPositions())
    simulation.context.setVelocitiesToTemperature(300 * kelvin, number + 1)
    reporter, energies = XTCReporter(f"segment{number}.xtc", 1), []
    for _ in range(10):  # 10 ps of plain MD, a frame a picosecond
        integrator.stepPhysical(500)
        state = simulation.context.getState(positions=True, energy=True)
        reporter.report(simulation, state)
        energies.append(state.getPotentialEnergy()._value)
    print(f"start {number}: mean potential energy {np.mean(energies):.1f} kJ/mol")
