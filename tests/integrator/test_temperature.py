"""setTemperature: jumps are at the temperature that is asked for, or stop; never silently at another."""

import math
from copy import deepcopy

import numpy as np
import openmm
import pytest
from openmm import unit
from openmm.app import ExpandedEnsembleSampler, ReplicaExchangeSampler, SimulatedTempering

from openmm_starmd import HybridSchedule, ModelDomainError, Relaxation
from openmm_starmd.domain import Domain
from openmm_starmd.model import StarMDModel


@pytest.fixture(scope="session")
def hot_model(tiny_model):
    """The tiny model, as if trained from 300 to 450 K."""
    domain = Domain(min_length=2, max_length=12, max_stride=1000.0, min_temperature=300.0, max_temperature=450.0)
    return StarMDModel(tiny_model.denoiser, tiny_model.config, domain)


def kinetic_energies(simulation, positions, count=20):
    for _ in range(count):
        simulation.context.setPositions(positions)
        simulation.step(1)
        yield simulation.context.getState(energy=True).getKineticEnergy()._value


def freedoms_of(system):
    return 3 * system.getNumParticles() - system.getNumConstraints()


def kT(temperature):
    return unit.MOLAR_GAS_CONSTANT_R.value_in_unit(unit.kilojoules_per_mole / unit.kelvin) * temperature


def test_velocities_gate_and_physical_child_follow(new_simulation, peptide, hot_model):
    simulation = new_simulation(
        model=hot_model, relaxation=None, physicalIntegrator=openmm.LangevinIntegrator(300, 1, 0.001)
    )
    integrator = simulation.integrator
    integrator.setTemperature(450 * unit.kelvin)
    assert integrator.getTemperature() == 450 * unit.kelvin
    assert integrator.getIntegrator(0).getTemperature() == 450 * unit.kelvin
    assert integrator._gate._temperature == integrator._propagator.temperature == 450
    freedoms = freedoms_of(peptide[2])
    expected, spread = freedoms * kT(450) / 2, kT(450) * math.sqrt(freedoms / 2)
    assert abs(np.mean(list(kinetic_energies(simulation, peptide[1]))) - expected) < 4 * spread / math.sqrt(20)


def test_relaxation_is_at_the_new_temperature(new_simulation, hot_model, monkeypatch):
    asked, relax = [], Relaxation.relax

    def spy(self, context, child, held, path, temperature, seed):
        asked.append(temperature)
        return relax(self, context, child, held, path, temperature, seed)

    monkeypatch.setattr(Relaxation, "relax", spy)
    simulation = new_simulation(model=hot_model)
    simulation.step(1)
    simulation.integrator.setTemperature(400)
    simulation.step(1)
    assert asked == [300, 400]


def test_a_copy_has_the_new_temperature(new_integrator, hot_model):
    integrator = new_integrator(model=hot_model)
    integrator.setTemperature(400)
    assert deepcopy(integrator).getTemperature() == 400 * unit.kelvin


def test_outside_of_the_domain_nothing_changes(new_simulation, snapshot):
    simulation = new_simulation()
    before = snapshot(simulation)
    with pytest.raises(ModelDomainError, match="350 K"):
        simulation.integrator.setTemperature(350)
    assert simulation.integrator.getTemperature() == 300 * unit.kelvin
    assert simulation.integrator.getIntegrator(0).getTemperature() == 300 * unit.kelvin
    assert snapshot(simulation) == before
    simulation.integrator.setTemperature(298.15 * unit.kelvin)
    simulation.step(1)
    with pytest.raises(ValueError, match="temperature"):
        simulation.integrator.setTemperature(-1)


def test_a_new_temperature_takes_nothing_from_the_history(new_simulation, snapshot):
    """At the same temperature a run goes on bit for bit."""
    plain, touched = new_simulation(), new_simulation()
    plain.step(3)
    touched.step(2)
    touched.integrator.setTemperature(300)
    touched.step(1)
    assert snapshot(plain) == snapshot(touched)


def test_simulated_tempering_stops_outside_and_works_inside(new_simulation, hot_model):
    simulation = new_simulation(model=hot_model)
    tempering = SimulatedTempering(simulation, [300, 400], tempChangeInterval=1, reportInterval=5)
    tempering.step(6)
    assert simulation.integrator.getTemperature() == tempering.temperatures[tempering.currentTemperature]
    with pytest.raises(ModelDomainError, match="K"):
        tempering = SimulatedTempering(new_simulation(), [400, 500], tempChangeInterval=1, reportInterval=5)
        tempering.step(6)


def test_replica_exchange_stops_outside_and_works_inside(new_simulation, peptide, hot_model):
    states = [{"temperature": t * unit.kelvin} for t in (300, 400)]
    sampler = ReplicaExchangeSampler(states, new_simulation(model=hot_model), 1)
    sampler.simulate(3)
    with pytest.raises(ModelDomainError, match="400 K"):
        ReplicaExchangeSampler(states, new_simulation(), 1).simulate(3)


def test_expanded_ensemble_stops_outside(new_simulation, hot_model):
    states = [{"temperature": t * unit.kelvin} for t in (300, 400)]
    ExpandedEnsembleSampler(states, new_simulation(model=hot_model), 1).step(4)
    with pytest.raises(ModelDomainError, match="400 K"):
        ExpandedEnsembleSampler(states[1:] * 2, new_simulation(), 1).step(2)


@pytest.mark.parametrize("removes", [True, False])
def test_the_centre_of_mass_rests_where_the_system_makes_it(new_simulation, peptide, removes):
    """So StateDataReporter, which subtracts three degrees of freedom there, shows the temperature."""
    system = openmm.XmlSerializer.clone(peptide[2])
    kinds = [type(force) for force in system.getForces()]
    assert openmm.CMMotionRemover in kinds
    if not removes:
        system.removeForce(kinds.index(openmm.CMMotionRemover))
    simulation = new_simulation(system=system, relaxation=None)
    masses = np.array([system.getParticleMass(k)._value for k in range(system.getNumParticles())])
    moments, energies = [], []
    for energy in kinetic_energies(simulation, peptide[1], 30):
        velocities = simulation.context.getState(velocities=True).getVelocities(asNumpy=True)._value
        moments.append(np.abs(masses @ velocities).max())
        energies.append(energy)
    assert (max(moments) < 1e-6) == removes
    freedoms = freedoms_of(system) - 3 * removes
    expected, spread = freedoms * kT(300) / 2, kT(300) * math.sqrt(freedoms / 2)
    assert abs(np.mean(energies) - expected) < 3 * spread / math.sqrt(30)


def test_heating_in_a_hybrid_run_stops(new_simulation):
    simulation = new_simulation(schedule=HybridSchedule(1, 5))
    with pytest.raises(ModelDomainError):
        for temperature in range(300, 320, 2):
            simulation.integrator.setTemperature(temperature)
            simulation.step(1)
    assert simulation.integrator.getTemperature() == 302 * unit.kelvin
