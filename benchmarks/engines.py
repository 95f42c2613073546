"""Molecular dynamics of many replicas in vector registers (recipes/engines/lanes.py) beside OpenMM's CPU platform.

    python benchmarks/engines.py DWGR.pdb 2JOF.pdb 2M9I.pdb 2JWS.pdb [--other OLD/recipes/engines]

Each FILE.pdb holds one molecule with all hydrogens, as `starmd prepare` writes it. ff14SB, OBC2, 4 fs, 300 K, one
thread. The engines take turns, ROUNDS times; a turn takes about --seconds. The table has ns a day of CPU time (all
replicas together; the CPU time of the process, so that other jobs on the machine weigh little): medians, and the least
and the greatest of the ratios of a round. --other names the engines of another checkout to stand beside today's.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import circumstances, parser, table, write
from openmm import Context, LangevinMiddleIntegrator, LocalEnergyMinimizer, Platform, unit
from openmm.app import PDBFile

from openmm_starmd.systems import peptide_system

ENGINES = Path(__file__).resolve().parents[1] / "recipes" / "engines"
TEMPERATURE, TIME_STEP = 300.0, 0.004  # K, ps


def lanes_of(folder: Path):
    """The module lanes.py of a folder of engines."""
    for name in ("lanes", "terms", "compiled"):
        sys.modules.pop(name, None)
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("lanes")
    finally:
        sys.path.remove(str(folder))


def advancing(path: Path, folders: dict[str, Path], seed: int) -> tuple[int, dict[str, tuple[int, Callable]]]:
    """Number of atoms, and for each engine how many replicas it has and a function that advances them by steps."""
    pdb = PDBFile(str(path))
    system = peptide_system(pdb.topology)
    integrator = LangevinMiddleIntegrator(TEMPERATURE, 1 / unit.picosecond, TIME_STEP)
    integrator.setRandomNumberSeed(seed)
    context = Context(system, integrator, Platform.getPlatform("CPU"), {"Threads": "1"})
    context.setPositions(pdb.positions)
    LocalEnergyMinimizer.minimize(context, maxIterations=200)
    positions = context.getState(positions=True).getPositions(asNumpy=True)._value
    context.setVelocitiesToTemperature(TEMPERATURE, seed)
    engines = {"OpenMM": (1, lambda steps: context.getIntegrator().step(steps))}
    for name, folder in folders.items():
        lanes = lanes_of(folder).Lanes(system, positions - positions.mean(0), seed)
        lanes.draw_velocities(TEMPERATURE)
        engines[name] = len(lanes.positions), lambda steps, lanes=lanes: lanes.step(steps, TEMPERATURE, TIME_STEP)
    return len(positions), engines


def nanoseconds_a_day(replicas: int, advance: Callable, steps: int) -> float:
    """Of CPU time, of all replicas together."""
    begin = time.process_time()
    advance(steps)
    return 86.4 * replicas * steps * TIME_STEP / (time.process_time() - begin)


def main() -> None:
    made = parser(__doc__, "engines")
    made.add_argument("files", type=Path, nargs="+")
    made.add_argument("--other", type=Path, help="folder of engines of another checkout")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--seconds", type=float, default=4.0, help="of a turn of one engine")
    options = made.parse_args()
    folders = {"lanes": ENGINES} | ({"other build": options.other.resolve()} if options.other else {})
    rows, results = {}, {}
    for path in options.files:
        atoms, engines = advancing(path, folders, options.seed)
        steps = {}
        for name, (replicas, advance) in engines.items():  # the first call compiles and warms up
            advance(20)
            rate = nanoseconds_a_day(replicas, advance, 50)
            steps[name] = max(10, round(rate * options.seconds / (86.4 * replicas * TIME_STEP)))
        rounds = [
            {name: nanoseconds_a_day(*engine, steps[name]) for name, engine in engines.items()}
            for _ in range(options.rounds)
        ]
        results[path.stem] = {"atoms": atoms, "ns a day": rounds}
        row = {"atoms": atoms} | {f"{name}, ns/day": float(np.median([r[name] for r in rounds])) for name in engines}
        for name in engines:
            if name != "lanes":
                ratios = [r["lanes"] / r[name] for r in rounds]
                row[f"lanes / {name}"] = f"{np.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
        rows[path.stem] = row
        facts = circumstances(rounds=options.rounds, replicas=engines["lanes"][0], seed=options.seed)
        write(
            options.output, "Replicas in vector registers beside OpenMM", facts, {"": table(rows, "molecule")}, results
        )


if __name__ == "__main__":
    main()
