"""From a configuration to a trained model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Generator, nn

from openmm_starmd.diffusion.distillation import Distillation, distillation_loss
from openmm_starmd.diffusion.loss import denoising_loss
from openmm_starmd.diffusion.process import Process
from openmm_starmd.diffusion.sampler import Ancestral
from openmm_starmd.domain import Domain, half_capped
from openmm_starmd.errors import StarMDError, require
from openmm_starmd.model import StarMDModel, load_model
from openmm_starmd.network.config import ModelConfig
from openmm_starmd.network.denoiser import Denoiser
from openmm_starmd.protein.bond_graph import CAPPED
from openmm_starmd.protein.displacement import Share
from openmm_starmd.protein.residues import RESIDUE_TYPES, VARIANTS
from openmm_starmd.training.card import model_card
from openmm_starmd.training.dataset import TrajectoryDataset
from openmm_starmd.training.loop import INITIALISE, Run, launch, seeded
from openmm_starmd.training.settings import TrainingConfig
from openmm_starmd.training.step_sizes import burial_scales, elastic_scales, step_scales
from openmm_starmd.training.windows import Batch, steps_within

logger = logging.getLogger(__name__)


def train(config: TrainingConfig, export: Callable[[Denoiser, int], None] | None = None) -> Denoiser:
    """Train or distil a denoiser, going on from the checkpoint in ``config.output`` where there is one.

    Parameters
    ----------
    config : TrainingConfig
    export : callable, optional
        ``export(denoiser, step)`` gets the averaged weights after every checkpoint and at the end. The finished model
        is written to ``config.output / "model.safetensors"`` in any case, and its card to ``model.md``.

    Returns
    -------
    Denoiser
        With averaged weights: the last, or with ``config.patience`` those that validated best. The written model has
        ``config.reversion_gain`` beside them.

    Raises
    ------
    StarMDError
        If the data are unfit (a line for each fault), the checkpoint is damaged, or training breaks down.
    """
    fabric = launch(config)
    base = load_model(config.start_from, device="cpu") if config.start_from else None
    fine_tuned = base is not None and config.model == ModelConfig()
    model = base.config if fine_tuned else config.model
    require(
        config.reversion_gain == 1 or model.network.reversion,
        "reversion_gain needs a network with reversion; leave it out, or set model.network.reversion.",
    )
    if config.distilled_steps:
        model = _distilled(model, config)
    with fabric.rank_zero_first(local=True):
        dataset, held_out = _read_data(config, model)
    process = Process(model.process)

    def draw(source: TrajectoryDataset, generator: Generator, share: slice):
        options = config.stride_range, share, model.network.reversion
        return source.window_batch(config.batch_size, config.frames, generator, *options)

    def draw_training(generator: Generator, share: slice):
        if config.rescan_steps and run.step % config.rescan_steps == 0:
            dataset.refresh()
        return draw(dataset, generator, share)

    def loss_function(module: Denoiser, batch: Batch, generator: Generator | Share):
        window = batch.features, batch.conformations, batch.strides
        options = batch.precomputed | {"reference": batch.reference}
        if module.training:
            options |= {name: getattr(config, name) for name in ("hidden_types", "hidden_references", "noise_draws")}
        return denoising_loss(module, process, *window, generator, config.loss_weights, **options)

    def loss_beside_teacher(module: Distillation, batch: Batch, generator: Generator | Share):
        window = batch.features, batch.conformations, batch.strides
        options = generator, config.loss_weights
        return distillation_loss(module, teacher, sampler, *window, *options, **batch.precomputed)

    denoiser = _start(config, model, base)
    denoiser.checkpointing = config.gradient_checkpointing
    if config.distilled_steps:
        teacher, sampler = fabric.to_device(base.denoiser), Ancestral(process, model.denoising_steps)
        denoiser, loss_function = Distillation(denoiser), loss_beside_teacher
    draw_held_out = held_out and (lambda generator, share: draw(held_out, generator, share))
    run = Run(config, denoiser, loss_function, draw_training, draw_held_out, fabric)
    if not run.load() and not fine_tuned:
        for module in (run.module, run.average):
            module.step_scales.copy_(step_scales(dataset))
            if model.network.burial:
                module.burial_scales.copy_(burial_scales(dataset))
            if model.network.elastic_steps:
                module.elastic_scales.copy_(elastic_scales(dataset))
    run.finish(export and (lambda average, step: export(_trained(average), step)))
    trained = _trained(run.result())
    if fabric.is_global_zero:
        _write(trained_model(trained, config, model, dataset, base), run, dataset, held_out)
    return trained


def _distilled(model: ModelConfig, config: TrainingConfig) -> ModelConfig:
    """The configuration of what a model is distilled into."""
    if model.network.torsions == "regression":
        raise StarMDError(
            f"distilled_steps needs a model that diffuses torsions; those of {config.start_from} are regressed: "
            "leave distilled_steps out, or start from another."
        )
    return replace(model, sampler="ancestral", denoising_steps=config.distilled_steps)


def _trained(module: nn.Module) -> Denoiser:
    """Denoiser that training was for."""
    return module.student if isinstance(module, Distillation) else module


def _read_data(config: TrainingConfig, model: ModelConfig) -> tuple[TrajectoryDataset, TrajectoryDataset | None]:
    """Training data, and validation data where there are any; no trajectory is in both."""
    options = {"cache": Path(config.output) / "encoded", "temperature": config.temperature}
    options |= {"n_frames": config.frames, "stride_range": config.stride_range}
    options |= {name: getattr(model.network, name) for name in ("single_features", "pair_features")}
    options["batch_residues"] = config.batch_residues
    held_out = TrajectoryDataset(config.validation_data, **options) if config.validation_data else None
    sequences, names = config.validation_sequences, config.validation_names
    dataset = TrajectoryDataset(config.data, exclude=sequences, exclude_names=names, held_out=held_out, **options)
    if held_out is None and (sequences or names):
        only = {"only": sequences} if sequences else {"only_names": names}
        held_out = TrajectoryDataset(config.data, **only, **options)
    return dataset, held_out


def _start(config: TrainingConfig, model: ModelConfig, base: StarMDModel | None) -> Denoiser:
    """An untrained denoiser, the one to be fine-tuned, or one with as many of the weights of that as fit."""
    if base and model.network == base.config.network:
        return deepcopy(base.denoiser).train().requires_grad_(True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeded(config.seed, INITIALISE, 0).initial_seed())
        denoiser = Denoiser(model.network)
    if base:
        own, weights = denoiser.state_dict(), base.denoiser.state_dict()
        fitting = {name: x for name, x in weights.items() if name in own and x.shape == own[name].shape}
        denoiser.load_state_dict(fitting, strict=False)
        logger.info("%d of %d tensors start from %s.", len(fitting), len(own), config.start_from)
    return denoiser


def trained_model(
    denoiser: Denoiser,
    config: TrainingConfig,
    model: ModelConfig,
    dataset: TrajectoryDataset,
    base: StarMDModel | None = None,
) -> StarMDModel:
    """The model with the domain that its data span, which is not that of a model it started from.

    What data do not tell, temperature (often) and force field, is as in the model it started from, else 300 K and none.
    """
    denoiser = deepcopy(denoiser)
    if denoiser.reversion:
        with torch.no_grad():
            for weights in denoiser.reversion.parameters():
                weights.mul_(config.reversion_gain)
    default = base.domain if base else Domain()
    features = [t.features for t in dataset.trajectories]
    known = {t.temperature for t in dataset.trajectories} - {None}
    temperature = config.temperature or next(iter(known), None)
    domain = Domain(
        min_length=min(dataset.lengths),
        max_length=max(dataset.lengths),
        min_stride=config.stride_range[0],
        max_stride=_longest_strides(dataset, config),
        min_temperature=temperature or default.min_temperature,
        max_temperature=temperature or default.max_temperature,
        max_chains=max(int(f.chain_index.max()) + 1 for f in features),
        caps=any(bool((end == CAPPED).any()) for f in features for end in (f.n_end, f.c_end)),
        residue_types=tuple(RESIDUE_TYPES[k] for k in torch.cat([f.residue_type for f in features]).unique().tolist()),
        force_field=default.force_field,
        variants=tuple(VARIANTS[k] for k in torch.cat([f.variant for f in features]).unique().tolist() if k),
        temperature_tolerance=default.temperature_tolerance,
        half_capped=any(map(half_capped, features)),
        max_context=config.frames - 1,
    )
    model = replace(model, context_frames=min(model.context_frames, domain.max_context))
    return StarMDModel(denoiser, model, domain, "", Path(config.output).name)


def _longest_strides(dataset: TrajectoryDataset, config: TrainingConfig) -> float | dict[int, float]:
    """Longest stride (ps) that windows of training show, by length where lengths differ in it."""
    longest = {
        length: max(steps_within(t, config.frames, config.stride_range)[2] for t in trajectories)
        for length, trajectories in sorted(dataset.lengths.items())
    }
    lengths = list(longest)
    kept = {
        n: longest[n]
        for n, after in zip(lengths, [*lengths[1:], None], strict=True)
        if longest.get(after) != longest[n]
    }
    return kept if len(kept) > 1 else next(iter(kept.values()))


def _write(model: StarMDModel, run: Run, dataset: TrajectoryDataset, held_out: TrajectoryDataset | None) -> None:
    model.card = model_card(model, run, dataset, held_out)
    model.save(run.output / "model.safetensors")
    (run.output / "model.md").write_text(model.card, encoding="utf-8")
