"""What a training step costs: the block-causal pass against frame after frame, and gradient checkpointing.

    python benchmarks/training.py

Windows are random walks, the network is a model's, untrained; every time is a forward and a backward pass of
`denoising_loss` in the main process, the median of --repeats, the ways taken in turns.

Ways of teacher forcing (same loss, same gradients)
---------------------------------------------------
block-causal     all noisy frames and all context copies in one pass, as the package trains
sequential       a pass for each noisy frame with the context copies before it

"ms a frame" is the time of a step over its denoised frames, L - 1 in each window. At L = 8, the block-causal pass takes
14 frames a window through the network, the sequential passes 35: where arithmetic takes the time, the ratio is 35/14 =
2.5; where starting the operations does (small proteins, few windows), it goes towards the number of passes, 7.

Noisy copies
------------
Windows of two frames, as starmd-protein is trained: 1, 2, 4 or 8 noisy copies of the second frame behind one pass of
its context (`noise_draws`). "ms a denoised frame" is the time of a step over all copies.

Memory
------
Growth of resident memory during a step, at its peak; each number is of a process of its own (Linux).
"""

from __future__ import annotations

import ctypes
import multiprocessing
import time
from functools import reduce
from pathlib import Path
from statistics import median

import torch
from common import circumstances, parser, table, write

from openmm_starmd.diffusion.loss import denoising_loss
from openmm_starmd.diffusion.process import Process
from openmm_starmd.geometry.rigid import Rigid, exponential
from openmm_starmd.model import load_model
from openmm_starmd.network.config import ModelConfig
from openmm_starmd.network.denoiser import Denoiser
from openmm_starmd.network.embedding import FrameInputs
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.displacement import Displacement
from openmm_starmd.protein.residues import RESIDUE_TYPES
from openmm_starmd.protein.tokens import ResidueFeatures

FRAMES = 8  # L of the comparison of the ways
SHAPES = ((4, 1), (4, 16), (35, 1), (35, 4), (96, 1))  # residues, windows
GRID = tuple((residues, frames) for residues in (32, 64, 96) for frames in (4, 8))
DRAWS = (1, 2, 4, 8)  # noisy copies of a frame
STRIDE = 100.0  # ps


class Sequential:
    """A denoiser that takes each noisy frame of a window by itself, with the context copies before it."""

    def __init__(self, denoiser: Denoiser):
        self.denoiser, self.config, self.static_inputs = denoiser, denoiser.config, denoiser.static_inputs

    def __call__(self, static, context, noisy):
        found = []
        for k, index in enumerate(noisy.index.tolist()):
            before = reduce(FrameInputs.cat, [context.frame(i) for i in range(index)])
            found.append(self.denoiser(static, before, noisy.frame(k)))
        return joined(found)


WAYS = {"block-causal": lambda denoiser: denoiser, "sequential": Sequential}


def joined(found: list[tuple[Displacement, Displacement, torch.Tensor | None]]):
    """Displacements (B, 1, N) of single frames, their scales and odds, along the axis of frames."""
    *displacements, log_odds = zip(*found, strict=True)
    parts = [zip(*(vars(d).values() for d in column), strict=True) for column in displacements]
    displacements = [Displacement(*(torch.cat(part, 1) for part in column)) for column in parts]
    return *displacements, None if log_odds[0] is None else torch.cat(log_odds, 1)


def random_windows(batch: int, frames: int, residues: int, seed: int = 0):
    """Features, conformations and strides of windows of chains that jitter about a random walk."""
    generator = torch.Generator().manual_seed(seed)
    types = torch.randint(len(RESIDUE_TYPES), (batch, residues), generator=generator)
    end, index = torch.zeros_like(types), torch.arange(residues).expand(batch, residues)
    mask = torch.rand(batch, residues, 6, generator=generator) < 0.5
    features = ResidueFeatures(types, index, end, end, end, mask, torch.full(mask.shape, 2 * torch.pi).double())
    walk = torch.nn.functional.normalize(torch.randn(batch, 1, residues, 3, generator=generator), dim=-1)
    x = (0.38 * walk).cumsum(-2) + 0.05 * torch.randn(batch, frames, residues, 3, generator=generator)
    turns = torch.randn(batch, 1, residues, 3, generator=generator)
    turns = exponential(turns + 0.2 * torch.randn(x.shape, generator=generator))
    torsions = torch.randn(*x.shape[:-1], 6, generator=generator) * mask[:, None]
    angles = 1.94 + 0.05 * torch.randn(x.shape[:-1], generator=generator)
    conformations = Conformation(Rigid(turns, x - x.mean(-2, keepdim=True)), torsions, angles)
    return features, conformations, torch.full((batch, frames), STRIDE)


def untrained(config: ModelConfig, checkpointing: bool = False) -> Denoiser:
    """A denoiser whose jumps are of the size of the windows'."""
    torch.manual_seed(0)
    denoiser = Denoiser(config.network)
    denoiser.step_scales.fill_(0.2)
    denoiser.checkpointing = checkpointing
    return denoiser


def step(denoiser, config: ModelConfig, windows, draws: int = 1) -> torch.Tensor:
    """Forward and backward pass; the loss."""
    generators = [torch.Generator().manual_seed(k) for k in range(len(windows[2]))]
    loss, _ = denoising_loss(denoiser, Process(config.process), *windows, generators, noise_draws=draws)
    loss.backward()
    return loss.detach()


def seconds(work) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def medians(works: dict, repeats: int) -> dict[str, float]:
    """Median seconds of each work; one round to warm up, then all of them in turns."""
    for work in works.values():
        work()
    rounds = [{name: seconds(work) for name, work in works.items()} for _ in range(repeats)]
    return {name: median(row[name] for row in rounds) for name in works}


def ways(config: ModelConfig, residues: int, batch: int, repeats: int, frames: int = FRAMES) -> dict[str, float]:
    """Milliseconds a denoised frame, by way of teacher forcing, and their ratio."""
    windows, denoiser = random_windows(batch, frames, residues), untrained(config)
    works = {name: (lambda way=way: step(way(denoiser), config, windows)) for name, way in WAYS.items()}
    found = {name: 1000 * s / (batch * (frames - 1)) for name, s in medians(works, repeats).items()}
    row = {f"{name} (ms a frame)": value for name, value in found.items()}
    return row | {"ratio": found["sequential"] / found["block-causal"]}


def copies(config: ModelConfig, residues: int, batch: int, repeats: int) -> dict[str, float]:
    """Milliseconds a denoised frame by number of noisy copies, and the last one's share of the first one's."""
    windows, denoiser = random_windows(batch, 2, residues), untrained(config)
    works = {draws: (lambda draws=draws: step(denoiser, config, windows, draws)) for draws in DRAWS}
    found = {draws: 1000 * s / (batch * draws) for draws, s in medians(works, repeats).items()}
    row = {f"{draws} (ms a denoised frame)": value for draws, value in found.items()}
    return row | {"ratio": found[DRAWS[-1]] / found[DRAWS[0]]}


def resident(kind: str) -> float:
    """Memory of this process, MB: ``VmRSS`` is now, ``VmHWM`` the peak."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{kind}:")[1].split()[0]) * 1024 / 1e6


def growth(config: ModelConfig, residues: int, frames: int, checkpointing: bool) -> float:
    """MB by which one step raises the memory at its peak; for a process of its own."""
    torch.set_num_threads(1)
    denoiser = untrained(config, checkpointing)
    step(denoiser, config, random_windows(1, 2, 4))
    windows = random_windows(1, frames, residues)
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before does not hide growth
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    before = resident("VmRSS")
    step(denoiser, config, windows)
    return resident("VmHWM") - before


def memory(config: ModelConfig, residues: int, frames: int, repeats: int) -> dict[str, float]:
    """Memory and time of a step of one window, with all activations kept and with checkpointing."""
    row, works = {}, {}
    windows = random_windows(1, frames, residues)
    for name, checkpointing in (("kept", False), ("checkpointed", True)):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row[f"{name} (MB)"] = pool.apply(growth, (config, residues, frames, checkpointing))
        denoiser = untrained(config, checkpointing)
        works[name] = lambda denoiser=denoiser: step(denoiser, config, windows)
    found = medians(works, repeats)
    row["memory, ratio"] = row["kept (MB)"] / row["checkpointed (MB)"]
    row |= {f"{name} (s)": value for name, value in found.items()}
    return row | {"time, ratio": found["checkpointed"] / found["kept"]}


def main() -> None:
    made = parser(__doc__, "training")
    made.add_argument("--model", default="starmd-peptide", help="embedded name or path of a model of the same size")
    made.add_argument("--repeats", type=int, default=5)
    made.add_argument("--shapes", nargs="*", default=SHAPES, type=numbers, help="RESIDUES,WINDOWS of the first table")
    made.add_argument("--copies", nargs="*", default=((35, 4),), type=numbers, help="RESIDUES,WINDOWS of noisy copies")
    made.add_argument("--grid", nargs="*", default=GRID, type=numbers, help="RESIDUES,FRAMES of the second table")
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.model, "cpu")
    config, facts = model.config, circumstances(model, repeats=options.repeats)
    passes, drawn, checkpoints = {}, {}, {}
    for residues, batch in options.shapes:
        name = f"{residues} residues, {batch} window{'s' if batch > 1 else ''}"
        passes[name] = ways(config, residues, batch, options.repeats)
        print(name, passes[name], flush=True)
    for residues, batch in options.copies:
        name = f"{residues} residues, {batch} windows"
        drawn[name] = copies(config, residues, batch, options.repeats)
        print(name, drawn[name], flush=True)
    for residues, frames in options.grid:
        name = f"{residues} residues, {frames} frames"
        checkpoints[name] = memory(config, residues, frames, options.repeats)
        print(name, checkpoints[name], flush=True)
    tables = {
        f"Teacher forcing, L = {FRAMES}": passes,
        "Noisy copies behind one context, L = 2": drawn,
        "Gradient checkpointing, one window": checkpoints,
    }
    sections = {title: table(rows) for title, rows in tables.items() if rows}
    results = {"ways": passes, "noisy copies": drawn, "memory": checkpoints}
    write(options.output, "Cost of a training step", facts, sections, results)


def numbers(word: str) -> tuple[int, int]:
    """Two integers with a comma between them."""
    first, second = map(int, word.split(","))
    return first, second


if __name__ == "__main__":
    main()
