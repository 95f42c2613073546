"""Training MD of folded domains: replicas of each PDB file from its native structure at 300 K; resumable.

    python recipes/starmd-protein/simulate_proteins.py OUTPUT FILE.pdb ... [--processes 2] [--replicas 16] [--frames 10]
        [--seed 0]

Each FILE.pdb holds one protein with all hydrogens, as `prepare` writes it. Each replica starts from the minimised
structure, takes 40 ps at 300 K with velocities of its own, and then keeps FRAMES frames 10 ps apart. lanes.py makes
the dynamics.
"""

import argparse
import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import mdtraj
import numpy as np
import torch
from openmm import Context, LocalEnergyMinimizer, Platform, VerletIntegrator, unit
from openmm.app import PDBFile

from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.protein.validity import check_positions
from openmm_starmd.systems import peptide_system
from openmm_starmd.training.simulate import seed_of

sys.path.append(str(Path(__file__).resolve().parents[1] / "engines"))
from lanes import Lanes  # noqa: E402

FRAME_STEPS, THERMALISATION_STEPS = 2500, 10_000  # of 4 fs: 10 ps and 40 ps


def minimized(path: Path):
    """Topology, System and minimised positions (A, 3), nm, of a PDB file."""
    pdb = PDBFile(str(path))
    system = peptide_system(pdb.topology)
    context = Context(system, VerletIntegrator(0.001), Platform.getPlatform("CPU"), {"Threads": "1"})
    context.setPositions(pdb.positions)
    LocalEnergyMinimizer.minimize(context, maxIterations=300)
    return pdb.topology, system, context.getState(positions=True).getPositions(asNumpy=True)._value


def simulate(path: Path, output: Path, replicas: int, count: int, seed: int = 0) -> str:
    """Write NAME_K.pdb, NAME_K.xtc and NAME_K.done of every sound replica K; returns a line for the log."""
    name = path.stem
    finished = output / f"{name}.finished"
    if finished.exists():
        return f"{name}: there"
    topology, system, positions = minimized(path)
    tokens, topology_of_files = ResidueTokens.from_topology(topology), mdtraj.Topology.from_openmm(topology)
    lanes = Lanes(system, positions - positions.mean(0), seed_of(name, 20261129 + seed), replicas)
    lanes.draw_velocities(300)
    lanes.step(THERMALISATION_STEPS, 300)
    frames = []
    for _ in range(count):
        lanes.step(FRAME_STEPS, 300)
        frames.append(lanes.positions)
    last = check_positions(torch.from_numpy(frames[-1].astype(np.float64)), tokens, torch.from_numpy(positions))
    kept = np.flatnonzero(last.valid.numpy()).tolist()
    for k in kept:
        target = output / f"{name}_{k + 101}"
        with open(f"{target}.pdb", "w") as file:
            PDBFile.writeFile(topology, positions * unit.nanometer, file, keepIds=True)
        times = 10.0 * np.arange(1, count + 1)
        mdtraj.Trajectory(np.stack(frames)[:, k], topology_of_files, time=times).save_xtc(f"{target}.xtc")
        Path(f"{target}.done").touch()
    finished.touch()
    lost = Counter(check for k in range(replicas) for check in last.failures(k))
    return f"{name}: {len(kept)} of {replicas} replicas" + "".join(f", {check} {n}" for check, n in lost.items())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("structures", type=Path, nargs="+")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--replicas", type=int, default=16, help="a multiple of what a register holds, 8 or 16")
    parser.add_argument("--frames", type=int, default=10, help="of each replica, 10 ps apart")
    parser.add_argument("--seed", type=int, default=0, help="another one for runs to judge by")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(given.processes) as pool:
        options = given.output, given.replicas, given.frames, given.seed
        runs = {pool.submit(simulate, path, *options): path for path in given.structures}
        for run in as_completed(runs):
            print(f"{runs[run].stem}: {run.exception()}" if run.exception() else run.result(), flush=True)
