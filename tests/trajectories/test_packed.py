"""The compact store: what goes in comes out, and only the frames that are asked for are read."""

import io
import os
import subprocess
import sys
import textwrap
import tracemalloc

import mdtraj
import numpy as np
import pytest
import torch
from openmm import unit
from openmm.app import PDBFile

from openmm_starmd.errors import StarMDError
from openmm_starmd.geometry.rigid import Rigid, exponential
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.systems import build_peptide
from openmm_starmd.training import dataset as dataset_module
from openmm_starmd.training.dataset import TrajectoryDataset
from openmm_starmd.training.step_sizes import step_scales
from openmm_starmd.trajectories import Folder, encoding, packed, reader


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_conformations(n_frames=50, n_residues=7):
    shape = n_frames, n_residues
    rotations = exponential(2 * torch.randn(*shape, 3, generator=generator(), dtype=torch.float64))
    half_turns = torch.tensor([[-1.0, 0, 0], [0, -1, 0], [0, 0, 1]], dtype=torch.float64)
    rotations[0] = half_turns
    rotations[1] = torch.eye(3)
    frames = Rigid(rotations, 5 * torch.randn(*shape, 3, generator=generator(1), dtype=torch.float64))
    torsions = 3.1 * torch.randn(*shape, 6, generator=generator(2), dtype=torch.float64).clamp(-1, 1)
    return Conformation(frames, torsions, 1.9 + 0.1 * torch.rand(*shape, generator=generator(3), dtype=torch.float64))


def test_a_round_trip_keeps_single_precision():
    whole = random_conformations()
    numbers = packed.pack(whole)
    assert numbers.shape == (50, 7, 13) and numbers.dtype == np.float32
    found = packed.unpack(numbers)
    assert torch.equal(found.frames.translations, whole.frames.translations.float())
    assert torch.equal(found.torsions, whole.torsions.float())
    assert torch.equal(found.angles, whole.angles.float())
    torch.testing.assert_close(found.frames.rotations.double(), whole.frames.rotations, atol=5e-7, rtol=0)


@pytest.mark.parametrize("index", [3, slice(2, 9, 2), torch.tensor([40, 4, 4, 0])])
def test_disk_and_memory_give_the_frames_of_an_index(tmp_path, index):
    whole = random_conformations()
    numbers = packed.pack(whole)
    with packed.Writer(tmp_path / "name") as writer:
        for chunk in np.array_split(numbers, 3):
            writer.append(chunk)
        writer.finish({"source": 1, "n": 7})
    facts, disk = packed.read(tmp_path / "name", 1, lambda facts: facts["n"])
    assert facts["frames"] == 50 and disk.shape == (50, 7)
    for found in (disk[index], packed.StoredConformations(numbers, (50, 7))[index]):
        assert torch.equal(found.torsions, whole.torsions[index].float())
        assert torch.equal(found.frames.translations, whole.frames.translations[index].float())


def test_an_interrupted_writer_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), packed.Writer(tmp_path / "name") as writer:
        writer.append(packed.pack(random_conformations()))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_another_source_or_size_is_not_trusted(tmp_path):
    with packed.Writer(tmp_path / "name") as writer:
        writer.append(packed.pack(random_conformations()))
        writer.finish({"source": [1, "a"], "n": 7})
    assert packed.read(tmp_path / "name", [1, "a"], lambda facts: facts["n"])
    assert packed.read(tmp_path / "name", [2, "a"], lambda facts: facts["n"]) is None
    assert packed.read(tmp_path / "name", [1, "a"], lambda facts: 6) is None
    assert packed.read(tmp_path / "other", [1, "a"], lambda facts: 7) is None


@pytest.fixture
def long_trajectory(tmp_path):
    topology, positions = build_peptide("AKF", seed=1)
    x = np.array(positions.value_in_unit(unit.nanometer))
    frames = (x + np.random.default_rng(0).normal(0, 0.003, (5000, *x.shape))).astype(np.float32)
    with open(tmp_path / "AKF.pdb", "w") as file:
        PDBFile.writeFile(topology, positions, file)
    with mdtraj.formats.XTCTrajectoryFile(str(tmp_path / "AKF.xtc"), "w") as file:
        file.write(frames, time=np.arange(5000, dtype=np.float32))
    return tmp_path


def test_only_the_frames_that_are_needed_are_read(long_trajectory, monkeypatch):
    """Bytes that go from the file: a batch reads its windows, the step scales their pairs."""
    read = []

    class Counting(io.FileIO):
        def readinto(self, row):
            read.append(super().readinto(row))
            return read[-1]

    monkeypatch.setattr(dataset_module, "HELD_BYTES", 0)
    dataset = TrajectoryDataset(long_trajectory, cache=long_trajectory / "cache")
    monkeypatch.setattr(packed, "open", lambda path, *_, **__: Counting(path), raising=False)
    frame = 4 * 13 * 3
    assert TrajectoryDataset(long_trajectory, cache=long_trajectory / "cache").lengths and not read
    dataset.window_batch(8, 4, generator())
    assert sum(read) == 8 * 4 * frame
    read.clear()
    step_scales(dataset, strides=(10.0, 100.0), n_windows=50)
    assert 0 < sum(read) <= 2 * 2 * 50 * frame


def test_windows_are_the_same_from_memory_and_from_disk(long_trajectory, monkeypatch):
    held = TrajectoryDataset(long_trajectory, cache=long_trajectory / "cache")
    monkeypatch.setattr(dataset_module, "HELD_BYTES", 0)
    read = TrajectoryDataset(long_trajectory, cache=long_trajectory / "cache")
    first, second = (dataset.window_batch(8, 4, generator()) for dataset in (held, read))
    assert torch.equal(first.conformations.frames.translations, second.conformations.frames.translations)
    assert torch.equal(first.strides, second.strides)


def test_new_trajectories_leave_those_of_other_lengths_as_they_are_in_memory(long_trajectory):
    dataset, names = TrajectoryDataset(long_trajectory, cache=long_trajectory / "cache"), ("AK", "AKG")
    kept = dataset._buckets[3]
    for name, same in zip(names, (True, False), strict=True):
        topology, positions = build_peptide(name, seed=1)
        frames = np.array(positions._value) + np.random.default_rng(1).normal(0, 0.003, (9, len(positions), 3))
        trajectory = mdtraj.Trajectory(frames, mdtraj.Topology.from_openmm(topology), np.arange(9.0))
        trajectory[0].save_pdb(long_trajectory / f"{name}.pdb")
        trajectory.save_xtc(long_trajectory / f"{name}.xtc")
        assert dataset.refresh() == [name]
        assert (dataset._buckets[3] is kept) == same
    assert {t.sequence for t in dataset._buckets[3].trajectories} == {"AKF", "AKG"}
    assert dataset.window_batch(8, 4, generator(), (1.0, 2.0)).strides.shape == (8, 4)


def test_an_encoded_folder_is_a_source_of_its_own(long_trajectory, tmp_path):
    """Encoded once, trained on elsewhere: without the trajectory, and with the same windows."""
    whole = TrajectoryDataset(long_trajectory, cache=tmp_path / "encoded")
    (long_trajectory / "AKF.xtc").unlink()
    moved = TrajectoryDataset((tmp_path / "encoded").rename(tmp_path / "elsewhere"))
    assert [t.sequence for t in moved.trajectories] == ["AKF"]
    first, second = (dataset.window_batch(8, 4, generator()) for dataset in (whole, moved))
    assert torch.equal(first.conformations.torsions, second.conformations.torsions)
    assert torch.equal(first.features.torsion_mask, second.features.torsion_mask)
    next((tmp_path / "elsewhere").glob("*.json")).unlink()
    with pytest.raises(StarMDError, match="json is missing"):
        TrajectoryDataset(tmp_path / "elsewhere")


def test_a_long_trajectory_is_encoded_in_pieces(long_trajectory, monkeypatch):
    monkeypatch.setattr(reader, "_CHUNK_ATOMS", 50_000)
    (file,) = Folder(long_trajectory).find()
    whole = mdtraj.load(str(file.path), top=str(file.topology)).xyz.nbytes
    tracemalloc.start()
    try:
        trajectory = encoding.load_trajectory(file, long_trajectory / "cache")
        assert tracemalloc.get_traced_memory()[1] < whole
    finally:
        tracemalloc.stop()
    assert trajectory.n_frames == 5000


class Zeros:
    """10,000 frames that are a hole in a file."""

    def __init__(self, n_residues):
        self.nbytes = 10_000 * n_residues * packed.NUMBERS * 4

    def __len__(self):
        return 10_000

    def tofile(self, file):
        file.truncate(self.nbytes)


def draw_from_a_thousand(folder):
    """Windows and step scales of 1,000 trajectories of 10,000 frames; returns the bytes of the frames."""
    sequence = "ADEFGHIKLMNPQRSTVWYC"
    features = ResidueTokens.from_topology(build_peptide(sequence, seed=1)[0]).features
    zeros = Zeros(len(sequence))
    encoding._encode = lambda file, append: append(zeros) or (sequence, features, 10.0)
    for number in range(1000):
        (folder / f"{number}.pdb").touch()
        (folder / f"{number}.xtc").touch()
    dataset = TrajectoryDataset(folder, cache=folder / "cache", n_frames=4)
    assert sum(trajectory.n_frames for trajectory in dataset.trajectories) == 10_000_000
    step_scales(dataset, strides=(10.0,), n_windows=2000)
    for seed in range(20):
        dataset.window_batch(32, 4, generator(seed))
    return 1000 * zeros.nbytes


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs files with holes, and memory told in kB")
def test_a_thousand_trajectories_train_within_four_gib(tmp_path):
    script = """
        import pathlib, resource, sys
        sys.path[:0] = sys.argv[2:]
        import test_packed
        frames = test_packed.draw_from_a_thousand(pathlib.Path(sys.argv[1]))
        print(frames, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
    folders = [os.path.dirname(__file__), os.path.dirname(os.path.dirname(os.path.dirname(packed.__file__)))]
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), *folders]
    frames, peak = map(int, subprocess.run(command, check=True, capture_output=True).stdout.split())
    assert peak < 4 * 2**30 < frames
