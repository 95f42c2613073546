"""Explicit solvent: the protein is steered, everything else stays where physics puts it."""

import mdtraj
import numpy as np
import openmm
import pytest
from openmm import app, unit

from openmm_starmd import HybridSchedule, JumpRejectedError, Relaxation, StarMDIntegrator, UnsupportedTopologyError

STEER = Relaxation("steer", steeringSteps=160, dynamicsSteps=25)
FORCE_FIELDS = {"tip3p": "amber14/tip3p.xml", "tip4pew": "amber14/tip4pew.xml"}


@pytest.fixture(scope="session")
def boxes(build_peptide):
    """Function (water model, mass of hydrogen) -> Topology, positions, System of a peptide in salt water."""
    built = {}

    def create(water="tip3p", hydrogenMass=None):
        forcefield = app.ForceField("amber14-all.xml", FORCE_FIELDS[water])
        if water not in built:
            topology, positions = build_peptide("AS", True, True)
            modeller = app.Modeller(topology, positions * unit.nanometer)
            modeller.addSolvent(forcefield, model=water, padding=0.65 * unit.nanometer, ionicStrength=0.4 * unit.molar)
            context = openmm.Context(
                forcefield.createSystem(modeller.topology, nonbondedMethod=app.PME, nonbondedCutoff=0.6),
                openmm.LangevinMiddleIntegrator(300, 5, 0.001),
                openmm.Platform.getPlatform("CPU"),
                {"Threads": "1"},
            )
            context.setPositions(modeller.positions)
            context.computeVirtualSites()
            openmm.LocalEnergyMinimizer.minimize(context, 100, 100)
            context.getIntegrator().step(200)
            built[water] = modeller.topology, context.getState(positions=True).getPositions(asNumpy=True)._value
        topology, positions = built[water]
        system = forcefield.createSystem(
            topology,
            nonbondedMethod=app.PME,
            nonbondedCutoff=0.6,
            constraints=app.HBonds,
            hydrogenMass=hydrogenMass,
        )
        return topology, positions.copy(), system

    return create


@pytest.fixture
def new_box(boxes, tiny_model):
    def create(water="tip3p", barostat=None, positions=None, hydrogenMass=None, **settings):
        topology, relaxed, system = boxes(water, hydrogenMass)
        if barostat:
            system.addForce(openmm.MonteCarloBarostat(1, 300, barostat))
        settings = {"relaxation": STEER, "randomSeed": 7} | settings
        integrator = StarMDIntegrator(topology, 300, 100, tiny_model, **settings)
        platform = openmm.Platform.getPlatform("CPU")
        simulation = app.Simulation(topology, system, integrator, platform, {"Threads": "1"})
        simulation.context.setPositions(relaxed if positions is None else positions)
        return simulation

    return create


def state_of(simulation):
    state = simulation.context.getState(positions=True, energy=True)
    return state.getPositions(asNumpy=True)._value, state.getPotentialEnergy()._value, state


def protein_of(simulation):
    return np.array([a.index for a in simulation.topology.atoms() if a.residue.name in ("ACE", "ALA", "SER", "NME")])


@pytest.mark.parametrize("water", ["tip3p", pytest.param("tip4pew", marks=pytest.mark.slow)])
def test_the_protein_jumps_and_the_solvent_makes_way(new_box, water):
    """Energies stay those of liquid water, every molecule keeps its shape, nothing leaps but by diffusion."""
    simulation = new_box(water)
    start, energy, _ = state_of(simulation)
    simulation.step(1)
    end, relaxed, _ = state_of(simulation)
    assert simulation.currentStep == 1 and simulation.context.getTime()._value == 100
    thermal = 1.5 * 2.494 * simulation.system.getNumParticles()
    assert abs(relaxed - energy) < 0.5 * thermal
    protein, oxygens = protein_of(simulation), [a.index for a in simulation.topology.atoms() if a.residue.name == "HOH"]
    assert np.abs(end - start)[protein].max() > 0.02
    assert np.linalg.norm((end - start)[oxygens], axis=1).max() < 1.0
    for index in range(simulation.system.getNumConstraints()):
        i, j, distance = simulation.system.getConstraintParameters(index)
        assert np.linalg.norm(end[i] - end[j]) == pytest.approx(distance._value, rel=1e-4)


def test_virtual_sites_of_the_water_follow(new_box):
    simulation = new_box("tip4pew")
    simulation.step(1)
    positions, energy, _ = state_of(simulation)
    simulation.context.computeVirtualSites()
    again, recomputed, _ = state_of(simulation)
    np.testing.assert_allclose(again, positions, atol=1e-6)
    assert recomputed == pytest.approx(energy, rel=1e-5)


@pytest.mark.slow
def test_the_barostat_works_during_and_right_after_jumps(new_box):
    simulation = new_box(barostat=2, schedule=HybridSchedule(1, 20))
    volumes = []
    for _ in range(3):
        simulation.step(21)
        state = simulation.context.getState(energy=True)
        volumes.append(state.getPeriodicBoxVolume()._value)
        assert state.getPotentialEnergy()._value < 0
    assert len(set(volumes)) == 3
    assert max(volumes) / min(volumes) < 1.2


@pytest.mark.parametrize("broken", ["atoms", "molecules"])
def test_a_molecule_across_the_boundary_takes_the_same_way(new_box, boxes, broken):
    """What the user stored in other images stays there, and moves as if it had been whole."""
    topology, positions, system = boxes()
    box = np.array([vector._value for vector in system.getDefaultPeriodicBoxVectors()])
    whole = new_box()
    protein = protein_of(whole)
    shifted = positions.copy()
    chosen = protein[len(protein) // 2 :] if broken == "atoms" else protein
    shifted[chosen] += np.array([1, -1, 0]) @ box
    other = new_box(positions=shifted)
    ways = []
    for simulation in (whole, other):
        context, integrator = simulation.context, simulation.integrator
        before, shifts = integrator._particles.wholeMolecules(context.getState(positions=True))
        history = integrator._tracker.history(integrator._propagator, before, shifts)
        ways.append((before, shifts, history.last.frames.translations))
    centre = ways[0][2].mean(1), ways[1][2].mean(1)
    np.testing.assert_allclose(ways[0][2] - centre[0], ways[1][2] - centre[1], atol=1e-5)
    np.testing.assert_allclose(ways[1][0] - ways[1][1], shifted, atol=1e-12)


def test_frames_show_whole_molecules_in_the_box(new_box, tmp_path):
    simulation = new_box(barostat=5)
    simulation.reporters.append(app.XTCReporter(str(tmp_path / "out.xtc"), 1))
    simulation.step(2)
    simulation.reporters.clear()
    frames = mdtraj.load(str(tmp_path / "out.xtc"), top=mdtraj.Topology.from_openmm(simulation.topology))
    bonds = np.array([[a.index, b.index] for a, b in frames.topology.bonds])
    assert frames.n_frames == 2
    assert mdtraj.compute_distances(frames, bonds, periodic=False).max() < 0.3
    volume = simulation.context.getState().getPeriodicBoxVolume()._value
    assert frames.unitcell_volumes[-1] == pytest.approx(volume, rel=1e-4)


def test_repartitioned_hydrogen_masses(new_box):
    simulation = new_box(hydrogenMass=3, schedule=HybridSchedule(1, 10))
    simulation.step(22)
    assert simulation.currentStep == 22


def test_a_rejected_jump_leaves_box_and_solvent_as_they_were(new_box, snapshot, monkeypatch):
    """The checks fail after steering, when everything has moved."""
    simulation = new_box(barostat=1, maxRetries=1)
    simulation.step(1)
    before = snapshot(simulation)
    monkeypatch.setattr(simulation.integrator._gate, "relaxed", lambda *args: [{"energy": []}])
    with pytest.raises(JumpRejectedError, match="energy"):
        simulation.step(1)
    assert snapshot(simulation) == before
    monkeypatch.undo()
    simulation.step(1)
    assert simulation.currentStep == 2


@pytest.mark.parametrize("way", ["Checkpoint", "State"])
def test_a_steered_run_continues_bit_for_bit(boxes, tiny_model, goes_on, way):
    """In a droplet: with a cutoff the CPU platform repeats not even plain MD to the bit."""
    topology, positions, _ = boxes()
    modeller = app.Modeller(topology, positions * unit.nanometer)
    solvent = [residue for residue in topology.residues() if residue.name in ("HOH", "NA", "CL")]
    modeller.delete(solvent[12:])
    system = app.ForceField("amber14-all.xml", "amber14/tip3p.xml").createSystem(modeller.topology)

    def create(seed):
        integrator = StarMDIntegrator(modeller.topology, 300, 100, tiny_model, relaxation=STEER, randomSeed=seed)
        platform = openmm.Platform.getPlatform("Reference")
        simulation = app.Simulation(modeller.topology, system, integrator, platform)
        simulation.context.setPositions(modeller.positions)
        return simulation

    goes_on(create(7), create(0), way, 2, 2)  # a seed that is given would win over the saved one


@pytest.mark.parametrize("relaxation", [None, Relaxation()])
def test_water_has_to_be_steered_around(boxes, tiny_model, relaxation):
    with pytest.raises(UnsupportedTopologyError, match="steer"):
        StarMDIntegrator(boxes()[0], 300, 100, tiny_model, relaxation=relaxation)


def test_ring_polymers_are_refused(boxes, tiny_model):
    topology, _, system = boxes()
    system.addForce(openmm.RPMDMonteCarloBarostat(1, 25))
    integrator = StarMDIntegrator(topology, 300, 100, tiny_model, relaxation=STEER)
    with pytest.raises(UnsupportedTopologyError, match="(?i)ring-polymer"):
        openmm.Context(system, integrator)
