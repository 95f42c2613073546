"""Short unbiased MD from many starts; resumable, one process or many, the files are the same.

A trajectory is made in blocks of frames. Every block begins in a new Context from the positions and velocities that the
block before has saved, with a seed of its own: what a stopped run makes again, here or on another machine of the same
kind, is what it would have made.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock
from openmm import (
    Context,
    CustomExternalForce,
    LangevinMiddleIntegrator,
    LocalEnergyMinimizer,
    OpenMMException,
    System,
    VerletIntegrator,
    XmlSerializer,
)
from openmm.app import Topology, XTCFile

from openmm_starmd.errors import HistoryError, StarMDError
from openmm_starmd.files import replacing
from openmm_starmd.seeds import derived
from openmm_starmd.systems.peptide import platform_of

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

BLOCK = 50  # frames
FRICTION = 1.0  # 1/ps
RESTRAINT = 10_000.0  # kJ/mol/nm^2, of heavy atoms in the minimisation
LOCKS = ".locks"


@dataclass(frozen=True, eq=False)
class Swarm:
    """Settings and starts of a swarm; it can be sent to another process."""

    folder: Path  # gets ``start0000.xtc`` with all atoms, and ``start0000.npz`` to go on from, of each start
    topology: Topology
    system: str  # XML of an OpenMM System
    starts: np.ndarray  # (S, A, 3): nm
    boxes: np.ndarray | None  # (S, 3, 3): vectors of the periodic box of each start, nm
    temperature: float  # K
    frame_interval: float  # ps
    equilibration: float  # ps; it is not written
    time_step: float  # ps
    seed: int
    platform: str

    @cached_property
    def identity(self) -> str:
        """Settings in which files must agree to be gone on with."""
        numbers = self.temperature, self.frame_interval, self.equilibration, self.time_step, self.seed
        parts = f"{self.system}{numbers}{self.platform}".encode(), np.float64(self.starts).tobytes()
        return blake2b(b"".join(parts), digest_size=16).hexdigest()

    @property
    def frame_steps(self) -> int:
        """Integrator steps of one frame interval."""
        return max(1, round(self.frame_interval / self.time_step))

    def path(self, number: int, suffix: str = "xtc") -> Path:
        """File of a start."""
        return self.folder / f"start{number:04d}.{suffix}"

    def failure(self, number: int) -> str:
        """Why a start has been given up, or nothing."""
        path = self.path(number, "failed")
        return path.read_text() if path.exists() else ""

    def frames(self, number: int) -> int:
        """Frames that the trajectory of a start has in the folder."""
        return self._load(number)[0]

    def advance(self, number: int, n_frames: int, progress: Callable[[int], None] = lambda frames: None) -> int:
        """Bring one trajectory to so many frames from what the folder holds; returns how many frames are new.

        A start that leads to numbers that are not finite is given up: its file ``.failed`` says so, and it keeps no
        frames.
        """
        (self.folder / LOCKS).mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / LOCKS / f"start{number:04d}"):
            if self.failure(number):
                return 0
            frame, state, size = self._load(number)
            begun = frame
            if self.path(number).exists() and self.path(number).stat().st_size > size:
                os.truncate(self.path(number), size)
            while frame < n_frames:
                until = min(n_frames, (frame // BLOCK + 1) * BLOCK)
                try:
                    frames, state = self._simulate(number, frame, until, state)
                except OpenMMException as error:
                    self._give_up(number, str(error))
                    return 0
                self._save(number, frame, frames, state)
                progress(until - frame)
                frame = until
        return frame - begun

    def _load(self, number: int) -> tuple[int, dict | None, int]:
        """Frames, state to go on from, and bytes of the trajectory that belong to it."""
        path = self.path(number, "npz")
        if not path.exists():
            return 0, None, 0
        try:
            with np.load(path, allow_pickle=False) as file:
                state = {name: file[name] for name in file.files}
            frame, size, identity = int(state.pop("frame")), int(state.pop("bytes")), str(state.pop("identity"))
        except Exception as error:  # numpy and zipfile raise what they happen to raise
            raise HistoryError(f"{path} is damaged ({error}); remove it to run this start anew.") from error
        if identity != self.identity:
            raise HistoryError(
                f"{path} belongs to another System, temperature, interval, seed or learned run; go on with those, or "
                "name another folder."
            )
        if not self.path(number).exists() or self.path(number).stat().st_size < size:
            raise HistoryError(f"{self.path(number)} lacks frames that {path} goes on from; remove both files.")
        return frame, state, size

    def _save(self, number: int, frame: int, frames: list, state: dict):
        """Append frames to the trajectory, then keep the state with the length that belongs to it."""
        file = XTCFile(
            str(self.path(number)), self.topology, self.time_step, self.frame_steps, self.frame_steps, append=frame > 0
        )
        for positions, box in frames:
            file.writeModel(positions, periodicBoxVectors=box)
        size = self.path(number).stat().st_size
        with replacing(self.path(number, "npz")) as partial, open(partial, "wb") as file:
            np.savez(file, frame=frame + len(frames), bytes=size, identity=self.identity, **state)

    def _give_up(self, number: int, reason: str):
        for suffix in ("xtc", "npz"):
            self.path(number, suffix).unlink(missing_ok=True)
        self.path(number, "failed").write_text(" ".join(reason.split()) + "\n")
        logger.warning("start %d is given up: %s", number, reason)

    def _simulate(self, number: int, frame: int, until: int, state: dict | None) -> tuple[list, dict]:
        """Frames (positions (A, 3) in nm, box or None) up to ``until``, and the state after them."""
        seed = derived("swarm", self.seed, number, frame) % (2**31 - 1) + 1
        system = XmlSerializer.deserialize(self.system)
        for force in system.getForces():
            if hasattr(force, "setRandomNumberSeed"):
                force.setRandomNumberSeed(seed)
        integrator = LangevinMiddleIntegrator(self.temperature, FRICTION, self.time_step)
        integrator.setRandomNumberSeed(seed)
        context = Context(system, integrator, *platform_of(self.platform))
        periodic = system.usesPeriodicBoundaryConditions()
        if state is None:
            self._begin(context, number, seed)
        else:
            if periodic:
                context.setPeriodicBoxVectors(*state["box"])
            context.setPositions(state["positions"])
            context.setVelocities(state["velocities"])
        frames = []
        for _ in range(frame, until):
            integrator.step(self.frame_steps)
            positions = context.getState(positions=True).getPositions(asNumpy=True)._value
            if not np.isfinite(positions).all():
                raise OpenMMException("a position is not finite")
            frames.append((positions, context.getState().getPeriodicBoxVectors() if periodic else None))
        last = context.getState(positions=True, velocities=True)
        kept = {
            "positions": last.getPositions(asNumpy=True)._value,
            "velocities": last.getVelocities(asNumpy=True)._value,
            "box": last.getPeriodicBoxVectors(asNumpy=True)._value,
        }
        return frames, kept

    def _begin(self, context: Context, number: int, seed: int):
        """Bring a Context to a start, its strain relaxed with heavy atoms held, and equilibrate.

        Velocities of twice the temperature give back what the minimisation has taken.
        """
        system, positions = context.getSystem(), self.starts[number]
        box = None if self.boxes is None else self.boxes[number]
        if box is not None and system.usesPeriodicBoundaryConditions():
            context.setPeriodicBoxVectors(*box)
        context.setPositions(relax_strain(system, self.topology, positions, box, self.platform))
        context.applyConstraints(1e-6)
        context.setVelocitiesToTemperature(2 * self.temperature, seed)
        context.getIntegrator().step(round(self.equilibration / self.time_step))


def relax_strain(
    system: System, topology: Topology, positions: np.ndarray, box: np.ndarray | None = None, platform: str = "CPU"
) -> np.ndarray:
    """Positions (A, 3), nm, minimised with a spring from every heavy atom to where it is."""
    held = XmlSerializer.clone(system)
    spring = CustomExternalForce(f"{RESTRAINT / 2}*((x-x0)^2+(y-y0)^2+(z-z0)^2)")
    for name in ("x0", "y0", "z0"):
        spring.addPerParticleParameter(name)
    for atom in topology.atoms():
        if atom.element is not None and atom.element.mass._value > 2.5:
            spring.addParticle(atom.index, positions[atom.index])
    held.addForce(spring)
    context = Context(held, VerletIntegrator(0.001), *platform_of(platform))
    if box is not None and system.usesPeriodicBoundaryConditions():
        context.setPeriodicBoxVectors(*box)
    context.setPositions(positions)
    LocalEnergyMinimizer.minimize(context, 10.0, 100)
    return context.getState(positions=True).getPositions(asNumpy=True)._value


def run_swarm(
    swarm: Swarm,
    n_frames: int,
    *,
    processes: int = 1,
    client: Client | None = None,
    progress: Callable[[int], None] = lambda frames: None,
) -> list[int]:
    """Bring all trajectories to so many frames; numbers of the starts that have not been given up.

    The trajectories are made by so many ``processes`` with one CPU thread each, or by the workers of a Dask ``client``,
    which see the folder under the same path. ``progress`` gets numbers of frames that add up, those that the folder
    holds first.

    A HistoryError says that files in the folder are damaged or belong to other settings, a StarMDError that every start
    has been given up.
    """
    numbers = [k for k in range(len(swarm.starts)) if not swarm.failure(k)]
    progress(sum(min(n_frames, swarm.frames(number)) for number in numbers))
    for frames in _all(swarm, numbers, n_frames, processes, client, progress):
        progress(frames)
    failures = {k: text for k in range(len(swarm.starts)) if (text := swarm.failure(k))}
    if len(failures) == len(swarm.starts):
        raise StarMDError(
            f"All {len(failures)} starts were given up, the first because: {failures[0].strip()}; does the System fit "
            "the learned run, and the time step the System?"
        )
    return [k for k in range(len(swarm.starts)) if k not in failures]


def _all(swarm, numbers, n_frames, processes, client, progress) -> Iterator[int]:
    """New frames of each trajectory that is finished in another process; those made here report themselves."""
    if client is not None:
        from distributed import as_completed as completed

        from openmm_starmd.rollout.cluster import require_client

        require_client(client)
        tasks = [client.submit(swarm.advance, number, n_frames, pure=False) for number in numbers]
        yield from (task.result() for task in completed(tasks))
    elif processes > 1:
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            tasks = [pool.submit(swarm.advance, number, n_frames) for number in numbers]
            try:
                yield from (task.result() for task in as_completed(tasks))
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
    else:
        for number in numbers:
            swarm.advance(number, n_frames, progress)
