"""What only a GPU can show: that what it records and runs by itself is right, and how fast it trains and does MD.

    python benchmarks/gpu.py --data training_folder --molecules peptides.npz

A failed check does not hide the others; the last line names all that failed. `speed.py --sections goals` times frames.
Without a GPU the same runs on the CPU at small size, which only tests this script.

sampling
    jumps            largest difference (nm, rad, sines and cosines of torsions) of jumps with the same noise and past,
                     on GPU and CPU, recorded as CUDA graphs and not; paper size: random weights, room for many frames
    host waits       whether a recorded jump lets the host wait for the GPU (`torch.cuda.set_sync_debug_mode`)
training             of the embedded model, on windows of --data
    recorded steps   largest relative differences of losses and gradient norms to steps that are not recorded
    batch sizes      a step as in training, batches of all lengths drawn ahead; and one whose batch is at hand
    kernels          those of a step that take most time
md                   recipes/engines/blocks.cu, of --molecules that recipes/starmd-peptide/prepare_blocks.py made
    forces           largest difference to the same source as C++ on the CPU, over the largest force; energies in kJ/mol
    ensemble         from 4 ps on: temperature (300 K expected), its error in standard errors of independent frames, its
                     width over the expected; "difference" is the largest relative error of a constrained length
    rate             ns of all replicas in a second of dynamics
"""

from __future__ import annotations

import os
import sys
import time
import traceback
import warnings
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import torch
from common import circumstances, parser, table, write
from speed import LARGE, STRIDE, TEMPERATURE, chain, operators, seconds

from openmm_starmd import Propagator, StarMDModel, load_model
from openmm_starmd.diffusion.loss import denoising_loss
from openmm_starmd.diffusion.process import Process
from openmm_starmd.diffusion.replay import VARIABLE
from openmm_starmd.network.config import paper
from openmm_starmd.training.dataset import TrajectoryDataset
from openmm_starmd.training.graphed import WARM_UP, Prefetcher
from openmm_starmd.training.loop import Run
from openmm_starmd.training.settings import TrainingConfig

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
sys.path += [str(RECIPES / "engines"), str(RECIPES / "starmd-peptide")]
import peptide_set  # noqa: E402
from blocks import Blocks  # noqa: E402
from simulate_blocks import PREPARATION, of_kind  # noqa: E402
from terms import GAS_CONSTANT  # noqa: E402

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
MODEL, REPLICAS = "starmd-peptide", 3
LONG = (51, DEVICE, 80) if GPU else (5, DEVICE, 4)  # residues and room for context frames of paper size
JUMPS, STEPS = (8, 20) if GPU else (2, 2)  # compared; of training, also timed together
MD_REPLICAS, MD_STEPS, MD_MOLECULES = (64, 1000, None) if GPU else (2, 40, 3)


def verdict(error: float, allowed: float) -> dict[str, float | str]:
    """An error beside what it may be; NaN is not fine."""
    return {"difference": error, "allowed": allowed, "fine": "yes" if error <= allowed else "NO"}


def paper_model() -> StarMDModel:
    """Of paper size, in which no weights are zero: heads that start so would hide the network."""
    config = replace(paper(), sampler="multistep", denoising_steps=10 if GPU else 3)
    model, generator = StarMDModel.create(config, LARGE, 1), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in (p for p in model.denoiser.parameters() if not p.any()):
            parameter.normal_(0, 0.005, generator=generator)
    return model


def new_propagator(model: StarMDModel, recorded: bool, n: int = 4, device: str = DEVICE, context: int | None = None):
    """For a chain of n residues; recorded with room for later frames, as on a GPU."""
    features = chain(n, 1, "cpu")[0]
    tokens = SimpleNamespace(features=features, n_residues=n, gaps=[], residue_labels=n * ["ALA"])
    made = Propagator(model.on(device), tokens, STRIDE, TEMPERATURE, context_frames=context, strict=False)
    made.forget(records=recorded, roomy=recorded)
    return made, made.start(chain(n, REPLICAS, device)[1])


def noise(k: int) -> list[torch.Generator]:
    """On the CPU, so that all devices get the same."""
    return [torch.Generator().manual_seed(1000 * k + replica) for replica in range(REPLICAS)]


def apart(a, b) -> float:
    """Largest difference of two conformations."""
    one, two = (
        torch.cat([x.cpu().flatten() for x in (*vars(c.frames).values(), c.torsions.sin(), c.torsions.cos(), c.angles)])
        for c in (a, b)
    )
    return float((one - two).abs().max())


def jumps(options) -> dict[str, dict]:
    """Each pair goes on from the jumps of its first."""
    small, large = load_model(MODEL, "cpu"), paper_model()
    cases = {  # both, and how far apart their jumps may be
        f"{MODEL}, GPU and CPU": ((small, False), (small, False, 4, "cpu"), 2e-3),
        f"{MODEL}, recorded and not": ((small, True), (small, False), 5e-4),
        "paper size, recorded and not": ((large, True, *LONG), (large, False, *LONG), 5e-4),
        "paper size, recorded, and CPU": ((large, True, 20, DEVICE, 4), (large, False, 20, "cpu", 4), 2e-3),
    }
    rows = {}
    for name, (first, second, allowed) in cases.items():
        (p, past), (q, same), errors = new_propagator(*first), new_propagator(*second), []
        for k in range(JUMPS):
            jump, other = p.step(past, noise(k)), q.step(same, noise(k))
            errors.append(apart(jump, other))
            past, same = p.extend(past, jump, noise(k)), q.extend(same, jump, noise(k))
        rows[name] = verdict(float(np.max(errors)), allowed)
    return rows


def host_waits(options) -> dict[str, dict]:
    """With a random generator for each replica or one for all; on the CPU there is nothing to wait for."""
    forbid, rows = torch.cuda.set_sync_debug_mode if GPU else (lambda mode: None), {}
    models = {MODEL: (load_model(MODEL, "cpu"), True), "paper size": (paper_model(), True, *LONG)}
    for (name, settings), generators in product(models.items(), (1, REPLICAS)):
        generator = [torch.Generator(DEVICE).manual_seed(k) for k in range(generators)]
        generator, (p, past) = generator if generators > 1 else generator[0], new_propagator(*settings)
        found = {"host waits": "no", "fine": "yes"}
        for _ in range(JUMPS):
            past = p.extend(past, p.step(past, generator), generator)
        try:
            forbid("error")
            p.extend(past, p.step(past, generator), generator)
        except RuntimeError as error:
            found = {"host waits": str(error).partition("\n")[0], "fine": "NO"}
        finally:
            forbid("default")
        rows[f"{name}, {generators} generator(s)"] = found
    return rows


def new_run(options, batch: int, recorded: bool = True) -> Run:
    """Without an end; it trains the embedded model."""
    model = load_model(MODEL, "cpu")
    config = TrainingConfig(options.data, options.folder, batch_size=batch, total_steps=10**6, accelerator=DEVICE)
    process = Process(model.config.process)

    def loss(module, b, generator):
        inputs = b.features, b.conformations, b.strides
        return denoising_loss(module, process, *inputs, generator, config.loss_weights, hidden_types=0.15)

    def draw(generator, share):
        return options.windows.window_batch(batch, config.frames, generator, config.stride_range, share)

    run = Run(config, model.denoiser.train().requires_grad_(True), loss, draw)
    run._graphed = run._graphed if recorded else None
    return run


def recorded_steps(options) -> dict[str, dict]:
    """Of two runs with the same random numbers; their weights drift apart, as sums of a GPU have no order."""
    recorded, eager = (new_run(options, options.batches[0], way) for way in (True, False))
    drawn, told = [eager._batch(eager.draw, 0, k) for k in range(10 * STEPS)], []
    lengths = [windows.conformations.shape[-1] for windows in drawn]
    common = max(lengths, key=lengths.count)  # a recording is of one length
    for windows in [w for w, n in zip(drawn, lengths, strict=True) if n == common][:STEPS]:
        rows = [run._read([run._launch(windows)])[0] for run in (recorded, eager)]
        told.append([[row["loss"], row["gradient_norm"]] for row in rows])
    one, two = np.moveaxis(told, 1, 0)
    loss, norm = np.abs(one / two - 1).max(0)
    return {f"loss, {len(told)} steps": verdict(loss, 0.01), "norm of the gradient": verdict(norm, 0.1)}


def batch_size(options, batch: int) -> dict[str, float]:
    """What steps of so many windows cost."""
    run = new_run(options, batch)
    prefetch, one = Prefetcher(partial(run._batch, run.draw, 0), run.config.total_steps), run._batch(run.draw, 0, 0)

    def steps(take):
        run._read([run._launch(take(run.step)) for _ in range(STEPS)])

    step, alone = (seconds(partial(steps, way), options.least, 4 * GPU) / STEPS for way in (prefetch, lambda n: one))
    prefetch.close()
    row = {"ms a step": 1000 * step, "windows/s": batch / step, "ms a step, at hand": 1000 * alone}
    return row | {"GPU memory so far, GiB": torch.cuda.max_memory_allocated() / 2**30}


def batch_sizes(options) -> dict[str, dict]:
    return {f"{batch} windows": batch_size(options, batch) for batch in options.batches}


def kernels(options) -> dict[str, dict]:
    """Of the middle one of the batch sizes; on the CPU, operators."""
    run = new_run(options, options.batches[len(options.batches) // 2])
    windows = run._batch(run.draw, 0, 0)
    for _ in range(WARM_UP + 1 if GPU else 0):
        run._launch(windows)
    found = operators(lambda: run._read([run._launch(windows)]), 25, DEVICE)
    return {name.replace("|", "/")[:100]: row for name, row in found.items()}


def new_blocks(molecules: list[dict], replicas: int, device: bool = GPU) -> Blocks:
    return Blocks(molecules, [m["positions"] for m in molecules], replicas, range(len(molecules)), device)


def forces(options) -> dict[str, dict]:
    """At conformations that the C++ has reached at 600 K."""
    molecules, rows = options.some, {}
    host, device = new_blocks(molecules, 2, False), new_blocks(molecules, 2)
    host.draw_velocities(600)
    host.step(50, 600)
    device.place(host.positions, host.velocities)
    for molecule, (energy, force), (other, push) in zip(molecules, host.potential(), device.potential(), strict=True):
        row = {"atoms": len(molecule["mass"]), "energies apart": float(np.abs(energy - other).max())}
        rows[str(molecule["name"])] = row | verdict(float(np.abs(force - push).max() / np.abs(force).max()), 1e-4)
    return rows


def ensemble(options) -> dict[str, dict]:
    """Velocities of 600 K at a minimum become 300 K, as half of the energy goes into the positions."""
    molecules, rows, kinetic = options.some, {}, []
    blocks = new_blocks(molecules, MD_REPLICAS)
    blocks.draw_velocities(600)
    blocks.step(MD_STEPS, 300)
    for _ in range(10):
        blocks.step(MD_STEPS // 4, 300)
        each = zip(molecules, blocks.velocities, strict=True)
        kinetic.append([0.5 * (v**2 * m["mass"][:, None]).sum((1, 2)) for m, v in each])
    for molecule, x, energies in zip(molecules, blocks.positions, np.moveaxis(kinetic, 1, 0), strict=True):
        freedom = 3 * len(molecule["mass"]) - len(molecule["constraint"])
        kelvin = 2 * energies / freedom / GAS_CONSTANT
        off = abs(kelvin.mean() - 300) / (300 * np.sqrt(2 / freedom / kelvin.size))
        first, second = molecule["constraint"].T
        lengths = np.linalg.norm(x[:, first] - x[:, second], axis=-1) / molecule["constraint_p"][:, 0]
        row = {"K": kelvin.mean(), "standard errors": off, "width": kelvin.std() / (300 * np.sqrt(2 / freedom))}
        row |= verdict(float(np.abs(lengths - 1).max()), 5e-5)
        rows[str(molecule["name"])] = row | ({"fine": "NO"} if GPU and not off < 8 else {})
    return rows


def rate(options) -> dict[str, dict]:
    """Of all peptides, and of all domains; a pair is one that a thread computes, so that each counts twice."""
    steps, rows = 2500 if GPU else 5, {}
    for kind, replicas in product(PREPARATION, (1, 2, 4, 8) if GPU else (1,)):
        molecules = of_kind(options.molecules, kind)
        if not molecules:
            continue
        blocks = new_blocks(molecules, replicas)
        blocks.draw_velocities(300)
        wall = seconds(partial(blocks.step, steps, 300), options.least)
        broken = sum((~np.isfinite(x)).any((1, 2)).sum() for x in blocks.positions)
        row = {"ns/s": 4e-6 * steps * replicas * len(molecules) / wall, "us a step": 1e6 * wall / steps}
        row["pairs/ns"] = 1e-9 * steps * replicas * sum(len(m["mass"]) ** 2 for m in molecules) / wall
        rows[f"{kind}, {replicas} of each"] = row | {"not finite": int(broken), "fine": "NO" if broken else "yes"}
    return rows


CHECKS = {
    "sampling": (jumps, host_waits),
    "training": (recorded_steps, batch_sizes, kernels),
    "md": (forces, ensemble, rate),  # last, since a fault in blocks.cu spoils all later calls of the GPU
}


def main() -> None:
    made = parser(__doc__, "gpu")
    made.add_argument("--data", type=Path, help="folder of trajectories to train on, for `training`")
    made.add_argument("--molecules", type=Path, help="file of prepare_blocks.py, for `md`")
    made.add_argument("--batches", type=int, nargs="+", default=[32, 64, 128, 256, 512], help="windows a training step")
    made.add_argument("--least", type=float, default=3.0, help="seconds that a measurement takes at least")
    made.add_argument("--sections", nargs="+", choices=CHECKS, default=CHECKS, help="what to check")
    options = made.parse_args()
    for section, name in {"training": "data", "md": "molecules"}.items():
        if section in options.sections and getattr(options, name) is None:
            made.error(f"{section} needs --{name}; --sections leaves it out.")
    torch.set_num_threads(options.threads)
    os.environ[VARIABLE] = "1"
    warnings.filterwarnings("error", message="It could not be recorded")
    if "training" in options.sections:
        options.windows = TrajectoryDataset(options.data, n_frames=TrainingConfig.frames)
    if "md" in options.sections:
        by_size = sorted(peptide_set.read(options.molecules), key=lambda molecule: len(molecule["mass"]))
        options.molecules = by_size = by_size[:MD_MOLECULES]
        options.some = [by_size[k] for k in sorted({round(k) for k in np.linspace(0, len(by_size) - 1, 8)})]
    facts, sections, results, bad = circumstances(device=DEVICE), {}, {}, []
    for check in [check for section in options.sections for check in CHECKS[section]]:
        name, begin = check.__name__.replace("_", " "), time.perf_counter()
        try:
            with TemporaryDirectory() as options.folder:
                rows = check(options)
        except Exception as error:
            traceback.print_exc()
            rows = {type(error).__name__: {"message": str(error).strip().partition("\n")[0], "fine": "NO"}}
        bad += [name] if any(row.get("fine") == "NO" for row in rows.values()) else []
        results[name], sections[name] = rows, f"{table(rows)}\n\n{time.perf_counter() - begin:.0f} s in all"
        write(options.output, "On a GPU" if GPU else "As on a GPU, on the CPU", facts, sections, results)
        print(f"{name}\n\n{sections[name]}\n", flush=True)
    if bad:
        raise SystemExit(f"not as it should be: {'; '.join(bad)}")


if __name__ == "__main__":
    main()
