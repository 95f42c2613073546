"""Frames of trajectory files in pieces: chosen atoms only, checked to be finite and sane, torn files told by frame.

XTC, TRR, DCD, NetCDF, HDF5, multi-model PDB and whatever else mdtraj opens. Frames are counted from 0, as mdtraj does.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import mdtraj
import numpy as np

from openmm_starmd.errors import TrajectoryError, first_line

Source = str | os.PathLike | mdtraj.Trajectory

CHUNK_ATOMS = 4_000_000  # atoms of a piece, 48 MB
OWN_TOPOLOGY = (".pdb", ".h5", ".hdf5", ".gro")
FARTHEST = 1e4  # nm; a NaN comes back from an XTC file as -2147483.75 nm


def name_of(source: Source, number: int) -> str:
    """Name in errors of a file, or of the trajectory of a number (from 0)."""
    return f"trajectory {number + 1}" if isinstance(source, mdtraj.Trajectory) else Path(source).name


def existing(path: str | os.PathLike) -> Path:
    """Path of a file that is there and not empty; else a TrajectoryError."""
    path = Path(path)
    if not path.is_file():
        raise TrajectoryError(f"There is no file {path}: expected a trajectory or a topology; check the path.")
    if path.stat().st_size == 0:
        raise TrajectoryError(f"{path} is empty: expected a trajectory or a topology with at least one frame.")
    return path


def load_topology(given: str | os.PathLike | mdtraj.Topology | None) -> mdtraj.Topology | None:
    """Topology of a PDB, mmCIF, PRMTOP, PSF, GRO, HDF5 or other file that mdtraj knows; what is none is given back."""
    if given is None or isinstance(given, mdtraj.Topology):
        return given
    path = existing(given)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return mdtraj.load_topology(str(path))
    except Exception as error:  # mdtraj raises what its readers happen to raise
        raise TrajectoryError(
            f"{path} cannot be read as a topology ({first_line(error)}): expected PDB, mmCIF, PRMTOP, PSF, GRO or HDF5."
        ) from None


def sane(positions: np.ndarray) -> np.ndarray:
    """Mask of frames (T, A, 3), nm, that are finite, within 10,000 nm, and not all atoms at one point; bool (T,)."""
    near = (np.abs(positions) < FARTHEST).all((1, 2))  # False for NaN, too
    return near & ((positions != positions[:, :1]).any((1, 2)) if positions.shape[1] > 1 else True)


def check_sane(positions: np.ndarray, name: str, first: int = 0) -> None:
    """Raise a TrajectoryError that names the first of frames (T, A, 3) that is not `sane`; ``first`` numbers them."""
    good = sane(positions)
    if good.all():
        return
    frame = int(np.argmin(good))
    found = positions[frame][~(np.abs(positions[frame]) < FARTHEST)]
    what = f"a coordinate of {found[0]:g} nm" if len(found) else "all atoms at one point"
    raise TrajectoryError(
        f"{name} has positions that are not finite or not sane in frame {first + frame} ({what}; NaN comes back from "
        f"an XTC file as -2147483.75 nm): the run broke there; keep the frames before frame {first + frame}."
    )


def n_atoms_of(path: Path) -> int | None:
    """Atoms of a file's first frame; None where they cannot be told without a topology."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with mdtraj.open(str(path)) as file:
                found = file.read(n_frames=1)
        return (found[0] if isinstance(found, tuple) else found).shape[1]
    except Exception:
        return None


def check_atoms(source: Source, topology: mdtraj.Topology) -> None:
    """Raise a TrajectoryError unless a file holds as many atoms a frame as its topology."""
    if isinstance(source, mdtraj.Trajectory) or Path(source).suffix.lower() in OWN_TOPOLOGY:
        return
    path = existing(source)
    check_whole_dcd(path)
    found = n_atoms_of(path)
    if found not in (None, topology.n_atoms):
        raise TrajectoryError(
            f"{path} has {found} atoms a frame, its topology has {topology.n_atoms}: give the topology that the "
            "trajectory was written with."
        )


def pieces(source: Source, topology: mdtraj.Topology, indices: np.ndarray, name: str) -> Iterator[mdtraj.Trajectory]:
    """Consecutive pieces of a trajectory with the atoms at ``indices`` (increasing) of its ``topology`` only.

    A TrajectoryError, which calls the source ``name``, says that the file is not there, is torn, or has frames that are
    not `sane`.
    """
    done, chunk = 0, max(1, CHUNK_ATOMS // topology.n_atoms)
    for piece in _raw_pieces(source, topology, indices, chunk):
        check_sane(piece.xyz, name, done)
        done += piece.n_frames
        yield piece


def _raw_pieces(source, topology, indices, chunk):
    if isinstance(source, mdtraj.Trajectory):
        for begin in range(0, source.n_frames, chunk):
            yield source[begin : begin + chunk].atom_slice(indices)
        return
    path = existing(source)
    options = {} if path.suffix.lower() in OWN_TOPOLOGY else {"top": topology}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield from mdtraj.iterload(str(path), chunk=chunk, atom_indices=indices, **options)
    except Exception as error:
        raise TrajectoryError(torn(path, error)) from None


def torn(path: Path, error: Exception) -> str:
    """Message about a file that cannot be read to its end."""
    count = _whole_netcdf_frames(path) if path.suffix.lower() in (".nc", ".netcdf", ".ncdf") else _whole_frames(path)
    if count:
        return f"{path} is torn in frame {count} ({first_line(error)}): {_keep(path, count)}"
    return f"{path} cannot be read: it is damaged, or not what its name says ({first_line(error)}); copy it again."


def _keep(path: Path, count: int) -> str:
    return (
        f"copy it again, or keep its first {count} frames: mdtraj.open({path.name!r}).read_as_traj(topology, "
        f"n_frames={count}).save(...)."
    )


def _whole_frames(path: Path) -> int:
    """Frames that can be read before the first that cannot."""
    count = 0
    try:
        with mdtraj.open(str(path)) as file:
            while len(file.read(n_frames=1)[0]):
                count += 1
    except Exception:
        return count
    return count


def _whole_netcdf_frames(path: Path) -> int:
    """Whole records of a NetCDF 3 file that is shorter than its header promises; 0 where this cannot be told."""
    from scipy.io import netcdf_file

    data = path.read_bytes()
    if data[:3] != b"CDF":
        return 0
    low, high = 0, struct.unpack(">I", data[4:8])[0]
    while low < high:
        middle = (low + high + 1) // 2
        try:
            with netcdf_file(io.BytesIO(data[:4] + struct.pack(">I", middle) + data[8:]), mmap=False):
                low = middle
        except Exception:
            high = middle - 1
    return low


def check_whole_dcd(path: Path) -> None:
    """Raise a TrajectoryError for a DCD file that is shorter than its header says; mdtraj reads less in silence."""
    if path.suffix.lower() != ".dcd":
        return
    with open(path, "rb") as file:
        head = file.read(92)
        if len(head) < 92 or head[:8] != struct.pack("<i", 84) + b"CORD":
            return  # another byte order, or no DCD: mdtraj will tell
        promised, fixed, cell = (struct.unpack("<i", head[at : at + 4])[0] for at in (8, 40, 48))
        for _ in range(2):  # titles, then the number of atoms
            mark = file.read(4)
            block = file.read(struct.unpack("<i", mark)[0]) if len(mark) == 4 else b""
            file.read(4)
        begin, size = file.tell(), path.stat().st_size
    if fixed or len(block) != 4:
        return
    length = 56 * bool(cell) + 3 * (8 + 4 * struct.unpack("<i", block)[0])
    whole, rest = divmod(size - begin, length)
    if rest or whole < promised:
        raise TrajectoryError(
            f"{path} is torn: its header promises {max(promised, whole + 1)} frames, and frame {whole} is not whole; "
            + _keep(path, whole)
        )
