"""Reference MD of peptides for judging, by lanes.py: 16 replicas, one behind the other in one trajectory; resumable.

    python recipes/starmd-dipeptide/simulate_references.py OUTPUT ace-A-nme ace-DI-nme ... [--nanoseconds 80]

Each replica starts from 40 ps at 600 K and 60 ps at 300 K, as in training. The folder is what benchmarks/quality.py
reads: NAME.pdb, a start, and NAME.xtc, a frame every 10 ps. The first half of a trajectory holds the first 8 replicas.
"""

import argparse
import sys
from pathlib import Path

import mdtraj
import numpy as np

from openmm_starmd.systems.peptide import file_name
from openmm_starmd.training.simulate import seed_of

sys.path.append(str(Path(__file__).resolve().parents[1] / "starmd-peptide"))
from simulate_starts import FRAME_STEPS, LANES, thermalised  # noqa: E402

FRAME = 0.01  # ns


def simulate(molecule: str, output: Path, nanoseconds: float) -> str:
    """Write NAME.pdb and NAME.xtc; returns a line for the log."""
    name = file_name(molecule)
    if (output / f"{name}.xtc").exists():
        return f"{name}: there"
    topology, positions, lanes = thermalised(molecule, seed_of(name, 20261130))
    frames = []
    for _ in range(round(nanoseconds / FRAME / LANES)):
        lanes.step(FRAME_STEPS, 300)
        frames.append(lanes.positions.astype(np.float32))
    topology = mdtraj.Topology.from_openmm(topology)
    mdtraj.Trajectory(positions, topology).save_pdb(output / f"{name}.pdb")
    joined = np.stack(frames, 1).reshape(-1, *positions.shape)
    times = 1000 * FRAME * np.arange(1, len(joined) + 1)
    mdtraj.Trajectory(joined, topology, time=times).save_xtc(output / f"{name}.xtc")
    return f"{name}: {len(joined) * FRAME:g} ns"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("molecules", nargs="+")
    parser.add_argument("--nanoseconds", type=float, default=80.0)
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    for molecule in given.molecules:
        print(simulate(molecule, given.output, given.nanoseconds), flush=True)
