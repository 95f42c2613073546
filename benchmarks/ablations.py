"""What each part of the model is worth: variants trained briefly from scratch under one budget, one table.

    python benchmarks/ablations.py --data training_folder --validation CTVL LAKQ --steps 1500

The folder holds NAME.pdb and NAME.xtc; --validation names the sequences held out of training, and --reference the
folder with their MD, if it is another. Every variant has the embedded model's size and the same data, seed, number of
optimiser steps and windows a step; the CPU time that its training took stands beside it (the time of a step in the last
process times the steps). Each is kept in OUTPUT_VARIANT/: give the same command again to go on, or several with
--variants at a time; the table holds what is finished.

Variants
--------
full                    joint attention over space and time, noised context, stride, all frames of a window, diffusion
separable attention     layers alternate between space and time
no context noise        context copies as clean as the data
no stride               the denoiser is told 100 ps whatever the stride is
one target a window     sequential training: windows end at a random frame, and it alone is denoised
torsion regression      torsions predicted from the denoised frames, not diffused

Columns
-------
Validation terms: errors of the denoised frames of held-out windows, clean contexts, averaged weights, in the same units
for all (those of `denoising_loss`); those of torsions mean another thing under regression and are left out there.
Quality: jumps of 100 ps by the Propagator from NAME.pdb, without relaxation, scored as in quality.py against the MD of
the held-out peptides (mean); MD's halves against each other and a frozen frame as ceiling and floor.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from common import circumstances, parser, plain, table, write
from quality import Reference, average, score

from openmm_starmd.diffusion.loss import LossWeights, denoising_loss
from openmm_starmd.diffusion.process import Process
from openmm_starmd.model import load_model
from openmm_starmd.network.config import ModelConfig, ProcessConfig
from openmm_starmd.network.denoiser import Denoiser
from openmm_starmd.network.parameterization import in_parts
from openmm_starmd.training.dataset import TrajectoryDataset
from openmm_starmd.training.fitting import trained_model
from openmm_starmd.training.loop import Run
from openmm_starmd.training.settings import TrainingConfig
from openmm_starmd.training.step_sizes import step_scales
from openmm_starmd.training.windows import Batch

EMBEDDED = "starmd-peptide"  # its size is that of every variant, without pulls, which not all could have
STRIDE = 100.0  # ps, of the jumps that are scored and of a model that is not told the stride
QUALITY = ("JSD backbone", "JSD side chain", "JSD tICA-0", "hop rate difference", "validity")
QUALITY += ("stride consistency, turns", "stride consistency, turns of itself")
TERMS = ("translation", "rotation", "torsion", "angle", "distance_map")


class Strideless(Denoiser):
    """A denoiser that takes every stride for `STRIDE`."""

    def step_size(self, stride):
        return super().step_size(torch.full_like(stride, STRIDE))

    def time_conditioning(self, time, alpha, sigma, stride):
        return super().time_conditioning(time, alpha, sigma, torch.full_like(stride, STRIDE))


class CommonUnits:
    """A denoiser whose errors are measured in the units of one that knows the stride."""

    def __init__(self, denoiser: Denoiser):
        self.denoiser, self.config, self.static_inputs = denoiser, denoiser.config, denoiser.static_inputs
        self.ruler = Denoiser(denoiser.config)
        self.ruler.step_scales.copy_(denoiser.step_scales)

    def __call__(self, static, context, noisy):
        estimate, _, log_odds = self.denoiser(static, context, noisy)
        return estimate, in_parts(self.ruler.levels(noisy.sigma, noisy.stride)[..., None, :, 2]), log_odds


def all_targets(module, process, batch: Batch, generator):
    """The objective of the package."""
    return denoising_loss(module, process, batch.features, batch.conformations, batch.strides, generator)


def one_target(module, process, batch: Batch, generator):
    """The same for the last frame of a window that has been cut to a random length."""
    first = generator[0] if isinstance(generator, list) else generator
    last = int(torch.randint(1, batch.strides.shape[1], (), generator=first))
    window, strides = batch.conformations[:, : last + 1], batch.strides[:, : last + 1]
    return denoising_loss(module, process, batch.features, window, strides, generator, first=last)


@dataclass(frozen=True)
class Variant:
    """How one row differs from the full model."""

    network: dict = field(default_factory=dict)
    process: dict = field(default_factory=dict)
    denoiser: type[Denoiser] = Denoiser
    loss: Callable = all_targets

    @property
    def config(self) -> ModelConfig:
        base = load_model(EMBEDDED, "cpu").config
        return replace(
            base,
            network=replace(base.network, pulls=False, **self.network),
            process=replace(base.process, **self.process),
        )


VARIANTS = {
    "full": Variant(),
    "separable attention": Variant(network={"joint_attention": False}),
    "no context noise": Variant(process={"context_probability": 0.0}),
    "no stride": Variant(denoiser=Strideless),
    "one target a window": Variant(loss=one_target),
    "torsion regression": Variant(network={"torsions": "regression"}),
}


def training_config(variant: Variant, folder: Path, options) -> TrainingConfig:
    return TrainingConfig(
        data=options.data,
        output=folder,
        model=variant.config,
        batch_size=options.batch,
        total_steps=options.steps,
        warmup_steps=min(200, options.steps // 5),
        validation_sequences=options.validation,
        seed=options.seed,
        accelerator="cpu",
    )


def train(variant: Variant, config: TrainingConfig, dataset: TrajectoryDataset) -> tuple[Denoiser, float]:
    """Averaged weights, and the CPU seconds that the steps took."""
    process = Process(config.model.process)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        denoiser = variant.denoiser(config.model.network)
    run = Run(
        config,
        denoiser,
        lambda module, batch, generators: variant.loss(module, process, batch, generators),
        lambda generator, share: dataset.window_batch(
            config.batch_size, config.frames, generator, config.stride_range, share
        ),
    )
    if not run.load():
        for module in (run.module, run.average):
            module.step_scales.copy_(step_scales(dataset))
    left, begin = config.total_steps - run.step, time.process_time()
    run.finish()
    seconds = (time.process_time() - begin) * config.total_steps / left if left else math.nan
    return run.average, seconds


@torch.no_grad()
def validation_terms(denoiser: Denoiser, held_out: TrajectoryDataset, config: TrainingConfig) -> dict[str, float]:
    """Errors on held-out windows that are the same for every variant; see the module's docstring."""
    process, measured = Process(ProcessConfig(context_probability=0.0)), CommonUnits(denoiser)
    weights, sums = LossWeights(), dict.fromkeys(TERMS, 0.0)
    for number in range(config.validation_batches):
        generator = torch.Generator().manual_seed(number)
        batch = held_out.window_batch(config.batch_size, config.frames, generator, config.stride_range)
        _, terms = all_targets(measured, process, batch, generator)
        for name in TERMS:
            sums[name] += float(terms[name]) / config.validation_batches
    if denoiser.config.torsions == "regression":
        sums |= {"torsion": math.nan, "angle": math.nan}
    return {"validation loss": sum(getattr(weights, n) * v for n, v in sums.items()), **sums}


def measure(name: str, folder: Path, options) -> dict:
    """Train one variant to its end and score it."""
    config = training_config(VARIANTS[name], folder, options)
    cache = options.output.with_name(f"{options.output.name}_encoded")
    dataset = TrajectoryDataset(options.data, exclude=options.validation, cache=cache)
    held_out = TrajectoryDataset(options.reference, only=options.validation, cache=cache)
    denoiser, seconds = train(VARIANTS[name], config, dataset)
    row = {
        "parameters": sum(p.numel() for p in denoiser.parameters()),
        "steps": options.steps,
        "CPU seconds of training": seconds,
        **validation_terms(denoiser, held_out, config),
    }
    model, choices = trained_model(denoiser, config, config.model, dataset), quality_options(options)
    references = [Reference.load(find(sequence, options.reference)) for sequence in options.validation]
    mean = average([score(reference, [], model, choices) for reference in references])
    known = {column: {q: mean[column][q] for q in QUALITY if q in mean[column]} for column in mean}
    return {"row": row | known["model"], "beside": {column: known[column] for column in ("MD halves", "frozen")}}


def quality_options(options):
    """What `quality.score` wants to be told."""
    chosen = {"stride": STRIDE, "frames": options.jumps, "replicas": 1, "denoising_steps": None, "integrator": False}
    return type(options)(**chosen, seed=options.seed)


def find(sequence: str, folders: list[Path]) -> Path:
    paths = [folder / f"{sequence}.pdb" for folder in folders]
    found = [path for path in paths if path.exists() and path.with_suffix(".xtc").exists()]
    if not found:
        raise SystemExit(f"Expected MD of {sequence} as {sequence}.pdb and .xtc in --reference or --data; found none.")
    return found[0]


def finished(name: str, options) -> dict:
    """The result of a variant, made now unless it is there."""
    folder = options.output.with_name(f"{options.output.name}_{name.replace(' ', '_')}")
    kept = ("data", "reference", "validation", "steps", "batch", "jumps", "seed")
    settings = plain({key: getattr(options, key) for key in kept})
    if name in options.variants:
        folder.mkdir(parents=True, exist_ok=True)
    elif not folder.exists():
        return {}
    noted, result = folder / "settings.json", folder / "result.json"
    if noted.exists() and (found := json.loads(noted.read_text())) != settings:
        raise SystemExit(f"{folder.name} was made with {found}, not with {settings}; give another --output.")
    noted.write_text(json.dumps(settings))
    if not result.exists() and name in options.variants:
        result.write_text(json.dumps(plain(measure(name, folder, options))))
    return json.loads(result.read_text()) if result.exists() else {}


def main() -> None:
    made = parser(__doc__, "ablations")
    made.add_argument("--data", type=Path, nargs="+", required=True, help="folders of NAME.pdb and NAME.xtc")
    made.add_argument("--validation", nargs="+", required=True, help="sequences held out and judged on")
    made.add_argument("--reference", type=Path, nargs="+", help="folders with their MD; the data by default")
    made.add_argument("--steps", type=int, default=1500, help="of the optimiser")
    made.add_argument("--batch", type=int, default=32, help="windows a step")
    made.add_argument("--jumps", type=int, default=500, help="that each held-out peptide is judged by")
    made.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = made.parse_args()
    options.reference = options.reference or options.data
    torch.set_num_threads(options.threads)
    facts = circumstances(steps=options.steps, batch=options.batch, jumps=options.jumps)
    rows, beside = {}, {}
    for name in VARIANTS:
        if found := finished(name, options):
            rows[name], beside = found["row"], found["beside"]
            print(name, found["row"], flush=True)
            text = table(rows | beside, "variant")
            write(options.output, "Ablations", facts, {"": text}, rows | beside)
    print(text)


if __name__ == "__main__":
    main()
