"""The training loop: resumable to the last bit, with averaged weights and a validation loss that repeats.

The random numbers of step n come from a generator seeded by (seed, n). So a run that was killed and goes on from its
last checkpoint draws the same batches and the same noise as one that was never interrupted, and nothing but weights,
optimiser and step number needs saving.
"""

from __future__ import annotations

import csv
import os
import pickle
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import Generator, nn

from openmm_starmd.diffusion.loss import denoising_loss
from openmm_starmd.diffusion.process import Process
from openmm_starmd.model import Domain, StarMDModel
from openmm_starmd.network.denoiser import Denoiser
from openmm_starmd.protein.bond_graph import CAPPED
from openmm_starmd.protein.errors import StarMDError
from openmm_starmd.protein.residues import RESIDUE_TYPES
from openmm_starmd.training.config import TrainingConfig
from openmm_starmd.training.dataset import Batch, TrajectoryDataset, step_scales

try:
    from lightning_fabric import Fabric
except ImportError as error:
    raise ImportError('Training needs lightning-fabric: pip install "openmm-starmd[train]"') from error

_TRAIN, _VALIDATE, _INITIALISE = range(3)
_MAX_SKIPPED = 20


def seeded(seed: int, purpose: int, number: int, device="cpu") -> Generator:
    """Generator whose numbers depend on all three integers and on nothing else."""
    state = np.random.SeedSequence((seed, purpose, number)).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0] >> np.uint64(1)))


def update_average(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Exponential moving average of the weights, in place; buffers are copied."""
    with torch.no_grad():
        for mean, value in zip(average.parameters(), module.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)
        for mean, value in zip(average.buffers(), module.buffers(), strict=True):
            mean.copy_(value)


class Log:
    """A CSV file that can be cut back to the step that a run goes on from."""

    def __init__(self, path: Path, step: int):
        self._path = path
        self._rows: list[dict] = []
        if path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if None not in row.values()]
            self._rows = [row for row in rows if int(row["step"]) < step]
            self._path = path.with_suffix(".tmp")
            self._path.unlink(missing_ok=True)
            self.flush()
            os.replace(self._path, path) if self._path.exists() else path.unlink()
            self._path = path

    def append(self, **row) -> None:
        """Add a row, kept in memory until `flush`."""
        self._rows.append(row)

    def flush(self) -> None:
        """Write the rows that have been added."""
        if not self._rows:
            return
        fresh = not self._path.exists()
        with open(self._path, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=self._rows[0].keys())
            if fresh:
                writer.writeheader()
            writer.writerows(self._rows)
        self._rows = []


class Run:
    """State of a training run: module, averaged module, optimiser, step number; and how to advance it.

    Parameters
    ----------
    config : TrainingConfig
    module : nn.Module
    loss_function : callable
        ``loss_function(module, batch, generator)`` -> (scalar loss, dict of its parts).
    draw : callable
        ``draw(generator)`` -> batch with a ``to(device)``.
    draw_held_out : callable, optional
        The same for validation.
    """

    def __init__(
        self,
        config: TrainingConfig,
        module: nn.Module,
        loss_function: Callable,
        draw: Callable,
        draw_held_out: Callable | None = None,
    ):
        self.config, self.loss_function, self.draw, self.draw_held_out = config, loss_function, draw, draw_held_out
        self.fabric = Fabric(accelerator=config.accelerator, devices=1, precision=config.precision)
        self.module = self.fabric.to_device(module)
        self.average = deepcopy(self.module).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(), config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay
        )
        self.step = 0
        self.skipped = 0
        self.output = Path(config.output)
        self.output.mkdir(parents=True, exist_ok=True)
        self.checkpoint = self.output / "checkpoint.pt"

    def load(self) -> bool:
        """Go on from the checkpoint, if there is one."""
        if not self.checkpoint.exists():
            return False
        try:
            state = torch.load(self.checkpoint, map_location=self.fabric.device, weights_only=True)
            self.module.load_state_dict(state["module"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]
        except (EOFError, KeyError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError) as error:
            raise StarMDError(
                f"{self.checkpoint} is damaged or not of this model ({error}); name another folder, or remove it."
            ) from error
        return True

    def save(self) -> None:
        """Write the checkpoint; a kill at any moment leaves either the old or the new one."""
        partial = self.checkpoint.with_suffix(".tmp")
        parts = {"module": self.module, "average": self.average, "optimizer": self.optimizer}
        torch.save({"step": self.step, **{name: part.state_dict() for name, part in parts.items()}}, partial)
        os.replace(partial, self.checkpoint)

    def _loss(self, module: nn.Module, draw: Callable, purpose: int, number: int):
        device = self.fabric.device
        batch = draw(seeded(self.config.seed, purpose, 2 * number)).to(device)
        with self.fabric.autocast():
            return self.loss_function(module, batch, seeded(self.config.seed, purpose, 2 * number + 1, device))

    def advance(self) -> dict[str, float]:
        """One optimiser step, passed over if the gradient is not finite; returns the row for the log."""
        rate = self.config.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.module.train()
        loss, parts = self._loss(self.module, self.draw, _TRAIN, self.step)
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.config.gradient_clip)
        if torch.isfinite(norm):
            self.optimizer.step()
            self.skipped = 0
            update_average(self.average, self.module, min(self.config.ema_decay, (1 + self.step) / (10 + self.step)))
        else:
            self.skipped += 1
            if self.skipped >= _MAX_SKIPPED:
                raise StarMDError(
                    f"The gradient was not finite for {_MAX_SKIPPED} steps on end, up to step {self.step}; "
                    "lower the learning rate or check the data."
                )
        row = {"step": self.step, "loss": loss.item(), "gradient_norm": norm.item(), "learning_rate": rate}
        self.step += 1
        return row | {name: float(part) for name, part in parts.items()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss of the averaged weights on the held-out batches, which are the same at every call."""
        rows = []
        for number in range(self.config.validation_batches):
            loss, parts = self._loss(self.average, self.draw_held_out, _VALIDATE, number)
            rows.append({"loss": float(loss)} | {name: float(part) for name, part in parts.items()})
        return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}

    def finish(self, export: Callable | None = None) -> None:
        """Advance to the last step, with checkpoints on the way; ``export(average, step)`` follows each of them."""
        last = self.config.total_steps
        start = saved = time.monotonic()
        logs = [Log(self.output / name, self.step) for name in ("train.csv", "validation.csv")]
        while self.step < last:
            row = self.advance()
            logs[0].append(**row, seconds=round(time.monotonic() - start, 1))
            if self.draw_held_out and (self.step % self.config.validation_steps == 0 or self.step == last):
                logs[1].append(step=row["step"], **self.validate())
            if self.step == last or time.monotonic() - saved >= self.config.checkpoint_seconds:
                for log in logs:
                    log.flush()
                self.save()
                if export:
                    export(self.average, self.step)
                saved = time.monotonic()


def train(config: TrainingConfig, export: Callable[[Denoiser, int], None] | None = None) -> Denoiser:
    """Train a denoiser, going on from the checkpoint in ``config.output`` where there is one.

    Parameters
    ----------
    config : TrainingConfig
    export : callable, optional
        ``export(denoiser, step)`` gets the averaged weights after every checkpoint and at the end. The finished model
        is written to ``config.output / "model.safetensors"`` in any case.

    Returns
    -------
    Denoiser
        With averaged weights.
    """
    options = {"cache": Path(config.output) / "encoded"}
    dataset = TrajectoryDataset(config.data, exclude=config.validation_sequences, **options)
    held_out = None
    if config.validation_sequences:
        held_out = TrajectoryDataset(config.data, only=config.validation_sequences, **options)

    def draw(source: TrajectoryDataset, generator: Generator):
        return source.window_batch(config.batch_size, config.frames, generator, config.stride_range)

    def draw_training(generator: Generator):
        if config.rescan_steps and run.step % config.rescan_steps == 0:
            dataset.refresh()
        return draw(dataset, generator)

    process = Process(config.model.process)

    def loss_function(module: Denoiser, batch: Batch, generator: Generator):
        window = batch.features, batch.conformations, batch.strides
        return denoising_loss(module, process, *window, generator, config.loss_weights)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeded(config.seed, _INITIALISE, 0).initial_seed())
        denoiser = Denoiser(config.model.network)
    run = Run(
        config,
        denoiser,
        loss_function,
        draw_training,
        held_out and (lambda generator: draw(held_out, generator)),
    )
    if not run.load():
        for module in (run.module, run.average):
            module.step_scales.copy_(step_scales(dataset))
    run.finish(export)
    trained_model(run.average, config, dataset).save(Path(config.output) / "model.safetensors")
    return run.average


def trained_model(denoiser: Denoiser, config: TrainingConfig, dataset: TrajectoryDataset) -> StarMDModel:
    """The model with the domain that its data span; temperature and force field are the user's to state."""
    features = [t.features for t in dataset.trajectories]
    lengths = dataset.lengths
    domain = Domain(
        min_length=min(lengths),
        max_length=max(lengths),
        min_stride=config.stride_range[0],
        max_stride=config.stride_range[1],
        max_chains=max(int(f.chain_index.max()) + 1 for f in features),
        caps=any(bool((end == CAPPED).any()) for f in features for end in (f.n_end, f.c_end)),
        residue_types=tuple(RESIDUE_TYPES[k] for k in torch.cat([f.residue_type for f in features]).unique().tolist()),
    )
    card = f"# {Path(config.output).name}\n\n{len(features)} trajectories, {config.total_steps} steps.\n"
    return StarMDModel(deepcopy(denoiser), config.model, domain, card, Path(config.output).name)
