"""The function `refine`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import mdtraj
import numpy as np
from openmm import System, XmlSerializer, unit
from openmm.app import PDBFile, Topology

from openmm_starmd.errors import StarMDError, TrajectoryError, require
from openmm_starmd.files import check_output_folder, replacing
from openmm_starmd.refinement.coordinates import Features, cut_into_states, protein_features, slow_coordinates
from openmm_starmd.refinement.estimation import estimate
from openmm_starmd.refinement.refined import Refinement
from openmm_starmd.refinement.starts import choose_starts
from openmm_starmd.refinement.swarm import Swarm, run_swarm
from openmm_starmd.systems import peptide_system
from openmm_starmd.trajectories.frames import Source, check_atoms, name_of, pieces
from openmm_starmd.trajectories.times import frame_interval as interval_of
from openmm_starmd.trajectories.times import frames_in
from openmm_starmd.units import positiveIn, valueIn, wholeNumber

if TYPE_CHECKING:
    from distributed import Client

OWN_TIME_STEP, TIME_STEP = 0.004, 0.002  # ps: of `peptide_system`, whose hydrogens are heavy, and of any other System
LAG_PART = 10  # slow coordinates are those of a lag of this part of a trajectory


def refine(
    learned: Source | Sequence[Source],
    topology: Topology,
    *,
    nanoseconds,
    output: str | os.PathLike,
    n_starts: int = 64,
    system: System | None = None,
    temperature=300.0,
    stride=None,
    frame_interval=2.0,
    equilibration=5.0,
    time_step=None,
    lag=None,
    n_states: int | None = None,
    precision: float = 2.0,
    features: Features = protein_features,
    seed: int = 0,
    processes: int = 1,
    platform: str = "CPU",
    client: Client | None = None,
    progress: Callable[[str, float], None] = lambda text, done: None,
) -> Refinement:
    """Populations, free energies and rates of a force field, by a swarm of MD from conformations of a learned run.

    A stopped call goes on by the same call, and a call with more nanoseconds prolongs every trajectory. What a longer
    swarm has to be, the result says (`Refinement.more_nanoseconds`).

    Parameters
    ----------
    learned : path, mdtraj.Trajectory, or sequence of them
        Trajectories of jumps with all atoms, as `rollout` writes them. They propose conformations: how often they visit
        a state has no influence on the result.
    topology : Topology
        Of the trajectories and the System.
    nanoseconds : Quantity or float
        Length of the trajectory from each start, ns.
    output : path
        Folder for the swarm (``swarm/start0000.xtc``), the result (``refined.md``, ``refined.json``) and a conformation
        of each metastable set (``sets.pdb``, a model each).
    n_starts : int
        Conformations of the learned run that MD starts from; they are spread along its slow coordinates.
    system : System, optional
        The force field; by default ff14SB and OBC2 (`peptide_system`).
    temperature : Quantity or float
        K.
    stride : Quantity or float, optional
        Between frames of the learned run, ps, in place of what its files say.
    frame_interval, equilibration : Quantity or float
        Between frames of the swarm, and before the first of them, ps.
    time_step : Quantity or float, optional
        ps; by default 0.004 of the default System and 0.002 of any other.
    lag : Quantity or float, optional
        Of the Markov state model, ps; by default the shortest that does.
    n_states : int, optional
        States of the model; by default one per 100 frames of the swarm and 100 at most.
    precision : float
        Factor within which the slowest timescale, and the ratio of the populations of a set and of the rest, have to be
        known to be judged.
    features : callable
        Takes an mdtraj.Trajectory of T frames, returns what describes each (T, F); by default torsions of a peptide or
        CA distances of a protein.
    seed : int
    processes : int
        Trajectories at a time, one CPU thread each.
    platform : str
        OpenMM platform.
    client : distributed.Client, optional
        Its workers make the trajectories; they must see the folder ``output`` under the same path.
    progress : callable
        Takes what is being done, and how much of it is done (0 to 1).

    Returns
    -------
    Refinement

    Raises
    ------
    TrajectoryError
        If the learned run cannot be read or does not fit the topology.
    HistoryError
        If the folder holds a swarm of other settings.
    StarMDError
        If every start fails.
    """
    output = check_output_folder(output)
    n_starts, seed = wholeNumber("n_starts", n_starts, 1), wholeNumber("seed", seed)
    n_frames = frames_in(nanoseconds, frame_interval, "frame_interval")
    require(n_frames >= 5, f"nanoseconds must be at least five frame intervals; got {nanoseconds} ns")
    frame_interval, equilibration = valueIn(frame_interval, unit.picoseconds), valueIn(equilibration, unit.picoseconds)
    require(0 <= equilibration < math.inf, f"equilibration must be at least 0 ps and finite; got {equilibration:g} ps")
    temperature = positiveIn("temperature", temperature, unit.kelvin)
    require(1 < precision < math.inf, f"precision must be a finite factor above 1; got {precision}")
    if time_step is None:
        time_step = OWN_TIME_STEP if system is None else TIME_STEP
    time_step = positiveIn("time_step", time_step, unit.picoseconds)
    require(frame_interval >= time_step, f"frame_interval must be at least a time step of {time_step:g} ps")
    stride = None if stride is None else positiveIn("stride", stride, unit.picoseconds)
    lag = None if lag is None else positiveIn("lag", lag, unit.picoseconds)
    system = peptide_system(topology) if system is None else system
    if system.getNumParticles() != topology.getNumAtoms():
        raise StarMDError(
            f"The System has {system.getNumParticles()} particles, the topology {topology.getNumAtoms()} atoms: both "
            "must describe the same molecules."
        )
    run = _Learned(learned, topology, features, stride, progress)
    positions, boxes = run.conformations(choose_starts(run.slow_points(), n_starts))
    swarm = Swarm(
        folder=(output / "swarm").absolute(),
        topology=topology,
        system=XmlSerializer.serialize(system),
        starts=positions,
        boxes=boxes,
        temperature=temperature,
        frame_interval=frame_interval,
        equilibration=equilibration,
        time_step=time_step,
        seed=seed,
        platform=platform,
    )
    total, made = n_frames * len(positions), 0

    def count(frames):
        nonlocal made
        made += frames
        progress(f"{made * frame_interval / 1000:.3g} of {total * frame_interval / 1000:.3g} ns", made / total)

    numbers = run_swarm(swarm, n_frames, processes=processes, client=client, progress=count)
    progress("estimating", 0.0)
    files = [swarm.path(number) for number in numbers]
    described = [features(mdtraj.load(str(file), top=run.topology)) for file in files]
    coordinates = slow_coordinates(described, max(1, n_frames // LAG_PART))
    points = [coordinates.transform(f) for f in described]
    model = cut_into_states(points, n_states, seed)
    result = estimate(
        [model.transform(p) for p in points],
        frame_interval,
        learned=[model.transform(coordinates.transform(f)) for f in run.features],
        learned_interval=run.interval,
        temperature=temperature,
        lag=lag,
        precision=precision,
        seed=seed,
    )
    result.settings.update(starts=len(positions), failed=len(positions) - len(numbers), equilibration=equilibration)
    result.write(output)
    _write_sets(output / "sets.pdb", result, points, files, model, topology)
    return result


class _Learned:
    """The learned run: features, interval (ps) and, by a second reading, chosen conformations."""

    def __init__(self, learned, topology: Topology, features: Features, stride: float | None, progress):
        self.sources = list(learned) if isinstance(learned, list | tuple) else [learned]
        if not self.sources:
            raise TrajectoryError("No trajectory of a learned run was given: expected at least one.")
        self.topology = mdtraj.Topology.from_openmm(topology)
        self.features, intervals = [], []
        for number, source in enumerate(self.sources):
            progress("reading the learned run", number / len(self.sources))
            check_atoms(source, self.topology)
            found = [(features(piece), piece.time) for piece in self._pieces(number)]
            if not found:
                raise TrajectoryError(f"{name_of(self.sources[number], number)} holds no frames.")
            self.features.append(np.concatenate([f for f, _ in found]))
            times = np.concatenate([t for _, t in found])
            if stride is None and len(times) > 1:
                intervals.append(interval_of(times, name_of(self.sources[number], number), "give the stride"))
        if stride is None and (not intervals or max(intervals) > 1.02 * min(intervals)):
            raise TrajectoryError("The files of the learned run tell no common stride; give it in ps.")
        self.interval = intervals[0] if stride is None else stride

    def _pieces(self, number: int):
        everything = np.arange(self.topology.n_atoms)
        for piece in pieces(self.sources[number], self.topology, everything, name_of(self.sources[number], number)):
            yield piece if piece.unitcell_lengths is None else piece.make_molecules_whole()

    def slow_points(self) -> list[np.ndarray]:
        """Points (T, D) of every frame in the slow coordinates of the run; where there are none, the features."""
        try:
            coordinates = slow_coordinates(self.features, 1)
        except TrajectoryError:  # a few single conformations will do to start from
            return self.features
        return [coordinates.transform(f) for f in self.features]

    def conformations(self, chosen: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray | None]:
        """Positions (S, A, 3), nm, and box vectors (S, 3, 3) or None of frames of trajectories."""
        positions = np.zeros((len(chosen), self.topology.n_atoms, 3))
        boxes = np.zeros((len(chosen), 3, 3))
        periodic = False
        for number in {number for number, _ in chosen}:
            done = 0
            for piece in self._pieces(number):
                for k, (other, frame) in enumerate(chosen):
                    if other == number and done <= frame < done + piece.n_frames:
                        positions[k] = piece.xyz[frame - done]
                        if piece.unitcell_vectors is not None:
                            boxes[k], periodic = piece.unitcell_vectors[frame - done], True
                done += piece.n_frames
        return positions, boxes if periodic else None


def _write_sets(path: Path, result: Refinement, points, files, model, topology: Topology) -> None:
    """A conformation of each metastable set: the frame nearest to the centre of its most populated state."""
    atoms = mdtraj.Topology.from_openmm(topology)
    with replacing(path) as partial, open(partial, "w") as file:
        PDBFile.writeHeader(topology, file)
        for k in range(result.sets.max() + 1):
            state = np.where(result.sets == k, result.populations[0], -1.0).argmax()
            distances = [np.linalg.norm(p - model.cluster_centers[state], axis=1) for p in points]
            number = int(np.argmin([d.min() for d in distances]))
            frame = mdtraj.load_frame(str(files[number]), int(distances[number].argmin()), top=atoms)
            PDBFile.writeModel(topology, frame.xyz[0] * unit.nanometer, file, modelIndex=k + 1, keepIds=True)
        PDBFile.writeFooter(topology, file)
