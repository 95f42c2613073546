"""Folds over many relaxed jumps: are they kept, how many jumps are accepted, how fast is it beside plain MD.

    python benchmarks/folds.py villin.pdb 1FME.pdb --jumps 1000 --stride 100 [--md md_folder]

Each FILE.pdb holds one protein with all hydrogens, as `starmd prepare` writes it. An ordinary Simulation with
`StarMDIntegrator` makes the jumps; then plain MD of the same System (4 fs, OpenMM's CPU platform) is timed. Times are
CPU times of the process. CA-RMSD is to the minimised start, nm: means of the first, middle and last tenth of the run,
its greatest value, and its drift over the run with its standard error (a line through the means of 20 blocks). Where
--md has NAME_K.xtc, mean and greatest value of all of their frames, and Jensen-Shannon divergences of histograms of 20
bins, in bits: of the jumps and the MD, and of one half of the MD's replicas and the other. A jump that is given up
after its retries ends a protein's run, and the table says why.
"""

from __future__ import annotations

import time
from pathlib import Path

import mdtraj
import numpy as np
import torch
from common import circumstances, models_named, openmm_seed, parser, table, write
from openmm import LangevinMiddleIntegrator, Platform, unit
from openmm.app import PDBFile, Simulation

from openmm_starmd import StarMDIntegrator
from openmm_starmd.errors import StarMDError
from openmm_starmd.evaluation.metrics.differences import jensen_shannon
from openmm_starmd.evaluation.metrics.samples import slope
from openmm_starmd.systems import peptide_system

TEMPERATURE, TIME_STEP = 300.0, 0.004  # K, ps
BINS = 20  # of a histogram; blocks of a run


def simulation_of(pdb: PDBFile, integrator, threads: int) -> Simulation:
    """At the minimised start."""
    settings = Platform.getPlatform("CPU"), {"Threads": str(threads)}
    simulation = Simulation(pdb.topology, peptide_system(pdb.topology), integrator, *settings)
    simulation.context.setPositions(pdb.positions)
    simulation.minimizeEnergy(maxIterations=300)
    return simulation


def positions_of(simulation: Simulation) -> np.ndarray:
    """(A, 3), nm."""
    return simulation.context.getState(positions=True).getPositions(asNumpy=True)._value


def seconds(advance, steps: int) -> float:
    """CPU time of a number of steps."""
    begin = time.process_time()
    advance(steps)
    return time.process_time() - begin


def jump(simulation: Simulation, jumps: int) -> tuple[list[np.ndarray], float, str]:
    """Positions after each jump, their CPU time, and "done" or why there are no more."""
    frames, spent = [], 0.0
    for _ in range(jumps):
        try:
            spent += seconds(simulation.step, 1)
        except StarMDError as error:
            return frames, spent, " ".join(str(error).split())[:120]
        frames.append(positions_of(simulation))
    return frames, spent, "done"


def divergence(a: np.ndarray, b: np.ndarray) -> float:
    """Jensen-Shannon divergence of the histograms of two samples, bits."""
    limits = min(a.min(), b.min()), max(a.max(), b.max())
    return jensen_shannon(*(np.histogram(x, BINS, limits)[0] for x in (a, b)))


def run(path: Path, options) -> dict:
    """The row of a protein; its frames go to NAME.xtc in the folder of --frames."""
    pdb = PDBFile(str(path))
    topology = mdtraj.Topology.from_openmm(pdb.topology)
    carbons = topology.select("name CA")
    seed = openmm_seed(options.seed)
    integrator = StarMDIntegrator(
        pdb.topology, TEMPERATURE, options.stride, options.model, randomSeed=seed, strict=False
    )
    simulation = simulation_of(pdb, integrator, options.threads)
    start = mdtraj.Trajectory(positions_of(simulation), topology)
    frames, spent, end = jump(simulation, options.jumps)
    row, made = {"residues": topology.n_residues, "jumps": len(frames), "end": end}, len(frames)
    if not made:
        return row
    trajectory = mdtraj.Trajectory(np.stack(frames), topology, time=options.stride * np.arange(1, made + 1))
    if options.frames:
        options.frames.mkdir(parents=True, exist_ok=True)
        trajectory.save_xtc(str(options.frames / f"{path.stem}.xtc"))
    rmsd, tenth = mdtraj.rmsd(trajectory, start, atom_indices=carbons), max(1, made // 10)
    for name, first in {"first": 0, "middle": (made - tenth) // 2, "last": made - tenth}.items():
        row[f"RMSD, {name}"] = float(rmsd[first : first + tenth].mean())
    row["RMSD, greatest"] = float(rmsd.max())
    if made >= BINS:
        row["RMSD, drift"], row["error of the drift"] = (made * x for x in slope(rmsd, BINS))
    if options.md and (found := sorted(options.md.glob(f"{path.stem}_*.xtc"))):
        replicas = [mdtraj.rmsd(mdtraj.load(str(p), top=topology), start, atom_indices=carbons) for p in found]
        md = np.concatenate(replicas)
        row |= {"RMSD of MD": float(md.mean()), "RMSD of MD, greatest": float(md.max())}
        row["JSD of RMSD"] = divergence(rmsd, md)
        if len(replicas) > 1:
            row["JSD of RMSD, MD halves"] = divergence(*(np.concatenate(replicas[k::2]) for k in range(2)))
    acceptance = integrator.getStatistics()["acceptance"]
    row |= {"first try": acceptance["firstTry"], "after repair": acceptance["afterRepair"]}
    plain = LangevinMiddleIntegrator(TEMPERATURE, 1 / unit.picosecond, TIME_STEP)
    md_steps = max(100, round(options.md_picoseconds / TIME_STEP))
    md_rate = md_steps * TIME_STEP / seconds(simulation_of(pdb, plain, options.threads).step, md_steps)  # ps a second
    return row | {"seconds a jump": spent / made, "times plain MD": options.stride * made / spent / md_rate}


def main() -> None:
    made = parser(__doc__, "folds")
    made.add_argument("files", type=Path, nargs="+")
    made.add_argument("--model", default="starmd-protein")
    made.add_argument("--stride", type=float, default=100.0, help="ps")
    made.add_argument("--jumps", type=int, default=1000)
    made.add_argument("--md", type=Path, help="folder of MD of the same files")
    made.add_argument("--md-picoseconds", type=float, default=20.0, help="of plain MD that are timed")
    made.add_argument("--frames", type=Path, help="folder for NAME.xtc of the jumps")
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    facts = circumstances(*models_named(options.model), stride=f"{options.stride:g} ps", seed=options.seed)
    rows = {}
    for path in options.files:
        rows[path.stem] = run(path, options)
        write(options.output, "Folds over many relaxed jumps", facts, {"": table(rows, "protein")}, rows)


if __name__ == "__main__":
    main()
