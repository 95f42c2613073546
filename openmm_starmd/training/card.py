"""The model card that a training run writes: only what was measured."""

from __future__ import annotations

import platform

import lightning_fabric
import openmm
import torch

from openmm_starmd.model import StarMDModel
from openmm_starmd.training.dataset import TrajectoryDataset
from openmm_starmd.training.logs import last_losses
from openmm_starmd.training.loop import Run


def model_card(
    model: StarMDModel, run: Run, dataset: TrajectoryDataset, held_out: TrajectoryDataset | None = None
) -> str:
    """Markdown: domain, data, training and its losses, machine and versions."""
    config = run.config
    domain = model.domain.to_dict() | {"residue_types": " ".join(model.domain.residue_types)}
    domain["variants"] = ", ".join(model.domain.variants) or "none"
    domain["force_field"] = domain["force_field"] or "not stated"
    training = {
        "started from": config.start_from or "random weights",
        **({"distilled": f"to {config.distilled_steps} calls a jump"} if config.distilled_steps else {}),
        "steps": f"{run.step:,} of {config.total_steps:,}" + (", stopped early" if run.stopped else ""),
        "batch": f"{config.batch_size} windows of {config.frames} frames",
        "loss, mean of the last 100 steps": _number(last_losses(run.output / "train.csv")),
        "validated on": _validation(dataset, held_out),
        "validation loss, best": _number(run.best["loss"]) if run.best["step"] >= 0 else "not measured",
        "at step": run.best["step"] + 1 if run.best["step"] >= 0 else "",
        "weights": "averaged, best validation" if config.patience and run.best["weights"] else "averaged, last step",
        **({"reversion gain": f"{config.reversion_gain:g}"} if config.reversion_gain != 1 else {}),
        "seed": config.seed,
    }
    machine = {
        "time": f"{run.seconds / 3600:.2f} h",
        "processes": run.fabric.world_size,
        "device": _device(run.fabric.device),
        "precision": config.precision,
        "versions": f"torch {torch.__version__}, lightning-fabric {lightning_fabric.__version__}, "
        f"OpenMM {openmm.__version__}, Python {platform.python_version()}",
    }
    sections = {"Domain": domain, "Data": _data(dataset), "Training": training, "Machine": machine}
    tables = (f"## {title}\n\n{_table(rows)}" for title, rows in sections.items())
    parameters = sum(p.numel() for p in model.denoiser.parameters())
    about = f"{parameters:,} parameters. What it samples has not been compared with MD by the training run."
    return "\n\n".join([f"# {model.name}", about, *tables]) + "\n"


def _data(dataset: TrajectoryDataset) -> dict[str, object]:
    trajectories = dataset.trajectories
    lengths = sorted(dataset.lengths)
    return {
        "systems": f"{len({t.sequence for t in trajectories})} sequences in {len(trajectories)} trajectories",
        "residues": lengths[0] if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}",
        "frames": f"{sum(t.n_frames for t in trajectories):,}",
        "simulated time": f"{sum(t.n_frames * t.interval for t in trajectories) / 1000:g} ns",
    }


def _validation(dataset: TrajectoryDataset, held_out: TrajectoryDataset | None) -> str:
    if held_out is None:
        return "nothing"
    sequences = {t.sequence for t in held_out.trajectories}
    trained = len(sequences & {t.sequence for t in dataset.trajectories})
    found = f"{len(sequences)} sequences in {len(held_out.trajectories)} trajectories"
    return found + (f"; other trajectories of {trained} of them are trained on" if trained else "")


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"


def _table(rows: dict[str, object]) -> str:
    lines = [f"| {name.replace('_', ' ')} | {value} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])
