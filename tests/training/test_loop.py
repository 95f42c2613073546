import csv
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

pytest.importorskip("lightning_fabric")

from openmm_starmd.diffusion.loss import LossWeights  # noqa: E402
from openmm_starmd.errors import StarMDError  # noqa: E402
from openmm_starmd.model import load_model  # noqa: E402
from openmm_starmd.network.config import ModelConfig, NetworkConfig  # noqa: E402
from openmm_starmd.protein.displacement import per_replica  # noqa: E402
from openmm_starmd.training import fitting, graphed, logs, loop  # noqa: E402
from openmm_starmd.training.settings import TrainingConfig  # noqa: E402

TARGET = torch.tensor([[1.0, -2.0], [0.5, 3.0]])


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 2))
        self.register_buffer("calls", torch.zeros(()))


def toy_loss(module, batch, generator):
    """Noisy linear regression; batch and noise come from generators of their own, as in the real objective."""
    noise = 0.1 * per_replica(lambda rows, g: torch.randn(rows.shape, generator=g), batch, generator)
    if module.training:
        module.calls += 1
    error = (batch @ (module.weight - TARGET) + noise).square().mean()
    return error, {"error": error.detach()}


def draw(generator, share):
    return torch.randn(8, 2, generator=generator)[share]


def make_run(folder, loss_function=toy_loss, module=None, **settings):
    defaults = {"total_steps": 20, "warmup_steps": 3, "learning_rate": 0.05, "validation_steps": 5}
    defaults |= {"batch_size": 8, "validation_batches": 3, "checkpoint_seconds": 0, "accelerator": "cpu"}
    config = TrainingConfig(data="unused", output=folder, **(defaults | settings))
    return loop.Run(config, module or Toy(), loss_function, draw, draw)


def read_log(path):
    with open(path, newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def assert_same_runs(first, second, run, other):
    for name in ("train.csv", "validation.csv"):
        assert read_log(first / name) == read_log(second / name)
    for a, b in ((run.module, other.module), (run.average, other.average)):
        for name, value in a.state_dict().items():
            assert torch.equal(value, b.state_dict()[name]), name


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    whole = make_run(tmp_path / "whole")
    whole.finish()
    script = """
        import os, signal, sys
        sys.path[:0] = sys.argv[2:]
        import test_loop

        def deadly(module, batch, generator):
            if module.training and module.calls == 12:
                os.kill(os.getpid(), signal.SIGKILL)
            return test_loop.toy_loss(module, batch, generator)

        test_loop.make_run(sys.argv[1], deadly).finish()
    """
    folders = [os.path.dirname(__file__), os.path.dirname(os.path.dirname(os.path.dirname(loop.__file__)))]
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "killed"), *folders]
    assert subprocess.run(command, timeout=120).returncode == -signal.SIGKILL
    resumed = make_run(tmp_path / "killed")
    assert resumed.load()
    assert resumed.step == 12
    resumed.finish()
    assert_same_runs(tmp_path / "whole", tmp_path / "killed", whole, resumed)
    assert [int(row["step"]) for row in read_log(tmp_path / "killed" / "train.csv")] == list(range(20))


def test_steps_after_the_last_checkpoint_are_repeated_exactly(tmp_path, monkeypatch):
    """The clock ticks once a look, so that a checkpoint falls on every third step or so."""
    whole = make_run(tmp_path / "whole")
    whole.finish()
    ticks = iter(range(10_000))
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(ticks))

    def interrupted(module, batch, generator):
        if module.training and module.calls == 14:
            raise KeyboardInterrupt
        return toy_loss(module, batch, generator)

    with pytest.raises(KeyboardInterrupt):
        make_run(tmp_path / "cut", interrupted, checkpoint_seconds=5).finish()
    resumed = make_run(tmp_path / "cut", checkpoint_seconds=5)
    resumed.load()
    assert 0 < resumed.step < 14
    resumed.finish()
    assert_same_runs(tmp_path / "whole", tmp_path / "cut", whole, resumed)


def test_log_lines_beyond_the_checkpoint_or_torn_are_dropped(tmp_path):
    log = logs.Log(tmp_path / "log.csv", 0)
    for step in range(5):
        log.append(step=step, loss=step / 3)
    log.flush()
    with open(tmp_path / "log.csv", "a") as file:
        file.write("1")
    log = logs.Log(tmp_path / "log.csv", 3)
    log.append(step=3, loss=7.0)
    log.flush()
    assert [row["step"] for row in read_log(tmp_path / "log.csv")] == ["0", "1", "2", "3"]
    assert read_log(tmp_path / "log.csv")[3]["loss"] == "7.0"


def test_a_kill_while_writing_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    run = make_run(tmp_path, total_steps=4)
    run.finish()
    original = torch.save

    def torn(state, path):
        original(state, path)
        os.truncate(path, 100)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", torn)
    run.advance()
    with pytest.raises(KeyboardInterrupt):
        run.save()
    again = make_run(tmp_path, total_steps=4)
    assert again.load()
    assert again.step == 4


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("damage", ["truncated", "other model", "code"])
def test_unfit_checkpoints_get_a_clear_error(tmp_path, damage):
    make_run(tmp_path, total_steps=2).finish()
    path = tmp_path / "checkpoint.pt"
    if damage == "truncated":
        os.truncate(path, 500)
    elif damage == "code":
        torch.save({"step": 2, "module": Code(tmp_path / "ran")}, path)
    module = nn.Linear(2, 2) if damage == "other model" else None
    with pytest.raises(StarMDError, match="checkpoint.pt"):
        make_run(tmp_path, module=module).load()
    assert not (tmp_path / "ran").exists()


def test_without_a_checkpoint_there_is_nothing_to_load(tmp_path):
    assert not make_run(tmp_path).load()


def test_average_follows_its_definition(tmp_path):
    run = make_run(tmp_path, ema_decay=0.3)
    expected = run.module.weight.detach().clone()
    for step in range(8):
        run.advance()
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * run.module.weight.detach()
        torch.testing.assert_close(run.average.weight, expected)
    assert run.average.calls == run.module.calls == 8


def test_gradients_are_clipped_to_the_norm(tmp_path):
    run = make_run(tmp_path, lambda *arguments: (1000 * toy_loss(*arguments)[0], {}), gradient_clip=0.5)
    row = run.advance()
    assert row["gradient_norm"] > 100
    assert run.module.weight.grad.norm().item() == pytest.approx(0.5, rel=1e-4)


def test_small_gradients_are_left_alone(tmp_path):
    run = make_run(tmp_path, lambda *arguments: (1e-3 * toy_loss(*arguments)[0], {}), gradient_clip=0.5)
    row = run.advance()
    assert run.module.weight.grad.norm().item() == pytest.approx(row["gradient_norm"], rel=1e-6)


def test_steps_without_a_finite_gradient_are_passed_over(tmp_path):
    def sometimes(module, batch, generator):
        loss, parts = toy_loss(module, batch, generator)
        return (loss * math.nan if module.calls == 2 else loss), parts

    run = make_run(tmp_path, sometimes)
    run.advance()
    before = run.module.weight.detach().clone()
    assert math.isnan(run.advance()["gradient_norm"])
    assert torch.equal(run.module.weight, before)
    run.advance()
    assert not torch.equal(run.module.weight, before)


def test_training_that_has_broken_down_stops(tmp_path):
    run = make_run(tmp_path, lambda *arguments: (toy_loss(*arguments)[0] * math.nan, {}), total_steps=100)
    with pytest.raises(StarMDError, match="not finite"):
        run.finish()


def test_validation_repeats_and_uses_the_averaged_weights(tmp_path):
    run = make_run(tmp_path)
    first = run.validate()
    for _ in range(3):
        run.step += 1
        with torch.no_grad():
            run.module.weight += 1.0
        assert run.validate() == first
    with torch.no_grad():
        run.average.weight += 1.0
    assert run.validate() != first
    assert run.average.weight.grad is None


def test_training_learns_and_validation_falls(tmp_path):
    run = make_run(tmp_path, total_steps=300, learning_rate=0.1, ema_decay=0.9, checkpoint_seconds=1000)
    run.finish()
    rows = read_log(tmp_path / "validation.csv")
    assert [int(row["step"]) for row in rows] == list(range(4, 300, 5))
    assert float(rows[-1]["loss"]) < 0.02 < 1 < float(rows[0]["loss"])


def stubborn_run(folder, **settings):
    """Learns nothing after step 7 and validates every second step, best at step 5 or so."""

    def loss(module, batch, generator):
        value, parts = toy_loss(module, batch, generator)
        return (-value if module.training and module.calls > 6 else value), parts

    defaults = {"total_steps": 100, "validation_steps": 2, "patience": 3, "validation_sequences": ("X",)}
    return make_run(folder, loss, **(defaults | {"ema_decay": 0.0} | settings))


def test_without_improvement_it_stops_and_keeps_the_best_weights(tmp_path):
    run = stubborn_run(tmp_path)
    run.finish()
    rows = [(int(row["step"]), float(row["loss"])) for row in read_log(tmp_path / "validation.csv")]
    best = min(rows, key=lambda row: row[1])
    assert run.stopped and run.step < 100
    assert best == (run.best["step"], pytest.approx(run.best["loss"]))
    assert rows[-1][0] == best[0] + 3 * 2
    assert not torch.equal(run.result().weight, run.average.weight)
    run.average = run.result()
    assert run.validate()["loss"] == pytest.approx(best[1])
    patient = stubborn_run(tmp_path / "patient", patience=0, total_steps=30)
    patient.finish()
    assert patient.step == 30
    assert torch.equal(patient.result().weight, patient.average.weight)


def test_a_run_that_has_stopped_does_not_go_on_and_a_killed_one_stops_where_it_would(tmp_path):
    whole = stubborn_run(tmp_path / "whole")
    whole.finish()
    again = stubborn_run(tmp_path / "whole")
    again.load()
    again.finish()
    assert again.step == whole.step
    assert torch.equal(again.result().weight, whole.result().weight)
    cut = stubborn_run(tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        cut.finish(lambda _, step: (_ for _ in ()).throw(KeyboardInterrupt) if step == 9 else None)
    resumed = stubborn_run(tmp_path / "cut")
    assert resumed.load() and resumed.step == 9
    resumed.finish()
    assert_same_runs(tmp_path / "whole", tmp_path / "cut", whole, resumed)
    assert torch.equal(resumed.result().weight, whole.result().weight)


def test_a_terminal_gets_a_progress_bar_and_a_file_none(tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "quiet", total_steps=3).finish()
    assert capsys.readouterr().err == ""
    console = logs.Console
    monkeypatch.setattr(logs, "Console", lambda **settings: console(force_terminal=True, **settings))
    make_run(tmp_path / "shown", total_steps=3).finish()
    shown = capsys.readouterr().err
    assert "3/3" in shown and "training loss" in shown


def test_export_gets_the_averaged_weights_at_the_end(tmp_path):
    run = make_run(tmp_path, checkpoint_seconds=1000)
    exported = []
    run.finish(lambda average, step: exported.append((average, step)))
    assert exported == [(run.average, 20)]


def test_without_held_out_data_there_is_no_validation(tmp_path):
    run = make_run(tmp_path)
    run.draw_held_out = None
    run.finish()
    assert not (tmp_path / "validation.csv").exists()


def test_learning_rate_rises_linearly_and_falls_to_zero(tmp_path):
    config = TrainingConfig("data", tmp_path, total_steps=100, warmup_steps=10, learning_rate=2.0)
    rates = [config.rate(step) for step in range(101)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == pytest.approx(2.0)
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert rates[55] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.0)


def test_seeds_differ_in_every_part():
    numbers = {
        torch.rand(1, generator=loop.seeded(*parts)).item()
        for parts in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 2)]
    }
    assert len(numbers) == 5
    same = [torch.rand(3, generator=loop.seeded(4, 0, 9)) for _ in range(2)]
    assert torch.equal(*same)


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 0},
        {"frames": 1},
        {"total_steps": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"gradient_clip": -1.0},
        {"ema_decay": 1.0},
        {"hidden_types": 1.0},
        {"hidden_types": -0.1},
        {"noise_draws": 0},
        {"stride_range": (100.0, 10.0)},
        {"precision": "16-mixed"},
        {"data": ()},
        {"seed": -1},
        {"checkpoint_seconds": -1.0},
    ],
)
def test_bad_settings_are_refused_by_name(tmp_path, change):
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(TrainingConfig("data", tmp_path), **change)


@pytest.mark.slow
def test_a_real_denoiser_trains_and_resumes_exactly(folder, tmp_path):
    network = NetworkConfig(blocks=1, width=32, pair_width=8, heads=2, query_points=1, value_points=1)
    settings = {"model": ModelConfig(network), "batch_size": 2, "frames": 3, "total_steps": 6, "warmup_steps": 1}
    settings |= {"validation_sequences": ("SVE",), "validation_steps": 3, "validation_batches": 1}
    settings |= {"checkpoint_seconds": 0, "accelerator": "cpu"}

    def stop_at_three(denoiser, step):
        if step == 3:
            raise KeyboardInterrupt

    whole = fitting.train(TrainingConfig(folder, tmp_path / "whole", **settings))
    with pytest.raises(KeyboardInterrupt):
        fitting.train(TrainingConfig(folder, tmp_path / "cut", **settings), stop_at_three)
    resumed = fitting.train(TrainingConfig(folder, tmp_path / "cut", **settings))
    for name in ("train.csv", "validation.csv"):
        assert read_log(tmp_path / "whole" / name) == read_log(tmp_path / "cut" / name)
    assert [row["step"] for row in read_log(tmp_path / "cut" / "validation.csv")] == ["2", "5"]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert 0 < whole.step_scales[0, 0] < 0.02
    written = load_model(tmp_path / "whole" / "model.safetensors", device="cpu")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, written.denoiser.state_dict()[name])
    assert not written.domain.caps and written.domain.max_chains == 1
    untrained = fitting.train(TrainingConfig(folder, tmp_path / "one", **(settings | {"total_steps": 1})))
    assert any(not torch.equal(a, b) for a, b in zip(whole.parameters(), untrained.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["trained", pytest.param("distilled", marks=pytest.mark.slow)])
def test_a_step_never_waits_for_the_device(folder, tmp_path, monkeypatch, no_waiting, kind):
    """Nor would a recorded one, which may not; the first makes tables."""
    update, calls = loop.Run._update, []

    def watched(run, batch, generator):
        calls.append(batch)
        with no_waiting() if len(calls) > 1 else nullcontext():
            return update(run, batch, generator)

    monkeypatch.setattr(loop.Run, "_update", watched)
    told = {"reference_structure": True, "reversion": True, "fluctuations": True}
    network = NetworkConfig(blocks=1, width=32, pair_width=8, heads=2, query_points=1, value_points=1, **told)
    settings = {"batch_size": 2, "total_steps": 3, "accelerator": "cpu", "loss_weights": LossWeights(fape=1.0)}
    if kind == "trained":
        settings |= {"model": ModelConfig(network), "hidden_types": 0.5}
    else:
        settings |= {"start_from": "starmd-peptide", "distilled_steps": 2}
    fitting.train(TrainingConfig(folder, tmp_path, **settings))
    assert len(calls) == 3


def test_batches_made_ahead_are_those_that_are_asked_for():
    made, threads = [], set()

    def make(number):
        made.append(number)
        threads.add(threading.current_thread())
        return -number

    prefetch = graphed.Prefetcher(make, 30)
    assert [prefetch(number) for number in range(3, 30)] == [-number for number in range(3, 30)]
    prefetch.close()
    assert sorted(made) == list(range(3, 30))
    assert threading.main_thread() not in threads


def test_an_error_in_a_batch_made_ahead_reaches_the_run():
    prefetch = graphed.Prefetcher(lambda number: 1 // (5 - number), 10)
    with pytest.raises(ZeroDivisionError):
        [prefetch(number) for number in range(10)]
    prefetch.close()


def test_a_checkpoint_of_another_kind_of_optimiser_goes_on(tmp_path):
    """Settings of the optimiser are those of this run and device, not those that were saved."""
    whole = make_run(tmp_path / "whole")
    whole.finish()
    cut = make_run(tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        cut.finish(lambda _, step: (_ for _ in ()).throw(KeyboardInterrupt) if step == 9 else None)
    state = torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)
    for group in state["optimizer"]["param_groups"]:
        group.update(lr=0.05, fused=None, capturable=False, weight_decay=0.5)
    torch.save(state, tmp_path / "cut" / "checkpoint.pt")
    resumed = make_run(tmp_path / "cut")
    resumed.load()
    resumed.finish()
    assert_same_runs(tmp_path / "whole", tmp_path / "cut", whole, resumed)
