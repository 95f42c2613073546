"""Output of other generators as it comes: its topology, its times, and how many trajectories a file holds.

The rules are those by which the public sources write their files: PLaTITO (PanosAntoniadis/platito, May 2026), BioEmu
(microsoft/bioemu 1.4.0), BioEmu-2 (the package bioemu2 0.1.0rc0), ConfRover (ByteDance-Seed/ConfRover, December 2025)
and MDGen (bjing2016/mdgen, March 2026).

PLaTITO
    ``generated_coords.pt``, one tensor of CA in nm: (B, T + 1, N, 3), whose frame 0 is the start, or the last frames
    (B, N, 3). ``config.yaml`` beside it tells the ns between frames (``step``).
BioEmu, BioEmu-2
    ``samples.xtc`` beside ``topology.pdb`` (backbone and CB) or ``topology.cif`` (heavy atoms, ligands and nucleic
    acids among them). Samples are numbered 0, 1, 2, ... in place of times; end points of ``propagate`` all have the
    time of their lag. Only ``simulate_trajectory`` of BioEmu-2 gives times.
ConfRover
    ``CASE_sampleN.xtc`` beside ``CASE_sampleN.pdb`` (heavy atoms); ``CASE_sampleN.json`` tells the stride in units of
    10 ps, or that samples are independent. Frames are numbered.
MDGen
    ``NAME.pdb`` of many models (heavy atoms), or ``NAME.xtc`` beside ``NAME.pdb``. Frames are numbered.
"""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import mdtraj
import numpy as np

from openmm_starmd.errors import TrajectoryError, first_line
from openmm_starmd.trajectories.frames import OWN_TOPOLOGY, Source, existing, load_topology, n_atoms_of

TENSORS = ".pt"


@dataclass(frozen=True)
class Found:
    """One trajectory before its frames are read."""

    name: str  # how errors call it
    source: Source
    topology: mdtraj.Topology  # of all atoms of the source
    interval: float | None = None  # ps between frames, where another file tells it
    untimed: str = ""  # why the frames have no times although the source may number them; empty otherwise
    note: str = ""  # what was found beside the file


def find(source: Source, number: int, given: mdtraj.Topology | None, own: bool = True) -> list[Found]:
    """Trajectories that one source, number ``number`` of its side, holds, with their topologies.

    The ``given`` topology is of files that hold none of their own. Unless it is this side's ``own``, it gives way to
    the topology beside the file where it has another number of atoms. A TrajectoryError says that a file is not there,
    cannot be read, or lacks its topology.
    """
    if isinstance(source, mdtraj.Trajectory):
        return [Found(f"trajectory {number + 1}", source, source.topology)]
    path = existing(source)
    if path.suffix.lower() == TENSORS:
        return _tensor_trajectories(path, given)
    interval, untimed = _told_beside(path)
    if path.suffix.lower() in OWN_TOPOLOGY:
        return [Found(path.name, path, load_topology(path), interval, untimed)]
    topology, note = _topology(path, given, own)
    return [Found(path.name, path, topology, interval, untimed, note)]


def _topology(path: Path, given: mdtraj.Topology | None, own: bool) -> tuple[mdtraj.Topology, str]:
    """The given topology, or that which lies beside a file and fits it; and a note on the latter."""
    n_atoms = n_atoms_of(path)
    if given is not None and (own or n_atoms in (None, given.n_atoms)):
        return given, ""
    names = (f"{path.stem}.pdb", f"{path.stem}.cif", "topology.cif", "topology.pdb")
    for beside in (path.with_name(name) for name in names):
        topology = load_topology(beside) if beside.is_file() else None
        if topology is not None and n_atoms in (None, topology.n_atoms):
            return topology, f"{path.name} is read with {beside.name} beside it"
    if given is not None:
        return given, ""
    raise TrajectoryError(f"{path} holds coordinates only: give its topology, for example a PDB file.")


def _told_beside(path: Path) -> tuple[float | None, str]:
    """Interval (ps) between frames by ConfRover's JSON file beside them, or why there are none."""
    facts = path.with_suffix(".json")
    try:
        content = json.loads(facts.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None, ""
    jobs = list(content.values()) if isinstance(content, dict) and "task_mode" not in content else [content]
    if not jobs or not all(isinstance(job, dict) and "task_mode" in job for job in jobs):
        return None, ""
    if all(job["task_mode"] == "iid" for job in jobs):
        return None, f"{facts.name} says that the samples of {path.name} are independent"
    strides = {job.get("stride_in_10ps") for job in jobs}
    stride = strides.pop() if len(strides) == 1 else None
    return (10.0 * stride, "") if isinstance(stride, int | float) and stride > 0 else (None, "")


def numbered(source: Source, times: np.ndarray) -> bool:
    """True if times (T,), ps, only number the frames 0, 1, 2, ...: mdtraj writes so what has no times.

    XTC and TRR files of simulations hold other steps than these, even where frames are one ps apart.
    """
    if not np.array_equal(times, np.arange(len(times))):
        return False
    if isinstance(source, mdtraj.Trajectory) or Path(source).suffix.lower() not in (".xtc", ".trr"):
        return True
    with mdtraj.open(str(source)) as file:
        steps = file.read(n_frames=3)[2]
    return np.array_equal(steps, np.arange(len(steps)))


def _tensor_trajectories(path: Path, given: mdtraj.Topology | None) -> list[Found]:
    """Trajectories of a file of PLaTITO."""
    if given is None:
        raise TrajectoryError(
            f"{path} holds positions of CA only: give the topology of the protein, for example the PDB file that the "
            "trajectories started from."
        )
    positions = _tensor(path)
    alpha = given.select("name CA and not resname CA")
    if len(alpha) != positions.shape[-2]:
        raise TrajectoryError(
            f"{path} holds {positions.shape[-2]} CA a frame, its topology has {len(alpha)}: give the PDB file that the "
            "trajectories started from."
        )
    topology = given.subset(alpha)
    if positions.ndim == 3:
        reason = f"{path.name} holds the last frames of {len(positions)} trajectories only"
        return [Found(path.name, mdtraj.Trajectory(positions.float().numpy(), topology), topology, None, reason)]
    interval = _step(path.with_name("config.yaml"))
    reason = "" if interval else f"{path.name} holds no times, and no config.yaml beside it tells the step"
    note = f"frame 0 of each of the {len(positions)} trajectories of {path.name} is the start and is left out"
    return [
        Found(
            f"{path.name} (trajectory {number + 1})",
            mdtraj.Trajectory(frames[1:].float().numpy(), topology),
            topology,
            interval,
            reason,
            note,
        )
        for number, frames in enumerate(positions)
    ]


def _tensor(path: Path):
    """The tensor (B, N, 3) or (B, T, N, 3) of a file, read without running what else is in it."""
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise TrajectoryError(
            f"{path} holds more than tensors, which could run code and is not read: expected the one tensor of "
            "PLaTITO's generated_coords.pt; save it anew with torch.save(tensor, path)."
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        reason = first_line(error)
        raise TrajectoryError(f"{path} cannot be read as a tensor ({reason}); copy or write it again.") from None
    shape = tuple(found.shape) if isinstance(found, torch.Tensor) else None
    if shape is None or len(shape) not in (3, 4) or shape[-1] != 3 or 0 in shape or not found.is_floating_point():
        what = f"a tensor of shape {shape}" if shape is not None else f"a {type(found).__name__}"
        raise TrajectoryError(
            f"{path} holds {what}: expected positions of CA, nm, of shape (trajectories, frames, residues, 3) or "
            "(trajectories, residues, 3), as PLaTITO writes them."
        )
    return found


def _step(config: Path) -> float | None:
    """Interval (ps) between frames by PLaTITO's config.yaml, whose ``step`` is in ns; None where it does not tell."""
    try:
        told = re.search(r"^step:\s*([0-9.eE+-]+)\s*$", config.read_text(encoding="utf-8"), re.MULTILINE)
        return 1000 * float(told[1]) if told and float(told[1]) > 0 else None
    except (OSError, ValueError):
        return None
