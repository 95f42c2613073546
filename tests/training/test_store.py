"""The compact store: what goes in comes out, and only the frames that are asked for are read."""

import io

import mdtraj
import numpy as np
import pytest
import torch
from openmm import unit
from openmm.app import PDBFile

from openmm_starmd.geometry.rigid import Rigid, exponential
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.training import build_peptide, store
from openmm_starmd.training.dataset import TrajectoryDataset, step_scales


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
    numbers = store.pack(whole)
    assert numbers.shape == (50, 7, 13) and numbers.dtype == np.float32
    found = store.unpack(numbers)
    assert torch.equal(found.frames.translations, whole.frames.translations.float())
    assert torch.equal(found.torsions, whole.torsions.float())
    assert torch.equal(found.angles, whole.angles.float())
    torch.testing.assert_close(found.frames.rotations.double(), whole.frames.rotations, atol=5e-7, rtol=0)


@pytest.mark.parametrize("index", [3, slice(2, 9, 2), torch.tensor([40, 4, 4, 0])])
def test_disk_and_memory_give_the_frames_of_an_index(tmp_path, index):
    whole = random_conformations()
    numbers = store.pack(whole)
    with store.Writer(tmp_path / "name") as writer:
        for chunk in np.array_split(numbers, 3):
            writer.append(chunk)
        writer.finish({"source": 1, "n": 7})
    facts, disk = store.read(tmp_path / "name", 1, lambda facts: facts["n"])
    assert facts["frames"] == 50 and disk.shape == (50, 7)
    for found in (disk[index], store.StoredConformations(numbers, (50, 7))[index]):
        assert torch.equal(found.torsions, whole.torsions[index].float())
        assert torch.equal(found.frames.translations, whole.frames.translations[index].float())


def test_an_interrupted_writer_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), store.Writer(tmp_path / "name") as writer:
        writer.append(store.pack(random_conformations()))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_another_source_or_size_is_not_trusted(tmp_path):
    with store.Writer(tmp_path / "name") as writer:
        writer.append(store.pack(random_conformations()))
        writer.finish({"source": [1, "a"], "n": 7})
    assert store.read(tmp_path / "name", [1, "a"], lambda facts: facts["n"])
    assert store.read(tmp_path / "name", [2, "a"], lambda facts: facts["n"]) is None
    assert store.read(tmp_path / "name", [1, "a"], lambda facts: 6) is None
    assert store.read(tmp_path / "other", [1, "a"], lambda facts: 7) is None


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

    dataset = TrajectoryDataset(long_trajectory, cache=long_trajectory / "cache")
    monkeypatch.setattr(store, "open", lambda path, *_, **__: Counting(path), raising=False)
    frame = 4 * 13 * 3
    assert TrajectoryDataset(long_trajectory, cache=long_trajectory / "cache").lengths and not read
    dataset.window_batch(8, 4, generator())
    assert sum(read) == 8 * 4 * frame
    read.clear()
    step_scales(dataset, strides=(10.0, 100.0), n_windows=50)
    assert 0 < sum(read) <= 2 * 2 * 50 * frame
