"""Both sides of a comparison as trajectories of the same heavy atoms, from files of any layout.

XTC, TRR, DCD, NetCDF, HDF5, multi-model PDB and whatever else mdtraj opens; read in pieces of which only the wanted
atoms are kept. Atoms are matched by `matching`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import mdtraj
import numpy as np

from openmm_starmd.errors import TrajectoryError
from openmm_starmd.evaluation.matching import check_sequences, common_keys, common_topology, heavy_atoms

Source = str | os.PathLike | mdtraj.Trajectory
Progress = Callable[[str, float], None]
"""Takes what is being done and how much of it is done, 0 to 1."""

MIN_FRAMES = 20
CHUNK_ATOMS = 4_000_000  # atoms of a piece, 48 MB
OWN_TOPOLOGY = (".pdb", ".h5", ".hdf5", ".gro")


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Parameters
    ----------
    trajectories : tuple of mdtraj.Trajectory
        One a file: heavy atoms of the protein, in the order and under the names that both sides share.
    interval : float
        ps between frames.
    names : tuple of str
    """

    trajectories: tuple[mdtraj.Trajectory, ...]
    interval: float
    names: tuple[str, ...]

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
        """Length of all trajectories together."""
        return self.n_frames * self.interval / 1000


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise TrajectoryError(f"There is no file {path}: expected a trajectory or a topology; check the path.")
    if path.stat().st_size == 0:
        raise TrajectoryError(f"{path} is empty: expected a trajectory or a topology with at least one frame.")
    return path


def load_topology(given: str | os.PathLike | mdtraj.Topology | None) -> mdtraj.Topology | None:
    """Topology of a PDB, mmCIF, PRMTOP, PSF, GRO, HDF5 or other file that mdtraj knows; what is none is given back."""
    if given is None or isinstance(given, mdtraj.Topology):
        return given
    path = _existing(Path(given))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return mdtraj.load_topology(str(path))
    except Exception as error:  # mdtraj raises what its readers happen to raise
        raise TrajectoryError(
            f"{path} cannot be read as a topology ({_reason(error)}): expected PDB, mmCIF, PRMTOP, PSF, GRO or HDF5."
        ) from None


def _topology_of(source: Source, given: mdtraj.Topology | None) -> mdtraj.Topology:
    if isinstance(source, mdtraj.Trajectory):
        return source.topology
    path = Path(source)
    if path.suffix.lower() in OWN_TOPOLOGY:
        return load_topology(path)
    if given is None:
        raise TrajectoryError(f"{path} holds coordinates only: give its topology, for example a PDB file.")
    return given


def _name(source: Source, number: int) -> str:
    return f"trajectory {number + 1}" if isinstance(source, mdtraj.Trajectory) else Path(source).name


def _pieces(source: Source, topology: mdtraj.Topology, indices: np.ndarray) -> Iterator[mdtraj.Trajectory]:
    """Contiguous pieces with the atoms at ``indices`` (increasing) only."""
    length = max(1, CHUNK_ATOMS // topology.n_atoms)
    if isinstance(source, mdtraj.Trajectory):
        for begin in range(0, source.n_frames, length):
            yield source[begin : begin + length].atom_slice(indices)
        return
    path = _existing(Path(source))
    own = path.suffix.lower() in OWN_TOPOLOGY
    options = {} if own else {"top": topology}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield from mdtraj.iterload(str(path), chunk=length, atom_indices=indices, **options)
    except Exception as error:
        reason = _reason(error)
        if not own and (found := _atoms_of(path)) not in (None, topology.n_atoms):
            reason = (
                f"it has {found} atoms a frame, its topology has {topology.n_atoms}; give the one it was written with"
            )
        raise TrajectoryError(f"{path} cannot be read: {reason}.") from None


def _atoms_of(path: Path) -> int | None:
    """Atoms of a file's first frame; None where they cannot be told."""
    try:
        with mdtraj.open(str(path)) as file:
            found = file.read(n_frames=1)
        return (found[0] if isinstance(found, tuple) else found).shape[1]
    except Exception:
        return None


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
    for piece in _pieces(source, topology, indices[ascending]):
        xyz = np.ascontiguousarray(piece.xyz[:, back])
        if not np.isfinite(xyz).all():
            frame = done + int(np.argmin(np.isfinite(xyz).all((1, 2))))
            raise TrajectoryError(
                f"{name} has a coordinate that is not finite (NaN or infinite) in frame {frame + 1}: cut the "
                "trajectory before it."
            )
        cell = {"unitcell_lengths": piece.unitcell_lengths, "unitcell_angles": piece.unitcell_angles}
        ordered = mdtraj.Trajectory(xyz, common, piece.time, **(cell if piece.unitcell_lengths is not None else {}))
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


def _interval(trajectories, timed, names, option) -> float:
    """ps between frames, the same in all trajectories of a side."""
    intervals = []
    for trajectory, has_times, name in zip(trajectories, timed, names, strict=True):
        if not has_times:
            raise TrajectoryError(f"{name} holds no times: give the ps between its frames with {option}.")
        if trajectory.n_frames < 2:
            continue
        times = trajectory.time.astype(np.float64)
        interval = (times[-1] - times[0]) / (len(times) - 1)
        rounding = 2 * np.spacing(np.abs(trajectory.time).max())
        usual = np.median(np.diff(times))
        uneven = np.abs(np.diff(times) - usual) > 0.02 * abs(usual) + rounding
        if interval <= 0 or uneven.any():
            frame = int(np.argmax(uneven)) if uneven.any() else 0
            raise TrajectoryError(
                f"The times of {name} are not evenly spaced: {times[frame]:g} ps is followed by "
                f"{times[frame + 1]:g} ps; cut it there, or give the ps between its frames with {option}."
            )
        intervals.append(float(f"{interval:.6g}"))
    if not intervals:
        raise TrajectoryError(f"No file of {', '.join(names)} has two frames: give their distance with {option}.")
    if max(intervals) > 1.02 * min(intervals):
        raise TrajectoryError(
            f"The files of one side have different times between frames ({min(intervals):g} and {max(intervals):g} "
            f"ps): write them alike, or give one with {option}."
        )
    return intervals[0]


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
    """Read both sides of a comparison.

    Parameters
    ----------
    reference, generated : path, mdtraj.Trajectory, or sequence of them
    topology : path or mdtraj.Topology, optional
        Of every file that holds none of its own (PDB and HDF5 do).
    generated_topology : path or mdtraj.Topology, optional
        Of the generated files, where it is another one.
    stride, reference_stride : float, optional
        ps between frames of the generated and of the reference files, in place of what these say.
    progress : callable, optional
        See `Progress`.

    Returns
    -------
    reference, generated : Side

    Raises
    ------
    TrajectoryError
        If a file cannot be read, has too few frames, frames that are not finite or no times, or another sequence.
    """
    first = load_topology(topology)
    second = first if generated_topology is None else load_topology(generated_topology)
    sides = [(_sources(reference, "reference"), first), (_sources(generated, "generated"), second)]
    names = [[_name(source, i) for i, source in enumerate(sources)] for sources, _ in sides]
    topologies = [[_topology_of(source, top) for source in sources] for sources, top in sides]
    for name, other in zip(names[0] + names[1], topologies[0] + topologies[1], strict=True):
        check_sequences(topologies[0][0], other, name)
    keys = common_keys(list({id(t): t for t in topologies[0] + topologies[1]}.values()))
    common = common_topology(topologies[0][0], keys)
    options = ((reference_stride, "--reference-stride"), (stride, "--stride"))
    one, two = (
        _side(sources, labels, tops, keys, common, *option, progress)
        for (sources, _), labels, tops, option in zip(sides, names, topologies, options, strict=True)
    )
    return one, two


def _side(sources, names, topologies, keys, common, interval, option, progress) -> Side:
    """All files of one side; ``interval`` is what the user gave by ``option``."""
    if interval is not None and not interval > 0:
        raise TrajectoryError(f"{option} has to be a positive number of ps, found {interval:g}.")
    loaded = [
        _read(source, name, top, keys, common, progress)
        for source, name, top in zip(sources, names, topologies, strict=True)
    ]
    trajectories, timed = zip(*loaded, strict=True)
    n_frames = sum(trajectory.n_frames for trajectory in trajectories)
    if n_frames < MIN_FRAMES:
        raise TrajectoryError(
            f"{', '.join(names)}: {n_frames} frame{'s' * (n_frames > 1)}, expected at least {MIN_FRAMES} to compare "
            "distributions; run longer, or save more often."
        )
    return Side(trajectories, interval or _interval(trajectories, timed, names, option), tuple(names))
