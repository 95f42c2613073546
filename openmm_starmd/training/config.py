"""Frozen, self-validating settings of a training run."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field

from openmm_starmd.diffusion.loss import LossWeights
from openmm_starmd.network.config import ModelConfig

STRIDE_RANGE = (10.0, 1000.0)


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of one training run.

    Parameters
    ----------
    data : path or sequence of paths
        Folders of NAME.pdb + NAME.xtc.
    output : path
        Folder for ``checkpoint.pt``, ``train.csv``, ``validation.csv`` and encoded trajectories. A run whose folder
        holds a checkpoint goes on from there.
    model : ModelConfig
    loss_weights : LossWeights
    batch_size, frames : int
        Windows a step, and frames in each.
    stride_range : (float, float)
        ps.
    total_steps, warmup_steps : int
        The learning rate rises linearly during warm-up, then falls to zero by half a cosine.
    learning_rate, weight_decay, gradient_clip : float
        AdamW; gradients are clipped to that norm.
    ema_decay : float
        Weights are averaged with decay min(ema_decay, (1 + n) / (10 + n)) at step n.
    validation_sequences : sequence of str
        One-letter sequences held out of training; their loss is measured every ``validation_steps`` steps with the
        averaged weights on ``validation_batches`` batches that are always the same.
    checkpoint_seconds : float
    rescan_steps : int
        Look for newly finished trajectories every so many steps; 0 for never. A run whose data grow does not repeat
        exactly.
    seed : int
    accelerator, precision : str
        As lightning-fabric names them; precision "32-true" or "bf16-mixed".
    """

    data: str | os.PathLike | tuple[str | os.PathLike, ...]
    output: str | os.PathLike
    model: ModelConfig = field(default_factory=ModelConfig)
    loss_weights: LossWeights = field(default_factory=LossWeights)
    batch_size: int = 32
    frames: int = 4
    stride_range: tuple[float, float] = STRIDE_RANGE
    total_steps: int = 20_000
    warmup_steps: int = 200
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    validation_sequences: tuple[str, ...] = ()
    validation_steps: int = 500
    validation_batches: int = 16
    checkpoint_seconds: float = 180.0
    rescan_steps: int = 0
    seed: int = 0
    accelerator: str = "auto"
    precision: str = "32-true"

    def __post_init__(self):
        data = (self.data,) if isinstance(self.data, str | os.PathLike) else tuple(self.data)
        object.__setattr__(self, "data", data)
        for name in ("stride_range", "validation_sequences"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        least = {"batch_size": 1, "frames": 2, "total_steps": 1, "warmup_steps": 0, "weight_decay": 0}
        least |= {"validation_steps": 1, "validation_batches": 1, "checkpoint_seconds": 0, "rescan_steps": 0, "seed": 0}
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise ValueError(f"{name} must be at least {bound}, not {getattr(self, name)}.")
        for name in ("learning_rate", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}.")
        if not data:
            raise ValueError("data must name at least one folder.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), not {self.ema_decay}.")
        if not 0 < self.stride_range[0] <= self.stride_range[1]:
            raise ValueError(f"stride_range must satisfy 0 < least <= greatest, not {self.stride_range}.")
        if self.precision not in ("32-true", "bf16-mixed"):
            raise ValueError(f'precision must be "32-true" or "bf16-mixed", not {self.precision!r}.')

    def rate(self, step: int) -> float:
        """Learning rate of ``step``, which counts from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
