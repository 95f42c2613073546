"""The function `rollout`."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from openmm import System, unit
from openmm.app import PDBFile, Topology

from openmm_starmd.binding.context import refuseNotFinite, refuseOtherMolecules
from openmm_starmd.binding.statistics import acceptance
from openmm_starmd.domain import warn_of_numbering
from openmm_starmd.errors import JumpRejectedError, StarMDError, require
from openmm_starmd.files import check_output_folder, replacing, write_json
from openmm_starmd.interface import JumpPropagator
from openmm_starmd.model import StarMDModel
from openmm_starmd.plugins import NewPropagator
from openmm_starmd.protein.tokens import ResidueTokens, refuse_missing_atoms
from openmm_starmd.relaxation import Relaxation
from openmm_starmd.rollout.ensemble import Ensemble
from openmm_starmd.rollout.replica import LOCKS
from openmm_starmd.trajectories.xtc import LAST_STEP
from openmm_starmd.units import positiveIn, wholeNumber

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

TOPOLOGY, STATISTICS = "topology.pdb", "statistics.json"
BATCH_OF_TASK = 8  # with relaxation, larger batches gain little


def rollout(
    model: str | os.PathLike | StarMDModel | type[JumpPropagator],
    topology: Topology,
    positions,
    *,
    stride,
    n_steps: int,
    n_replicas: int = 1,
    seed: int = 0,
    output: str | os.PathLike,
    resume: bool = False,
    temperature=300.0,
    system: System | None = None,
    relaxation: Relaxation = Relaxation(),  # noqa: B008 - frozen
    denoising_steps: int | None = None,
    context_frames: int | None = None,
    max_retries: int = 5,
    strict: bool | Mapping[str, bool] = True,
    device: str = "auto",
    checkpoint_steps: int = 100,
    workers: int = 1,
    batch_size: int | None = None,
    client: Client | None = None,
    progress: Callable[[int], None] = lambda frames: None,
) -> list[Path]:
    """Sample B trajectories of jumps.

    Several machines share the work by Dask: give the ``client`` of a cluster whose workers see the folder ``output``
    under the same path. Batches are the units of work; the result is that of a run without a client and with the same
    ``batch_size``. Each replica is finished once, whatever becomes of the workers: what a worker had under way when it
    died, another repeats from the last state; and no two processes write the same files, because each locks them as
    long as it lives (this needs a file system with locks that all machines respect, as NFS has). Dask gives up a
    stretch between two states in which four workers have died (its setting ``distributed.scheduler.allowed-failures``);
    the others go on. ``examples/slurm_ensemble.py`` runs on a SLURM cluster.

    Parameters
    ----------
    model : str, path, StarMDModel or class of JumpPropagator
        As of `StarMDIntegrator`.
    topology : Topology
    positions : Quantity or array, shape (A, 3) or (B, A, 3)
        Start of all replicas, or of each, nm; molecules whole.
    stride : Quantity or float
        Physical time of a step, ps.
    n_steps : int
        Length of each trajectory, those steps included that it has already when it is resumed.
    n_replicas : int
        B, the number of trajectories.
    seed : int
        Replica k of a seed is the same whatever the others are; 0 is a seed like any other.
    output : path
        Folder for ``topology.pdb`` and, for each replica, ``replica0000.xtc`` (all atoms, a frame a step, the first at
        one stride) and ``replica0000.state`` to go on from. At the end of a call ``statistics.json`` tells what the
        call has sampled: ``steps``, ``resampled``, ``repaired`` and ``acceptance``, as `getStatistics` of the
        integrator; the log has a line of it.
    resume : bool
        Go on with what the folder holds, up to ``n_steps``; replicas that are not there yet start.
    temperature : Quantity or float
        K.
    system : System, optional
        Under its forces the starts are minimised and every conformation is relaxed; without one, frames are what the
        network samples.
    relaxation : Relaxation
        Of mode "minimize"; used where there is a System.
    denoising_steps, context_frames : int, optional
        The model's own by default.
    max_retries : int
        How often a conformation that fails the checks and cannot be repaired is sampled again.
    strict : bool or dict
        Whether leaving the domain of the model is an error; otherwise it is a warning. ``{"length": False}`` makes a
        warning of one reason alone; the error names the reasons.
    device : str
        Where the network runs.
    checkpoint_steps : int
        Steps between states; a run that was killed repeats those since the last one, exactly.
    workers : int
        Contexts that relax at a time, with one CPU thread each.
    batch_size : int, optional
        Replicas in a batch of the network, batch after batch: all by default, 8 with a ``client``.
    client : distributed.Client, optional
        Its workers do the work, best of one thread each; ``device`` and ``workers`` hold for every one of them.
    progress : callable
        Gets numbers of frames that add up: those that the folder holds first, then the new ones of each round, or of
        each stretch between states with a ``client``.

    Returns
    -------
    list of Path
        The XTC files.

    Raises
    ------
    ModelDomainError, UnsupportedTopologyError
        If the model does not know the system.
    JumpRejectedError
        At the end, if replicas have found no acceptable conformation; names them. They have stopped before that jump,
        and go on from there with more ``max_retries``; the others are complete.
    HistoryError
        If a state to go on from is damaged, of another model, molecule, start, System, stride, temperature, seed or
        relaxation, or of an earlier version.
    OSError
        If files cannot be written. After this and any other error, Ctrl-C included, ``resume`` goes on: from the last
        step where a state could still be written, otherwise from the last state.
    StarMDError
        If the folder holds trajectories and ``resume`` is not asked for, or another process is writing them.
    """
    n_steps, n_replicas = wholeNumber("n_steps", n_steps, 1), wholeNumber("n_replicas", n_replicas, 1)
    require(n_steps <= LAST_STEP, f"n_steps must be at most {LAST_STEP:,}, which is what an XTC file can count to.")
    if batch_size is None:
        batch_size = n_replicas if client is None else BATCH_OF_TASK
    batch_size, place = wholeNumber("batch_size", batch_size, 1), device if client is None else "cpu"
    if client is not None:
        from openmm_starmd.rollout.cluster import distribute  # Dask is an extra
    output = check_output_folder(output)
    refuse_missing_atoms(topology)
    stride = positiveIn("stride", stride, unit.picoseconds)
    temperature = positiveIn("temperature", temperature, unit.kelvin)
    tokens = ResidueTokens.from_topology(topology)
    warn_of_numbering(tokens)
    ensemble = Ensemble(
        folder=output if client is None else output.absolute(),
        new_propagator=NewPropagator.of(model, tokens, stride, temperature, place, strict),
        topology=topology,
        starts=_starts(positions, topology, n_replicas),
        stride=stride,
        temperature=temperature,
        seed=wholeNumber("seed", seed),
        system=system,
        relaxation=relaxation,
        denoising_steps=denoising_steps,
        context_frames=context_frames,
        max_retries=wholeNumber("max_retries", max_retries),
        checkpoint_steps=wholeNumber("checkpoint_steps", checkpoint_steps, 1),
        workers=wholeNumber("workers", workers, 1),
    )
    ensemble.check()
    refuseOtherMolecules(topology)
    sampler = ensemble.sampler()  # finds what else is wrong, before there are files
    steps = _prepare(ensemble, resume)
    if any(steps):
        progress(sum(min(step, n_steps) for step in steps))
    batches = [list(range(first, min(first + batch_size, n_replicas))) for first in range(0, n_replicas, batch_size)]
    if client is None:
        reached = [r for batch in batches for r in ensemble.advance(batch, n_steps, sampler, progress=progress)]
    else:
        reached = distribute(client, ensemble, batches, steps, n_steps, device, progress)
    _tell(ensemble.folder, sum((r.counts for r in reached), Counter()))
    rejections = [r.rejection for r in sorted(reached) if r.rejection]
    if rejections:
        count = f"{len(rejections)} of {n_replicas} replicas have stopped, the others are complete."
        raise JumpRejectedError("\n".join([count, *rejections]))
    return [ensemble.replica(number).trajectory for number in range(n_replicas)]


def _tell(folder: Path, counts: Counter):
    """Write the statistics of a call to the folder and to the log, if it has sampled anything."""
    statistics = acceptance(counts)
    if counts:
        write_json(statistics, folder / STATISTICS)
        shares = statistics["acceptance"]
        text = "%d jumps; of the sampled conformations %.4f were accepted at first try, %.4f after repair."
        logger.info(text, statistics["steps"], shares["firstTry"], shares["afterRepair"])


def _starts(positions, topology: Topology, n_replicas: int) -> np.ndarray:
    """Starting positions (B, A, 3), nm."""
    if unit.is_quantity(positions):
        positions = positions.value_in_unit(unit.nanometer)
    found, n_atoms = np.array(positions, dtype=np.float64), topology.getNumAtoms()
    require(
        found.shape in ((n_atoms, 3), (n_replicas, n_atoms, 3)),
        f"positions must be of shape ({n_atoms}, 3), or ({n_replicas}, {n_atoms}, 3) for a start of each replica; "
        f"found {found.shape}.",
    )
    refuseNotFinite(found)
    return np.broadcast_to(found, (n_replicas, n_atoms, 3)).copy()


def _prepare(ensemble: Ensemble, resume: bool) -> list[int]:
    """Make the folder with its topology; steps that its replicas have already."""
    folder, topology = ensemble.folder, ensemble.folder / TOPOLOGY
    if not resume and any(folder.glob("replica*.xtc")):
        raise StarMDError(f"{folder} holds trajectories; go on with them by resume=True, or name another folder.")
    steps = ensemble.steps()
    (folder / LOCKS).mkdir(parents=True, exist_ok=True)
    if not (topology.exists() and any(steps)):
        with ensemble.replica(0).held(wait=False), replacing(topology) as partial, open(partial, "w") as file:
            PDBFile.writeFile(ensemble.topology, ensemble.starts[0] * unit.nanometer, file, keepIds=True)
    return steps
