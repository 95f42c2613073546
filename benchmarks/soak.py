"""A long run in an ordinary Simulation: growth of memory, validity of the frames, speed.

    python benchmarks/soak.py DWGR --jumps 10000

Writes soak.xtc, soak.csv, soak.chk while it runs, and soak.md and soak.json at its end. Give the same command again to
go on with a run that was interrupted; memory and speed are those of the last process.
"""

from __future__ import annotations

import csv
import resource
import time
from collections import Counter
from pathlib import Path

import mdtraj
import numpy as np
import torch
from common import circumstances, openmm_seed, parser, table, write
from openmm import Platform
from openmm.app import CheckpointReporter, Simulation, XTCReporter

from openmm_starmd import StarMDIntegrator, StarMDReporter, load_model, resume
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.protein.validity import check_positions
from openmm_starmd.systems import build_peptide, peptide_system

TEMPERATURE = 300.0
WARM = 500  # jumps before memory is measured for the first time


def resident() -> float:
    """Memory of this process, MB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def simulate(topology, positions, options) -> dict[str, float]:
    """Run to the end; memory and speed."""
    integrator = StarMDIntegrator(
        topology, TEMPERATURE, options.stride, options.model, randomSeed=openmm_seed(options.seed)
    )
    platform = Platform.getPlatform("CPU")
    simulation = Simulation(topology, peptide_system(topology), integrator, platform, {"Threads": str(options.threads)})
    simulation.context.setPositions(positions)
    simulation.minimizeEnergy()
    names = [f"{options.output}.{ending}" for ending in ("chk", "xtc", "csv")]
    done = resume(simulation, *names)
    simulation.reporters += [
        XTCReporter(names[1], 1, append=done > 0),
        StarMDReporter(names[2], 10, append=done > 0),
        CheckpointReporter(names[0], 100),
    ]
    begin = time.perf_counter()
    jumps = options.jumps - done
    warm = min(WARM, jumps)
    simulation.step(warm)
    early = resident()
    simulation.step(jumps - warm)
    late = resident()
    return {
        "jumps of this process": jumps,
        f"memory after {warm} jumps (MB)": early,
        "memory at the end (MB)": late,
        "growth of memory (%)": 100 * (late / early - 1),
        "ns per day": jumps * options.stride / 1000 / (time.perf_counter() - begin) * 86400,
    }


def valid_frames(topology, xtc) -> np.ndarray:
    """Which frames of a trajectory pass the checks, (T,) bool."""
    tokens = ResidueTokens.from_topology(topology)
    valid = []
    for chunk in mdtraj.iterload(str(xtc), top=mdtraj.Topology.from_openmm(topology), chunk=1000):
        valid.append(check_positions(torch.from_numpy(chunk.xyz), tokens).valid.numpy())
    return np.concatenate(valid)


def frames(topology, options) -> dict[str, float]:
    """What the frames that were written are worth."""
    valid = valid_frames(topology, f"{options.output}.xtc")
    return {"frames": len(valid), "valid frames (%)": 100 * float(valid.mean())}


def rows_of(table) -> list[dict[str, str]]:
    """Lines of a StarMDReporter's table."""
    with open(table, newline="") as file:
        return list(csv.DictReader(file))


def jumps(options) -> dict[str, float]:
    """What the lines of the StarMDReporter sum up to; energies of the first and the last tenth."""
    rows = rows_of(f"{options.output}.csv")
    failed = Counter()
    for row in rows:
        failed.update({kind: int(count) for kind, count in (pair.split(":") for pair in row["Failed Checks"].split())})
    retries = sum(int(row["Retries"]) for row in rows)
    energies = np.array([float(row["Energy After Relaxation (kJ/mole)"]) for row in rows])
    tenth = max(1, len(energies) // 10)
    return {
        "accepted conformations (%)": 100 * options.jumps / (options.jumps + retries),
        **{f"failed {kind}": count for kind, count in sorted(failed.items())},
        "energy, first tenth (kJ/mol)": float(energies[:tenth].mean()),
        "energy, first tenth, median (kJ/mol)": float(np.median(energies[:tenth])),
        "energy, last tenth (kJ/mol)": float(energies[-tenth:].mean()),
        "energy, last tenth, median (kJ/mol)": float(np.median(energies[-tenth:])),
    }


def main() -> None:
    made = parser(__doc__, "soak")
    made.add_argument("sequence", nargs="?", default="DWGR")
    made.add_argument("--model", default="starmd-peptide", help="embedded name or path")
    made.add_argument("--jumps", type=int, default=10_000)
    made.add_argument("--stride", type=float, default=100.0, help="ps")
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    topology, positions = build_peptide(options.sequence, seed=1)
    result = simulate(topology, positions, options) | frames(topology, options) | jumps(options)
    title = f"{options.sequence}: {options.jumps} jumps of {options.stride:g} ps by {Path(options.model).name}"
    text = table({name: {"value": value} for name, value in result.items()}, "quantity")
    print(text)
    write(options.output, title, circumstances(load_model(options.model)), {"": text}, result)


if __name__ == "__main__":
    main()
