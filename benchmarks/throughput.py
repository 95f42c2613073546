"""Throughput of many replicas: frames a second and ns a day against the number of replicas in a batch.

    python benchmarks/throughput.py DWGR

Each row is `openmm_starmd.rollout` of B replicas of a peptide by the embedded model, network on one thread: without
relaxation, and with the default one by one and by two workers of a CPU thread each. Times begin when the window of
context frames is full and some steps have been made, and end before a replica has arrived; start, minimisation, files
of the beginning, recordings that were made by then, and the waiting for the last replica are not counted, all else is,
also what failed and was sampled again.

Just before a row, it measures plain MD of the same System in one trajectory (LangevinMiddle, 4 fs, 4-amu hydrogens,
HBonds, ff14SB and native OBC2, no cutoff; one thread): "x MD" is the ratio to it, of all replicas together, for two
workers to two such trajectories. "x B = 1" is the ratio of frames a second to those of the first row. Everything is
bound to one core, with two workers to two. On a machine that does other work, too, read the ratio of the CPU times that
a nanosecond takes ("x MD, CPU time"), which counts the work of all threads and no waiting.

A call that was stopped goes on where it was, and measures plain MD anew.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
import torch
from common import circumstances, openmm_seed, parser, results_so_far, table, write
from compare_md import TEMPERATURE, TIME_STEP, Molecule, molecule, new_simulation
from openmm import LangevinMiddleIntegrator

from openmm_starmd import Relaxation, load_model, rollout

SECONDS_A_DAY = 86400
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


@dataclass(frozen=True)
class Mode:
    """How the replicas are relaxed, and by how many workers."""

    relaxation: Relaxation | None = Relaxation()
    workers: int = 1


MODES = {"no relaxation": Mode(None), "relaxed": Mode(), "relaxed, 2 workers": Mode(workers=2)}


def bind(n_cores: int):
    """Keep this thread and those that it starts from now on to some cores (Linux)."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, CORES[:n_cores])


def clocks() -> np.ndarray:
    """Wall time, and CPU time of all threads of this process, s."""
    return np.array([time.perf_counter(), time.process_time()])


def plain_md(what: Molecule, options) -> np.ndarray:
    """Wall and CPU seconds a nanosecond."""
    integrator = LangevinMiddleIntegrator(TEMPERATURE, 1, TIME_STEP)
    integrator.setRandomNumberSeed(openmm_seed(options.seed))
    simulation = new_simulation(what.topology, integrator, options)
    simulation.context.setPositions(what.positions)
    simulation.context.setVelocitiesToTemperature(TEMPERATURE, openmm_seed(options.seed))
    simulation.step(100)
    begin = clocks()
    while clocks()[0] - begin[0] < options.seconds:
        simulation.step(250)
    simulation.context.getState(energy=True)  # a GPU is behind what it was told
    return (clocks() - begin) / ((simulation.currentStep - 100) * TIME_STEP / 1000)


def replicas_of_rollout(what: Molecule, replicas: int, mode: Mode, options) -> np.ndarray:
    """Wall and CPU seconds a nanosecond of all replicas together."""
    bind(mode.workers)
    timed, stamps, frames = options.frames, [], []
    warm = what.model.config.context_frames + max(3, timed // 2)  # windows are full, what is computed often is recorded

    def stamp(new: int):
        stamps.append(clocks())
        frames.append(new)

    with TemporaryDirectory() as folder:
        rollout(
            what.model,
            what.topology,
            what.positions,
            stride=what.stride,
            n_steps=warm + timed + timed // 4,
            n_replicas=replicas,
            seed=options.seed,
            output=folder,
            system=what.system if mode.relaxation else None,
            relaxation=mode.relaxation or Relaxation(),
            workers=mode.workers,
            max_retries=50,
            progress=stamp,
        )
    made = np.cumsum(frames)
    begin, end = np.searchsorted(made, [replicas * warm, replicas * (warm + timed)])
    return (stamps[end] - stamps[begin]) / ((made[end] - made[begin]) * what.stride / 1000)


def measure(what: Molecule, replicas: int, modes: dict[str, Mode], options) -> Iterator[tuple[str, dict[str, float]]]:
    """For each mode what the columns say, but the ratio to the first row."""
    bind(1)
    md = plain_md(what, options)
    for name, mode in modes.items():
        seconds = replicas_of_rollout(what, replicas, mode, options)
        ratio, seconds = (md / seconds).tolist(), seconds.tolist()
        cell = {
            "frames/s": 1000 / (what.stride * seconds[0]),
            "ns/day": SECONDS_A_DAY / seconds[0],
            "MD beside it, ns/day": SECONDS_A_DAY / float(md[0]),
            "x MD": ratio[0] / mode.workers,
            "x MD, CPU time": ratio[1],
            "CPU ms a frame": seconds[1] * what.stride,
        }
        print(f"B = {replicas}, {name}:", {name: f"{value:.4g}" for name, value in cell.items()}, flush=True)
        yield name, cell


def tables(rows: dict[str, dict]) -> dict[str, str]:
    """A table for each mode."""
    made = {}
    for mode in MODES:
        known = {b: row[mode] for b, row in rows.items() if mode in row}
        first = next((cell["frames/s"] for cell in known.values()), math.nan)
        made[mode] = table({b: cell | {"x B = 1": cell["frames/s"] / first} for b, cell in known.items()}, "B")
    return made


def draw(rows: dict[str, dict], path: Path):
    """Ns a day against B, that of plain MD as a line."""
    figure, ax = plt.subplots(figsize=(5.5, 4), layout="constrained")
    sizes = [int(b) for b in rows]
    for mode in MODES:
        known = {int(b): row[mode]["ns/day"] for b, row in rows.items() if mode in row}
        ax.plot(known.keys(), known.values(), "o-", label=mode)
    ax.plot(sizes, [next(iter(row.values()))["MD beside it, ns/day"] for row in rows.values()], "k--", label="plain MD")
    ax.set(xscale="log", yscale="log", xlabel="replicas in a batch", ylabel="ns/day, all replicas", xticks=sizes)
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.minorticks_off()
    ax.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    made = parser(__doc__, "throughput")
    made.add_argument("sequence", nargs="?", default="DWGR")
    made.add_argument("--model", default="starmd-peptide", help="embedded name or path")
    made.add_argument("--stride", type=float, default=100.0, help="ps")
    made.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    made.add_argument("--frames", type=int, default=16, help="of each replica that are timed")
    made.add_argument("--seconds", type=float, default=8.0, help="of plain MD a row")
    made.set_defaults(platform="CPU")
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    facts = circumstances(load_model(options.model), sequence=options.sequence, stride=f"{options.stride:g} ps")
    rows = results_so_far(options.output, facts)
    what = molecule(options.sequence, options)
    for replicas in options.replicas:
        row = rows.setdefault(str(replicas), {})
        left = {name: mode for name, mode in MODES.items() if name not in row}
        for name, cell in measure(what, replicas, left, options) if left else ():
            row[name] = cell
            write(options.output, "Throughput of many replicas", facts, tables(rows), rows)
    bind(len(CORES))
    draw(rows, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
