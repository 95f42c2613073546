"""The data's MD engine makes OpenMM's dynamics."""

import shutil
import subprocess
import sys
from pathlib import Path

import mdtraj
import numpy as np
import openmm
import openmm.app
import pytest
import simulate_starts
from lanes import GAS_CONSTANT, LANES, Lanes

from openmm_starmd.systems import build_peptide, peptide_system
from openmm_starmd.training import TrajectoryDataset

pytestmark = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs g++ on Linux")


@pytest.fixture(scope="module", params=[("AGVD", False, False), ("WPCR", True, True)], ids=lambda p: p[0])
def molecule(request):
    """A peptide's System, and its replicas after 4 ps at 600 K."""
    topology, positions = build_peptide(*request.param, 1)
    system = peptide_system(topology)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform("Reference"))
    context.setPositions(positions)
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=100)
    lanes = Lanes(system, context.getState(positions=True).getPositions(asNumpy=True)._value, 1)
    lanes.draw_velocities(600)
    lanes.step(1000, 600)
    return system, context, lanes


@pytest.mark.slow
def test_energies_and_forces_are_those_of_openmm(molecule):
    _, context, lanes = molecule
    energies, forces = lanes.potential()
    for positions, energy, force in zip(lanes.positions, energies, forces, strict=True):
        context.setPositions(positions)
        state = context.getState(energy=True, forces=True)
        assert energy == pytest.approx(state.getPotentialEnergy()._value, abs=0.02)
        expected = state.getForces(asNumpy=True)._value
        np.testing.assert_allclose(force, expected, atol=3e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_replicas_start_where_they_are_told(molecule):
    system, _, lanes = molecule
    starts = np.tile(lanes.positions, (2, 1, 1)) + np.linspace(0, 1, 2 * LANES)[:, None, None].astype(np.float32)
    np.testing.assert_array_equal(Lanes(system, starts, 1, 2 * LANES).positions, starts)


@pytest.mark.slow
def test_bonds_of_hydrogens_keep_their_length(molecule):
    system, _, lanes = molecule
    lanes.draw_velocities(600)
    for k in range(system.getNumConstraints()):
        first, second, length = system.getConstraintParameters(k)
        apart = lanes.positions[:, first] - lanes.positions[:, second]
        np.testing.assert_allclose(np.linalg.norm(apart, axis=-1), length._value, rtol=2e-5)
        speed = (apart * (lanes.velocities[:, first] - lanes.velocities[:, second])).sum(-1) / length._value
        assert np.abs(speed).max() < 1e-4  # nm/ps; without constraints some 1


@pytest.mark.slow
def test_without_friction_the_path_is_that_of_openmm(molecule):
    system, _, lanes = molecule
    integrator = openmm.LangevinMiddleIntegrator(300, 0, 0.002)
    integrator.setConstraintTolerance(1e-7)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatform("Reference"))
    positions, velocities = lanes.positions, lanes.velocities
    lanes.step(50, 300, time_step=0.002, friction=0.0)
    for lane in range(0, LANES, 5):
        context.setPositions(positions[lane])
        context.setVelocities(velocities[lane])
        integrator.step(50)
        end = context.getState(positions=True).getPositions(asNumpy=True)._value
        np.testing.assert_allclose(lanes.positions[lane], end - end.mean(0), atol=2e-4)
        assert np.abs(end - positions[lane]).max() > 0.02


@pytest.mark.slow
def test_noise_keeps_the_temperature(molecule):
    system, _, lanes = molecule
    lanes.step(2000, 300)
    kinetic = []
    for _ in range(20):
        lanes.step(250, 300)
        kinetic.append(0.5 * (lanes.velocities**2 * _masses(system)[:, None]).sum((1, 2)))
    freedom = 3 * system.getNumParticles() - system.getNumConstraints()
    temperature = 2 * np.array(kinetic) / freedom / GAS_CONSTANT
    assert temperature.mean() == pytest.approx(300, abs=5 * 300 * np.sqrt(2 / freedom / temperature.size))
    assert temperature.std() == pytest.approx(300 * np.sqrt(2 / freedom), rel=0.2)


@pytest.mark.slow
def test_lanes_differ_and_a_seed_repeats(molecule):
    system, _, lanes = molecule
    first, second, other = (Lanes(system, lanes.positions[0], seed) for seed in (3, 3, 4))
    for replicas in (first, second, other):
        replicas.draw_velocities(300)
        replicas.step(100, 300)
    np.testing.assert_array_equal(first.positions, second.positions)
    assert np.abs(first.positions - other.positions).max() > 0.01
    assert len(np.unique(first.positions[:, 0, 0])) == LANES


@pytest.mark.slow
def test_replicas_come_in_groups(molecule):
    system, _, lanes = molecule
    twice = Lanes(system, lanes.positions[0], 3, replicas=2 * LANES)
    twice.draw_velocities(300)
    twice.step(100, 300)
    assert len(np.unique(twice.positions[:, 0, 0])) == 2 * LANES
    with pytest.raises(ValueError, match="9 replicas: on this machine they come in groups of (8|16)"):
        Lanes(system, lanes.positions[0], 3, replicas=9)


@pytest.mark.slow
def test_unknown_forces_are_refused(molecule):
    system, _, lanes = molecule
    system = openmm.XmlSerializer.clone(system)
    system.addForce(openmm.CustomExternalForce("x"))
    with pytest.raises(ValueError, match="CustomExternalForce"):
        Lanes(system, lanes.positions[0], 1)


@pytest.mark.slow
def test_a_system_without_solvent_is_refused(molecule):
    system, _, lanes = molecule
    system = openmm.XmlSerializer.clone(system)
    names = [type(force) for force in system.getForces()]
    system.removeForce(names.index(openmm.GBSAOBCForce))
    with pytest.raises(ValueError, match="GBSAOBCForce"):
        Lanes(system, lanes.positions[0], 1)


@pytest.mark.slow
def test_starts_are_written_as_training_data_once(tmp_path):
    assert simulate_starts.simulate("GAG", tmp_path, 3) == "GAG: 16 replicas"
    trajectories = TrajectoryDataset(tmp_path).trajectories
    assert [(t.sequence, t.n_frames, t.interval) for t in trajectories] == 16 * [("GAG", 3, 10.0)]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert simulate_starts.simulate("GAG", tmp_path) == "GAG: there"
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_references_are_what_benchmarks_read(tmp_path):
    """One trajectory of all replicas, one behind the other, and made once."""
    script = Path(simulate_starts.__file__).parents[1] / "starmd-dipeptide" / "simulate_references.py"
    command = [sys.executable, script, tmp_path, "ace-A-nme", "--nanoseconds", str(3 * LANES * 0.01)]
    lines = [subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() for _ in range(2)]
    assert lines == ["ACE_A_NME: 0.48 ns", "ACE_A_NME: there"]
    frames = mdtraj.load(tmp_path / "ACE_A_NME.xtc", top=tmp_path / "ACE_A_NME.pdb")
    np.testing.assert_allclose(frames.time, 10 * np.arange(1, 3 * LANES + 1))
    steps = np.abs(np.diff(frames.xyz, axis=0)).max((1, 2))
    assert steps.min() > 1e-3


@pytest.mark.slow
def test_a_file_that_fails_leaves_the_others_of_proteins(tmp_path):
    """Two files are asked for: the one that is missing is named, the other simulated."""
    topology, positions = build_peptide("GAG", False, False, 1)
    with open(tmp_path / "gag.pdb", "w") as file:
        openmm.app.PDBFile.writeFile(topology, positions, file)
    script = Path(simulate_starts.__file__).parents[1] / "starmd-protein" / "simulate_proteins.py"
    files = [tmp_path / "missing.pdb", tmp_path / "gag.pdb"]
    command = [sys.executable, script, tmp_path / "md", *files, "--processes", "1", "--frames", "2"]
    log = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "gag: 16 of 16 replicas" in log and "missing: " in log
    assert [t.n_frames for t in TrajectoryDataset(tmp_path / "md").trajectories] == 16 * [2]


def _masses(system):
    return np.array([system.getParticleMass(k)._value for k in range(system.getNumParticles())])
