"""Both sides of a comparison as trajectories of the same heavy atoms, from files of any layout.

XTC, TRR, DCD, NetCDF, HDF5, multi-model PDB, whatever else mdtraj opens, and what `other_tools` knows; read in pieces
of which only the wanted atoms are kept. Atoms are matched by `matching`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mdtraj
import numpy as np

from openmm_starmd.errors import TrajectoryError
from openmm_starmd.trajectories.frames import Source, check_atoms, load_topology, name_of, pieces
from openmm_starmd.trajectories.matching import check_sequences, common_keys, common_topology, heavy_atoms, split_chains
from openmm_starmd.trajectories.other_tools import Found, find, numbered
from openmm_starmd.trajectories.times import frame_interval

Progress = Callable[[str, float], None]
"""Takes what is being done and how much of it is done, 0 to 1."""

MIN_FRAMES = 20
NO_TIMES = "the files hold no times"
GAP_BOND, GAP_CA = 0.25, 0.5  # nm between C and N, or neighbouring CA, of residues that no bond joins


@dataclass(frozen=True)
class Side:
    """One side of a comparison."""

    # heavy atoms of the protein, in the order and under the names that both sides share
    trajectories: tuple[mdtraj.Trajectory, ...]
    interval: float | None  # ps between frames; None where neither the files nor the user tell it
    names: tuple[str, ...]  # of the files
    # residues between which the chain of the reference is interrupted, such as "GLY12 and SER18"
    gaps: tuple[str, ...] = ()
    untimed: str = ""  # why there is no interval; empty where there is one
    notes: tuple[str, ...] = ()  # what was found beside the files

    @property
    def n_frames(self) -> int:
        """Frames of all trajectories together."""
        return sum(trajectory.n_frames for trajectory in self.trajectories)

    @property
    def topology(self) -> mdtraj.Topology:
        """Topology of the common heavy atoms."""
        return self.trajectories[0].topology

    @property
    def nanoseconds(self) -> float:
        """Length of all trajectories together; nan where the time between frames is unknown."""
        return self.n_frames * (self.interval or float("nan")) / 1000


def _whole(piece: mdtraj.Trajectory) -> None:
    """Mend, in place, molecules that a periodic box has cut: where a bond is longer than half the box."""
    if piece.unitcell_lengths is None or not piece.topology.n_bonds:
        return
    bonds = np.array([(a.index, b.index) for a, b in piece.topology.bonds])
    longest = np.abs(piece.xyz[:, bonds[:, 0]] - piece.xyz[:, bonds[:, 1]]).max((1, 2))
    shortest = piece.unitcell_lengths.min(1)
    cut = (longest > shortest / 2) & (shortest > 0)
    if cut.any():
        piece.xyz[cut] = piece[cut].make_molecules_whole().xyz


def _read(source, name, topology, keys, common, progress) -> tuple[mdtraj.Trajectory, bool]:
    """One trajectory of the common atoms, and whether its frames have times."""
    place = heavy_atoms(topology)
    indices = np.array([place[key] for key in keys])
    ascending = np.argsort(indices)
    back = np.argsort(ascending)
    positions, times, done = [], [], 0
    for piece in pieces(source, topology, indices[ascending], name):
        cell = {"unitcell_lengths": piece.unitcell_lengths, "unitcell_angles": piece.unitcell_angles}
        cell = cell if piece.unitcell_lengths is not None else {}
        ordered = mdtraj.Trajectory(np.ascontiguousarray(piece.xyz[:, back]), common, piece.time, **cell)
        _whole(ordered)
        positions.append(ordered.xyz)
        times.append(piece.time)
        done += piece.n_frames
        progress(f"reading {name}: {done:,} frames", 0.0)
    if not done:
        raise TrajectoryError(f"{name} holds no frames: expected at least {MIN_FRAMES}.")
    times = np.concatenate(times)
    # mdtraj numbers the frames of a file without times by integers
    timed = times.dtype.kind == "f"
    return mdtraj.Trajectory(np.concatenate(positions), common, times), timed


def _times(found: Found, trajectory: mdtraj.Trajectory, timed: bool, option: str) -> tuple[float | None, str]:
    """Interval (ps) between the frames of one trajectory, or why they have no times; neither for a single frame."""
    if found.interval or found.untimed:
        return found.interval, found.untimed
    if not timed:
        return None, NO_TIMES
    if trajectory.n_frames == 1:
        return None, ""
    if np.ptp(trajectory.time) == 0:
        return None, f"all frames of {found.name} are at {trajectory.time[0]:g} ps"
    if numbered(found.source, trajectory.time):
        return None, f"{found.name} numbers its frames 0, 1, 2, ... in place of times"
    return frame_interval(trajectory.time, found.name, f"give the ps between its frames with {option}"), ""


def _interval(all_found, loaded, option) -> tuple[float | None, str]:
    """Interval (ps) between frames, the same in all trajectories of a side, or why they have no times."""
    intervals, untimed = [], []
    for found, (trajectory, timed) in zip(all_found, loaded, strict=True):
        interval, reason = _times(found, trajectory, timed, option)
        intervals += [interval] if interval else []
        untimed += [(found.name, reason)] if reason else []
    if not intervals:
        return None, untimed[0][1] if untimed else NO_TIMES
    if untimed:
        raise TrajectoryError(f"{untimed[0][0]} holds no times: give the ps between its frames with {option}.")
    if max(intervals) > 1.02 * min(intervals):
        raise TrajectoryError(
            f"The files of one side have different times between frames ({min(intervals):g} and {max(intervals):g} "
            f"ps): write them alike, or give one with {option}."
        )
    return intervals[0], ""


def _sources(given: Source | Sequence[Source], side: str) -> list[Source]:
    sources = list(given) if isinstance(given, list | tuple) else [given]
    if not sources:
        raise TrajectoryError(f"No {side} trajectory was given: expected at least one.")
    paths = [Path(source).resolve() for source in sources if not isinstance(source, mdtraj.Trajectory)]
    twice = next((path for i, path in enumerate(paths) if path in paths[:i]), None)
    if twice:
        raise TrajectoryError(f"{twice.name} was given twice as a {side} trajectory: give each file once.")
    return sources


def read_sides(
    reference: Source | Sequence[Source],
    generated: Source | Sequence[Source],
    topology: str | os.PathLike | mdtraj.Topology | None = None,
    *,
    generated_topology: str | os.PathLike | mdtraj.Topology | None = None,
    stride: float | None = None,
    reference_stride: float | None = None,
    progress: Progress = lambda text, done: None,
) -> tuple[Side, Side]:
    """Read the reference and the generated side of a comparison.

    The arguments are those of `evaluation.evaluate`. A TrajectoryError says which file cannot be read, has too few
    frames, frames that are not finite or no times, or holds another sequence.
    """
    first = load_topology(topology)
    second = first if generated_topology is None else load_topology(generated_topology)
    sources = [_sources(reference, "reference"), _sources(generated, "generated")]
    names = [[name_of(source, i) for i, source in enumerate(given)] for given in sources]
    found = [
        [each for i, source in enumerate(given) for each in find(source, i, top, own)]
        for given, top, own in zip(sources, (first, second), (True, generated_topology is not None), strict=True)
    ]
    topologies = {id(each.topology): each for each in found[0] + found[1]}
    for each in topologies.values():
        check_sequences(found[0][0].topology, each.topology, each.name)
    keys = common_keys([each.topology for each in topologies.values()])
    for each in found[0] + found[1]:
        check_atoms(each.source, each.topology)
    common = common_topology(found[0][0].topology, keys)
    options = ((reference_stride, "--reference-stride"), (stride, "--stride"))
    one, two = (
        _side(each, labels, keys, common, *option, progress)
        for each, labels, option in zip(found, names, options, strict=True)
    )
    if one.interval is None:
        raise TrajectoryError(
            f"{', '.join(one.names)}: the reference has no times ({one.untimed}); give the ps between its frames with "
            "--reference-stride."
        )
    return _apart_at_gaps(one, two)


def _apart_at_gaps(one: Side, two: Side) -> tuple[Side, Side]:
    """Both sides with another chain after each gap of the reference, so that no torsion is taken across it."""
    topology = one.topology
    xyz = np.concatenate([t.xyz[:: max(1, t.n_frames // 50)] for t in one.trajectories])
    gaps = []
    for before, after in zip(list(topology.residues)[:-1], list(topology.residues)[1:], strict=True):
        if before.chain is not after.chain:
            continue
        ends = [{atom.name: atom.index for atom in residue.atoms} for residue in (before, after)]
        bonded = "C" in ends[0] and "N" in ends[1]
        pair = (ends[0]["C"], ends[1]["N"]) if bonded else (ends[0].get("CA"), ends[1].get("CA"))
        if None in pair:
            continue
        distance = np.median(np.linalg.norm(xyz[:, pair[0]] - xyz[:, pair[1]], axis=-1))
        if distance > (GAP_BOND if bonded else GAP_CA):
            gaps.append((after.index, f"{before} and {after}"))
    if not gaps:
        return one, two
    apart, names = split_chains(topology, {index for index, _ in gaps}), tuple(name for _, name in gaps)
    return tuple(
        replace(
            side, gaps=names, trajectories=tuple(mdtraj.Trajectory(t.xyz, apart, t.time) for t in side.trajectories)
        )
        for side in (one, two)
    )


def _side(all_found, names, keys, common, interval, option, progress) -> Side:
    """All files of one side; ``interval`` is what the user gave by ``option``."""
    if interval is not None and not 0 < interval < math.inf:
        raise TrajectoryError(f"{option} has to be a positive, finite number of ps, found {interval:g}.")
    loaded = [_read(each.source, each.name, each.topology, keys, common, progress) for each in all_found]
    trajectories = tuple(trajectory for trajectory, _ in loaded)
    n_frames = sum(trajectory.n_frames for trajectory in trajectories)
    if n_frames < MIN_FRAMES:
        raise TrajectoryError(
            f"{', '.join(names)}: {n_frames} frame{'s' * (n_frames > 1)}, expected at least {MIN_FRAMES} to compare "
            "distributions; run longer, or save more often."
        )
    told, untimed = (interval, "") if interval else _interval(all_found, loaded, option)
    notes = tuple(dict.fromkeys(each.note for each in all_found if each.note))
    return Side(trajectories, told, tuple(names), untimed=untimed, notes=notes)
