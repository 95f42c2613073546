"""Training MD for starmd-peptide from many starts: 16 x 0.5 ns each of 277 peptides of 3 to 6 residues; resumable.

    python recipes/starmd-peptide/simulate_starts.py OUTPUT [--processes 2] [--frames 50] [--many | --charged]

With --many the peptides are those of prepare_blocks.py, some 1,600 of 1 to 12 residues, with --charged 90
tetrapeptides with opposite charges; a frame is 10 ps.
Each replica starts from 40 ps at 600 K and 60 ps at 300 K, so that states which half a nanosecond from one built
conformation does not come to are among the starts. Made by lanes.py; the sequences are the short ones of
`simulate_peptides.py`, the first ones that the model was trained on, and new ones.
"""

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import mdtraj
import numpy as np
import torch
from sequences import all_lengths, charged_tetrapeptides, many_starts

from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.protein.validity import check_positions
from openmm_starmd.systems import peptide_system
from openmm_starmd.systems.peptide import file_name, minimized_peptide
from openmm_starmd.training.simulate import seed_of

sys.path.append(str(Path(__file__).resolve().parents[1] / "engines"))
from lanes import LANES, Lanes  # noqa: E402

FRAMES, FRAME_STEPS = 50, 2500  # of 4 fs: 10 ps


def thermalised(molecule: str, seed: int):
    """Topology, minimised positions (A, 3), nm, and lanes of a peptide, 100 ps on, of which 40 were at 600 K."""
    topology, positions = minimized_peptide(molecule, seed)
    lanes = Lanes(peptide_system(topology), positions - positions.mean(0), seed)
    lanes.draw_velocities(300)
    for steps, temperature in ((2_500, 300), (10_000, 600), (15_000, 300)):
        lanes.step(steps, temperature)
    return topology, positions, lanes


def simulate(molecule: str, output: Path, count: int = FRAMES) -> str:
    """Write NAME_K.pdb, NAME_K.xtc and NAME_K.done of every replica K that is sound; returns a line for the log."""
    name = file_name(molecule)
    finished = output / f"{name}.finished"
    if finished.exists():
        return f"{name}: there"
    topology, _, lanes = thermalised(molecule, seed_of(name, 20261122))
    tokens, topology_of_files = ResidueTokens.from_topology(topology), mdtraj.Topology.from_openmm(topology)
    start, frames = lanes.positions, []
    for _ in range(count):
        lanes.step(FRAME_STEPS, 300)
        frames.append(lanes.positions)

    def sound(positions):
        return not check_positions(torch.from_numpy(positions.astype(np.float64)), tokens).failures(())

    kept = [k for k in range(LANES) if sound(start[k]) and sound(frames[-1][k])]
    for k in kept:
        path = output / f"{name}_{k + 101}"
        mdtraj.Trajectory(start[k], topology_of_files).save_pdb(f"{path}.pdb")
        times = 10.0 * np.arange(1, count + 1)
        mdtraj.Trajectory(np.stack(frames)[:, k], topology_of_files, time=times).save_xtc(f"{path}.xtc")
        Path(f"{path}.done").touch()
    finished.touch()
    return f"{name}: {len(kept)} replicas"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--frames", type=int, default=FRAMES, help="of each replica")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--many", action="store_true", help="the peptides of prepare_blocks.py")
    which.add_argument("--charged", action="store_true", help="tetrapeptides that hold opposite charges")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    chosen = charged_tetrapeptides if given.charged else all_lengths if given.many else many_starts
    names = chosen()
    with ProcessPoolExecutor(given.processes) as pool:
        for line in pool.map(simulate, names, len(names) * [given.output], len(names) * [given.frames]):
            print(line, flush=True)
