"""A peptide in a box of water under constant pressure: jumps are steered, so that the water makes way."""

from sys import stdout

from openmm import MonteCarloBarostat
from openmm.app import PME, ForceField, HBonds, Modeller, Simulation, StateDataReporter, XTCReporter
from openmm.unit import bar, kelvin, nanometer, picoseconds

from openmm_starmd import HybridSchedule, Relaxation, StarMDIntegrator
from openmm_starmd.systems import build_peptide

forcefield = ForceField("amber14-all.xml", "amber14/tip3p.xml")
modeller = Modeller(*build_peptide("DWGR", seed=1))
modeller.addSolvent(forcefield, padding=0.9 * nanometer)
system = forcefield.createSystem(modeller.topology, nonbondedMethod=PME, constraints=HBonds)
system.addForce(MonteCarloBarostat(1 * bar, 300 * kelvin))
integrator = StarMDIntegrator(
    modeller.topology,
    300 * kelvin,
    100 * picoseconds,
    relaxation=Relaxation(mode="steer"),
    schedule=HybridSchedule(learnedSteps=1, physicalSteps=500),
)
simulation = Simulation(modeller.topology, system, integrator)
simulation.context.setPositions(modeller.positions)
simulation.minimizeEnergy(maxIterations=200)
simulation.reporters.append(XTCReporter("solvated.xtc", 501))
simulation.reporters.append(StateDataReporter(stdout, 501, time=True, potentialEnergy=True, density=True))
simulation.step(3 * 501)
