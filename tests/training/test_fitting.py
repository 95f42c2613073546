"""From a TOML file to a model: fine-tuning, early stopping, logs, the card, several processes."""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from openmm import unit

pytest.importorskip("lightning_fabric")

from openmm_starmd.errors import StarMDError  # noqa: E402
from openmm_starmd.model import StarMDModel, load_model  # noqa: E402
from openmm_starmd.network.config import ModelConfig, NetworkConfig, paper  # noqa: E402
from openmm_starmd.network.denoiser import Denoiser  # noqa: E402
from openmm_starmd.propagator import Propagator  # noqa: E402
from openmm_starmd.protein.conformation import from_positions  # noqa: E402
from openmm_starmd.protein.tokens import ResidueTokens  # noqa: E402
from openmm_starmd.systems import build_peptide  # noqa: E402
from openmm_starmd.training import TrajectoryDataset, fitting, train  # noqa: E402
from openmm_starmd.training.settings import TrainingConfig  # noqa: E402
from openmm_starmd.trajectories import ATLAS, Files, Folder, MdCATH  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
NETWORK = NetworkConfig(blocks=1, width=32, pair_width=8, heads=2, query_points=1, value_points=1)


def config_of(folder, output, **settings):
    defaults = {"model": ModelConfig(NETWORK), "batch_size": 4, "frames": 3, "total_steps": 4, "warmup_steps": 1}
    defaults |= {"checkpoint_seconds": 0, "accelerator": "cpu", "validation_batches": 1}
    return TrainingConfig(folder, output, **(defaults | settings))


def read_log(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


TOML = """
data = ["md", {source = "atlas", path = "/data/atlas", split = "atlas.csv", released_before = 2018-05-01},
        {source = "folder", path = "dcd", interval = 10}]
validation_data = {source = "mdcath", path = "mdcath", temperature = 320}
output = "run"
stride_range = [20, 200.0]
total_steps = 10
learning_rate = 1
patience = 3

[model]
preset = "paper"
context_frames = 8
network = {blocks = 2, torsions = "regression"}
process = {angle = [0.01, 0.1]}

[loss_weights]
fape = 0.5
"""


def test_a_toml_file_says_all_that_a_configuration_holds(tmp_path):
    (tmp_path / "config.toml").write_text(TOML)
    config = TrainingConfig.from_toml(tmp_path / "config.toml")
    atlas = ATLAS(Path("/data/atlas"), tmp_path / "atlas.csv", date(2018, 5, 1))
    assert config.data == (tmp_path / "md", atlas, Folder(tmp_path / "dcd", 10))
    assert config.validation_data == (MdCATH(tmp_path / "mdcath", 320),)
    assert (config.output, config.stride_range, config.patience) == (tmp_path / "run", (20, 200), 3)
    expected = paper()
    assert config.model.network == replace(expected.network, blocks=2, torsions="regression")
    assert config.model.process == replace(expected.process, angle=(0.01, 0.1))
    assert (config.model.context_frames, config.loss_weights.fape, config.loss_weights.angle) == (8, 0.5, 0.3)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("totalsteps = 3", "no setting totalsteps"),
        ('total_steps = "3"', "total_steps must be of type int, not '3'"),
        ("total_steps = 1.5", "total_steps must be of type int"),
        ("total_steps = true", "total_steps must be of type int"),
        ("total_steps = 0", "total_steps must be at least 1"),
        ("learning_rate = inf", "learning_rate must be finite, not inf"),
        ("hours = nan", "hours must be finite, not nan"),
        ("stride_range = [10, inf]", "least <= greatest < inf"),
        ("model = {network = {blokcs = 1}}", r"model\.network\.blokcs"),
        ("model = {network = {blocks = 0}}", "blocks must be"),
        ("model = {network = 1}", r"model\.network must be a table"),
        ('model = {preset = "large"}', "peptide, paper"),
        ("loss_weights = {rotations = 1}", r"loss_weights\.rotations"),
        ('data = [{source = "atlas"}]', "ATLAS needs path"),
        ("patience = 2", "validation_sequences"),
        ("total_steps =", "no TOML file"),
    ],
)
def test_what_a_toml_file_must_not_hold_is_named(tmp_path, line, words):
    lines = ['data = ["md"]', 'output = "run"']
    path = tmp_path / "config.toml"
    path.write_text("\n".join([entry for entry in lines if entry[:4] != line[:4]] + [line]))
    with pytest.raises(StarMDError, match=words) as error:
        TrainingConfig.from_toml(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("n_cap, c_cap", [(False, False), (True, True), (True, False), (False, True)])
def test_the_domain_knows_the_ends_of_its_data(folder, write_jittering, tmp_path, n_cap, c_cap):
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    write_jittering(data, "AGS", 5, n_cap, c_cap)
    model = ModelConfig(NETWORK)
    dataset = TrajectoryDataset(data, cache=tmp_path / "cache", n_frames=3)
    found = fitting.trained_model(Denoiser(NETWORK), config_of(data, tmp_path / "run"), model, dataset).domain
    assert (found.caps, found.half_capped) == (n_cap or c_cap, n_cap != c_cap)


@pytest.mark.parametrize("frames, context, sees", [(2, 3, 1), (4, 3, 3), (5, 1, 1)])
def test_a_model_sees_no_more_past_frames_than_its_windows_showed(folder, tmp_path, frames, context, sees):
    model = ModelConfig(NETWORK, context_frames=context)
    config = replace(config_of(folder, tmp_path / "run"), frames=frames)
    dataset = TrajectoryDataset(folder, cache=tmp_path / "cache", n_frames=frames)
    trained = fitting.trained_model(Denoiser(NETWORK), config, model, dataset)
    assert (trained.config.context_frames, trained.domain.max_context) == (sees, frames - 1)


def test_needed_settings_and_files_are_named(tmp_path):
    (tmp_path / "config.toml").write_text('data = ["md"]')
    with pytest.raises(StarMDError, match="output is missing"):
        TrainingConfig.from_toml(tmp_path / "config.toml")
    with pytest.raises(StarMDError, match="nowhere"):
        TrainingConfig.from_toml(tmp_path / "nowhere.toml")


@pytest.mark.slow
def test_a_model_is_fine_tuned_from_its_own_weights(folder, tmp_path):
    train(config_of(folder, tmp_path / "base"))
    base = load_model(tmp_path / "base" / "model.safetensors", "cpu")
    base.denoiser.step_scales.mul_(2)  # so that they are not those of the data
    base.save(tmp_path / "base" / "model.safetensors")
    toml = (
        f'data = "{folder}"\noutput = "tuned"\nstart_from = "base/model.safetensors"\ntotal_steps = 1\nbatch_size = 2\n'
    )
    (tmp_path / "config.toml").write_text(toml + "frames = 2\nlearning_rate = 1e-12\nweight_decay = 0\n")
    config = TrainingConfig.from_toml(tmp_path / "config.toml")
    tuned = train(replace(config, accelerator="cpu"))
    found = load_model(tmp_path / "tuned" / "model.safetensors", "cpu")
    assert found.config == replace(base.config, context_frames=1)  # windows of two frames show one past frame
    for name, value in base.denoiser.state_dict().items():
        torch.testing.assert_close(tuned.state_dict()[name], value, atol=1e-9, rtol=0)
    assert "base/model.safetensors" in found.card
    assert found.domain.residue_types == base.domain.residue_types
    moved = train(replace(config, accelerator="cpu", output=tmp_path / "moved", learning_rate=1e-2))
    assert torch.equal(moved.step_scales, base.denoiser.step_scales)
    assert any(not torch.equal(a, b) for a, b in zip(moved.parameters(), base.denoiser.parameters(), strict=True))


def test_the_pull_to_the_reference_structure_is_written_stronger_than_learned(folder, tmp_path):
    network = replace(NETWORK, reference_structure=True, reversion=True)
    settings = {"model": ModelConfig(network), "total_steps": 2}
    learned = train(config_of(folder, tmp_path / "run", reversion_gain=2.0, **settings))
    written = load_model(tmp_path / "run" / "model.safetensors", "cpu").denoiser.state_dict()
    for name, value in learned.state_dict().items():
        torch.testing.assert_close(written[name], value * (2 if name.startswith("reversion.") else 1), atol=0, rtol=0)
    assert learned.reversion.weight.any()
    assert "| reversion gain | 2 |" in (tmp_path / "run" / "model.md").read_text()
    with pytest.raises(ValueError, match="reversion_gain needs a network with reversion"):
        train(config_of(folder, tmp_path / "other", reversion_gain=2.0))


@pytest.mark.slow
def test_a_distilled_model_samples_in_the_calls_it_was_made_for(folder, tmp_path):
    """It is a model like any other: it loads, knows its sampler, and can be distilled or fine-tuned on."""
    train(config_of(folder, tmp_path / "base"))
    base = load_model(tmp_path / "base" / "model.safetensors", "cpu")
    settings = {"model": ModelConfig(), "start_from": tmp_path / "base" / "model.safetensors", "distilled_steps": 2}
    exported = []
    trained = train(config_of(folder, tmp_path / "run", **settings), lambda denoiser, step: exported.append(denoiser))
    model = load_model(tmp_path / "run" / "model.safetensors", "cpu")
    assert model.config == replace(base.config, sampler="ancestral", denoising_steps=2)
    assert "| distilled | to 2 calls a jump |" in model.card
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), model.denoiser.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), exported[-1].parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(trained.parameters(), base.denoiser.parameters(), strict=True))
    topology, positions = build_peptide("AKF", seed=0)
    tokens = ResidueTokens.from_topology(topology)
    positions = torch.from_numpy(np.array(positions.value_in_unit(unit.nanometer)))
    propagator, generator = Propagator(model, tokens, 10.0, 300.0), torch.Generator().manual_seed(0)
    assert (
        propagator.step(propagator.start(from_positions(positions[None], tokens)), generator).torsions.isfinite().all()
    )


@pytest.mark.parametrize(
    "settings", [{"distilled_steps": 1}, {"distilled_steps": 4}, {"hidden_types": 0.1}, {"noise_draws": 2}]
)
def test_what_distillation_needs_is_named(tmp_path, settings):
    defaults = {"start_from": "starmd-peptide", "distilled_steps": 4}
    TrainingConfig("md", tmp_path, **defaults)
    if settings == {"distilled_steps": 4}:
        del defaults["start_from"]
    with pytest.raises(ValueError, match="distilled_steps"):
        TrainingConfig("md", tmp_path, **defaults | settings)


def test_regressed_torsions_are_not_distilled(folder, tmp_path):
    model = StarMDModel.create(ModelConfig(replace(NETWORK, torsions="regression")))
    model.save(tmp_path / "base.safetensors")
    settings = {"model": ModelConfig(), "start_from": tmp_path / "base.safetensors", "distilled_steps": 2}
    with pytest.raises(StarMDError, match="needs a model that diffuses torsions"):
        train(config_of(folder, tmp_path / "run", **settings))


def test_an_embedded_model_is_known_by_name(tmp_path):
    (tmp_path / "config.toml").write_text('data = "md"\noutput = "run"\nstart_from = "starmd-peptide"\n')
    assert TrainingConfig.from_toml(tmp_path / "config.toml").start_from == "starmd-peptide"
    with pytest.raises(ValueError, match="start_from brings its own model"):
        TrainingConfig("md", tmp_path, start_from="starmd-peptide", distilled_steps=4, model=ModelConfig(NETWORK))


def test_validation_data_are_not_trained_on(folder, tmp_path):
    held_out = tmp_path / "held_out"
    held_out.mkdir()
    for suffix in ("pdb", "xtc"):
        (held_out / f"other.{suffix}").symlink_to(folder / f"SVE.{suffix}")
    train(config_of(folder, tmp_path / "run", validation_data=held_out, validation_steps=2))
    card = (tmp_path / "run" / "model.md").read_text()
    assert "| systems | 2 sequences in 2 trajectories |" in card
    assert "| validated on | 1 sequences in 1 trajectories |" in card
    assert [row["step"] for row in read_log(tmp_path / "run" / "validation.csv")] == ["1", "3"]


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"hidden_types": 0.9}, {"noise_draws": 3}])
def test_types_are_hidden_and_frames_noised_again_in_training_and_never_in_validation(folder, tmp_path, change):
    logs = []
    for given in ({}, change):
        output = tmp_path / str(len(given))
        settings = {
            "model": ModelConfig(),
            "start_from": "starmd-peptide",
            "learning_rate": 1e-12,
            "weight_decay": 0.0,
            "validation_steps": 1,
        } | given
        train(config_of(folder, output, validation_sequences=("SVE",), **settings))
        logs.append([[row["loss"] for row in read_log(output / name)] for name in ("train.csv", "validation.csv")])
    (known, checked), (hidden, checked_too) = logs
    assert known != hidden
    assert [float(loss) for loss in checked] == pytest.approx([float(loss) for loss in checked_too], rel=1e-5)


def test_one_of_two_trajectories_of_a_molecule_is_held_out(folder, tmp_path):
    data = tmp_path / "md"
    data.mkdir()
    for number in ("", "_2"):
        (data / f"AKF{number}.pdb").write_bytes((folder / "AKF.pdb").read_bytes())
    (data / "AKF_2.xtc").write_bytes((folder / "AKF.xtc").read_bytes())
    config = config_of(data, tmp_path / "run", validation_data=Files(data / "AKF_2.xtc", data / "AKF_2.pdb"))
    with pytest.raises(StarMDError, match="No trajectory found .* of any sequence beside those held out"):
        train(config)
    (data / "AKF.xtc").write_bytes((folder / "AKF.xtc").read_bytes())
    train(config)
    card = (tmp_path / "run" / "model.md").read_text()
    assert "1 sequences in 1 trajectories |" in card and "| frames | 30 |" in card
    assert "| validated on | 1 sequences in 1 trajectories; other trajectories of 1 of them are trained on |" in card
    with pytest.raises(StarMDError, match="other than AKF beside those held out"):
        train(replace(config, output=tmp_path / "other", validation_sequences=("AKF",)))


def test_the_longest_stride_is_what_the_windows_of_each_length_show():
    """Not what the configuration asks for: 31 frames at 10 ps hold windows of 3 frames up to 150 ps apart."""

    def trajectories(*n_frames):
        return [SimpleNamespace(name="x", n_frames=n, interval=10.0) for n in n_frames]

    config = SimpleNamespace(frames=3, stride_range=(10.0, 1000.0))
    lengths = {4: trajectories(31), 6: trajectories(21, 101), 8: trajectories(9001), 9: trajectories(9001)}
    longest = fitting._longest_strides(SimpleNamespace(lengths=lengths), config)
    assert longest == {4: 150.0, 6: 500.0, 9: 1000.0}
    assert fitting._longest_strides(SimpleNamespace(lengths={4: trajectories(31)}), config) == 150.0


def test_the_card_tells_what_was_measured(folder, tmp_path):
    config = config_of(folder, tmp_path, validation_sequences=("SVE",), validation_steps=2)
    train(config)
    card = load_model(tmp_path / "model.safetensors", "cpu").card
    assert card == (tmp_path / "model.md").read_text()
    validation = read_log(tmp_path / "validation.csv")
    best = min(validation, key=lambda row: float(row["loss"]))
    losses = [float(row["loss"]) for row in read_log(tmp_path / "train.csv")]
    rows = dict(
        line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ") and " | " in line[2:-2]
    )
    assert rows["frames"] == "60"
    assert rows["simulated time"] == "0.6 ns"
    assert rows["residues"] == "3 to 4"
    assert rows["steps"] == "4 of 4"
    assert float(rows["validation loss, best"]) == pytest.approx(float(best["loss"]), abs=1e-4)
    assert int(rows["at step"]) == int(best["step"]) + 1
    assert float(rows["loss, mean of the last 100 steps"]) == pytest.approx(np.mean(losses), abs=1e-4)
    assert f"torch {torch.__version__}" in rows["versions"]
    assert rows["max stride"] == "140.0"  # 30 frames at 10 ps, windows of three
    assert rows["variants"] == "none"


def test_tensorboard_shows_the_losses_of_the_tables(folder, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(config_of(folder, tmp_path, validation_sequences=("SVE",), validation_steps=2))
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for table in ("train", "validation"):
        shown = [(event.step, event.value) for event in events.Scalars(f"{table}/loss")]
        written = [(int(row["step"]), float(row["loss"])) for row in read_log(tmp_path / f"{table}.csv")]
        assert [step for step, _ in shown] == [step for step, _ in written]
        assert [value for _, value in shown] == pytest.approx([value for _, value in written], rel=1e-5)


@pytest.mark.slow
def test_bf16_gives_nearly_the_loss_of_single_precision(folder, tmp_path):
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        train(config_of(folder, tmp_path / precision, precision=precision, validation_sequences=("SVE",)))
        losses.append([float(row["loss"]) for row in read_log(tmp_path / precision / "train.csv")])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


SCRIPT = """
    import json, sys
    from openmm_starmd.training.settings import TrainingConfig
    from openmm_starmd.training import train
    train(TrainingConfig.from_toml(sys.argv[1]))
"""


def started_by_torchrun(command: list, environment: dict):
    """Two processes on one machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [subprocess.Popen([*launcher, *command], env=environment)]


def started_by_slurm(command: list, environment: dict):
    """One process on each of two nodes, as srun would; both are this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = environment | {"SLURM_NTASKS": "2", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "1"}
    environment |= {"SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "1", "SLURM_LOCALID": "0"}
    environment |= {"SLURM_NODELIST": "127.0.0.1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [environment | {"SLURM_PROCID": str(k), "SLURM_NODEID": str(k)} for k in range(2)]
    return [subprocess.Popen([sys.executable, *command], env=rank) for rank in ranks]


@pytest.mark.parametrize(
    ("started", "distilled_steps"), [(started_by_torchrun, 0), (started_by_torchrun, 3), (started_by_slurm, 0)]
)
@pytest.mark.slow
def test_two_processes_give_the_loss_and_weights_of_one(folder, tmp_path, started, distilled_steps):
    """Each computes half of every batch."""
    settings = {"batch_size": 4, "frames": 3, "total_steps": 4, "warmup_steps": 1, "validation_sequences": ["SVE"]}
    settings |= {"validation_steps": 2, "validation_batches": 2, "accelerator": "cpu", "data": str(folder)}
    network = (
        "[model]\nnetwork = {blocks = 2, width = 32, pair_width = 8, heads = 2, query_points = 1, value_points = 1}"
    )
    if distilled_steps:
        train(config_of(folder, tmp_path / "base", learning_rate=0.01))
        settings |= {"start_from": "base/model.safetensors", "distilled_steps": distilled_steps}
        network = ""
    for name in ("one", "two"):
        nodes = 2 if name == "two" and started is started_by_slurm else 1
        own = settings | {"output": name, "num_nodes": nodes}
        lines = [f"{key} = {json.dumps(value)}" for key, value in own.items()]
        (tmp_path / f"{name}.toml").write_text("\n".join([*lines, network]))
    train(TrainingConfig.from_toml(tmp_path / "one.toml"))
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    processes = started([str(tmp_path / "script.py"), str(tmp_path / "two.toml")], environment)
    try:
        assert [process.wait(300) for process in processes] == [0] * len(processes)
    finally:
        for process in processes:
            process.kill()
    for table in ("train", "validation"):
        one, two = (read_log(tmp_path / name / f"{table}.csv") for name in ("one", "two"))
        assert len(one) == len(two) > 0
        for a, b in zip(one, two, strict=True):
            for column in a.keys() - {"seconds"}:
                assert float(a[column]) == pytest.approx(float(b[column]), rel=1e-5, abs=1e-6), column
    one, two = (load_model(tmp_path / name / "model.safetensors", "cpu").denoiser for name in ("one", "two"))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
    assert "| processes | 2 |" in (tmp_path / "two" / "model.md").read_text()


KILL = """
    import os, signal, sys
    from openmm_starmd import cli
    from openmm_starmd.training import fitting
    loss, calls = fitting.denoising_loss, []

    def deadly(*arguments, **more):
        calls.append(1)
        if len(calls) == 6:  # the fifth step; the second was followed by one batch of validation
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(*arguments, **more)

    fitting.denoising_loss = deadly
    sys.exit(cli.main(["train", sys.argv[1]]))
"""


@pytest.mark.slow
def test_a_killed_training_repeats_batches_and_losses(folder, tmp_path):
    pytest.importorskip("typer")
    settings = {"data": str(folder), "batch_size": 2, "frames": 3, "total_steps": 6, "warmup_steps": 1}
    settings |= {"validation_sequences": ["SVE"], "validation_steps": 3, "validation_batches": 1}
    settings |= {"checkpoint_seconds": 0, "accelerator": "cpu"}
    network = "blocks = 1, width = 32, pair_width = 8, heads = 2, query_points = 1, value_points = 1"
    for name in ("whole", "killed"):
        lines = [f"{key} = {json.dumps(value)}" for key, value in (settings | {"output": name}).items()]
        (tmp_path / f"{name}.toml").write_text("\n".join([*lines, "[model]", f"network = {{{network}}}"]))
    train(TrainingConfig.from_toml(tmp_path / "whole.toml"))
    command = [sys.executable, "-c", textwrap.dedent(KILL), tmp_path / "killed.toml"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    assert subprocess.run(command, timeout=300, env=environment).returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    assert 0 < len(read_log(tmp_path / "killed" / "train.csv")) < 6
    train(TrainingConfig.from_toml(tmp_path / "killed.toml"))
    for table in ("train", "validation"):
        whole, killed = (read_log(tmp_path / name / f"{table}.csv") for name in ("whole", "killed"))
        assert [row["step"] for row in whole] == [row["step"] for row in killed]
        for column in whole[0].keys() - {"seconds"}:
            expected = [float(row[column]) for row in whole]
            assert [float(row[column]) for row in killed] == pytest.approx(expected, rel=1e-6), column


@pytest.mark.slow
def test_a_trained_model_loads_where_its_data_are_not(folder, tmp_path):
    """In another process that has nothing but the file; it holds no path of the machine that trained it."""
    train(config_of(folder, tmp_path / "run"))
    (tmp_path / "elsewhere").mkdir()
    file = (tmp_path / "run" / "model.safetensors").rename(tmp_path / "elsewhere" / "m.safetensors")
    assert not any(str(path).encode() in file.read_bytes() for path in (folder, tmp_path, ROOT))
    script = """
        from openmm_starmd.model import load_model
        model = load_model("m.safetensors", device="cpu")
        print(model.name, model.domain.max_length, *(float(p.double().sum()) for p in model.denoiser.parameters()))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=True, capture_output=True, cwd=file.parent, env=environment, text=True)
    name, longest, *sums = done.stdout.split()
    assert (name, longest) == ("run", "4")
    here = load_model(file, "cpu").denoiser.parameters()
    assert [float(x) for x in sums] == pytest.approx([float(p.double().sum()) for p in here], abs=1e-9)


def test_a_batch_has_to_be_shared_evenly(folder, tmp_path):
    with pytest.raises(StarMDError, match="batch_size must be a multiple of the 3 processes"):
        train(config_of(folder, tmp_path, devices=3))
    with pytest.raises(StarMDError, match="rescan_steps"):
        train(config_of(folder, tmp_path, devices=2, rescan_steps=1))
