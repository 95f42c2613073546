"""Make reference MD of peptides from their sequences, or of proteins from PDB files: ff14SB + OBC2, resumable.

Physics: LangevinMiddle integrator, 1/ps, 4 fs steps with 4-amu hydrogens and HBonds constraints.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

import numpy as np
from openmm import LangevinMiddleIntegrator, unit
from openmm.app import PDBFile, Simulation, XTCFile

from openmm_starmd.errors import HistoryError, StarMDError
from openmm_starmd.files import check_output_folder, replacing
from openmm_starmd.systems.build import THREE_LETTER
from openmm_starmd.systems.peptide import peptide_system, platform_of
from openmm_starmd.training.simulation_run import FRICTION, TIME_STEP, SimulationRun
from openmm_starmd.training.simulation_run import seed_of as seed_of  # by which the recipes know it
from openmm_starmd.training.tiled_system import TiledSystem
from openmm_starmd.units import wholeNumber

logger = logging.getLogger(__name__)
EQUILIBRATION_STEPS, RETURN_STEPS = 25_000, 2_500


def within_one_residue(first: str, second: str) -> bool:
    """True if one substitution, insertion or deletion at most leads from one sequence to the other."""
    if len(first) > len(second):
        first, second = second, first
    if len(second) - len(first) > 1:
        return False
    if len(first) == len(second):
        return sum(a != b for a, b in zip(first, second, strict=True)) <= 1
    return any(first == second[:i] + second[i + 1 :] for i in range(len(second)))


def coverage_sequences(length: int, blocks: int, seed: int, exclude: Iterable[str] = ()) -> list[str]:
    """Sequences in which every residue type stands equally often in every position.

    Parameters
    ----------
    length : int
        Residues per sequence.
    blocks : int
        A block holds 20 sequences with each residue type once in every position.
    seed : int
    exclude : iterable of str
        Sequences kept for judging: what differs from one of them by one residue at most is passed over, so that a
        block can lose members.

    Returns
    -------
    list of str, at most 20 * blocks
    """
    rng = random.Random(seed)
    exclude = list(exclude)
    sequences = []
    for _ in range(blocks):
        columns = [rng.sample(list(THREE_LETTER), len(THREE_LETTER)) for _ in range(length)]
        for row in zip(*columns, strict=True):
            sequence = "".join(row)
            if not any(within_one_residue(sequence, other) for other in exclude):
                sequences.append(sequence)
    return sequences


def _new_simulation(run: SimulationRun, tiled: TiledSystem) -> Simulation:
    integrator = LangevinMiddleIntegrator(run.temperature, FRICTION, TIME_STEP)
    integrator.setRandomNumberSeed(run.run_seed)
    system = peptide_system(tiled.topology, tiled.cutoff)
    return Simulation(tiled.topology, system, integrator, *platform_of(run.platform))


def _silent(text: str, done: float) -> None:
    """Progress that nobody watches."""


def _save(runs: Sequence[SimulationRun], simulation: Simulation) -> None:
    """Write the checkpoint with the lengths of the trajectories that belong to it, in one atomic step."""
    sizes = {run.name: run.path("xtc").stat().st_size for run in runs}
    header = json.dumps({"step": simulation.currentStep, "xtc_bytes": sizes})
    with replacing(runs[0].path("chk")) as partial:
        partial.write_bytes(header.encode() + b"\n" + simulation.context.createCheckpoint())


def _start(runs: Sequence[SimulationRun]) -> tuple[TiledSystem, Simulation]:
    """Build, minimise and equilibrate; leaves each NAME.pdb and .json, an empty NAME.xtc and the first checkpoint."""
    molecules = [run.start() for run in runs]
    tiled = TiledSystem(molecules)
    simulation = _new_simulation(runs[0], tiled)
    simulation.context.setPositions(tiled.positions)
    simulation.context.setVelocitiesToTemperature(runs[0].temperature, runs[0].run_seed)
    positions = _advance(tiled, simulation, EQUILIBRATION_STEPS)
    simulation.context.setTime(0)
    simulation.currentStep = 0
    for run, (topology, _), atoms in zip(runs, molecules, tiled.parts, strict=True):
        with open(run.path("pdb"), "w") as file:
            PDBFile.writeFile(topology, positions[atoms] * unit.nanometer, file, keepIds=True)
        run.path("xtc").write_bytes(b"")
        run.note_settings()
    _save(runs, simulation)
    return tiled, simulation


def _advance(tiled: TiledSystem, simulation: Simulation, steps: int) -> np.ndarray:
    """Positions (A, 3), nm, some steps later; the tiled molecules return to their places meanwhile."""
    every = RETURN_STEPS if tiled.cutoff else steps
    for done in range(0, steps, every):
        simulation.step(min(every, steps - done))
        positions = tiled.in_place(simulation.context.getState(positions=True).getPositions(asNumpy=True)._value)
        if tiled.cutoff:
            simulation.context.setPositions(positions)
    return positions


def _resume(runs: Sequence[SimulationRun]) -> tuple[TiledSystem, Simulation]:
    """Go back to the last checkpoint; frames written after it are cut off, they will be made again."""
    header, checkpoint = runs[0].path("chk").read_bytes().split(b"\n", 1)
    header = json.loads(header)
    names = [run.name for run in runs]
    if list(header["xtc_bytes"]) != names:
        raise StarMDError(
            f"{runs[0].path('chk')} goes on with {', '.join(header['xtc_bytes'])} together, not {', '.join(names)}; "
            "give the same molecules, and as many of them together, or name another output folder"
        )
    for run in runs:
        if run.frame_bytes < header["xtc_bytes"][run.name]:
            raise HistoryError(
                f"{run.path('xtc')} lacks frames that {runs[0].path('chk')} goes on from; restore it, or name another "
                "output folder"
            )
    pdbs = [PDBFile(str(run.path("pdb"))) for run in runs]
    tiled = TiledSystem([(pdb.topology, np.array(pdb.positions._value)) for pdb in pdbs])
    simulation = _new_simulation(runs[0], tiled)
    simulation.context.loadCheckpoint(checkpoint)
    simulation.currentStep = header["step"]
    for run in runs:
        os.truncate(run.path("xtc"), header["xtc_bytes"][run.name])
    return tiled, simulation


def _execute(runs: Sequence[SimulationRun], progress: Callable[[str, float], None] = _silent) -> str:
    """Make or continue the trajectories of one System; returns a line for the log."""
    first, name = runs[0], _together(runs)
    if all(run.finished for run in runs):
        return f"{name}: there"
    tiled, simulation = _resume(runs) if first.path("chk").exists() else _start(runs)
    per_frame, total = first.frame_steps, first.total_steps
    block = max(1, round(first.checkpoint_interval * 1000 / first.frame_interval)) * per_frame
    begin, made = time.perf_counter(), (total - simulation.currentStep) * TIME_STEP / 1000
    topologies = [PDBFile(str(run.path("pdb"))).topology for run in runs]
    files = [
        XTCFile(str(run.path("xtc")), topology, TIME_STEP, per_frame, per_frame, simulation.currentStep > 0)
        for run, topology in zip(runs, topologies, strict=True)
    ]
    while simulation.currentStep < total:
        positions = _advance(tiled, simulation, per_frame)
        for file, atoms in zip(files, tiled.parts, strict=True):
            file.writeModel(positions[atoms])
        if simulation.currentStep % block == 0 or simulation.currentStep == total:
            _save(runs, simulation)
            progress(name, simulation.currentStep / total)
    for run in runs:
        run.path("done").write_text(f"{run.nanoseconds}\n")
    return f"{name}: {made:.3f} ns at {made / (time.perf_counter() - begin) * 86400:.0f} ns/day"


def _refuse_shared_files(runs: Sequence[SimulationRun]) -> None:
    """Raise StarMDError where two trajectories would be written to one file."""
    first = {}
    for run in runs:
        other = first.setdefault(run.name, run)
        if other is not run:
            raise StarMDError(
                f"{other.molecule} and {run.molecule} would both be written to {run.path('xtc')}; give them different "
                "names, or output folders of their own"
            )


def _refuse_other_settings(runs: Sequence[SimulationRun]) -> None:
    """Raise HistoryError where the folder holds what one System must neither go on with nor write over."""
    begun = [run for run in runs if run.begun]
    for run in begun:
        run.refuse_other_settings()
    if begun and not (runs[0].path("chk").exists() or all(run.finished for run in runs)):
        raise HistoryError(
            f"{begun[0].path('xtc')} cannot be gone on with, because {runs[0].path('chk')} is not there; give all "
            "molecules that were made together with it, in the same order, or name another output folder."
        )


def _together(runs: Sequence[SimulationRun]) -> str:
    return runs[0].name if len(runs) == 1 else f"{runs[0].name} and {len(runs) - 1} more"


def simulate(
    sequences: Sequence[str],
    output: str | os.PathLike,
    nanoseconds: float,
    *,
    frame_interval: float = 5.0,
    checkpoint_interval: float = 0.1,
    temperature: float = 300.0,
    replicas: int = 1,
    processes: int = 1,
    together: int = 1,
    seed: int = 0,
    platform: str = "CPU",
    progress: Callable[[str, float], None] = _silent,
) -> list[str]:
    """Simulate each molecule; resumable, and a second call with more nanoseconds continues every trajectory.

    Parameters
    ----------
    sequences : sequence of str
        One-letter codes, with caps as in ``"ace-AAAA-nme"``, or names of PDB files with all hydrogens, as `prepare`
        makes them.
    output : path
        Folder that gets NAME.pdb (all atoms, the start), NAME.xtc, NAME.json (what the trajectory is made with),
        NAME.chk (of the first of a System) and, at the end, NAME.done for each; NAME is the sequence, with caps as in
        ``ACE_AAAA_NME``, or the stem of the PDB file.
    nanoseconds : float
        Length of each trajectory after 100 ps of equilibration.
    frame_interval : float
        ps between frames; the first frame stands at one interval.
    checkpoint_interval : float
        ns between checkpoints. A killed run goes back to the last one and makes the same frames again.
    temperature : float
        K.
    replicas : int
        Trajectories of each molecule; those after the first are called NAME_2, NAME_3 and so on. A second call with
        more of them keeps those that are there.
    processes : int
        Systems simulated at a time, one CPU thread each.
    together : int
        Trajectories made in one System, far apart from each other: for a GPU, which one small molecule leaves idle. A
        CPU gains nothing by it.
    seed : int
        With the name, and those of the others in the System, it fixes start, velocities and noise of each trajectory; 0
        is a seed like any other.
    platform : str
        OpenMM platform.
    progress : callable
        Takes what is being made, and how much of everything is done (0 to 1).

    Returns
    -------
    list of str
        Names of the trajectories, in the order given.

    Raises
    ------
    HistoryError
        If the folder holds trajectories of another molecule or start, another temperature, frame interval, seed or
        platform, or such as have no NAME.json; names them, and nothing is made.
    StarMDError
        If two molecules have one NAME; nothing is made. At the end, if trajectories failed; names them. The others are
        complete.
    """
    output = check_output_folder(output)
    settings = nanoseconds, frame_interval, checkpoint_interval, temperature, seed, platform
    numbers = range(1, wholeNumber("replicas", replicas, 1) + 1)
    runs = [SimulationRun(molecule, output, *settings, replica) for molecule in sequences for replica in numbers]
    together, processes = wholeNumber("together", together, 1), wholeNumber("processes", processes, 1)
    systems = [runs[k : k + together] for k in range(0, len(runs), together)]
    _refuse_shared_files(runs)
    for system in systems:
        _refuse_other_settings(system)
    output.mkdir(parents=True, exist_ok=True)
    failed = []

    def collect(system, result):
        try:
            logger.info("%s", result())
        except Exception as error:
            name = _together(system)
            logger.error("%s failed: %r", name, error)
            failed.append(f"{name} ({error})")

    if processes == 1:
        for number, system in enumerate(systems):

            def part(name, done, number=number):
                progress(name, (number + done) / len(systems))

            part(_together(system), 0.0)
            collect(system, lambda system=system, part=part: _execute(system, part))
    else:
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            futures = {pool.submit(_execute, system): system for system in systems}
            progress(f"{len(systems)} runs", 0.0)
            for number, future in enumerate(as_completed(futures)):
                collect(futures[future], future.result)
                progress(f"{len(systems) - number - 1} of {len(systems)} runs left", (number + 1) / len(systems))
    if failed:
        raise StarMDError(f"{len(failed)} of {len(systems)} runs failed: {'; '.join(failed)}")
    return [run.name for run in runs]
