"""The energy of a jump: what is allowed grows with the molecule, and does not climb from jump to jump."""

import math
from dataclasses import dataclass

import numpy as np
import openmm
import pytest
from openmm import unit
from openmm.app import Simulation

from openmm_starmd import HybridSchedule, Relaxation, StarMDIntegrator
from openmm_starmd.binding.gate import ValidityGate
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.systems import peptide_system

KT = unit.MOLAR_GAS_CONSTANT_R.value_in_unit(unit.kilojoules_per_mole / unit.kelvin) * 300
LARGE = 12_000  # degrees of freedom of some 300 residues


@dataclass
class Run:
    """Jumps of a molecule that ends each of them at a given energy above the first, until one is refused."""

    gate: ValidityGate
    positions: np.ndarray
    freedoms: int

    def accepted(self, ends):
        energy, excess, seen = 0.0, 0.0, []
        for end in ends:
            base = energy - excess
            energies = [[base, end + 10, end]]
            (failures,) = self.gate.relaxed(self.positions[None], self.positions[None], energies, self.freedoms)
            if failures:
                assert failures == {"energy": []}
                break
            energy, excess = end, self.gate.excess(end - base, self.freedoms)
            seen.append(end)
        return seen


@pytest.fixture
def run(peptide):
    topology, positions, _ = peptide
    gate = ValidityGate(topology, ResidueTokens.from_topology(topology), 300, True)
    return lambda freedoms: Run(gate, positions._value, freedoms)


@pytest.mark.parametrize("freedoms", [100, LARGE])
def test_a_minimised_start_gets_its_thermal_energy_and_no_more(run, freedoms):
    thermal, spread = KT * freedoms / 2, KT * math.sqrt(freedoms / 2)
    ordinary = thermal + spread * np.random.default_rng(1).standard_normal(500)
    assert len(run(freedoms).accepted(ordinary)) == 500
    assert run(freedoms).accepted([thermal + 20 * spread]) == []


@pytest.mark.slow
def test_md_itself_takes_the_thermal_energy_that_a_minimised_start_gets(build_peptide):
    """The allowance of a first jump is the energy that equipartition gives to MD: less would refuse MD's own frames."""
    topology, positions = build_peptide("ACDEFGHIKL")
    system = peptide_system(topology)
    middle = openmm.LangevinMiddleIntegrator(300, 10, 0.002)
    middle.setRandomNumberSeed(1)
    simulation = Simulation(topology, system, middle, openmm.Platform.getPlatform("CPU"), {"Threads": "1"})
    simulation.context.setPositions(positions)
    simulation.minimizeEnergy()
    simulation.context.setVelocitiesToTemperature(300, 1)
    energies = []
    for _ in range(11):
        energies.append(simulation.context.getState(energy=True).getPotentialEnergy()._value)
        simulation.step(100)
    freedoms = 3 * system.getNumParticles() - system.getNumConstraints()
    thermal = np.mean(energies[3:]) - energies[0]
    assert 0.8 < thermal / (KT * freedoms / 2) < 1.1


@pytest.mark.parametrize("freedoms", [100, LARGE])
def test_from_a_thermal_conformation_fluctuations_alone_are_allowed(run, freedoms):
    """As after a start from MD; its first jump cannot be told from that of a minimised structure."""
    spread = KT * math.sqrt(freedoms / 2)
    assert run(freedoms).accepted([0.0, 0.0, 20 * spread]) == [0.0, 0.0]
    assert len(run(freedoms).accepted([0.0, 0.0, 5 * spread])) == 3


def test_small_steps_do_not_climb(run):
    spread = KT * math.sqrt(LARGE / 2)
    climb = [0.0, *np.arange(1, 200) * spread]
    assert max(run(LARGE).accepted(climb)) < 20 * spread < 0.25 * KT * LARGE


@pytest.fixture
def heated(peptide, tiny_model):
    """Function (**settings) -> Simulation with a constant energy, its parameter ``offset``."""

    def create(**settings):
        topology, positions, vacuum = peptide
        system = openmm.XmlSerializer.clone(vacuum)
        offset = openmm.CustomExternalForce("offset/2")
        offset.addGlobalParameter("offset", 0.0)
        offset.addParticle(0)
        offset.addParticle(1)
        system.addForce(offset)
        quick = Relaxation(minimizationSteps=8, dynamicsSteps=10)
        integrator = StarMDIntegrator(topology, 300, 100, tiny_model, relaxation=quick, randomSeed=7, **settings)
        simulation = Simulation(topology, system, integrator, openmm.Platform.getPlatform("Reference"))
        simulation.context.setPositions(positions)
        return simulation

    return create


def test_forces_that_change_between_jumps_move_the_base(heated):
    simulation = heated()
    for offset in (0.0, 1e6, -1e6, 1e6):
        simulation.context.setParameter("offset", offset)
        simulation.step(1)
    assert simulation.currentStep == 4


def test_the_base_goes_through_checkpoints_and_physics_and_is_forgotten_by_reset(heated, tmp_path):
    simulation, rest = heated(schedule=HybridSchedule(2, 3)), heated(schedule=HybridSchedule(2, 3))
    freedoms = simulation.integrator._particles.freedoms
    before = simulation.context.getState(energy=True).getPotentialEnergy()._value
    simulation.step(1)
    after = simulation.context.getState(energy=True).getPotentialEnergy()._value
    excess = simulation.integrator._store.excess
    assert excess == pytest.approx(max(after - before, KT * freedoms / 2))
    simulation.saveState(str(tmp_path / "saved"))
    rest.loadState(str(tmp_path / "saved"))
    assert rest.integrator._store.excess == excess
    simulation.step(4)
    assert simulation.integrator._store.excess == pytest.approx(KT * freedoms / 2)
    simulation.integrator.reset()
    simulation.step(1)
    assert simulation.integrator._store.excess >= KT * freedoms / 2
