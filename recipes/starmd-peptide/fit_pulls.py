"""Pulls (`openmm_starmd.network.pulls`) for a model that has none, or has others; all else of it stays.

    python recipes/starmd-peptide/fit_pulls.py MODEL OUTPUT.safetensors DATA [DATA ...] [--steps 1500] [--strength 3]

DATA are folders of trajectories in which side chains hold each other. The loss is that of training, of the weights
of the pulls alone. Trained like this they come out too weak, see benchmarks/EXPERIMENTS.md; the model is saved with
pulls of `--strength` times what was learned, as a guided diffusion model goes beyond what it has learned. What is read
of the trajectories lies in OUTPUT.encoded.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from openmm_starmd import load_model
from openmm_starmd.diffusion.loss import denoising_loss
from openmm_starmd.model import StarMDModel
from openmm_starmd.network.denoiser import Denoiser
from openmm_starmd.training.dataset import TrajectoryDataset

BATCH, FRAMES, STRIDES = 32, 4, (10.0, 1000.0)
RATE, WARM_UP = 3e-3, 50


def with_pulls(model: StarMDModel) -> StarMDModel:
    """The model with untrained pulls."""
    config = replace(model.config, network=replace(model.config.network, pulls=True))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = Denoiser(config.network)
    old = {name: value for name, value in model.denoiser.state_dict().items() if not name.startswith("pulls.")}
    denoiser.load_state_dict(denoiser.state_dict() | old)
    return StarMDModel(denoiser, config, model.domain, model.card, model.name)


def fit(model: StarMDModel, dataset: TrajectoryDataset, steps: int, strength: float) -> None:
    """Train the pulls and leave their averaged weights in the model, ``strength`` times as strong."""
    denoiser = model.denoiser.requires_grad_(False)
    weights = list(denoiser.pulls.requires_grad_(True).parameters())
    optimizer = torch.optim.AdamW(weights, lr=RATE, betas=(0.9, 0.99))
    schedule = [torch.optim.lr_scheduler.LinearLR(optimizer, 1 / WARM_UP, total_iters=WARM_UP)]
    schedule.append(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps))
    average = AveragedModel(denoiser.pulls, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    generator, terms = torch.Generator().manual_seed(5), []
    for step in range(1, steps + 1):
        batch = dataset.window_batch(BATCH, FRAMES, generator, STRIDES)
        window = batch.features, batch.conformations, batch.strides
        loss, found = denoising_loss(denoiser, model.process, *window, generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        for part in schedule:
            part.step()
        average.update_parameters(denoiser.pulls)
        terms.append(torch.stack(list(found.values())))
        if step % 100 == 0:
            mean = torch.stack(terms[-100:]).mean(0)
            print(step, *(f"{name} {value:.4f}" for name, value in zip(found, mean, strict=True)), flush=True)
    denoiser.pulls.load_state_dict(average.module.state_dict())
    with torch.no_grad():
        for parameter in denoiser.pulls.out.parameters():
            parameter *= strength


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("output", type=Path)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--strength", type=float, default=3.0)
    given = parser.parse_args()
    model = with_pulls(load_model(given.model, "cpu"))
    fit(model, TrajectoryDataset(given.data, cache=given.output.with_suffix(".encoded")), given.steps, given.strength)
    model.save(given.output)
