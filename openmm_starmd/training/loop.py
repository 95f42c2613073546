"""The training loop: resumable to the last bit, with averaged weights and a validation loss that repeats.

The random numbers of step n come from generators seeded by (seed, n). So a run that was killed and goes on from its
last checkpoint draws the same batches and the same noise as one that was never interrupted, and nothing but weights,
optimiser and step number needs saving. Processes that share a batch draw the noise of all of it, and compute what one
process would. What a step gives is read from the device a few steps later, so that the device need not wait.
"""

from __future__ import annotations

import math
import os
import pickle
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor, nn

from openmm_starmd.diffusion.replay import recording_wanted
from openmm_starmd.errors import StarMDError, extra
from openmm_starmd.files import replacing
from openmm_starmd.protein.displacement import Share
from openmm_starmd.training.graphed import GraphedStep, Prefetcher
from openmm_starmd.training.settings import TrainingConfig

with extra("train", "Training"):
    from lightning_fabric import Fabric

    from openmm_starmd.training.logs import Logs

_TRAIN, _VALIDATE, INITIALISE = range(3)
_MAX_SKIPPED = 20
_READ = 20  # steps whose results are read from the device at once


def _seed(seed: int, purpose: int, number: int) -> int:
    return int(np.random.SeedSequence((seed, purpose, number)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seeded(seed: int, purpose: int, number: int, device="cpu") -> Generator:
    """Generator whose numbers depend on all three integers and on nothing else."""
    return torch.Generator(device).manual_seed(_seed(seed, purpose, number))


@torch.no_grad()
def update_average(average: nn.Module, module: nn.Module, share: Tensor) -> None:
    """Exponential moving average of the weights, in place, of which ``share`` () is new; buffers are copied."""
    means, values = list(average.parameters()), list(module.parameters())
    way = torch._foreach_sub(values, means)
    torch._foreach_mul_(way, share)
    torch._foreach_add_(means, way)
    for mean, value in zip(average.buffers(), module.buffers(), strict=True):
        mean.copy_(value)


def launch(config: TrainingConfig) -> Fabric:
    """Devices, precision and processes of a run; torchrun's where it has started this process, else the config's.

    A StarMDError says that the processes cannot share a batch evenly, or the machine has not what is asked for.
    """
    devices, nodes = config.devices, config.num_nodes
    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    if config.batch_size % (devices * nodes):
        raise StarMDError(
            f"batch_size must be a multiple of the {devices * nodes} processes that share it, not {config.batch_size}."
        )
    if devices * nodes > 1 and (config.batch_residues or config.hours):
        raise StarMDError(
            "batch_residues and hours need a single process: batches are of any size, and clocks differ; set them to 0."
        )
    if config.rescan_steps and devices * nodes > 1:
        raise StarMDError("rescan_steps needs a single process: others might see other files; set it to 0.")
    try:
        settings = {"accelerator": config.accelerator, "strategy": config.strategy, "precision": config.precision}
        fabric = Fabric(**settings, devices=devices, num_nodes=nodes)
        fabric.launch()
    except (RuntimeError, ValueError) as error:
        raise StarMDError(
            f"Training cannot start on accelerator={config.accelerator!r}, strategy={config.strategy!r}, {devices} "
            f"device(s) on {nodes} node(s): {error}"
        ) from error
    return fabric


class _Objective(nn.Module):
    """Work of the devices: work on the module, so that all of it runs under precision and gradient exchange."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, work: Callable):
        return work(self.module)


class Run:
    """State of a training run: module, averaged module, optimiser, step number; and how to advance it.

    ``loss_function(module, batch, generator)`` gives a scalar loss and a dict of its parts, means over the windows of
    the batch; the generator is one that `per_replica` takes. ``draw(generator, share)`` gives the windows in the slice
    ``share`` of a batch, with a ``to(device)``, and ``draw_held_out`` those for validation. The fabric is that of
    `launch`.

    ``best`` holds step and loss of the best validation, and the averaged weights there; ``seconds`` is the time spent
    in training, earlier sittings included.
    """

    def __init__(
        self,
        config: TrainingConfig,
        module: nn.Module,
        loss_function: Callable,
        draw: Callable,
        draw_held_out: Callable | None = None,
        fabric: Fabric | None = None,
    ):
        self.config, self.loss_function, self.draw, self.draw_held_out = config, loss_function, draw, draw_held_out
        self.fabric = fabric or launch(config)
        self.share = slice(self.fabric.global_rank, None, self.fabric.world_size)
        self.module = self.fabric.to_device(module)
        self.average = deepcopy(self.module).eval().requires_grad_(False)
        device = self.fabric.device
        self._rate, self._new = torch.zeros((), device=device), torch.zeros((), device=device)
        self._settings = {"weight_decay": config.weight_decay, "fused": True, "capturable": device.type == "cuda"}
        self.optimizer = torch.optim.AdamW(self.module.parameters(), 0.0, betas=(0.9, 0.98), **self._settings)
        self._objective = self.fabric.setup_module(_Objective(self.module))
        alone = device.type == "cuda" and self.fabric.world_size == 1
        self._graphed = GraphedStep(self._update, device) if alone and recording_wanted(device) else None
        self._names: tuple[str, ...] = ()
        self.step = self.skipped = 0
        self.seconds, self.best = 0.0, {"step": -1, "loss": float("inf"), "weights": {}}
        self._validated, self._start = -1, math.inf
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
            self.step, self.seconds = state["step"], state["seconds"]
            self.best, self._validated = state["best"], state["validated"]
        except (EOFError, KeyError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError) as error:
            raise StarMDError(
                f"{self.checkpoint} is damaged or not of this model ({error}); name another folder, or remove it."
            ) from error
        return True

    def save(self) -> None:
        """Write the checkpoint; a kill at any moment leaves either the old or the new one."""
        parts = {"module": self.module, "average": self.average, "optimizer": self.optimizer}
        state = {"step": self.step, "seconds": self.seconds, "best": self.best, "validated": self._validated}
        with replacing(self.checkpoint) as partial:
            torch.save(state | {name: part.state_dict() for name, part in parts.items()}, partial)

    def _batch(self, draw: Callable, purpose: int, number: int):
        """Draw the share of a batch that belongs to this process."""
        return draw(seeded(self.config.seed, purpose, 2 * number), self.share)

    def _noise(self, generator: Generator) -> Generator | Share:
        """The random numbers of this process's share of a batch."""
        return generator if self.fabric.world_size == 1 else Share(generator, self.config.batch_size, self.share)

    def _mean(self, loss: Tensor, parts: dict) -> Tensor:
        """Loss and its parts, averaged over the processes."""
        self._names = ("loss", *parts)
        values = torch.stack([loss.detach(), *(torch.as_tensor(p, device=loss.device) for p in parts.values())])
        return self.fabric.all_reduce(values.float(), reduce_op="mean")

    def _update(self, batch, generator: Generator) -> Tensor:
        """One optimiser step, passed over if the gradient is not finite; norm of the gradient, loss and its parts."""
        self.optimizer.zero_grad()
        noise = self._noise(generator)
        loss, parts = self._objective(lambda module: self.loss_function(module, batch, noise))
        self.fabric.backward(loss)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.config.gradient_clip)
        self.optimizer.found_inf = (~torch.isfinite(norm)).float()  # what a GradScaler tells it
        self.optimizer.step()
        update_average(self.average, self.module, self._new)
        return torch.cat([norm.detach().float()[None], self._mean(loss, parts)])

    def _launch(self, batch) -> tuple[dict, Tensor]:
        """Begin a step with a batch; what is known of it, and what the device will tell."""
        step, rate = self.step, self.config.rate(self.step, self.spent)
        self._new.fill_(1 - min(self.config.ema_decay, (1 + step) / (10 + step)))
        for group in self.optimizer.param_groups:
            group |= self._settings | {"lr": self._rate.fill_(rate)}  # a checkpoint may be of another device
        self.module.train()
        seed = _seed(self.config.seed, _TRAIN, 2 * step + 1)
        if self._graphed:
            values = self._graphed(batch, seed)
        else:
            device = self.fabric.device
            values = self._update(batch.to(device), torch.Generator(device).manual_seed(seed))
        self.step += 1
        return {"step": step, "learning_rate": rate}, values

    def _read(self, launched: list[tuple[dict, Tensor]]) -> list[dict[str, float]]:
        """Rows for the log of steps that have been launched."""
        rows = []
        for known, values in zip(launched, torch.stack([values for _, values in launched]).tolist(), strict=True):
            known, (norm, loss, *parts) = known[0], values
            row = {"step": known["step"], "loss": loss, "gradient_norm": norm, "learning_rate": known["learning_rate"]}
            rows.append(row | dict(zip(self._names[1:], parts, strict=True)))
            self.skipped = 0 if math.isfinite(norm) else self.skipped + 1
            if self.skipped >= _MAX_SKIPPED:
                raise StarMDError(
                    f"The gradient was not finite for {_MAX_SKIPPED} steps on end, up to step {known['step']}; "
                    "lower the learning rate or check the data."
                )
        return rows

    def advance(self) -> dict[str, float]:
        """One optimiser step, passed over if the gradient is not finite; returns the row for the log."""
        return self._read([self._launch(self._batch(self.draw, _TRAIN, self.step))])[0]

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss of the averaged weights on the held-out batches, which are the same at every call."""
        rows = []
        for number in range(self.config.validation_batches):
            batch = self._batch(self.draw_held_out, _VALIDATE, number).to(self.fabric.device)
            noise = self._noise(seeded(self.config.seed, _VALIDATE, 2 * number + 1, self.fabric.device))
            with self.fabric.autocast():
                rows.append(self._mean(*self.loss_function(self.average, batch, noise)))
        return dict(zip(self._names, torch.stack(rows).mean(0).tolist(), strict=True))

    @property
    def spent(self) -> float:
        """Share of the time that training may take which is gone, at most 1; 0 without a limit."""
        if not self.config.hours:
            return 0.0
        seconds = max(self.seconds, time.monotonic() - self._start)
        return min(seconds / (3600 * self.config.hours), 1.0)

    @property
    def stopped(self) -> bool:
        """True if validation has not improved for as many times as the config has patience."""
        patience = self.config.patience * self.config.validation_steps
        return 0 < patience <= self._validated - self.best["step"]

    def _note_validation(self, step: int, loss: float) -> None:
        self._validated = step
        if loss < self.best["loss"]:
            weights = {name: value.clone() for name, value in self.average.state_dict().items()}
            self.best = {"step": step, "loss": loss, "weights": weights}

    def result(self) -> nn.Module:
        """The averaged module: where it validated best if the config has patience, else as it is at the end."""
        module = deepcopy(self.average)
        if self.config.patience and self.best["weights"]:
            module.load_state_dict(self.best["weights"])
        return module

    def finish(self, export: Callable | None = None) -> None:
        """Advance to the last step, with checkpoints on the way; ``export(average, step)`` follows each of them."""
        last, self._start = self.config.total_steps, time.monotonic() - self.seconds
        saved, launched = time.monotonic(), []
        first = self.fabric.is_global_zero
        make = partial(self._batch, self.draw, _TRAIN)
        prefetch = Prefetcher(make, last) if self._graphed and not self.config.rescan_steps else None
        with Logs(self.output, self.step, last, silent=not first) as logs:
            ends = self.step >= last or self.spent == 1
            while not ends and not self.stopped:
                launched.append(self._launch((prefetch or make)(self.step)))
                ends = self.step == last or self.spent == 1
                validating = self.draw_held_out and (self.step % self.config.validation_steps == 0 or ends)
                due = time.monotonic() - saved >= self.config.checkpoint_seconds or ends
                if len(launched) < _READ and not (validating or due):
                    continue
                rows = self._read(launched)
                self.seconds, launched = time.monotonic() - self._start, []
                for row in rows:
                    logs.add("train", seconds=self.seconds, **row)
                if validating:
                    held_out = self.validate()
                    self._note_validation(self.step - 1, held_out["loss"])
                    logs.add("validation", self.step - 1, self.seconds, **held_out)
                if first and (due or self.stopped):
                    logs.flush()
                    self.save()
                    if export:
                        export(self.average, self.step)
                    saved = time.monotonic()
        if prefetch:
            prefetch.close()
        self.fabric.barrier()
