"""Frozen features of a structure predictor: found, checked, batched and used."""

import mdtraj
import numpy as np
import pytest
import torch
from openmm import unit
from openmm.app import PDBFile

pytest.importorskip("lightning_fabric")

from openmm_starmd.errors import StarMDError  # noqa: E402
from openmm_starmd.model import load_model  # noqa: E402
from openmm_starmd.network.config import ModelConfig, NetworkConfig  # noqa: E402
from openmm_starmd.propagator import Propagator  # noqa: E402
from openmm_starmd.protein.conformation import from_positions  # noqa: E402
from openmm_starmd.protein.tokens import ResidueTokens  # noqa: E402
from openmm_starmd.systems import build_peptide  # noqa: E402
from openmm_starmd.training import train  # noqa: E402
from openmm_starmd.training.dataset import TrajectoryDataset  # noqa: E402
from openmm_starmd.training.settings import TrainingConfig  # noqa: E402

SINGLE, PAIR = 5, 7


def write_features(folder, name, n, single=None, pair=None):
    rng = np.random.default_rng(n)
    single = rng.normal(size=(n, SINGLE)) if single is None else single
    pair = rng.normal(size=(n, n, PAIR)) if pair is None else pair
    np.save(folder / f"{name}.single.npy", single.astype(np.float16))
    np.save(folder / f"{name}.pair.npy", pair)


@pytest.fixture
def folder(tmp_path):
    for sequence in ("AKF", "SVE", "GPSD"):
        topology, positions = build_peptide(sequence, seed=1)
        with open(tmp_path / f"{sequence}.pdb", "w") as file:
            PDBFile.writeFile(topology, positions, file)
        x = np.array(positions.value_in_unit(unit.nanometer))
        frames = x + np.random.default_rng(0).normal(0, 0.01, (12, *x.shape))
        with mdtraj.formats.XTCTrajectoryFile(str(tmp_path / f"{sequence}.xtc"), "w") as file:
            file.write(frames.astype(np.float32), time=10 * np.arange(12, dtype=np.float32))
        write_features(tmp_path, sequence, len(sequence))
    return tmp_path


def test_a_batch_brings_the_features_of_its_systems(folder):
    rng = np.random.default_rng(0)
    write_features(folder, "SVE", 3, rng.normal(size=(3, SINGLE)), rng.normal(size=(3, 3, PAIR)))
    dataset = TrajectoryDataset(folder, single_features=SINGLE, pair_features=PAIR)
    names = {t.sequence: t.features.residue_type for t in dataset.trajectories}
    seen = set()
    for seed in range(6):
        batch = dataset.window_batch(4, 2, torch.Generator().manual_seed(seed))
        n = batch.features.residue_type.shape[1]
        assert batch.precomputed["single"].shape == (4, n, SINGLE)
        assert batch.precomputed["pair"].shape == (4, n, n, PAIR)
        for b in range(4):
            own = batch.features.residue_type[b]
            (name,) = [k for k, types in names.items() if torch.equal(types, own)]
            seen.add(name)
            for kind in ("single", "pair"):
                expected = torch.from_numpy(np.load(folder / f"{name}.{kind}.npy").astype(np.float32))
                assert torch.equal(batch.precomputed[kind][b], expected)
    assert seen == {"AKF", "SVE", "GPSD"}
    assert TrajectoryDataset(folder).window_batch(4, 2, torch.Generator()).precomputed == {}


def test_all_absent_and_unfit_files_are_told_at_once(folder):
    (folder / "AKF.single.npy").unlink()
    write_features(folder, "GPSD", 4, pair=np.zeros((4, 3, PAIR)))
    (folder / "SVE.pair.npy").write_bytes(b"no array")
    with pytest.raises(StarMDError) as error:
        TrajectoryDataset(folder, single_features=SINGLE, pair_features=PAIR)
    lines = str(error.value).splitlines()[1:]
    assert len(lines) == 3
    assert "AKF.single.npy cannot be read" in lines[0]
    assert "GPSD.pair.npy must have shape (4, 4, 7), not (4, 3, 7)" in lines[1]
    assert "SVE.pair.npy cannot be read" in lines[2]


def test_pickles_are_not_run(folder):
    np.save(folder / "AKF.single.npy", np.array([{"code": 1}], dtype=object))
    with pytest.raises(StarMDError, match=r"AKF\.single\.npy"):
        TrajectoryDataset(folder, single_features=SINGLE)


@pytest.mark.slow
def test_a_model_learns_to_use_them(folder, tmp_path):
    network = NetworkConfig(
        blocks=1,
        width=32,
        pair_width=8,
        heads=2,
        query_points=1,
        value_points=1,
        single_features=SINGLE,
        pair_features=PAIR,
    )
    settings = {"model": ModelConfig(network), "batch_size": 2, "frames": 2, "total_steps": 4, "warmup_steps": 0}
    train(TrainingConfig(folder, tmp_path / "run", accelerator="cpu", **settings))
    trained = load_model(tmp_path / "run" / "model.safetensors", "cpu").denoiser
    train(
        TrainingConfig(folder, tmp_path / "again", accelerator="cpu", learning_rate=1e-12, weight_decay=0, **settings)
    )
    untrained = load_model(tmp_path / "again" / "model.safetensors", "cpu").denoiser
    for name in ("residues.single.1.weight", "pairs.pair.1.weight"):
        assert not torch.allclose(trained.state_dict()[name], untrained.state_dict()[name], atol=1e-5), name


def test_the_paper_configuration_takes_openfold_features(folder, tmp_path):
    """Single 384 and pair 128; the trained model samples with them, and otherwise without them."""
    rng = np.random.default_rng(1)
    for name in ("AKF", "SVE", "GPSD"):
        n = len(name)
        write_features(folder, name, n, rng.normal(size=(n, 384)), rng.normal(size=(n, n, 128)))
    smaller = "blocks = 1, width = 32, pair_width = 8, heads = 2, attention_layers = 1"
    lines = [f"data = {str(folder)!r}", 'output = "run"', "batch_size = 2", "frames = 2", "total_steps = 2"]
    lines += ["warmup_steps = 0", 'accelerator = "cpu"', "[model]", 'preset = "paper"', "denoising_steps = 2"]
    (tmp_path / "config.toml").write_text("\n".join([*lines, f"network = {{{smaller}}}"]))
    train(TrainingConfig.from_toml(tmp_path / "config.toml"))
    model = load_model(tmp_path / "run" / "model.safetensors", "cpu")
    assert (model.config.network.single_features, model.config.network.pair_features) == (384, 128)
    pdb = PDBFile(str(folder / "AKF.pdb"))
    tokens = ResidueTokens.from_topology(pdb.topology)
    start = from_positions(torch.tensor(pdb.getPositions(asNumpy=True)._value)[None], tokens)
    features = {kind: torch.tensor(np.load(folder / f"AKF.{kind}.npy")).float() for kind in ("single", "pair")}
    sampled = []
    for given in ({}, features):
        propagator = Propagator(model, tokens, 100.0, 300.0, **given)
        step = propagator.step(propagator.start(start), torch.Generator().manual_seed(1))
        sampled.append(step.frames.translations)
    assert torch.isfinite(sampled[1]).all() and not torch.equal(*sampled)
