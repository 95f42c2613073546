"""Training on proteins of different lengths: batches, references, packed data, families held out, time limits."""

from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from openmm_starmd.errors import StarMDError
from openmm_starmd.geometry.rigid import Rigid, exponential
from openmm_starmd.model import load_model
from openmm_starmd.network.config import ModelConfig, NetworkConfig
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.tokens import ResidueFeatures
from openmm_starmd.training import loop
from openmm_starmd.training.dataset import TrajectoryDataset
from openmm_starmd.training.fitting import train
from openmm_starmd.training.settings import TrainingConfig
from openmm_starmd.training.step_sizes import burial_scales, step_scales
from openmm_starmd.trajectories import compact
from openmm_starmd.trajectories.packed import pack
from openmm_starmd.trajectories.sources import Packed, source_from_table

LENGTHS, FRAMES = {"short": 3, "middle": 12, "long": 15}, 20
NETWORK = NetworkConfig(
    blocks=1, width=16, pair_width=8, heads=2, reference_structure=True, reversion=True, burial=True
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def conformations(n, seed):
    """A chain (T, N) whose residues move by 0.02 nm a frame about the same places."""
    g = generator(seed)
    x = (0.3 * torch.randn(1, n, 3, generator=g)).cumsum(1) + 0.02 * torch.randn(FRAMES, n, 3, generator=g)
    turns = exponential(0.2 * torch.randn(FRAMES, n, 3, generator=g))
    frames = Rigid(turns, x - x.mean(1, keepdim=True))
    return Conformation(frames, torch.zeros(FRAMES, n, 6), torch.full((FRAMES, n), 1.95))


def features(n):
    zero = torch.zeros(n, dtype=torch.long)
    mask = torch.zeros(n, 6, dtype=torch.bool)
    mask[:, 1] = True
    period = torch.full((n, 6), 2 * torch.pi, dtype=torch.float64)
    return ResidueFeatures(zero, torch.arange(n), zero, zero, zero, mask, period)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Packed trajectories of three molecules, two replicas each."""
    path = tmp_path_factory.mktemp("packed")
    index = {}
    for number, (name, n) in enumerate(LENGTHS.items()):
        both = [pack(conformations(n, 2 * number + k)) for k in range(2)]
        np.save(path / f"length_{n}.npy", np.rint(np.concatenate(both) / compact.UNITS).astype(np.int16))
        row = {"replica": np.arange(2), "first": 0, "frames": FRAMES, "interval": 10.0}
        row |= {"name": name, "sequence": n * "A"}
        row |= {f.name: getattr(features(n), f.name).numpy() for f in fields(ResidueFeatures) if f.name != "present"}
        for key, value in row.items():
            index.setdefault(key, []).append(np.asarray(value))
    arrays = {}
    for key, values in index.items():
        if values[0].ndim:
            arrays |= {f"{key}.lengths": np.array([len(v) for v in values]), key: np.concatenate(values)}
        else:
            arrays[key] = np.stack(values)
    np.savez(path / "index.npz", **arrays)
    return path


@pytest.fixture(scope="module")
def dataset(folder):
    return TrajectoryDataset(Packed(folder), batch_residues=64)


def test_packed_trajectories_are_what_was_packed(folder):
    source = source_from_table({"source": "packed", "path": "."}, folder)
    trajectories = {t.name: t for t in TrajectoryDataset(source).trajectories}
    assert sorted(trajectories) == sorted(f"{name}_{k}" for name in LENGTHS for k in range(2))
    found, expected = trajectories["middle_1"].conformations[:], conformations(12, 3)
    torch.testing.assert_close(found.frames.translations, expected.frames.translations, atol=6e-5, rtol=0)
    torch.testing.assert_close(found.frames.rotations, expected.frames.rotations, atol=2e-4, rtol=0)
    assert trajectories["middle_1"].interval == 10.0 and trajectories["middle_1"].sequence == 12 * "A"


def test_a_packed_folder_that_lost_a_file_is_refused(folder, tmp_path):
    (tmp_path / "index.npz").write_bytes((folder / "index.npz").read_bytes())
    with pytest.raises(StarMDError, match="cannot be read"):
        TrajectoryDataset(Packed(tmp_path))
    (tmp_path / "index.npz").write_bytes(b"no index")
    with pytest.raises(StarMDError, match="no index of packed trajectories"):
        TrajectoryDataset(Packed(tmp_path))


def lengths_of(batch):
    """Residues of each window."""
    present = batch.features.present
    return len(batch.strides) * [batch.conformations.shape[-1]] if present is None else present.sum(-1).tolist()


def test_batches_hold_similar_lengths_and_a_number_of_residues(dataset):
    sizes, together = {}, set()
    for seed in range(40):
        batch = dataset.window_batch(12, 3, generator(seed), (10, 50))
        sizes[batch.conformations.shape[-1]] = len(batch.strides)
        together.add(frozenset(lengths_of(batch)))
    assert sizes == {3: 12, 15: 4}
    assert frozenset({12, 15}) in together and frozenset({3, 12}) not in together


@pytest.mark.slow
def test_molecules_come_as_often_as_without_padding(dataset):
    """A third of the windows is of each molecule, however many windows a batch of its length has."""
    count = {n: 0 for n in LENGTHS.values()}
    for seed in range(900):
        batch = dataset.window_batch(12, 3, generator(seed), (10, 50))
        for n in lengths_of(batch):
            count[n] += 1
    shares = np.array(list(count.values())) / sum(count.values())
    assert np.abs(shares - 1 / 3).max() < 0.05


def test_padded_windows_are_those_of_the_molecule(dataset, folder):
    """Superposed frame on frame, with the residues that are there centred, wherever padding stands."""
    seen = 0
    for seed in range(20):
        batch = dataset.window_batch(12, 3, generator(seed), (10, 50))
        if batch.features.present is None:
            continue
        for row, n in enumerate(batch.features.present.sum(-1).tolist()):
            own = batch.conformations.frames.translations[row, :, :n]
            assert own.mean(1).abs().max() < 1e-5
            assert (own[1:] - own[:-1]).square().mean().sqrt() < 0.04
            seen += n == 12
    assert seen


def test_references_are_first_frames_of_the_same_molecule(dataset):
    """Of either replica, and superposed on each frame."""
    firsts = {n: [conformations(n, 2 * k + r)[0] for r in range(2)] for k, n in enumerate(LENGTHS.values())}
    found = {n: set() for n in firsts}
    for seed in range(30):
        batch = dataset.window_batch(12, 3, generator(seed), (10, 50), references=True)
        for row, n in enumerate(lengths_of(batch)):
            ca = batch.reference.frames.translations[row, :, :n]
            shapes = [torch.cdist(f.frames.translations, f.frames.translations) for f in firsts[n]]
            errors = [float((shape - torch.cdist(ca, ca)).abs().max()) for shape in shapes]
            assert min(errors) < 1e-3
            found[n].add(int(np.argmin(errors)))
            if n > 3:  # the two replicas have different native structures, frames of one are alike
                apart = (ca - batch.conformations.frames.translations[row, :, :n]).square().sum(-1).mean(-1).sqrt()
                assert (apart < 0.06).all() or (apart > 0.1).all()
    assert all(which == {0, 1} for which in found.values())


def test_sizes_of_steps_by_burial_tell_inside_from_outside():
    """Residues that many others are near move less here, and the table says by how much."""
    g, n, frames = generator(1), 20, 400
    places = torch.cat([0.25 * torch.randn(12, 3, generator=g), 6.0 * torch.randn(8, 3, generator=g)])
    size = torch.cat([torch.full((12, 1), 0.01), torch.full((8, 1), 0.1)])
    x = places + size * torch.randn(frames, n, 3, generator=g)
    still = Rigid(torch.eye(3).expand(frames, n, 3, 3), x)
    moves = Conformation(still, torch.zeros(frames, n, 6), torch.full((frames, n), 1.95))
    trajectory = SimpleNamespace(
        name="x", interval=10.0, n_frames=frames, n_residues=n, features=features(n), conformations=moves
    )
    data = SimpleNamespace(trajectories=[trajectory])
    table, mean = burial_scales(data)[0, :, 0], step_scales(data)[0, 0]
    assert table[0] > 2.5 * table[6] and table[0] > mean > table[6]
    assert table[6] == pytest.approx(table[7])  # none has sixteen: as those that are nearest


def test_families_are_held_out_by_name(folder, tmp_path):
    (tmp_path / "families.toml").write_text('validation = ["long_*"]\n')
    (tmp_path / "config.toml").write_text(
        f'data = [{{source = "packed", path = "{folder}"}}]\noutput = "run"\nvalidation_names = "families.toml"\n'
    )
    config = TrainingConfig.from_toml(tmp_path / "config.toml")
    assert config.validation_names == ("long_*",)
    kept = TrajectoryDataset(config.data, exclude_names=config.validation_names)
    out = TrajectoryDataset(config.data, only_names=config.validation_names)
    assert {t.name for t in kept.trajectories} == {"short_0", "short_1", "middle_0", "middle_1"}
    assert {t.name for t in out.trajectories} == {"long_0", "long_1"}
    (tmp_path / "families.toml").write_text("training = []\n")
    with pytest.raises(StarMDError, match="must list patterns"):
        TrainingConfig.from_toml(tmp_path / "config.toml")


def config_of(folder, output, **more):
    settings = dict(batch_residues=32, frames=3, batch_size=4, stride_range=(10.0, 50.0), validation_steps=4)
    settings |= dict(validation_names=("long_*",), validation_batches=1, hidden_references=0.3, warmup_steps=1)
    return TrainingConfig(Packed(folder), output, **(settings | more))


def test_a_network_of_another_shape_starts_from_the_weights_that_fit(folder, tmp_path):
    base = load_model("starmd-peptide", device="cpu")
    network = {name: getattr(base.config.network, name) for name in ("width", "pair_width", "heads")}
    model = ModelConfig(NetworkConfig(**network, reference_structure=True, reversion=True, neighbours=4))
    options = {"model": model, "total_steps": 1, "learning_rate": 1e-12, "ema_decay": 0.0, "weight_decay": 0.0}
    denoiser = train(config_of(folder, tmp_path, start_from="starmd-peptide", **options))
    torch.testing.assert_close(
        denoiser.blocks[2].ipa.qkv.weight, base.denoiser.blocks[2].ipa.qkv.weight, atol=1e-9, rtol=0
    )
    assert denoiser.residues.way_back.weight.abs().max() < 1e-9
    assert denoiser.step_scales[0, 0] < 0.03  # of these data, not of the model it starts from


@pytest.mark.slow
def test_training_is_annealed_when_its_time_is_up(folder, tmp_path, monkeypatch):
    """A clock of a second a look: the rate falls to nothing within the hours, which two sittings share."""
    clock = iter(range(10**9))
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    config = config_of(folder, tmp_path, model=ModelConfig(NETWORK), total_steps=10**6, hours=300 / 3600)
    train(config)
    rates = np.loadtxt(tmp_path / "train.csv", delimiter=",", skiprows=1, usecols=3)
    assert 10 < len(rates) < 200
    assert (np.diff(rates[1:]) <= 0).all() and rates[-1] < 0.02 * rates.max()
    assert (tmp_path / "model.safetensors").exists()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["seconds"] >= 300 and state["step"] == len(rates)
    before = state["step"]
    train(config)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == before


def test_a_run_that_goes_on_spends_what_is_left_of_its_time(tmp_path, monkeypatch):
    config = TrainingConfig("md", tmp_path, total_steps=10**6, hours=100 / 3600, warmup_steps=0)
    run = loop.Run(config, nn.Linear(1, 1), None, None)
    run.seconds = 75.0
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    assert run.spent == 0.75
    assert config.rate(0, run.spent) == pytest.approx(config.learning_rate * 0.5 * (1 + np.cos(0.75 * np.pi)))
