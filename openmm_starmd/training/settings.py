"""Frozen, self-validating settings of a training run."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

from openmm_starmd.diffusion.loss import LossWeights
from openmm_starmd.errors import StarMDError, require
from openmm_starmd.files import check_output_folder
from openmm_starmd.network import config as presets
from openmm_starmd.network.config import ModelConfig
from openmm_starmd.training import toml
from openmm_starmd.trajectories.sources import Source, source_from_table

STRIDE_RANGE = (10.0, 1000.0)
PRECISIONS = "32-true", "bf16-mixed"
STRATEGIES = "auto", "ddp"


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of one training run.

    Parameters
    ----------
    data : source or sequence of sources
        As for `TrajectoryDataset`: paths of folders, or `Folder`, `Files`, `ATLAS`, `MdCATH`.
    output : path
        Folder for ``checkpoint.pt``, ``train.csv``, ``validation.csv``, ``tensorboard/``, encoded trajectories and, in
        the end, ``model.safetensors`` and its card ``model.md``. A run whose folder holds a checkpoint goes on from
        there.
    model : ModelConfig
    start_from : str or path, optional
        An embedded model's name or a model file, to be fine-tuned: weights, step scales and configuration are its own.
        Where ``model`` is given, too, a network of that configuration starts from the weights whose shapes agree.
    distilled_steps : int
        Distil ``start_from`` into a model that samples in so many calls, at least 2, by ancestral sampling; 0 for
        training.
    temperature : float, optional
        K: chooses among trajectories of known temperatures, and is that of those that do not tell.
    loss_weights : LossWeights
    batch_size, frames : int
        Windows a step, and frames in each.
    batch_residues : int
        Residues of all windows of a step, which fill a batch of proteins of similar lengths up to ``batch_size``
        windows; 0 for batches of one length and ``batch_size`` windows.
    stride_range : (float, float)
        ps.
    total_steps, warmup_steps : int
        The learning rate rises linearly during warm-up, then falls to zero by half a cosine.
    hours : float
        Time that training may take, validation included, all sittings together; the learning rate falls by the share
        of steps or of the time, whichever is greater, and is zero at the end in any case. A run that time ends does
        not repeat exactly. 0 for no limit.
    learning_rate, weight_decay, gradient_clip : float
        AdamW; gradients are clipped to that norm.
    ema_decay : float
        Weights are averaged with decay min(ema_decay, (1 + n) / (10 + n)) at step n.
    validation_sequences : sequence of str
        One-letter sequences held out of training; their loss is measured every ``validation_steps`` steps with the
        averaged weights on ``validation_batches`` batches that are always the same.
    validation_data : source or sequence of sources
        Data for that in the place of held-out sequences of ``data``. A trajectory that is in both is not trained on;
        others of the same molecule are, unless ``validation_sequences`` names it.
    validation_names : sequence of str, or path
        The same by patterns of trajectory names, such as ``"villin_*"``: families that are held out. A path names a
        TOML file whose ``validation`` lists them.
    patience : int
        Stop when validation has not improved for so many times on end, and keep the averaged weights that validated
        best; 0 for never.
    checkpoint_seconds : float
    rescan_steps : int
        Look for newly finished trajectories every so many steps; 0 for never. A run whose data grow does not repeat
        exactly.
    seed : int
    accelerator, precision : str
        As lightning-fabric names them; precision "32-true" or "bf16-mixed".
    devices, num_nodes : int
        Processes on each machine, and machines; they share every batch. torchrun's stand above them.
    strategy : {"auto", "ddp"}
        How they work together.
    hidden_types : float
        Share of residues whose type the network does not get to know, drawn anew for every window that it trains on:
        against learning few molecules by heart. 0.15 helped with a hundred peptides.
    hidden_references : float
        Share of windows whose reference structure the network does not get to know, for those that are told.
    reversion_gain : float
        Factor on the learned pull to the reference structure in the written model, for networks with ``reversion``;
        what is learned is too weak (`benchmarks/EXPERIMENTS.md`). A model that starts from such a file starts with the
        stronger pull.
    noise_draws : int
        Noisy copies of each frame, each at a noise level of its own, behind one pass of its context.
    gradient_checkpointing : bool
        Compute the blocks of the network twice instead of keeping what is between them: less memory, more time.
    """

    data: Source | str | os.PathLike | tuple[Source | str | os.PathLike, ...]
    output: str | os.PathLike
    model: ModelConfig = field(default_factory=ModelConfig)
    start_from: str | os.PathLike | None = None
    distilled_steps: int = 0
    temperature: float | None = None
    loss_weights: LossWeights = field(default_factory=LossWeights)
    batch_size: int = 32
    batch_residues: int = 0
    frames: int = 4
    stride_range: tuple[float, float] = STRIDE_RANGE
    total_steps: int = 20_000
    warmup_steps: int = 200
    hours: float = 0.0
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    validation_sequences: tuple[str, ...] = ()
    validation_data: Source | str | os.PathLike | tuple[Source | str | os.PathLike, ...] = ()
    validation_names: tuple[str, ...] = ()
    validation_steps: int = 500
    validation_batches: int = 16
    patience: int = 0
    checkpoint_seconds: float = 180.0
    rescan_steps: int = 0
    seed: int = 0
    accelerator: str = "auto"
    precision: str = "32-true"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    hidden_types: float = 0.0
    hidden_references: float = 0.0
    reversion_gain: float = 1.0
    noise_draws: int = 1
    gradient_checkpointing: bool = False

    def __post_init__(self):
        for name in ("data", "validation_data"):
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, list | tuple) else (value,))
        if isinstance(self.validation_names, str | os.PathLike):
            object.__setattr__(self, "validation_names", _held_out_names(Path(self.validation_names)))
        for name in ("stride_range", "validation_sequences", "validation_names"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_output_folder(self.output)
        for name, value in vars(self).items():
            require(not isinstance(value, float) or math.isfinite(value), f"{name} must be finite, not {value}.")
        least = {"batch_size": 1, "frames": 2, "total_steps": 1, "warmup_steps": 0, "weight_decay": 0}
        least |= {"validation_steps": 1, "validation_batches": 1, "checkpoint_seconds": 0, "rescan_steps": 0, "seed": 0}
        least |= {"patience": 0, "devices": 1, "num_nodes": 1, "hours": 0, "batch_residues": 0, "noise_draws": 1}
        for name, bound in least.items():
            require(getattr(self, name) >= bound, f"{name} must be at least {bound}, not {getattr(self, name)}.")
        for name in ("learning_rate", "gradient_clip", "reversion_gain"):
            require(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}.")
        require(bool(self.data), "data must name at least one folder.")
        for name in ("ema_decay", "hidden_types", "hidden_references"):
            require(0 <= getattr(self, name) < 1, f"{name} must lie in [0, 1), not {getattr(self, name)}.")
        low, high = self.stride_range
        ordered = 0 < low <= high < math.inf
        require(ordered, f"stride_range must satisfy 0 < least <= greatest < inf, not {self.stride_range}.")
        for name, known in {"precision": PRECISIONS, "strategy": STRATEGIES}.items():
            found = getattr(self, name)
            require(found in known, f"{name} must be one of {', '.join(known)}, not {found!r}.")
        validated = self.validation_sequences or self.validation_names or self.validation_data
        require(
            bool(validated or not self.patience),
            "patience needs validation_sequences, validation_names or validation_data.",
        )
        precomputed = self.model.network.single_features or self.model.network.pair_features
        require(
            not (self.batch_residues and precomputed),
            "batch_residues goes without precomputed features; leave one of the two out.",
        )
        if self.distilled_steps:
            require(
                self.start_from is not None and self.distilled_steps >= 2,
                "distilled_steps needs start_from, the model to distil, and must be 0 or at least 2, not "
                f"{self.distilled_steps}.",
            )
            require(not self.hidden_types, "distilled_steps goes without hidden_types; leave one of the two out.")
            require(self.noise_draws == 1, "distilled_steps goes without noise_draws; leave one of the two out.")
            own = self.model == ModelConfig()
            require(own, "distilled_steps: start_from brings its own model; leave one of the two out.")

    @classmethod
    def from_toml(cls, path: str | os.PathLike) -> TrainingConfig:
        """Settings from a TOML file; its paths are relative to its folder.

        Keys are the parameters. ``data`` and ``validation_data`` hold paths, or tables that `source_from_table` knows;
        ``model`` is a table with the keys of `ModelConfig` and ``preset``, "peptide" or "paper", that they change.

        Raises
        ------
        StarMDError
            If the file cannot be read, a key is unknown or a value is not what was expected; it says which.
        """
        path = Path(path)
        table, base = toml.read(path), path.parent
        try:
            values = dict(toml.checked(cls, table))
            for name in ("data", "output"):
                if name not in values:
                    raise ValueError(f"{name} is missing.")
            for name in {"data", "validation_data"} & values.keys():
                sources = values[name] if isinstance(values[name], list) else [values[name]]
                values[name] = [source_from_table(s, base) if isinstance(s, dict) else base / s for s in sources]
            values["output"] = base / values["output"]
            if isinstance(values.get("validation_names"), str):
                values["validation_names"] = base / values["validation_names"]
            if (base / values.get("start_from", "")).is_file():
                values["start_from"] = base / values["start_from"]
            if "model" in values:
                values["model"] = _model(dict(values["model"]))
            if "loss_weights" in values:
                values["loss_weights"] = toml.changed(LossWeights(), values["loss_weights"], "loss_weights.")
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise StarMDError(f"{path}: {error}") from error

    def rate(self, step: int, spent: float = 0.0) -> float:
        """Learning rate of ``step``, which counts from 0, where a share ``spent`` of the time is."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(max(progress, spent), 1.0)))


def _held_out_names(path: Path) -> tuple[str, ...]:
    """Patterns of names that a file of families holds out."""
    names = toml.read(path).get("validation")
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise StarMDError(f'{path} must list patterns of names to hold out, such as validation = ["villin_*"].')
    return tuple(names)


def _model(table: dict) -> ModelConfig:
    known = {"peptide": presets.peptide, "paper": presets.paper}
    preset = table.pop("preset", "peptide")
    if preset not in known:
        raise ValueError(f"model.preset must be one of {', '.join(known)}, not {preset!r}.")
    return toml.changed(known[preset](), table, "model.")
