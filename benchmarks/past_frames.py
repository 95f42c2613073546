"""Held-out denoising loss against the number of past frames that a network is told.

    python benchmarks/past_frames.py --folder past_data [--train peptides domains]

Windows of nine frames come from MD that no model was trained on (benchmarks/validation). The last frame of each is
noised and denoised from its last 1, 2, 4 or 8 frames, all clean. Noise and noise level are the same for the four, so
that differences are of pairs. "1 frame" is the loss (`denoising_loss`) with one; the columns behind tell by how much
(%) the loss is smaller with more, negative where more frames make it larger. Intervals of 95 %.

Embedded models  starmd-peptide, trained behind up to two frames, on four tetrapeptides; starmd-protein, trained behind
                 one, on domains of benchmarks/validation/proteins, which are of families that it never saw. What a
                 model was not trained for can only do harm. Intervals by bootstrap over batches of windows.
Trained apart    With --train, small networks (2 blocks of 48 channels) with joint and with separable attention are
                 trained on windows of nine frames of the MD of a recipe, every frame behind all before it, so that each
                 network knows all numbers of past frames: peptides of starmd-peptide, without those of
                 benchmarks/validation, or domains of starmd-protein, without the families that it holds out. Steps,
                 batches and seeds are the same for both. Intervals by Student's t over the seeds. "joint" minus
                 "separable" is the difference of the losses (% of the separable one's).

Every finished piece lies in the folder: a stopped run goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from ablations import Variant, train
from common import circumstances, kept, parser, table, write
from scipy import stats

from openmm_starmd import load_model
from openmm_starmd.diffusion.loss import denoising_loss
from openmm_starmd.diffusion.process import Process
from openmm_starmd.evaluation.metrics.samples import percentile_interval
from openmm_starmd.training import toml
from openmm_starmd.training.dataset import TrajectoryDataset
from openmm_starmd.training.settings import TrainingConfig
from openmm_starmd.trajectories.sources import Folder, Packed

PAST = (1, 2, 4, 8)
COLUMNS = ("1 frame", *(f"{past} frames, %" for past in PAST[1:]))
VALIDATION = Path(__file__).with_name("validation")
RECIPES = Path(__file__).resolve().parents[1] / "recipes"
SMALL = {"blocks": 2, "width": 48, "pair_width": 16, "heads": 4}
ATTENTION = {"joint": True, "separable": False}
STRIDES = {"starmd-peptide": (10.0, 100.0), "starmd-protein": (10.0, 40.0)}  # ps
RESAMPLES = 1000


@dataclass(frozen=True)
class Material:
    """MD to train small networks on, and MD that is held out of it."""

    source: Folder | Packed
    validation: Path
    strides: tuple[float, ...]  # ps
    windows: int  # of a batch
    steps: int  # of each training
    sequences: tuple[str, ...] = ()
    """Held out."""
    names: tuple[str, ...] = ()
    """Patterns of names that are held out."""


def materials() -> dict[str, Material]:
    """What can be trained on, by its name."""
    families = tuple(toml.read(RECIPES / "starmd-protein" / "families.toml")["validation"])
    peptides = Folder(RECIPES / "starmd-peptide" / "peptides")
    proteins = Packed(RECIPES / "starmd-protein" / "proteins")
    tetrapeptides = "DWGR", "SPHV", "CNIR", "QFTK"
    return {
        "peptides": Material(peptides, VALIDATION, (20.0, 60.0), 16, 1000, sequences=tetrapeptides),
        "domains": Material(proteins, VALIDATION / "proteins", (10.0,), 2, 200, names=families),
    }


class CleanContexts(Process):
    """A process that does not noise contexts, and so draws as many random numbers whatever the number of frames."""

    def context_copy(self, clean, features, generator):
        return clean


@torch.no_grad()
def losses(denoiser, config, dataset: TrajectoryDataset, stride: float, batches: int, size: int) -> np.ndarray:
    """Loss of the last frame by batch and number of past frames: (batches, 4)."""
    denoiser.eval()
    process, found = CleanContexts(config.process), np.empty((batches, len(PAST)))
    for number in range(batches):
        generator = torch.Generator().manual_seed(number)
        batch = dataset.window_batch(
            size, max(PAST) + 1, generator, (stride, stride), references=config.network.reversion
        )
        for place, past in enumerate(PAST):
            window, reference = batch.conformations[:, -past - 1 :], batch.reference
            reference = None if reference is None else reference[:, -past - 1 :]
            noise = torch.Generator().manual_seed(number)
            given = batch.features, window, batch.strides[:, -past - 1 :], noise
            found[number, place] = denoising_loss(denoiser, process, *given, first=past, reference=reference)[0]
    return found


def gains(found: np.ndarray) -> np.ndarray:
    """Mean loss with one frame, and by how much (%) more frames make it smaller, of losses (batches, 4)."""
    mean = found.mean(0)
    return np.append(mean[:1], 100 * (1 - mean[1:] / mean[0]))


def row(value, low, high) -> dict[str, str]:
    digits = [3, 1, 1, 1]
    return {
        n: f"{v:.{d}f} ({a:.{d}f} to {b:.{d}f})"
        for n, v, a, b, d in zip(COLUMNS, value, low, high, digits, strict=True)
    }


def by_batches(found: np.ndarray, seed: int) -> dict[str, str]:
    """A row with intervals by bootstrap over the batches."""
    generator = np.random.default_rng(seed)
    draws = [gains(found[generator.integers(len(found), size=len(found))]) for _ in range(RESAMPLES)]
    return row(gains(found), *percentile_interval(np.array(draws)))


def by_seeds(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the first axis with its interval by Student's t."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(0, ddof=1) / np.sqrt(len(values))
    return values.mean(0), values.mean(0) - half, values.mean(0) + half


def embedded(args, models) -> dict[str, dict]:
    """Rows of models of the package, by model, molecules and stride."""
    rows = {}
    cases = [("starmd-peptide", "tetrapeptides", VALIDATION, ["*"])]
    cases += [("starmd-protein", name, VALIDATION / "proteins", [f"{name}_*"]) for name in args.domains]
    for name, molecules, folder, patterns in cases:
        dataset = TrajectoryDataset(folder, only_names=patterns, cache=args.folder / "encoded")
        for stride in STRIDES[name]:
            path = args.folder / f"{name}-{molecules}-{stride:g}-{args.batches}.npy"
            given = models[name].denoiser, models[name].config, dataset, stride, args.batches, args.size
            found = kept(path, lambda given=given: losses(*given))
            rows[f"{name}, {molecules}, {stride:g} ps"] = by_batches(found, args.seed)
    return rows


def trained(args, _) -> dict[str, dict]:
    """Rows of networks trained here, by data, stride and attention."""
    rows = {}
    for name in args.train:
        rows |= trained_on(args, name, materials()[name])
    return rows


def trained_on(args, kind: str, material: Material) -> dict[str, dict]:
    """Rows of networks trained on one kind of molecule, by stride and attention."""
    rows, cache, chosen = {}, args.folder / "encoded", material.names or ("*",)
    dataset = TrajectoryDataset(material.source, exclude=material.sequences, exclude_names=material.names, cache=cache)
    held_out = TrajectoryDataset(material.validation, only_names=chosen, cache=cache)
    found = {}
    for seed in range(args.seed, args.seed + args.seeds):
        for attention, joint in ATTENTION.items():
            variant = Variant(network=SMALL | {"joint_attention": joint})
            place = args.folder / f"{kind}-{attention}-{material.steps}-{seed}"

            def measure(variant=variant, place=place, seed=seed):
                config = TrainingConfig(
                    data=material.source,
                    output=place,
                    model=variant.config,
                    batch_size=material.windows,
                    frames=max(PAST) + 1,
                    stride_range=(min(material.strides), max(material.strides)),
                    total_steps=material.steps,
                    warmup_steps=material.steps // 10,
                    learning_rate=2e-3,
                    seed=seed,
                    accelerator="cpu",
                )
                denoiser, _ = train(variant, config, dataset)
                given = replace(config.model, network=denoiser.config), held_out
                measured = [losses(denoiser, *given, s, args.batches, material.windows) for s in material.strides]
                return np.stack(measured)

            found[attention, seed] = kept(place.with_suffix(".npy"), measure)
    for number, stride in enumerate(material.strides):
        of = {n: np.array([f[number] for (kind, _), f in found.items() if kind == n]) for n in ATTENTION}
        for attention, values in of.items():
            rows[f"{kind}, {attention}, {stride:g} ps"] = row(*by_seeds(np.array([gains(v) for v in values])))
        mean = {attention: values.mean(1) for attention, values in of.items()}  # (seeds, past)
        difference = by_seeds(100 * (mean["joint"] / mean["separable"] - 1))
        cells = [f"{v:.1f} ({low:.1f} to {high:.1f})" for v, low, high in zip(*difference, strict=True)]
        rows[f"{kind}, joint minus separable, {stride:g} ps, % of the loss"] = dict(zip(COLUMNS, cells, strict=True))
    return rows


def main() -> None:
    made = parser(__doc__, "past_frames")
    made.add_argument("--folder", type=Path, required=True, help="for finished pieces; a stopped run goes on with them")
    made.add_argument("--domains", nargs="*", default=["2JOF", "1FME", "villin", "EHEE_rd3_0053"])
    made.add_argument("--batches", type=int, default=40)
    made.add_argument("--size", type=int, default=16, help="windows of a batch, embedded models")
    made.add_argument("--train", nargs="+", choices=materials(), default=[], help="what small networks are trained on")
    made.add_argument("--seeds", type=int, default=3)
    args = made.parse_args()
    torch.set_num_threads(args.threads)
    used = ["starmd-peptide", "starmd-protein"] if args.domains else ["starmd-peptide"]
    models = {name: load_model(name, device="cpu") for name in used}
    facts = circumstances(*models.values())
    sections, results = {}, {}
    studies = {"Embedded models": embedded} | ({"Trained apart": trained} if args.train else {})
    for title, study in studies.items():
        results[title] = study(args, models)
        sections[title] = table(results[title])
        print(f"\n## {title}\n\n{sections[title]}", flush=True)
        write(args.output, "Past frames", facts, sections, results)


if __name__ == "__main__":
    main()
