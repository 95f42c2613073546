"""The data's MD engine for a GPU makes OpenMM's dynamics; here without one, the same source as C++."""

import shutil
import sys

import blocks as engine
import compact
import mdtraj
import numpy as np
import openmm
import peptide_set
import prepare_blocks
import pytest
import simulate_blocks
import torch
from blocks import Blocks
from openmm.app import Modeller, PDBFile
from openmm.unit import nanometer
from terms import GAS_CONSTANT, terms

from openmm_starmd.errors import StarMDError
from openmm_starmd.protein.conformation import from_positions
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.systems import build_peptide, peptide_system
from openmm_starmd.training.dataset import TrajectoryDataset
from openmm_starmd.trajectories.packed import pack

pytestmark = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs g++ on Linux")
ONE_THREAD = {"Threads": "1"}
ROUNDING = 2e-4  # kJ/mol an atom, of an energy in single precision
PEPTIDES = [("WPCR", True, True), ("AGVD", False, False)]  # of three warps and of two


CHAIN = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ"  # 569 atoms, of nine warps with two atoms in each thread


def _minimized(system, positions, iterations):
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform("CPU"), ONE_THREAD)
    context.setPositions(positions)
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=iterations)
    return context.getState(positions=True).getPositions(asNumpy=True)._value


def _heated(systems, starts):
    """Systems, reference contexts, and two replicas of each after 1 ps at 600 K."""
    platform = openmm.Platform.getPlatform("Reference")
    contexts = [openmm.Context(system, openmm.VerletIntegrator(0.001), platform) for system in systems]
    blocks = Blocks([terms(system) for system in systems], starts, 2, range(1, len(systems) + 1), device=False)
    blocks.draw_velocities(600)
    blocks.step(250, 600)
    return systems, contexts, blocks


@pytest.fixture(scope="module")
def molecules():
    """Two peptides."""
    built = [build_peptide(*peptide, 1) for peptide in PEPTIDES]
    systems = [peptide_system(topology) for topology, _ in built]
    return _heated(systems, [_minimized(s, x, 100) for s, (_, x) in zip(systems, built, strict=True)])


@pytest.fixture(scope="module")
def packed():
    """Topology, System and minimum of a chain that has been pulled together."""
    topology, positions = build_peptide(CHAIN, False, False, 1)
    system, pulled = peptide_system(topology), peptide_system(topology)
    pull = openmm.CustomExternalForce("200 * (x^2 + y^2 + z^2)")
    for atom in range(system.getNumParticles()):
        pull.addParticle(atom)
    pulled.addForce(pull)
    positions = np.array(positions._value)
    return topology, system, _minimized(system, _minimized(pulled, positions - positions.mean(0), 60), 60)


@pytest.fixture(scope="module")
def chain(packed):
    _, system, positions = packed
    return _heated([system], [positions])


@pytest.fixture(params=["molecules", "chain"])
def any_size(request):
    return request.getfixturevalue(request.param)


@pytest.mark.slow
def test_energies_and_forces_are_those_of_openmm(any_size):
    _, contexts, blocks = any_size
    for context, replicas, (energies, forces) in zip(contexts, blocks.positions, blocks.potential(), strict=True):
        for positions, energy, force in zip(replicas, energies, forces, strict=True):
            context.setPositions(positions)
            state = context.getState(energy=True, forces=True)
            assert energy == pytest.approx(state.getPotentialEnergy()._value, abs=ROUNDING * len(positions))
            expected = state.getForces(asNumpy=True)._value
            np.testing.assert_allclose(force, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_bonds_of_hydrogens_keep_their_length(any_size):
    systems, _, blocks = any_size
    blocks.draw_velocities(600)
    for system, positions, velocities in zip(systems, blocks.positions, blocks.velocities, strict=True):
        for k in range(system.getNumConstraints()):
            first, second, length = system.getConstraintParameters(k)
            apart = positions[:, first] - positions[:, second]
            np.testing.assert_allclose(np.linalg.norm(apart, axis=-1), length._value, rtol=2e-5)
            speed = (apart * (velocities[:, first] - velocities[:, second])).sum(-1) / length._value
            assert np.abs(speed).max() < 1e-4  # nm/ps; without constraints some 1


@pytest.mark.slow
def test_without_friction_the_path_is_that_of_openmm(any_size):
    systems, _, blocks = any_size
    before = list(zip(blocks.positions, blocks.velocities, strict=True))
    after = blocks.frames(1, 50, 300, time_step=0.002, friction=0.0)
    for system, (positions, velocities), frames in zip(systems, before, after, strict=True):
        integrator = openmm.LangevinMiddleIntegrator(300, 0, 0.002)
        integrator.setConstraintTolerance(1e-7)
        context = openmm.Context(system, integrator, openmm.Platform.getPlatform("Reference"))
        context.setPositions(positions[1])
        context.setVelocities(velocities[1])
        integrator.step(50)
        end = context.getState(positions=True).getPositions(asNumpy=True)._value
        np.testing.assert_allclose(frames[1, 0], end - end.mean(0), atol=2e-4)
        assert np.abs(end - positions[1]).max() > 0.02


@pytest.mark.slow
def test_noise_keeps_the_temperature(molecules):
    systems, _, blocks = molecules
    system = systems[1]
    alone = Blocks([terms(system)], [blocks.positions[1][0]], 8, [5], device=False)
    alone.draw_velocities(300)
    alone.step(1500, 300)
    kinetic = []
    for _ in range(10):
        alone.step(150, 300)
        kinetic.append(0.5 * (alone.velocities[0] ** 2 * _masses(system)[:, None]).sum((1, 2)))
    freedom = 3 * system.getNumParticles() - system.getNumConstraints()
    temperature = 2 * np.array(kinetic) / freedom / GAS_CONSTANT
    assert temperature.mean() == pytest.approx(300, abs=5 * 300 * np.sqrt(2 / freedom / temperature.size))
    assert temperature.std() == pytest.approx(300 * np.sqrt(2 / freedom), rel=0.35)


@pytest.mark.slow
def test_noise_keeps_the_temperature_of_a_chain(chain):
    (system,), _, blocks = chain
    alone = Blocks([terms(system)], [blocks.positions[0][0]], 1, [5], device=False)
    kinetic = []
    for steps in (300, *(10 * [25])):
        alone.step(steps, 300, friction=20.0)
        kinetic.append(0.5 * (alone.velocities[0] ** 2 * _masses(system)[:, None]).sum())
    freedom = 3 * system.getNumParticles() - system.getNumConstraints()
    temperature = 2 * np.array(kinetic[1:]) / freedom / GAS_CONSTANT
    assert temperature.mean() == pytest.approx(300, abs=5 * 300 * np.sqrt(2 / freedom / temperature.size))


@pytest.mark.slow
def test_three_atoms_a_thread_give_the_forces_of_openmm(packed):
    """Of two chains, the one within reach of the other: 1,138 atoms, as much as a domain of 72 residues."""
    topology, _, positions = packed
    both = Modeller(topology, positions * nanometer)
    both.add(topology, (positions + [0.0, 0.0, np.ptp(positions[:, 2]) + 0.3]) * nanometer)
    system, joined = peptide_system(both.topology), np.array(both.positions.value_in_unit(nanometer))
    assert len(joined) > 2 * engine.MOST_THREADS
    joined = (joined - joined.mean(0)).astype(np.float32)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform("Reference"))
    context.setPositions(joined)
    state = context.getState(energy=True, forces=True)
    ((energies, forces),) = Blocks([terms(system)], [joined], 1, [1], device=False).potential()
    expected = state.getForces(asNumpy=True)._value
    assert energies[0] == pytest.approx(state.getPotentialEnergy()._value, abs=ROUNDING * len(joined))
    np.testing.assert_allclose(forces[0], expected, atol=5e-5 * np.abs(expected).max())  # of a minimum


@pytest.mark.slow
def test_paths_do_not_depend_on_how_many_threads_share_the_atoms(molecules, monkeypatch):
    systems, _, blocks = molecules
    ends = []
    for threads in (512, 64, 32):  # one, two and three atoms in each
        monkeypatch.setattr(engine, "MOST_THREADS", threads)
        shared = Blocks([terms(systems[0])], [blocks.positions[0][0]], 2, [3], device=False)
        shared.draw_velocities(300)
        ends.append(shared.frames(2, 20, 300)[0])
    np.testing.assert_array_equal(ends[0], ends[1])
    np.testing.assert_array_equal(ends[0], ends[2])


@pytest.mark.slow
def test_the_series_of_far_neighbours_changes_no_force(chain, monkeypatch):
    (system,), _, blocks = chain
    with_series = blocks.potential()[0][1]
    monkeypatch.setattr(engine, "FEW_ATOMS", system.getNumParticles())
    without = Blocks([terms(system)], [blocks.positions[0][0]], 2, [1], device=False)
    without.place(blocks.positions, blocks.velocities)
    forces = without.potential()[0][1]
    assert 0 < np.abs(with_series - forces).max() < 1e-5 * np.abs(forces).max()


@pytest.mark.slow
def test_a_replica_is_the_same_alone_in_company_and_in_parts(molecules):
    systems, _, blocks = molecules
    found = [terms(system) for system in systems]
    starts = [positions[0] for positions in blocks.positions]
    company, alone = Blocks(found, starts, 3, [7, 8], device=False), Blocks(found[1:], starts[1:], 2, [8], device=False)
    other = Blocks(found[1:], starts[1:], 2, [9], device=False)
    for each in (company, alone, other):
        each.draw_velocities(300)
    company.step(60, 300)
    for steps in (20, 40):
        alone.step(steps, 300)
        other.step(steps, 300)
    np.testing.assert_array_equal(company.positions[1][:2], alone.positions[0])
    assert np.abs(alone.positions[0] - other.positions[0]).max() > 0.01
    assert np.abs(company.positions[1][0] - company.positions[1][2]).max() > 0.01


@pytest.mark.slow
def test_frames_are_those_of_the_steps_between_them(molecules):
    systems, _, blocks = molecules
    found, starts = [terms(system) for system in systems], [positions[0] for positions in blocks.positions]
    first, second = (Blocks(found, starts, 2, [7, 8], device=False) for _ in range(2))
    frames = first.frames(3, 10, 300)
    for k in range(3):
        second.step(10, 300)
        for own, positions in zip(frames, second.positions, strict=True):
            np.testing.assert_allclose(own[:, k], positions - positions.mean(1, keepdims=True), atol=1e-6)


@pytest.mark.slow
def test_drift_of_the_centre_is_taken_away(molecules):
    systems, _, blocks = molecules
    moved = Blocks([terms(systems[1])], [blocks.positions[1][0] + 50.0], 1, [7], device=False)
    moved.step(1, 300)
    assert np.abs(moved.positions[0].mean(1)).max() < 0.01


@pytest.mark.slow
def test_positions_and_velocities_can_be_set(molecules):
    systems, _, blocks = molecules
    found, starts = [terms(system) for system in systems], [positions[0] for positions in blocks.positions]
    other = Blocks(found, starts, 2, [7, 8], device=False)
    other.place(blocks.positions, blocks.velocities)
    for name in ("positions", "velocities"):
        for given, expected in zip(getattr(other, name), getattr(blocks, name), strict=True):
            np.testing.assert_array_equal(given, expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("charge", np.zeros(48, np.float32), "Charges"),
        ("scale", np.ones(48, np.float32), "Scales"),
        ("constraint", np.array([[0, 1], [1, 2], [2, 3]]), "Constraints"),
        ("mass", np.ones(1201, np.float32), "1201 atoms"),
    ],
)
@pytest.mark.slow
def test_what_a_block_cannot_do_is_refused(molecules, name, value, message):
    systems, _, blocks = molecules
    with pytest.raises(ValueError, match=message):
        Blocks([terms(systems[1]) | {name: value}], [blocks.positions[1][0]], 1, [1], device=False)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Three peptides from the file that they were prepared in."""
    folder = tmp_path_factory.mktemp("peptides")
    paths = [prepare_blocks.prepare(name, folder) for name in ("GAG", "ace-KE-nme", "DAK")]
    peptide_set.write(folder / "all.npz", [row for path in paths for row in peptide_set.read(path)])
    return peptide_set.read(folder / "all.npz")


@pytest.mark.slow
def test_a_prepared_set_is_what_it_was_made_of(prepared):
    assert [str(row["name"]) for row in prepared] == ["GAG", "ACE_KE_NME", "DAK"]
    topology, _ = build_peptide("GAG", False, False, 1)
    expected = terms(peptide_system(topology)) | peptide_set.token_arrays(ResidueTokens.from_topology(topology))
    for name, array in expected.items():
        np.testing.assert_array_equal(prepared[0][name], array)


@pytest.mark.slow
def test_a_domain_starts_from_its_structure_beside_peptides_and_the_rest_goes_on_without_bad_files(
    packed, tmp_path, monkeypatch, capsys
):
    topology, _, positions = packed
    folder, parts = tmp_path / "structures", tmp_path / "parts"
    for path in (folder, parts):
        path.mkdir()
    with open(folder / "chain.pdb", "w") as file:
        PDBFile.writeFile(topology, positions * nanometer, file)
    (folder / "broken.pdb").write_text("no atoms\n")
    (folder / "judged.pdb").write_text("no atoms\n")
    found = prepare_blocks.domains([folder], ["judged"])
    assert [path.stem for path in found] == ["broken", "chain"]
    assert prepare_blocks.prepare(found[0], parts) is None and "broken is left out" in capsys.readouterr().out
    made = [prepare_blocks.prepare(molecule, parts) for molecule in (found[1], "ace-A-nme")]
    peptide_set.write(tmp_path / "all.npz", [row for path in made for row in peptide_set.read(path)])
    rows = peptide_set.read(tmp_path / "all.npz")
    domain, peptide = (simulate_blocks.of_kind(rows, kind) for kind in ("domains", "peptides"))
    assert [str(rows[0]["name"]) for rows in (domain, peptide)] == ["chain", "ACE_A_NME"]
    assert [str(rows[0]["sequence"]) for rows in (domain, peptide)] == [CHAIN, "A"]
    ca = domain[0]["backbone"][:, 1]
    moved = mdtraj.Trajectory(np.stack([positions, domain[0]["positions"]])[:, ca], None)
    moved.superpose(moved[0])
    assert np.linalg.norm(moved.xyz[0] - moved.xyz[1], axis=-1).max() < 0.3
    monkeypatch.setattr(prepare_blocks, "MOST_ATOMS", 500)
    assert prepare_blocks.prepare(found[1], tmp_path) is None and "569 atoms" in capsys.readouterr().out


@pytest.mark.slow
def test_domains_are_never_hotter_than_300_kelvin(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(simulate_blocks, "FRAME_STEPS", 2)
    for kind, hottest in (("domains", 300), ("peptides", 600)):
        seen, step = [], Blocks.step

        def watched(blocks, steps, temperature, *rest, seen=seen, step=step):
            seen.append(temperature)
            step(blocks, 1, temperature, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(Blocks, "step", watched)
            simulate_blocks.simulate(prepared[:1], kind, tmp_path / kind, 1, picoseconds=0.01, device=False)
        assert max(seen) == hottest


@pytest.mark.slow
def test_frames_that_take_too_much_room_are_thinned_evenly(prepared, tmp_path, monkeypatch):
    monkeypatch.setitem(simulate_blocks.PREPARATION, "peptides", ())
    monkeypatch.setattr(simulate_blocks, "FRAME_STEPS", 5)
    for name, megabytes in (("all", np.inf), ("half", 6 * 3 * 13 * 2 / 2e6)):
        given = {"picoseconds": 0.12, "device": False, "megabytes": megabytes}
        simulate_blocks.simulate(prepared[:1], "peptides", tmp_path / name, 1, **given)
    (whole,), (half,) = (compact.read(tmp_path / name) for name in ("all", "half"))
    assert half.interval == 2 * whole.interval and len(whole.numbers) == 6
    np.testing.assert_array_equal(half.numbers, whole.numbers[1::2])


@pytest.mark.slow
def test_compact_conformations_are_those_of_the_package(prepared, tmp_path):
    rng = np.random.default_rng(1)
    frames = [
        (row["positions"] + rng.normal(0, 0.01, (2, 5, *row["positions"].shape))).astype(np.float32) for row in prepared
    ]
    kept = [np.array([0, 1]), np.array([1]), np.array([], int)]
    compact.write(tmp_path, prepared, compact.encode(frames, prepared), kept, 10.0)
    found = list(compact.read(tmp_path))
    assert [(x.name, x.replica, x.interval) for x in found] == [("GAG", 0, 10), ("GAG", 1, 10), ("ACE_KE_NME", 1, 10)]
    for trajectory, (molecule, replica) in zip(found, ((0, 0), (0, 1), (1, 1)), strict=True):
        positions = frames[molecule][replica] - frames[molecule][replica][:, prepared[molecule]["backbone"][:, 1]].mean(
            1, keepdims=True
        )
        expected = pack(from_positions(torch.from_numpy(positions), peptide_set.tokens_of(prepared[molecule])))
        np.testing.assert_allclose(trajectory.numbers, expected, atol=6e-5)
        assert trajectory.sequence == prepared[molecule]["sequence"]
        assert trajectory.features.torsion_mask.shape == (len(trajectory.sequence), 6)


@pytest.mark.slow
def test_trajectories_are_packed_and_unpacked_for_training(tmp_path):
    """Made of three files, one of them with caps; back they are the conformations that training would have read."""
    folder = tmp_path / "md"
    folder.mkdir()
    for k, (sequence, caps) in enumerate((("AGK", False), ("SDE", False), ("WE", True))):
        topology, positions = build_peptide(sequence, caps, caps, seed=k)
        frames = np.array(positions._value) + np.random.default_rng(k).normal(0, 0.01, (9, len(positions), 3))
        trajectory = mdtraj.Trajectory(frames, mdtraj.Topology.from_openmm(topology), 10.0 * np.arange(9))
        trajectory[0].save_pdb(folder / f"{sequence}.pdb")
        trajectory.save_xtc(folder / f"{sequence}.xtc")
    compact.pack_folders(folder, tmp_path / "packed")
    compact.unpack_folder(tmp_path / "packed", tmp_path / "unpacked")
    before, after = (TrajectoryDataset(tmp_path / name).trajectories for name in ("md", "unpacked"))
    assert [t.name for t in after] == [t.name for t in before]
    assert [t.sequence for t in after] == [t.sequence for t in before] == ["AGK", "SDE", "WE"]
    for one, two in zip(before, after, strict=True):
        assert one.interval == two.interval == 10
        for name, value in vars(one.features).items():
            other = getattr(two.features, name)
            assert other is value is None or torch.equal(other, value)
        a, b = one.conformations[:], two.conformations[:]
        moved = a.frames.translations - a.frames.translations.mean(-2, keepdim=True)
        torch.testing.assert_close(b.frames.translations, moved, atol=6e-5, rtol=0)
        torch.testing.assert_close(b.torsions, a.torsions, atol=6e-5, rtol=0)
    numbers = sum(path.stat().st_size for path in (tmp_path / "packed").glob("length*.npy"))
    assert numbers < 3 * 9 * 3 * 13 * 2 + 500


@pytest.mark.slow
def test_simulated_peptides_are_written(prepared, tmp_path, monkeypatch):
    monkeypatch.setitem(simulate_blocks.PREPARATION, "peptides", ((20, 300),))
    monkeypatch.setattr(simulate_blocks, "FRAME_STEPS", 10)
    monkeypatch.setattr(simulate_blocks, "TOGETHER", 2)
    sound = simulate_blocks.sound
    monkeypatch.setattr(simulate_blocks, "sound", lambda *given: [*sound(*given)[:2], np.array([False, True])])
    simulate_blocks.simulate(prepared, "peptides", tmp_path, 2, picoseconds=0.12, device=False)
    found = list(compact.read(tmp_path))
    assert [(x.name, x.replica) for x in found] == [
        *((name, k) for name in ("GAG", "ACE_KE_NME") for k in (0, 1)),
        ("DAK", 1),
    ]
    assert all(x.numbers.shape == (3, len(x.sequence), 13) and x.interval == pytest.approx(0.04) for x in found)
    assert all(np.abs(np.diff(x.numbers, axis=0)).max((1, 2)).min() > 1e-3 for x in found)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.slow
def test_what_was_simulated_before_an_interruption_is_written(prepared, tmp_path, monkeypatch, error):
    monkeypatch.setitem(simulate_blocks.PREPARATION, "peptides", ((20, 300),))
    monkeypatch.setattr(simulate_blocks, "FRAME_STEPS", 10)
    monkeypatch.setattr(simulate_blocks, "TOGETHER", 2)
    frames, calls = Blocks.frames, []

    def interrupted(*given):
        calls.append(given)
        if len(calls) == 3:
            raise error
        return frames(*given)

    monkeypatch.setattr(Blocks, "frames", interrupted)
    with pytest.raises(error):
        simulate_blocks.simulate(prepared, "peptides", tmp_path, 1, picoseconds=1.0, device=False)
    assert [len(x.numbers) for x in compact.read(tmp_path)] == 3 * [4]


@pytest.mark.slow
def test_a_write_that_is_interrupted_leaves_no_index(prepared, tmp_path, monkeypatch):
    """Nor one of what was there before, to which the numbers no longer belong."""
    encoded = [np.ones((1, 2, len(row["backbone"]), 13), np.int16) for row in prepared]
    compact.write(tmp_path, prepared, encoded, 3 * [np.array([0])], 10.0)
    assert len(list(compact.read(tmp_path))) == 3
    save, saved = np.save, []

    def full(path, numbers):
        saved.append(path)
        if len(saved) == 2:
            raise OSError("no space left")
        save(path, numbers)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="no space"):
        compact.write(tmp_path, prepared, [5 * x for x in encoded], 3 * [np.array([0])], 10.0)
    assert len(saved) == 2
    with pytest.raises(StarMDError, match="no index"):
        list(compact.read(tmp_path))


@pytest.mark.slow
def test_unsound_replicas_are_seen(prepared):
    positions = np.stack(4 * [prepared[0]["positions"]])
    positions[1, :, 0] *= -1
    positions[2, 5] = np.nan
    positions[3, prepared[0]["backbone"][1, 1]] += 0.3
    assert simulate_blocks.sound([positions], prepared[:1])[0].tolist() == [True, False, False, False]


def _masses(system):
    return np.array([system.getParticleMass(k)._value for k in range(system.getNumParticles())])
