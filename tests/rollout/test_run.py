"""Rollouts: a replica is the same alone and in company, and goes on where it was."""

import dataclasses
import json
import os

import mdtraj
import numpy as np
import openmm
import pytest
import torch
from filelock import FileLock
from openmm import unit
from openmm.app import Modeller
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from openmm_starmd import (
    HistoryError,
    JumpRejectedError,
    ModelDomainError,
    Propagator,
    Relaxation,
    StarMDError,
    StarMDIntegrator,
    UnsupportedTopologyError,
    rollout,
)
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.protein.validity import check_positions
from openmm_starmd.systems import peptide_system

PRECISION = 2e-3  # nm; XTC rounds to 0.001
LARGEST_FILE = 3_000  # bytes; state and topology fit in, 16 frames do not


def clock_of(state):
    """Step, dropped frames and times that a state tells."""
    with safe_open(state, "pt") as file:
        clock = json.loads(file.metadata()["clock"])
        return clock["step"], clock["dropped"], file.get_tensor("times").tolist()


def test_frames_are_whole_valid_and_a_stride_apart(run, peptide, tmp_path):
    frames = run("a", 6, 2)
    assert frames.shape == (2, 6, peptide[0].getNumAtoms(), 3)
    trajectory = mdtraj.load(str(tmp_path / "a" / "replica0001.xtc"), top=str(tmp_path / "a" / "topology.pdb"))
    assert trajectory.time.tolist() == [100.0 * k for k in range(1, 7)]
    tokens = ResidueTokens.from_topology(peptide[0])
    assert check_positions(torch.from_numpy(frames), tokens).passes_bioemu.all()
    assert np.abs(np.diff(frames, axis=1)).max((-1, -2)).min() > 0.001
    assert np.abs(frames[0] - frames[1]).max() > 0.005


def test_a_replica_is_the_same_alone_and_in_company(run):
    company = run("company", 8, 4)
    np.testing.assert_allclose(run("alone", 8)[0], company[0], atol=PRECISION)
    assert np.abs(run("other", 8, seed=4)[0] - company[0]).max() > 2 * PRECISION


def test_seed_0_is_a_seed_and_does_not_draw_another(run):
    first, second = run("first", 3, seed=0), run("second", 3, seed=0)
    np.testing.assert_array_equal(first, second)
    assert np.abs(run("other", 3, seed=1) - first).max() > 2 * PRECISION


@pytest.mark.parametrize("steps", [3, 4, 5])
def test_an_interrupted_run_continues_bit_for_bit(run, tmp_path, steps):
    whole = run("whole", 9, 2)
    seen = []

    def interrupt(frames):
        seen.append(frames)
        if len(seen) == steps:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("broken", 9, 2, progress=interrupt)
    assert seen == [2] * steps
    assert np.array_equal(run("broken", 9, 2), whole)
    for name in ("replica0000.xtc", "replica0001.xtc"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_stopped_run_goes_on_from_its_last_step(run, samples):
    def interrupt(frames):
        if len(sizes) == 5:
            raise KeyboardInterrupt

    sizes = samples()
    with pytest.raises(KeyboardInterrupt):
        run("a", 9, 2, progress=interrupt, checkpoint_steps=100)
    there = []
    run("a", 9, 2, progress=there.append)
    assert sizes == [2] * 9
    assert there == [10, 2, 2, 2, 2]


def test_more_steps_and_more_replicas_later(run, samples):
    whole = run("whole", 8, 3)
    first = run("grown", 3, 1)
    np.testing.assert_allclose(first[0], whole[0, :3], atol=PRECISION)
    sizes = samples()
    np.testing.assert_allclose(run("grown", 8, 3), whole, atol=PRECISION)
    assert sizes == [2] * 3 + [3] * 5  # those that are behind come first


def test_a_run_in_several_batches(run, samples):
    whole, sizes = run("whole", 4, 3), samples()
    np.testing.assert_allclose(run("parts", 4, 3, batch_size=2), whole, atol=PRECISION)
    assert sizes == [2] * 4 + [1] * 4


def test_every_replica_may_have_a_start_of_its_own(run, peptide):
    starts = np.stack([peptide[1]._value, peptide[1]._value + 5.0])
    frames = run("a", 2, 2, start=starts * unit.nanometer)
    centres = frames.mean((1, 2))
    np.testing.assert_allclose(centres[1] - centres[0], 5.0, atol=0.1)


def test_only_what_fails_is_sampled_again(run, monkeypatch, samples):
    whole, step, seeds = run("whole", 4, 2), Propagator.step, []

    def seen(self, history, generators):
        seeds.extend(generator.initial_seed() for generator in generators)
        return step(self, history, generators)

    monkeypatch.setattr(Propagator, "step", seen)
    sizes = samples(spoilt=(0, 1))
    frames = run("spoilt", 4, 2)
    assert sizes == [2, 1, 1, 2, 2, 2]
    assert len(set(seeds)) == 10
    np.testing.assert_allclose(frames[0], whole[0], atol=PRECISION)
    assert np.abs(frames[1] - whole[1]).max() > 2 * PRECISION


def test_behind_full_windows_what_fails_waits_in_the_batch(run, samples, tmp_path):
    """The others lose nothing, to the last bit; a run that is broken off while one is behind goes on as well."""
    whole = run("whole", 8, 3)
    sizes = samples(spoilt=(5,))
    frames = run("spoilt", 8, 3)
    assert sizes == [3] * 9
    assert np.array_equal(frames[:2], whole[:2]) and np.array_equal(frames[2, :5], whole[2, :5])
    assert np.abs(frames[2, 5:] - whole[2, 5:]).max(axis=(1, 2)).min() > 2 * PRECISION
    clocks = [clock_of(tmp_path / name / "replica0002.state") for name in ("whole", "spoilt")]
    assert clocks[0] == clocks[1] == (8, 6, [600.0, 700.0, 800.0])
    sizes, new = samples(spoilt=(5,)), []

    def interrupt(frames):
        new.append(frames)
        if len(new) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("broken", 8, 3, progress=interrupt)
    assert new == [3, 3, 3, 3, 3, 2, 3]
    assert np.array_equal(run("broken", 8, 3), frames)
    assert sizes == [3] * 9


def test_a_state_tells_the_times_of_the_frames_that_stay(run, tiny_model, tmp_path, monkeypatch):
    config = dataclasses.replace(tiny_model.config, context_frames=3)
    monkeypatch.setattr(tiny_model, "config", config)
    whole = run("a", 6)
    assert clock_of(tmp_path / "a" / "replica0000.state") == (6, 4, [400.0, 500.0, 600.0])
    run("b", 1)
    assert clock_of(tmp_path / "b" / "replica0000.state") == (1, 0, [0.0, 100.0])
    run("b", 4)
    assert np.array_equal(run("b", 6), whole)


def test_a_rejected_jump_stops_one_replica_and_it_can_go_on(run, samples, tmp_path, monkeypatch):
    whole = run("whole", 6, 3)
    with monkeypatch.context():
        sizes = samples(spoilt=(3, 4))
        message = "1 of 3 .* the others are complete.\nReplica 2, step 4: None of 2 .*peptide_breaks in 2.*more retries"
        with pytest.raises(JumpRejectedError, match=message):
            run("broken", 6, 3, max_retries=1, checkpoint_steps=100)
        assert sizes == [3, 3, 3, 3, 3, 2]
        there = [mdtraj.load(str(f), top=str(tmp_path / "whole/topology.pdb")) for f in tmp_path.glob("broken/*.xtc")]
        assert sorted(len(frames) for frames in there) == [3, 6, 6]
        np.testing.assert_allclose(run("broken", 6, 3), whole, atol=PRECISION)
        assert sizes[6:] == [1, 1, 1]


def test_when_all_are_rejected_the_run_ends(run, samples):
    sizes = samples(spoilt=range(1, 9))
    with pytest.raises(JumpRejectedError, match="1 of 1 .*\nReplica 0, step 2"):
        run("a", 6, max_retries=1)
    assert sizes == [1, 1, 1]


def test_relaxation_brings_energies_down_whoever_does_it(run, peptide):
    system = peptide[2]
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform("Reference"))

    def energies(frames):
        for frame in frames.reshape(-1, *frames.shape[-2:]):
            context.setPositions(frame)
            context.applyConstraints(1e-5)
            yield context.getState(energy=True).getPotentialEnergy()._value

    raw = run("raw", 4, 2)
    noisy = peptide[1]._value + np.random.default_rng(0).normal(0, 0.003, peptide[1].shape)
    barely = {"system": system, "relaxation": Relaxation(minimizationSteps=1, dynamicsSteps=0), "start": noisy}
    assert max(energies(run("minimised", 1, **barely))) < next(energies(run("noisy", 1, start=noisy))) - 50
    options = {"system": system, "relaxation": Relaxation(minimizationSteps=40, dynamicsSteps=10)}
    relaxed = run("relaxed", 4, 2, **options)
    assert np.mean(list(energies(relaxed))) < np.mean(list(energies(raw))) - 20
    assert np.array_equal(run("workers", 4, 2, workers=2, **options), relaxed)


@pytest.mark.parametrize("ending", ["NaN", "hot"])
def test_what_relaxation_spoils_is_sampled_again(run, samples, peptide, monkeypatch, ending):
    options = {"system": peptide[2], "relaxation": Relaxation(minimizationSteps=20, dynamicsSteps=5)}
    whole, relax, calls = run("whole", 3, 2, **options), Relaxation.relax, []

    def spoilt(self, context, *arguments):
        relax(self, context, *arguments)
        calls.append(1)
        if len(calls) == 4:  # of the second replica in the second step
            if ending == "NaN":
                raise openmm.OpenMMException("Particle coordinate is NaN")
            positions = context.getState(positions=True).getPositions(asNumpy=True)._value
            context.setPositions(positions + np.random.default_rng(0).normal(0, 0.012, positions.shape))

    monkeypatch.setattr(Relaxation, "relax", spoilt)
    sizes = samples()
    frames = run("spoilt", 3, 2, **options)
    assert sizes == [2, 2, 1, 2]
    np.testing.assert_allclose(frames[0], whole[0], atol=PRECISION)
    np.testing.assert_allclose(frames[1, 0], whole[1, 0], atol=PRECISION)
    assert np.abs(frames[1, 1] - whole[1, 1]).max() > 2 * PRECISION


@pytest.mark.parametrize(
    "options, told",
    [
        ({"start": np.zeros((3, 3))}, r"positions must be of shape \(.*found \(3, 3\)"),
        ({"n_steps": 0}, "n_steps"),
        ({"n_steps": 2**31}, "at most 2,147,483,647"),
        ({"n_replicas": 0}, "n_replicas"),
        ({"checkpoint_steps": 0}, "checkpoint_steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"stride": 0.001}, "strides of"),
        ({"stride": 0, "strict": False}, "stride must be above 0 ps and finite; got 0 ps"),
        ({"stride": np.nan, "strict": {"stride": False}}, "stride must be above 0 ps and finite; got nan ps"),
        ({"stride": np.inf, "strict": False}, "stride must be above 0 ps and finite; got inf ps"),
        ({"temperature": np.inf, "strict": False}, "temperature must be above 0 K and finite; got inf K"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"max_retries": -1}, "max_retries"),
        ({"workers": 0}, "workers"),
    ],
)
def test_bad_settings_leave_no_files(run, tmp_path, options, told):
    with pytest.raises((ValueError, ModelDomainError), match=told):
        run("a", **{"n_steps": 2} | options)
    assert not list(tmp_path.glob("a/*.xtc"))


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("n_replicas", [1, 2])
def test_the_atom_of_a_start_that_is_not_finite_is_named(run, peptide, tmp_path, poison, n_replicas):
    starts = np.stack(n_replicas * [np.array(peptide[1]._value)])
    starts[-1, 4, 2] = poison
    with pytest.raises(StarMDError, match=r"1 atoms have positions that are not finite \(the first: 4\)"):
        run("a", 2, n_replicas, start=starts.squeeze())
    assert not list(tmp_path.iterdir())


def test_a_system_of_another_molecule_is_refused(build_peptide, tmp_path):
    """By the number of atoms, before its forces are compared with those that the model knows."""
    topology, positions = build_peptide("DWGR")
    other = build_peptide("AGAG")[0]
    message = f"The Topology has {len(positions)} atoms, but the System {other.getNumAtoms()}; make both from"
    with pytest.raises(ValueError, match=message):
        rollout("auto", topology, positions, stride=100, n_steps=1, output=tmp_path / "a", system=peptide_system(other))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("place", ["file", "file/in/it"])
def test_an_output_that_can_be_no_folder_is_refused(run, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StarMDError, match=f"The output .*{place} cannot be made: .*file is a file and no folder; name"):
        run(place, 2)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("factor, told", [(10, "ten times too large: Angstrom"), (0.1, "ten times too small")])
def test_starts_in_the_wrong_unit_leave_no_files(run, peptide, tmp_path, factor, told):
    with pytest.raises(StarMDError, match=told):
        run("a", 2, start=factor * np.array(peptide[1]), strict=False)
    assert not list(tmp_path.glob("a/*.xtc"))


@pytest.mark.parametrize("kept", [set(), {"N", "O"}], ids=["heavy atoms", "polar hydrogens"])
def test_missing_hydrogens_are_refused_without_relaxation(peptide, tiny_model, tmp_path, kept):
    modeller = Modeller(*peptide[:2])
    beside = {b.index for bond in peptide[0].bonds() for a, b in (bond, bond[::-1]) if a.element.symbol in kept}
    modeller.delete([a for a in peptide[0].atoms() if a.element.symbol == "H" and a.index not in beside])
    with pytest.raises(UnsupportedTopologyError, match="hydrogens are missing in residue ALA 1 .* and 2 more.*prepare"):
        rollout(tiny_model, modeller.topology, modeller.positions, stride=100, n_steps=1, output=tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(UnsupportedTopologyError, match="hydrogens are missing"):
        StarMDIntegrator(modeller.topology, 300, 100, tiny_model, relaxation=None)


@pytest.mark.parametrize(
    "lost, told", [({"CZ2", "CH2", "CZ3"}, "CH2, CZ2, CZ3"), ({"HB3"}, "hydrogens"), ({"HH2"}, "hyd")]
)
def test_a_residue_that_lacks_atoms_is_refused_without_relaxation(build_peptide, tiny_model, tmp_path, lost, told):
    """No force field looks at the molecule where nothing is relaxed."""
    topology, positions = build_peptide("AWA")
    modeller = Modeller(topology, positions * unit.nanometer)
    modeller.delete([a for a in topology.atoms() if a.residue.name == "TRP" and a.name in lost])
    with pytest.raises(UnsupportedTopologyError, match=f"{told}.*residue TRP 2 .*starmd prepare"):
        rollout(tiny_model, modeller.topology, modeller.positions, stride=100, n_steps=1, output=tmp_path / "a")
    with pytest.raises(UnsupportedTopologyError, match=told):
        StarMDIntegrator(modeller.topology, 300, 100, tiny_model, relaxation=None)


def test_a_folder_with_trajectories_is_not_overwritten(run, tmp_path):
    run("a", 2)
    before = (tmp_path / "a" / "replica0000.xtc").read_bytes()
    with pytest.raises(StarMDError, match="resume=True"):
        run("a", 2, resume=False)
    assert (tmp_path / "a" / "replica0000.xtc").read_bytes() == before


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def stiffer(system):
    """Copy of a System with one bond changed."""
    copied = openmm.XmlSerializer.clone(system)
    bonds = next(force for force in copied.getForces() if isinstance(force, openmm.HarmonicBondForce))
    *atoms, length, constant = bonds.getBondParameters(0)
    bonds.setBondParameters(0, *atoms, length, 1.01 * constant)
    return copied


@pytest.mark.parametrize(
    "change, told",
    [
        ({"seed": 4}, "seed"),
        ({"stride": 100.0001}, "stride"),
        ({"temperature": 301}, "temperature"),
        ({"denoising_steps": 2}, "denoising_steps"),
        ({"start": 0.01}, "start"),
        ({"system": stiffer}, "System"),
        ({"system": None}, "relaxation and System"),
        ({"relaxation": Relaxation(minimizationSteps=2, dynamicsSteps=1)}, "relaxation"),
        ({"start": 0.01, "system": stiffer, "seed": 4}, "seed, System and start"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_run_of_other_settings_does_not_go_on(run, peptide, tmp_path, change, told):
    _, positions, system = peptide
    settings = {"system": system, "relaxation": Relaxation(minimizationSteps=2, dynamicsSteps=0)}
    run("a", 2, **settings)
    before, change = contents(tmp_path / "a"), dict(change)
    if "start" in change:
        change["start"] = positions._value + change["start"]
    if change.get("system"):
        change["system"] = stiffer(system)
    for n_steps, n_replicas in ((2, 1), (4, 2)):
        with pytest.raises(HistoryError, match=f"replica0000.state belongs to another {told}; .*name another folder"):
            run("a", n_steps, n_replicas, **settings | change)
        assert contents(tmp_path / "a") == before
    again = run("a", 2, system=openmm.XmlSerializer.clone(system), relaxation=settings["relaxation"])
    assert again.shape[1] == 2 and contents(tmp_path / "a") == before


def test_a_system_that_cannot_be_written_goes_on(run, peptide):
    """A PythonForce of a function within a function."""
    if not hasattr(openmm, "PythonForce"):
        pytest.skip("OpenMM before 8.5")

    def with_force():
        system = openmm.XmlSerializer.clone(peptide[2])
        system.addForce(openmm.PythonForce(lambda state: (0.0, np.zeros((system.getNumParticles(), 3)))))
        return system

    settings = {"relaxation": Relaxation(minimizationSteps=2, dynamicsSteps=0)}
    whole = run("whole", 4, system=with_force(), **settings)
    run("a", 2, system=with_force(), **settings)
    assert np.array_equal(run("a", 4, system=with_force(), **settings), whole)
    with pytest.raises(HistoryError, match="another System;"):
        run("a", 6, system=peptide[2], **settings)


def test_a_run_of_another_molecule_of_the_same_start_does_not_go_on(run, peptide, tiny_model, tmp_path):
    """Two hydrogens that have changed their names."""
    run("a", 2)
    topology = Modeller(*peptide[:2]).topology
    first, second = (atom for atom in topology.atoms() if atom.residue.index == 1 and atom.name in ("HB2", "HB3"))
    first.name, second.name = second.name, first.name
    settings = {"stride": 100, "seed": 9, "resume": True, "device": "cpu"}
    with pytest.raises(HistoryError, match="belongs to another molecule;"):
        rollout(tiny_model, topology, peptide[1], n_steps=4, output=tmp_path / "a", **settings)


def test_replicas_go_on_each_from_a_start_of_its_own(run, peptide):
    starts = np.stack([peptide[1]._value, peptide[1]._value + 5.0])
    whole = run("whole", 4, 2, start=starts)
    run("a", 2, start=starts[0])
    np.testing.assert_allclose(run("a", 4, 2, start=starts), whole, atol=PRECISION)
    with pytest.raises(HistoryError, match="replica0001.state belongs to another start;"):
        run("a", 6, 2, start=starts[0])


def test_a_seed_of_numpy_is_the_same_seed(run, tmp_path):
    assert np.array_equal(run("a", 2, seed=9), run("b", 2, seed=np.int64(9)))


def test_the_topology_of_a_run_that_has_no_steps_is_written_anew(run, tmp_path):
    """As after a call that was killed before its first state; the next may be of another molecule."""
    whole = run("whole", 2)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "topology.pdb").write_text("of another molecule")
    (tmp_path / "a" / ".locks").mkdir()
    with FileLock(tmp_path / "a" / ".locks" / "replica0000"), pytest.raises(StarMDError, match="Another process"):
        run("a", 2)
    assert (tmp_path / "a" / "topology.pdb").read_text() == "of another molecule"
    assert np.array_equal(run("a", 2), whole)


def test_foreign_and_damaged_states_are_refused(run, tmp_path):
    run("a", 2)
    state = tmp_path / "a" / "replica0000.state"
    whole = state.read_bytes()
    state.write_bytes(whole[:-20])
    with pytest.raises(HistoryError, match="damaged"):
        run("a", 4)
    state.write_bytes(whole)
    tensors = load_file(state)
    with safe_open(state, "pt") as file:
        metadata = file.metadata()
    clock = json.loads(metadata["clock"])
    del clock["excess"]  # as in states from before energies had a base
    save_file(tensors, state, metadata | {"clock": json.dumps(clock)})
    with pytest.raises(HistoryError, match="damaged.*excess"):
        run("a", 4)
    metadata["identity"] = metadata.pop("settings")  # as in states that did not know of the start
    save_file(tensors, state, metadata)
    with pytest.raises(HistoryError, match="of an earlier version .*settings.*name another folder, or remove it"):
        run("a", 4)
    state.write_bytes(whole)
    (tmp_path / "a" / "replica0000.xtc").write_bytes(b"")
    with pytest.raises(HistoryError, match="lacks frames"):
        run("a", 4)


def test_files_of_a_run_are_readable_by_whom_the_umask_lets_read(run, tmp_path):
    before = os.umask(0o022)
    try:
        run("shared", 2)
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "shared").iterdir() if path.is_file()]
    assert {".state", ".xtc", ".pdb", ".json"} <= {path.suffix for path in files}
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == {path.name: "0o644" for path in files}


def test_a_full_disk_is_told_and_no_frame_is_lost(run):
    """OpenMM does not notice that a frame was not written."""
    resource = pytest.importorskip("resource")
    whole = run("whole", 16)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, hard))
    try:
        with pytest.raises(OSError, match=r"replica0000.xtc could not be written: is the disk full.* resume"):
            run("full", 16)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert np.array_equal(run("full", 16), whole)


def test_a_second_process_keeps_off(run, tmp_path):
    whole = run("a", 4, 2)
    with FileLock(tmp_path / "a" / ".locks" / "replica0001"):
        with pytest.raises(StarMDError, match="Another process is writing .*replica0001.xtc"):
            run("a", 6, 2)
    assert np.array_equal(run("a", 4, 2), whole)
    assert run("a", 6, 2).shape[1] == 6
