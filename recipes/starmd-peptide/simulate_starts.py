"""Training MD for starmd-peptide from many starts: 16 x 0.5 ns each of 277 peptides of 3 to 6 residues; resumable.

    python recipes/starmd-peptide/simulate_starts.py OUTPUT [--processes 2] [--frames 50] [--many | --charged]

With --many the peptides are those of prepare_blocks.py, 1,529 of 3 to 12 residues, with --charged 90 tetrapeptides with
opposite charges; a frame is 10 ps.
Each replica starts from 40 ps at 600 K and 60 ps at 300 K, so that states which half a nanosecond from one built
conformation does not come to are among the starts. Made by lanes.py; the sequences are the short ones of
`simulate_peptides.py`, the first ones that the model was trained on, and new ones.
"""

import argparse
import os
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import combinations, product
from pathlib import Path

import mdtraj
import numpy as np
import torch
from simulate_peptides import JUDGED, reserved, sequences

from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.protein.validity import check_positions
from openmm_starmd.systems import peptide_system
from openmm_starmd.systems.peptide import file_name, minimized_peptide, split_caps
from openmm_starmd.training.simulate import coverage_sequences, seed_of, within_one_residue

sys.path.append(str(Path(__file__).resolve().parents[1] / "engines"))
from lanes import LANES, Lanes  # noqa: E402

FRAMES, FRAME_STEPS = 50, 2500  # of 4 fs: 10 ps
VALIDATION = "TMFP NQRE VWCW NEGP LDHP GMIR TTDTT MPRYE RMCF KRGYD TIAKVG ALN".split()
FIRST = (
    "CTVL EAKS GYNC HAPF KTNF KWRL LAKQ LLCC LRCW LYCT MRVV MVSL NCTQ NLMT RHAT SGMK SHQN THDF TNIF TQHM WANF WQDT WSWY"
).split()
BLOCKS_AND_CAPS = {4: (4, 3), 3: (1, 4), 5: (1, 4)}


def peptides() -> list[str]:
    """In random order: tetrapeptides rather earlier than others, new sequences rather later."""
    known = [name for name in [*FIRST, *sequences()] if len(split_caps(name)[0]) <= 6]
    known = [name for name in known if split_caps(name)[0] not in VALIDATION]
    exclude, new = JUDGED + reserved() + VALIDATION, []
    for length, (blocks, caps) in BLOCKS_AND_CAPS.items():
        for k, sequence in enumerate(coverage_sequences(length, blocks, seed=5050 + length, exclude=exclude)):
            new.append(f"ace-{sequence}-nme" if k % caps == caps - 1 else sequence)

    def rank(name):
        late = 0.3 * (len(split_caps(name)[0]) != 4) + 0.35 * (name in new)
        return random.Random(f"fast{name}").random() + late

    return sorted({*known, *new}, key=rank)


def charged() -> list[str]:
    """Tetrapeptides with two opposite charges, every pair of residues in every two places twice, in random order."""
    exclude, rng, names = JUDGED + reserved() + VALIDATION, random.Random(5), []
    pairs = [pair for a, b in product("DE", "KR") for pair in ((a, b), (b, a))]
    for (first, second), (i, j) in product(2 * pairs, combinations(range(4), 2)):
        sequence = rng.choices("ACFGHILMNPQSTVWY", k=4)
        sequence[i], sequence[j] = first, second
        name = "".join(sequence)
        if not any(within_one_residue(name, other) for other in exclude):
            names.append(f"ace-{name}-nme" if rng.random() < 0.25 else name)
    return rng.sample(names, len(names))


def simulate(molecule: str, output: Path, count: int = FRAMES) -> str:
    """Write NAME_K.pdb, NAME_K.xtc and NAME_K.done of every replica K that is sound; returns a line for the log."""
    name = file_name(molecule)
    finished = output / f"{name}.finished"
    if finished.exists():
        return f"{name}: there"
    seed = seed_of(name, 20261122)
    topology, positions = minimized_peptide(molecule, seed)
    tokens, topology_of_files = ResidueTokens.from_topology(topology), mdtraj.Topology.from_openmm(topology)
    lanes = Lanes(peptide_system(topology), positions - positions.mean(0), seed)
    lanes.draw_velocities(300)
    for steps, temperature in ((2_500, 300), (10_000, 600), (15_000, 300)):
        lanes.step(steps, temperature)
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
    if given.many:
        from prepare_blocks import peptides  # which takes names from here
    names = charged() if given.charged else peptides()
    with ProcessPoolExecutor(given.processes) as pool:
        for line in pool.map(simulate, names, len(names) * [given.output], len(names) * [given.frames]):
            print(line, flush=True)
