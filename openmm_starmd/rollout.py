"""Long rollouts of many replicas at a time, to trajectory files; no Simulation of the user's is needed.

A step of all replicas is one batch of the network. What a replica does depends on its own number, the seed and its
start alone, so that it can be repeated alone or in other company (to float rounding), and each can be continued.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from openmm import System, unit
from openmm.app import PDBFile, Topology, XTCFile
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from openmm_starmd.binding.arguments import valueIn, wholeNumber
from openmm_starmd.binding.context import refuseWater
from openmm_starmd.binding.gate import ValidityGate
from openmm_starmd.binding.store import identityOf
from openmm_starmd.model import StarMDModel, load_model
from openmm_starmd.propagator import Propagator
from openmm_starmd.protein.conformation import from_positions, to_positions
from openmm_starmd.protein.errors import HistoryError, JumpRejectedError, StarMDError
from openmm_starmd.protein.history import History
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.relaxation import Relaxation, RelaxationPool

TOPOLOGY = "topology.pdb"


def rollout(
    model: str | os.PathLike | StarMDModel,
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
    strict: bool = True,
    device: str = "auto",
    checkpoint_steps: int = 100,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> list[Path]:
    """Sample B trajectories of jumps.

    Parameters
    ----------
    model : str, path or StarMDModel
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
        Replica k of a seed is the same whatever the others are.
    output : path
        Folder for ``topology.pdb`` and, for each replica, ``replica0000.xtc`` (all atoms, a frame a step, the first at
        one stride) and ``replica0000.state`` to go on from.
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
        How often a conformation that fails the checks is sampled again.
    strict : bool
        Whether leaving the domain of the model is an error; otherwise it is a warning.
    device : str
        Where the network runs.
    checkpoint_steps : int
        Steps between states; a run that was killed repeats those since the last one, exactly.
    workers : int
        Contexts that relax at a time, with one CPU thread each.
    progress : callable, optional
        Gets the number of new frames after each step.

    Returns
    -------
    list of Path
        The XTC files.

    Raises
    ------
    ModelDomainError, UnsupportedTopologyError
        If the model does not know the system.
    JumpRejectedError
        If a replica finds no acceptable conformation; names it. All files are as after its last state.
    HistoryError
        If a state to go on from is damaged, or of another model, system, stride or seed.
    StarMDError
        If the folder holds trajectories and ``resume`` is not asked for.
    """
    n_steps, n_replicas = wholeNumber("n_steps", n_steps, 1), wholeNumber("n_replicas", n_replicas, 1)
    model = model.on(device) if isinstance(model, StarMDModel) else load_model(model, device)
    stride, temperature = valueIn(stride, unit.picoseconds), valueIn(temperature, unit.kelvin)
    refuseWater(topology)
    tokens = ResidueTokens.from_topology(topology)
    starts = _starts(positions, topology, n_replicas)
    relaxing = system is not None and relaxation.active
    gate = ValidityGate(topology, tokens, temperature, relaxing)
    model.refuse([told for start in starts for told in gate.foreign(start)][:1], strict)

    def propagator():
        frames = {"context_frames": context_frames, "denoising_steps": denoising_steps}
        return Propagator(model, tokens, stride, temperature, strict=strict, **frames)

    pool = RelaxationPool(system, topology, tokens, relaxation, temperature, workers) if relaxing else None
    sampler = _Sampler(propagator(), propagator(), gate, pool, seed, max_retries)
    identity = f"{identityOf(model, tokens).hex()} {stride:g} {temperature:g} {seed} {relaxing and relaxation}"
    folder = _folder(output, resume, topology, starts[0])
    replicas = [_Replica(folder, k, topology, tokens, stride, identity, start) for k, start in enumerate(starts)]
    for replica in replicas:
        replica.load()
        if pool and not replica.step:
            replica.positions = pool.minimized(replica.positions)
    for step in sorted({replica.step for replica in replicas if replica.step < n_steps}):
        group = [replica for replica in replicas if replica.step == step]
        _run(sampler, group, n_steps, checkpoint_steps, progress or (lambda frames: None))
    return [replica.trajectory for replica in replicas]


def _starts(positions, topology: Topology, n_replicas: int) -> np.ndarray:
    """Starting positions (B, A, 3), nm."""
    if unit.is_quantity(positions):
        positions = positions.value_in_unit(unit.nanometer)
    found, n_atoms = np.array(positions, dtype=np.float64), topology.getNumAtoms()
    if found.shape not in ((n_atoms, 3), (n_replicas, n_atoms, 3)) or not np.isfinite(found).all():
        raise ValueError(
            f"positions must be finite and of shape ({n_atoms}, 3), or ({n_replicas}, {n_atoms}, 3) for a start of "
            f"each replica; found {found.shape}."
        )
    return np.broadcast_to(found, (n_replicas, n_atoms, 3)).copy()


def _folder(output, resume: bool, topology: Topology, start: np.ndarray) -> Path:
    folder = Path(output)
    if not resume and any(folder.glob("replica*.xtc")):
        raise StarMDError(f"{folder} holds trajectories; go on with them by resume=True, or name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / TOPOLOGY).exists():
        with open(folder / TOPOLOGY, "w") as file:
            PDBFile.writeFile(topology, start * unit.nanometer, file, keepIds=True)
    return folder


def _run(sampler: _Sampler, group: list[_Replica], n_steps: int, checkpoint_steps: int, progress):
    """Advance replicas that are at one step to the last one."""
    positions, first = np.stack([replica.positions for replica in group]), group[0].step
    numbers = [replica.number for replica in group]
    history = History.join([replica.history for replica in group]) if first else sampler.start(positions)
    for step in range(first, n_steps):
        positions, history = sampler.step(history, positions, numbers, step)
        for replica, atoms in zip(group, positions, strict=True):
            replica.write(atoms)
        if (step + 1) % checkpoint_steps == 0 or step + 1 == n_steps:
            for k, replica in enumerate(group):
                replica.save(step + 1, positions[k], history.replicas([k]))
        progress(len(group))


def _random(*key) -> int:
    """Counter-based random numbers: a hash of the key."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little") >> 1


class _Sampler:
    """One step of a batch: sample, move the atoms, check, relax, check; what fails is sampled again on its own."""

    def __init__(self, propagator: Propagator, again: Propagator, gate, pool, seed: int, max_retries: int):
        self._propagator, self._again = propagator, again  # two, because each keeps the keys and values of its batch
        self._gate, self._pool, self._seed, self._max_retries = gate, pool, seed, max_retries
        self._tokens = propagator.tokens

    def start(self, positions: np.ndarray) -> History:
        """History of positions (B, A, 3)."""
        return self._propagator.start(self._measured(positions))

    def step(self, history: History, positions: np.ndarray, numbers: list[int], step: int):
        """Positions (B, A, 3) and history of the replicas of these ``numbers``, a stride later."""
        new, waiting = positions.copy(), np.arange(len(numbers))
        failed = [Counter() for _ in numbers]
        for attempt in range(self._max_retries + 1):
            part = history if len(waiting) == len(numbers) else history.replicas(waiting)
            propagator = self._propagator if len(waiting) == len(numbers) else self._again
            keys = [(self._seed, numbers[k], step, attempt) for k in waiting]
            conformation = propagator.step(part, self._generators("jump", keys)).to("cpu", torch.float64)
            old = positions[waiting]
            sampled = to_positions(conformation, torch.from_numpy(old), self._tokens).numpy()
            found, failures = self._judged(sampled, old, keys)
            for k, atoms, failure in zip(waiting, found, failures, strict=True):
                new[k] = positions[k] if failure else atoms
                failed[k].update(list(failure))
            waiting = waiting[[bool(failure) for failure in failures]]
            if not len(waiting):
                noise = self._generators("context", [(self._seed, number, step, 0) for number in numbers])
                return new, self._propagator.extend(history, self._measured(new), noise)
        k, last = waiting[0], failures[-1]
        error = self._gate.rejection(positions[k], self._max_retries + 1, failed[k], last)
        raise JumpRejectedError(f"Replica {numbers[k]}, step {step + 1}: {error}")

    def _judged(self, sampled: np.ndarray, old: np.ndarray, keys):
        """Positions, relaxed where that is asked for, and the checks that each of them fails."""
        failures = [self._gate.sampled(torch.from_numpy(x), x0) for x, x0 in zip(sampled, old, strict=True)]
        if self._pool is None:
            return sampled, failures
        sound = [k for k, failure in enumerate(failures) if not failure]
        jobs = [(sampled[k], old[k], _random("relaxation", *keys[k])) for k in sound]
        for k, (atoms, energies) in zip(sound, self._pool.relax(jobs), strict=True):
            known = np.isfinite(atoms).all()
            failures[k] = (
                self._gate.relaxed(atoms, old[k], energies, self._pool.freedoms) if known else {"not_finite": []}
            )
            sampled[k] = atoms
        return sampled, failures

    def _measured(self, positions: np.ndarray):
        return from_positions(torch.from_numpy(positions), self._tokens)

    def _generators(self, purpose: str, keys) -> list[torch.Generator]:
        device = self._propagator.model.device
        return [torch.Generator(device).manual_seed(_random(purpose, *key)) for key in keys]


class _Replica:
    """The trajectory of one replica, and the state that it goes on from."""

    def __init__(self, folder: Path, number: int, topology: Topology, tokens: ResidueTokens, stride, identity, start):
        self.number, self.step, self.positions, self.history = number, 0, start, None
        self.trajectory = folder / f"replica{number:04d}.xtc"
        self._state, self._identity = self.trajectory.with_suffix(".state"), identity
        self._topology, self._mask, self._stride, self._file = topology, tokens.features.torsion_mask, stride, None

    def write(self, positions: np.ndarray):
        """Add a frame."""
        if self._file is None:
            append = self.step > 0
            self._file = XTCFile(str(self.trajectory), self._topology, self._stride, firstStep=1, append=append)
        self._file.writeModel(positions)

    def save(self, step: int, positions: np.ndarray, history: History):
        """Keep the state after ``step``, with the length of the trajectory that belongs to it."""
        clock = {"step": step, "dropped": history.dropped, "bytes": self.trajectory.stat().st_size}
        vector = history.pack(self._mask)
        tensors = {"positions": torch.from_numpy(positions), "times": history.times, "history": vector}
        partial = self._state.with_suffix(".part")
        save_file(tensors, partial, {"identity": self._identity, "clock": json.dumps(clock)})
        os.replace(partial, self._state)

    def load(self):
        """Go on from the last state, if there is one; frames after it are cut off, they will be made again."""
        if not self._state.exists():
            self.trajectory.unlink(missing_ok=True)
            return
        try:
            with safe_open(self._state, "pt") as file:
                identity, clock = file.metadata()["identity"], json.loads(file.metadata()["clock"])
                vector, times, positions = (file.get_tensor(name) for name in ("history", "times", "positions"))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise HistoryError(f"{self._state} is damaged ({error}); remove it to start this replica anew.") from error
        if identity != self._identity:
            raise HistoryError(
                f"{self._state} belongs to another model, protein, stride, temperature, seed or relaxation; go on with "
                "those, or name another folder."
            )
        if not self.trajectory.exists() or self.trajectory.stat().st_size < clock["bytes"]:
            raise HistoryError(f"{self.trajectory} lacks frames that {self._state} goes on from; restore it.")
        self.history = History.unpack(vector, self._mask, times, clock["dropped"])
        self.step, self.positions = clock["step"], positions.numpy()
        os.truncate(self.trajectory, clock["bytes"])
