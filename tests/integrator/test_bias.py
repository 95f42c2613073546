"""Biases that act: jumps accepted by the energy of force groups give the biased ensemble of a reversible propagator."""

import hashlib
import math
import warnings

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit

from openmm_starmd import HybridSchedule, JumpPropagator, JumpRejectedError, Relaxation, StarMDError, StarMDIntegrator
from openmm_starmd.geometry.torsions import wrap
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.displacement import per_replica

GROUP, PHI = 7, 0
KT = (unit.MOLAR_GAS_CONSTANT_R * 300 * unit.kelvin).value_in_unit(unit.kilojoules_per_mole)
MEAN, SPREAD, KEPT = -1.4, 0.25, 0.6  # of phi, radian, and its autocorrelation after a jump
CENTRE, STIFFNESS = MEAN + 0.6, 16.0 * KT  # of the umbrella, kJ/mol/rad^2


class Swing(JumpPropagator):
    """phi of one capped residue as an Ornstein-Uhlenbeck process: reversible, with a known normal ensemble."""

    name, card = "swing", "# swing"

    def __init__(self, tokens, stride, temperature, *, device="cpu"):
        self.tokens, self.stride, self.temperature = tokens, stride, temperature
        self.identity = hashlib.blake2b(b"swing" + tokens.sequence.encode(), digest_size=16).digest()

    def step(self, history, generator):
        last = history.last
        noise = per_replica(lambda rows, g: torch.randn(rows.shape, generator=g), last.torsions[:, 0, 0], generator)
        torsions = last.torsions.clone()
        away = KEPT * wrap(torsions[:, 0, PHI] - MEAN) + math.sqrt(1 - KEPT**2) * SPREAD * noise
        torsions[:, 0, PHI] = wrap(MEAN + away)
        return Conformation(last.frames, torsions, last.angles)


@pytest.fixture(scope="module")
def alanine(build_peptide):
    """Topology, positions, System without constraints, and atoms of phi of alanine dipeptide."""
    topology, positions = build_peptide("A", n_cap=True, c_cap=True)
    system = app.ForceField("amber14/protein.ff14SB.xml").createSystem(topology)
    atoms = {(atom.residue.name, atom.name): atom.index for atom in topology.atoms()}
    return topology, positions, system, [atoms[key] for key in (("ACE", "C"), *(("ALA", n) for n in ("N", "CA", "C")))]


def umbrella(atoms, group=GROUP):
    force = openmm.CustomTorsionForce("0.5*stiffness*(theta-centre)^2")
    force.addGlobalParameter("stiffness", STIFFNESS)
    force.addGlobalParameter("centre", CENTRE)
    force.addTorsion(*atoms)
    force.setForceGroup(group)
    force.setName("umbrella")
    return force


@pytest.fixture
def new_run(alanine):
    """Function (force=umbrella, **settings of the integrator) -> Simulation of alanine dipeptide that swings."""
    topology, positions, vacuum, atoms = alanine

    def create(force=None, **settings):
        system = openmm.XmlSerializer.clone(vacuum)
        system.addForce(force or umbrella(atoms))
        given = {"model": Swing, "relaxation": None, "randomSeed": 4, "biasForceGroups": {GROUP}} | settings
        integrator = StarMDIntegrator(topology, 300, 100, **given)
        simulation = app.Simulation(topology, system, integrator, openmm.Platform.getPlatform("Reference"))
        simulation.context.setPositions(positions)
        return simulation

    return create


@pytest.fixture
def phi_of(alanine):
    """Function (simulation) -> phi now, radian."""

    def measure(simulation):
        a, b, c, d = simulation.context.getState(positions=True).getPositions(asNumpy=True)._value[alanine[3]]
        normals = np.cross(b - a, c - b), np.cross(c - b, d - c)
        return math.atan2(np.linalg.norm(c - b) * (b - a) @ normals[1], normals[0] @ normals[1])

    return measure


def within_error(samples, exact):
    """True if the mean of samples agrees with the exact one within four standard errors, those of 10 blocks."""
    blocks = np.reshape(samples, (10, -1)).mean(1)
    return abs(blocks.mean() - exact) < 4 * blocks.std(ddof=1) / math.sqrt(10)


@pytest.mark.parametrize("candidates, jumps", [(1, 200), pytest.param(3, 120, marks=pytest.mark.slow)])
def test_the_biased_ensemble_of_a_reversible_propagator_is_exact(new_run, phi_of, candidates, jumps):
    """A normal ensemble under a harmonic bias is normal again: the precisions add."""
    simulation, values = new_run(biasCandidates=candidates), []
    simulation.step(10)
    for _ in range(jumps):
        simulation.step(1)
        values.append(phi_of(simulation))
    precision = 1 / SPREAD**2 + STIFFNESS / KT
    mean = (MEAN / SPREAD**2 + CENTRE * STIFFNESS / KT) / precision
    assert within_error(values, mean) and not within_error(values, MEAN)
    squares = (np.array(values) - mean) ** 2
    assert within_error(squares, 1 / precision)
    found = simulation.integrator.getStatistics()
    assert found["bias"]["accepted"] + found["bias"]["rejected"] == found["steps"] == jumps + 10
    low, high = {1: (0.45, 0.7), 3: (0.65, 0.9)}[candidates]
    assert low < found["bias"]["acceptance"] < high


def test_without_a_bias_jumps_know_nothing_of_the_umbrella(new_run, phi_of):
    with pytest.warns(UserWarning, match="umbrella"):
        simulation, values = new_run(biasForceGroups=None), []
    for _ in range(60):
        simulation.step(1)
        values.append(phi_of(simulation))
    assert within_error(values[10:], MEAN)
    assert simulation.integrator.getStatistics()["bias"] == {"accepted": 60, "rejected": 0, "acceptance": 1.0}


@pytest.mark.parametrize("candidates", [1, 3])
def test_a_rejected_jump_keeps_its_conformation_and_its_time_advances(new_run, candidates):
    simulation = new_run(biasCandidates=candidates)
    context, rejected, hot = simulation.context, 0, []
    for step in range(1, 21):
        before, count = context.getState(positions=True), simulation.integrator.getStatistics()["bias"]["rejected"]
        simulation.step(1)
        now = context.getState(positions=True, velocities=True, energy=True)
        same = np.array_equal(before.getPositions(asNumpy=True)._value, now.getPositions(asNumpy=True)._value)
        assert same == (simulation.integrator.getStatistics()["bias"]["rejected"] > count)
        assert now.getTime()._value == 100 * step and now.getStepCount() == simulation.currentStep == step
        rejected += same
        hot.append(now.getVelocities(asNumpy=True)._value)
    assert 1 < rejected < 19
    masses = simulation.integrator._particles.masses
    temperatures = [(masses @ v**2).sum() / (3 * len(masses)) / KT * 300 for v in hot]
    assert np.mean(temperatures) == pytest.approx(300, rel=0.1)
    assert len({v.tobytes() for v in hot}) == 20


@pytest.mark.parametrize("way", ["Checkpoint", "State"])
@pytest.mark.parametrize("candidates", [1, 3])
def test_a_biased_run_continues_bit_for_bit(new_run, goes_on, way, candidates):
    whole, rest = (new_run(biasCandidates=candidates, randomSeed=seed) for seed in (4, 0))
    goes_on(whole, rest, way, 7, 6)
    assert 0 < whole.integrator.getStatistics()["bias"]["rejected"] < 13


def test_the_relaxation_does_not_know_the_bias(new_run, snapshot):
    """A weak pull, which no acceptance notices, changes no bit of a run with it in the bias."""

    def run(strength):
        force = openmm.CustomExternalForce(f"{strength}*x")
        force.addParticle(3)
        force.setForceGroup(GROUP)
        simulation = new_run(force, relaxation=Relaxation(minimizationSteps=5, dynamicsSteps=10))
        simulation.step(3)
        return snapshot(simulation)[:4]

    assert run(0) == run(1e-3)


def test_physical_steps_feel_the_bias(new_run, phi_of):
    simulation = new_run(relaxation=Relaxation(minimizationSteps=20, dynamicsSteps=0), schedule=HybridSchedule(1, 400))
    simulation.context.setParameter("stiffness", 100 * STIFFNESS)
    simulation.minimizeEnergy()
    simulation.step(401)
    assert phi_of(simulation) == pytest.approx(CENTRE, abs=0.15)
    assert simulation.integrator.getIntegrationForceGroups() in (-1, 2**32 - 1)


def test_a_bias_that_is_not_finite_where_a_jump_starts_is_told(new_run, snapshot):
    force = openmm.CustomExternalForce("0*x + log(sound)")
    force.addGlobalParameter("sound", 1.0)
    force.addParticle(0)
    force.setForceGroup(GROUP)
    simulation = new_run(force)
    simulation.step(2)
    simulation.context.setParameter("sound", -1.0)
    before = snapshot(simulation)
    with pytest.raises(StarMDError, match="not finite"):
        simulation.step(1)
    assert snapshot(simulation) == before


def test_candidates_that_fail_the_checks_are_never_chosen(new_run, monkeypatch):
    """Where all fail the jump is tried again, up to maxRetries."""
    simulation = new_run(biasCandidates=3, maxRetries=1)
    gate, calls = simulation.integrator._gate, []
    sampled = gate.sampled

    def spoilt(positions, before):
        calls.append(len(calls))
        return [{"clashes": []}] if calls[-1] % 6 < 3 else sampled(positions, before)

    monkeypatch.setattr(gate, "sampled", spoilt)
    simulation.step(1)
    assert simulation.integrator.getStatistics()["resampled"] >= 3
    monkeypatch.setattr(gate, "sampled", lambda positions, before: [{"clashes": []}])
    with pytest.raises(JumpRejectedError, match="clashes"):
        simulation.step(1)
    assert simulation.currentStep == 1


BAD = {
    "a group without forces": ({"biasForceGroups": {5}}, r"group 5.*in use are 0, 7"),
    "an empty set": ({"biasForceGroups": set()}, "empty"),
    "no group": ({"biasForceGroups": {32}}, "between 0 and 31"),
    "a word": ({"biasForceGroups": "7"}, "between 0 and 31"),
    "a number": ({"biasForceGroups": 7}, "between 0 and 31"),
    "the forces of the molecule": ({"biasForceGroups": {0, GROUP}}, "group 0, which holds the NonbondedForce"),
    "steering": ({"relaxation": Relaxation(mode="steer")}, "steer"),
    "no candidates": ({"biasCandidates": 0}, "biasCandidates"),
    "candidates without a bias": ({"biasForceGroups": None, "biasCandidates": 2}, "biasForceGroups"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_a_bias_is_one_clear_error(new_run, case):
    settings, told = BAD[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=told):
            new_run(**settings)


def test_a_force_in_a_bias_group_is_not_told(new_run):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new_run()


def test_metadynamics_drives_the_jumps(alanine):
    """The group that it has chosen for its force is read from the System."""
    topology, positions, vacuum, atoms = alanine

    def rejected(height):
        system, torsion = openmm.XmlSerializer.clone(vacuum), openmm.CustomTorsionForce("theta")
        torsion.addTorsion(*atoms)
        variable = app.BiasVariable(torsion, -math.pi, math.pi, 0.15, True)
        metadynamics = app.Metadynamics(system, [variable], 300, 20.0, height, 1)
        groups = {force.getForceGroup() for force in system.getForces() if isinstance(force, openmm.CustomCVForce)}
        integrator = StarMDIntegrator(
            topology, 300, 100, Swing, relaxation=None, randomSeed=4, biasForceGroups=groups, biasCandidates=2
        )
        simulation = app.Simulation(topology, system, integrator, openmm.Platform.getPlatform("Reference"))
        simulation.context.setPositions(positions)
        metadynamics.step(simulation, 25)
        hills = simulation.context.getState(energy=True, groups=groups).getPotentialEnergy()._value
        assert hills > height and np.isfinite(metadynamics.getFreeEnergy()._value).all()
        return integrator.getStatistics()["bias"]["rejected"]

    assert rejected(3.0) > 0 == rejected(1e-9)
