"""StarMDIntegrator in an ordinary Simulation: steps, time, reporters, temperature, seeds, edits, failures."""

import copy
import io
import math
import struct

import mdtraj
import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit

from openmm_starmd import JumpRejectedError, Relaxation, StarMDIntegrator

ATOMIC_TIME = 0.04888821  # ps; DCD's unit of time


def test_quantities_and_numbers_mean_the_same(peptide, tiny_model):
    bare = StarMDIntegrator(peptide[0], 300, 100, tiny_model)
    dressed = StarMDIntegrator(peptide[0], 300 * unit.kelvin, 0.1 * unit.nanoseconds, tiny_model)
    for integrator in (bare, dressed):
        assert integrator.getStepSize() == 100 * unit.picoseconds
        assert integrator.getTemperature() == 300 * unit.kelvin


def test_every_reporter_tells_step_and_time(new_simulation, peptide, tmp_path):
    simulation, text = new_simulation(), io.StringIO()
    columns = dict(step=True, time=True, potentialEnergy=True, temperature=True, speed=True, elapsedTime=True)
    simulation.reporters += [
        app.XTCReporter(str(tmp_path / "out.xtc"), 3),
        app.DCDReporter(str(tmp_path / "out.dcd"), 2),
        app.PDBReporter(str(tmp_path / "out.pdb"), 7),
        app.PDBxReporter(str(tmp_path / "out.cif"), 7),
        app.CheckpointReporter(str(tmp_path / "out.chk"), 11),
        app.StateDataReporter(text, 4, remainingTime=True, totalSteps=24, **columns),
    ]
    simulation.step(25)
    simulation.reporters.clear()

    assert simulation.currentStep == 25 and simulation.context.getTime() == 2500 * unit.picoseconds
    with open(tmp_path / "top.pdb", "w") as file:
        app.PDBFile.writeFile(peptide[0], peptide[1], file)
    frames = mdtraj.load(str(tmp_path / "out.xtc"), top=str(tmp_path / "top.pdb"))
    np.testing.assert_array_equal(frames.time, np.arange(3, 26, 3) * 100.0)
    assert mdtraj.load(str(tmp_path / "out.dcd"), top=str(tmp_path / "top.pdb")).n_frames == 12
    header = struct.unpack("<4x4s9if", (tmp_path / "out.dcd").read_bytes()[:48])
    assert header[3] * header[10] * ATOMIC_TIME == pytest.approx(200.0, rel=1e-5)
    assert app.PDBFile(str(tmp_path / "out.pdb")).getNumFrames() == 3
    assert app.PDBxFile(str(tmp_path / "out.cif")).getNumFrames() == 3

    rows = [line.split(",") for line in text.getvalue().splitlines()[1:]]
    assert [int(row[0]) for row in rows] == [4, 8, 12, 16, 20, 24]
    assert [float(row[1]) for row in rows] == [400.0, 800.0, 1200.0, 1600.0, 2000.0, 2400.0]
    (early, late) = rows[0], rows[-1]
    elapsed = (float(late[5]) - float(early[5])) / 86400
    assert float(late[4]) == pytest.approx(2.0 / elapsed, rel=0.2)  # ns/day, from two clocks of the same reporter
    assert early[6] == "--" and late[6] == "0:00"

    resumed = new_simulation()
    resumed.loadCheckpoint(str(tmp_path / "out.chk"))
    assert resumed.currentStep == 22 and resumed.context.getTime() == 2200 * unit.picoseconds


def test_the_hdf5_reporter_of_mdtraj(new_simulation, tmp_path):
    pytest.importorskip("tables")
    simulation = new_simulation()
    reporter = mdtraj.reporters.HDF5Reporter(str(tmp_path / "out.h5"), 3)
    simulation.reporters.append(reporter)
    simulation.step(7)
    reporter.close()
    np.testing.assert_allclose(mdtraj.load(str(tmp_path / "out.h5")).time, [300.0, 600.0])


def test_run_for_clock_time(new_simulation):
    simulation = new_simulation()
    simulation.runForClockTime(0.3 * unit.seconds)
    steps = simulation.integrator.getStatistics()["steps"]
    assert steps > 0 and simulation.currentStep == steps
    assert simulation.context.getTime() == steps * 100 * unit.picoseconds


def test_velocities_have_the_temperature(new_simulation, peptide):
    simulation = new_simulation(relaxation=None)
    _, positions, system = peptide
    energies = []
    for _ in range(20):
        simulation.context.setPositions(positions)
        simulation.step(1)
        energies.append(simulation.context.getState(energy=True).getKineticEnergy()._value)
    freedoms = 3 * system.getNumParticles() - system.getNumConstraints()
    kT = unit.MOLAR_GAS_CONSTANT_R.value_in_unit(unit.kilojoules_per_mole / unit.kelvin) * 300
    expected, spread = freedoms * kT / 2, kT * math.sqrt(freedoms / 2)
    assert abs(np.mean(energies) - expected) < 4 * spread / math.sqrt(20)
    assert np.std(energies) == pytest.approx(spread, rel=0.5)


def test_the_seed_decides(new_simulation, snapshot):
    def run(seed):
        simulation = new_simulation(randomSeed=seed)
        simulation.step(2)
        return snapshot(simulation), simulation.integrator.getRandomNumberSeed()

    first, again, other = run(1), run(1), run(2)
    assert first == again and first[0] != other[0] and other[1] == 2
    chosen, once_more = run(0), run(0)
    assert chosen[1] != once_more[1] and chosen[0] != once_more[0]
    assert run(chosen[1]) == chosen


def test_jumps_go_on_from_the_last_conformation(new_simulation, seen_histories):
    simulation = new_simulation()
    seen = seen_histories(simulation.integrator)
    simulation.step(4)
    assert seen == [1, 2, 3, 4]


@pytest.mark.parametrize("edit", ["positions", "minimize", "reset", "physical", "velocities", "hair", "time"])
def test_what_starts_the_history_anew(new_simulation, seen_histories, peptide, edit):
    simulation = new_simulation()
    context, seen = simulation.context, seen_histories(simulation.integrator)
    simulation.step(2)
    positions = context.getState(positions=True).getPositions(asNumpy=True)._value
    ca = next(atom.index for atom in peptide[0].atoms() if atom.name == "CA")
    if edit == "positions":
        positions[ca, 0] += 5e-4
    elif edit == "hair":
        positions[ca, 0] += 2e-5
    if edit in ("positions", "hair"):
        context.setPositions(positions)
    elif edit == "minimize":
        simulation.minimizeEnergy(maxIterations=5)
    elif edit == "reset":
        simulation.integrator.reset()
    elif edit == "physical":
        simulation.integrator.stepPhysical(1)
    elif edit == "velocities":
        context.setVelocitiesToTemperature(300)
    else:
        context.setTime(0)
    simulation.step(2)
    anew = edit in ("positions", "minimize", "reset")
    assert seen == ([1, 2, 1, 2] if anew else [1, 2, 3, 4])


def test_after_the_usual_preparation(new_simulation):
    simulation = new_simulation()
    simulation.minimizeEnergy(maxIterations=10)
    simulation.context.setVelocitiesToTemperature(300)
    simulation.step(1)
    assert simulation.currentStep == 1


def test_physical_steps_count_as_openmm_counts(new_simulation):
    simulation = new_simulation()
    simulation.step(1)
    simulation.integrator.stepPhysical(50)
    assert simulation.currentStep == 51
    assert simulation.context.getTime()._value == pytest.approx(100.1)
    assert simulation.integrator.getStepSize() == 100 * unit.picoseconds
    simulation.step(1)
    assert simulation.currentStep == 52
    assert simulation.context.getTime()._value == pytest.approx(200.1)


@pytest.mark.parametrize("relaxation", [None, Relaxation()])
def test_constraints_hold_after_a_jump(new_simulation, peptide, relaxation):
    """All bonds are constrained: those between residues are the ones that a jump breaks."""
    system = app.ForceField("amber14/protein.ff14SB.xml").createSystem(peptide[0], constraints=app.AllBonds)
    simulation = new_simulation(system=system, relaxation=relaxation)
    simulation.step(2)
    x = simulation.context.getState(positions=True).getPositions(asNumpy=True)._value
    for index in range(system.getNumConstraints()):
        i, j, distance = system.getConstraintParameters(index)
        assert np.linalg.norm(x[i] - x[j]) == pytest.approx(distance._value, rel=1e-4)


def with_a_virtual_site(peptide, charge):
    """Topology and System of the peptide with a site between the atoms 0 and 4, its positions, and the site's index."""
    topology, positions, vacuum = peptide
    extended = copy.deepcopy(topology)
    extended.addAtom("VS", None, extended.addResidue("SITE", extended.addChain()))
    system = openmm.XmlSerializer.clone(vacuum)
    site = system.addParticle(0)
    system.setVirtualSite(site, openmm.TwoParticleAverageSite(0, 4, 0.25, 0.75))
    (nonbonded,) = (force for force in system.getForces() if isinstance(force, openmm.NonbondedForce))
    nonbonded.addParticle(charge, 0.1, 0)
    for other in range(6):
        nonbonded.addException(other, site, 0, 0.1, 0)
    return extended, positions, system, site


@pytest.mark.parametrize("relaxation", [None, Relaxation()])
def test_virtual_sites_follow(peptide, tiny_model, relaxation):
    extended, positions, system, site = with_a_virtual_site(peptide, charge=0)
    integrator = StarMDIntegrator(extended, 300, 100, tiny_model, randomSeed=1, relaxation=relaxation)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatform("Reference"))
    context.setPositions(np.vstack([positions._value, [[0, 0, 0]]]))
    integrator.step(2)
    x = context.getState(positions=True).getPositions(asNumpy=True)._value
    np.testing.assert_allclose(x[site], 0.25 * x[0] + 0.75 * x[4], atol=1e-9)


def test_parameters_changed_later_act_during_relaxation(new_simulation, peptide):
    """Physics stays in the user's Context: a pull switched on between steps stretches the relaxed molecule."""
    system = openmm.XmlSerializer.clone(peptide[2])
    pull = openmm.CustomBondForce("pull*r")
    pull.addGlobalParameter("pull", 0.0)
    ends = [atom.index for atom in peptide[0].atoms() if atom.name in ("OG", "OXT")]
    pull.addBond(*ends)
    system.addForce(pull)
    lengths = []
    for strength in (0.0, -3000.0):
        simulation = new_simulation(system=system, relaxation=Relaxation(minimizationSteps=40, dynamicsSteps=0))
        simulation.context.setParameter("pull", strength)
        simulation.step(1)
        x = simulation.context.getState(positions=True).getPositions(asNumpy=True)._value
        lengths.append(np.linalg.norm(x[ends[0]] - x[ends[1]]))
    assert lengths[1] > lengths[0] + 0.02


def _spoil(propagator, times):
    """Move a residue away in the first ``times`` conformations; return the growing list of the generators' seeds."""
    propagate, seeds = propagator.step, []

    def step(history, generator):
        seeds.append(generator.initial_seed())
        conformation = propagate(history, generator)
        if len(seeds) <= times:
            with torch.inference_mode():
                conformation.frames.translations[:, 0] += 1.0
        return conformation

    propagator.step = step
    return seeds


def test_a_bad_conformation_is_sampled_again(new_simulation):
    simulation = new_simulation(maxRetries=3)
    seeds = _spoil(simulation.integrator._propagator, 2)
    simulation.step(2)
    assert len(set(seeds)) == len(seeds) == 4
    statistics = simulation.integrator.getStatistics()
    assert statistics["steps"] == simulation.currentStep == 2
    assert statistics["resampled"] == 2 and statistics["failed"]["peptide_breaks"] == 2
    assert set(statistics["seconds"]) == {"network", "backmapping", "relaxation", "other"}
    assert min(statistics["seconds"].values()) > 0


def test_rejection_leaves_the_context_as_it_was(new_simulation, snapshot):
    simulation = new_simulation(maxRetries=2)
    simulation.step(1)
    before = snapshot(simulation)
    seeds = _spoil(simulation.integrator._propagator, 3)
    with pytest.raises(JumpRejectedError, match="peptide_breaks in 3; .*peptide_breaks at C of residue .* and N of"):
        simulation.step(1)
    assert snapshot(simulation) == before
    simulation.step(1)
    assert simulation.currentStep == 2 and len(set(seeds)) == 4


def test_a_rejection_tells_of_a_start_that_fails_itself(new_simulation, peptide):
    simulation = new_simulation(maxRetries=0)
    atoms = {(atom.residue.index, atom.name): atom.index for atom in peptide[0].atoms()}
    positions = simulation.context.getState(positions=True).getPositions(asNumpy=True)._value.copy()
    positions[atoms[1, "CA"]] = positions[atoms[1, "CB"]] + 0.05
    simulation.context.setPositions(positions)
    _spoil(simulation.integrator._propagator, 1)
    with pytest.raises(JumpRejectedError, match="start from .*clashes at CA, CB of residue .* minimise it first"):
        simulation.step(1)


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_a_relaxation_that_explodes_leaves_the_context_as_it_was(new_simulation, peptide, snapshot, platform):
    system = openmm.XmlSerializer.clone(peptide[2])
    trap = openmm.CustomExternalForce("x*log(sound)")
    trap.addGlobalParameter("sound", 1.0)
    trap.addParticle(0)
    system.addForce(trap)
    simulation = new_simulation(platform, system=system, maxRetries=1)
    simulation.step(1)
    simulation.context.setParameter("sound", -1.0)
    before = snapshot(simulation)
    with pytest.raises(JumpRejectedError, match="not_finite"):
        simulation.step(1)
    assert snapshot(simulation) == before
    simulation.context.setParameter("sound", 1.0)
    simulation.step(1)
    assert simulation.currentStep == 2


def test_an_interruption_leaves_the_context_as_it_was(new_simulation, snapshot, monkeypatch):
    simulation = new_simulation()
    simulation.step(1)
    before = snapshot(simulation)

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Relaxation, "relax", interrupted)
        with pytest.raises(KeyboardInterrupt):
            simulation.step(1)
    assert snapshot(simulation) == before
    simulation.step(1)
    assert simulation.currentStep == 2


def test_without_relaxation_the_atoms_stay_where_the_jump_put_them(new_simulation):
    energies = {}
    for name, relaxation in {"none": None, "mode": Relaxation(mode="none"), "minimize": Relaxation()}.items():
        simulation = new_simulation(relaxation=relaxation)
        simulation.step(1)
        energies[name] = simulation.context.getState(energy=True).getPotentialEnergy()._value
    assert energies["none"] == energies["mode"] != energies["minimize"]


def test_the_stride_can_be_changed(new_simulation):
    simulation = new_simulation()
    simulation.step(1)
    simulation.integrator.setStepSize(0.2 * unit.nanoseconds)
    simulation.step(1)
    assert simulation.context.getTime() == 300 * unit.picoseconds
    with pytest.raises(ValueError, match="stepSize"):
        simulation.integrator.setStepSize(-1)


def test_virtual_sites_that_were_never_placed_are_placed_before_the_jump(peptide, tiny_model):
    """At NaN or in one place with an atom the energy before the jump would be NaN, and every jump rejected."""
    extended, positions, system, site = with_a_virtual_site(peptide, charge=0.1)
    integrator = StarMDIntegrator(extended, 300, 100, tiny_model, randomSeed=1, maxRetries=0)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatform("Reference"))
    context.setPositions(np.vstack([positions._value, [positions._value[10]]]))
    assert not np.isfinite(context.getState(energy=True).getPotentialEnergy()._value)
    integrator.step(1)


def test_a_rejection_outside_of_the_domain_names_the_domain(new_simulation):
    with pytest.warns(UserWarning, match="350 K"):
        simulation = new_simulation(maxRetries=0, temperature=350, strict=False)
    _spoil(simulation.integrator._propagator, 1)
    with pytest.raises(JumpRejectedError, match="not trained for this: .*350 K") as error:
        simulation.step(1)
    assert "inimise" not in str(error.value)
