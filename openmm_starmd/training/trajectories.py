"""Trajectory files as conformations, with a cache file for each so that a second start is instant."""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import mdtraj
import numpy as np
import torch
from openmm.app import PDBFile
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from openmm_starmd.geometry.rigid import Rigid
from openmm_starmd.protein.conformation import Conformation, from_positions
from openmm_starmd.protein.errors import StarMDError, UnsupportedTopologyError
from openmm_starmd.protein.tokens import ResidueFeatures, ResidueTokens

_CACHE_VERSION = "1"
_CHUNK = 2000  # frames encoded at a time
_BROKEN_CHAIN = 0.6  # nm between bonded CA atoms (0.38 in a trans peptide)


@dataclass(frozen=True)
class EncodedTrajectory:
    """One trajectory as the network sees it.

    Parameters
    ----------
    name : str
        Stem of the trajectory file.
    sequence : str
        One-letter sequence.
    features : ResidueFeatures, shape (N)
    conformations : Conformation, shape (T, N)
        float32.
    interval : float
        Time between trajectory frames, ps.
    """

    name: str
    sequence: str
    features: ResidueFeatures
    conformations: Conformation
    interval: float

    @property
    def n_frames(self) -> int:
        """Number of trajectory frames T."""
        return self.conformations.shape[0]

    @property
    def n_residues(self) -> int:
        """Number of residue tokens N."""
        return self.conformations.shape[1]


def find_trajectories(folder: str | os.PathLike) -> list[tuple[Path, Path]]:
    """Pairs NAME.pdb, NAME.xtc of a folder, sorted by name.

    Where the folder holds any NAME.done, simulations are under way in it and only the finished ones are listed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise StarMDError(f"Trajectories are read from folders of NAME.pdb + NAME.xtc, but {folder} is no folder.")
    pairs = [(pdb, pdb.with_suffix(".xtc")) for pdb in sorted(folder.glob("*.pdb"))]
    running = any(folder.glob("*.done"))
    return [(p, x) for p, x in pairs if x.exists() and (not running or p.with_suffix(".done").exists())]


def frame_interval(times: np.ndarray, name: str) -> float:
    """Time between frames, ps, of ``times`` (T,); StarMDError unless they are at least two and evenly spaced."""
    if len(times) < 2:
        raise StarMDError(f"{name} holds {len(times)} frame(s); at least 2 are needed to learn a step from.")
    times = np.asarray(times, dtype=np.float64)
    interval = (times[-1] - times[0]) / (len(times) - 1)
    even = times[0] + interval * np.arange(len(times))
    # Files store single-precision times: late in a long trajectory that is coarser than 2 % of the interval.
    tolerance = 0.02 * interval + 2 * np.spacing(np.float32(np.abs(times).max()))
    uneven = np.flatnonzero(~(np.abs(times - even) <= tolerance))
    if interval <= 0 or len(uneven):
        frame = int(uneven[0]) if len(uneven) else 1
        raise StarMDError(
            f"The frames of {name} are not evenly spaced in time: frame {frame} is at {times[frame]:g} ps where "
            f"{even[frame]:g} ps was expected. Write frames at one fixed interval, or cut the trajectory there."
        )
    return round(float(interval), 6)


def encode_trajectory(pdb: Path, xtc: Path) -> EncodedTrajectory:
    """Read and encode one trajectory.

    Raises
    ------
    UnsupportedTopologyError
        If the PDB file holds no protein that residue tokens can describe.
    StarMDError
        If the XTC file is damaged, the files do not belong together, the frames are too few or uneven, or molecules
        are broken over a periodic boundary.
    """
    topology = PDBFile(str(pdb)).topology
    try:
        tokens = ResidueTokens.from_topology(topology)
    except UnsupportedTopologyError as error:
        raise UnsupportedTopologyError(f"{pdb}: {error}") from error
    try:
        with mdtraj.formats.XTCTrajectoryFile(str(xtc)) as file:
            positions, times, _, _ = file.read()
    except (OSError, RuntimeError) as error:
        raise StarMDError(
            f"{xtc} is damaged or no XTC trajectory ({error}); leave it out, or write it anew."
        ) from error
    if positions.shape[1] != topology.getNumAtoms():
        raise StarMDError(
            f"{xtc} holds {positions.shape[1]} atoms a frame, but {pdb} {topology.getNumAtoms()}; "
            "both must describe the same atoms in the same order."
        )
    interval = frame_interval(times, str(xtc))
    chunks = torch.from_numpy(positions).split(_CHUNK)
    conformations = Conformation.cat([from_positions(chunk.double(), tokens).to(torch.float32) for chunk in chunks])
    _require_whole(conformations, tokens.features, xtc)
    return EncodedTrajectory(xtc.stem, tokens.sequence, tokens.features, conformations, interval)


def _require_whole(conformations: Conformation, features: ResidueFeatures, xtc: Path) -> None:
    gaps = conformations.frames.translations.diff(dim=-2).norm(dim=-1)
    broken = (~(gaps < _BROKEN_CHAIN) & (features.n_end[1:] == 0)).any(-1).nonzero()
    if len(broken):
        raise StarMDError(
            f"In frame {int(broken[0])} of {xtc} bonded residues are more than {_BROKEN_CHAIN} nm apart or not finite; "
            "make molecules whole across periodic boundaries, and check the trajectory."
        )


def _tensors(trajectory: EncodedTrajectory) -> dict[str, Tensor]:
    c = trajectory.conformations
    tensors = {
        "rotations": c.frames.rotations,
        "translations": c.frames.translations,
        "torsions": c.torsions,
        "angles": c.angles,
        **{f"features.{name}": value for name, value in vars(trajectory.features).items()},
    }
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _read_cache(path: Path, source: str) -> EncodedTrajectory | None:
    """The cached trajectory, or None where there is none, it is torn or made from other files than ``source``."""
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            if meta.get("version") != _CACHE_VERSION or meta.get("source") != source:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError):
        return None
    features = {name.removeprefix("features."): t for name, t in tensors.items() if name.startswith("features.")}
    frames = Rigid(tensors["rotations"], tensors["translations"])
    return EncodedTrajectory(
        meta["name"],
        meta["sequence"],
        ResidueFeatures(**features),
        Conformation(frames, tensors["torsions"], tensors["angles"]),
        float(meta["interval"]),
    )


def load_trajectory(pdb: Path, xtc: Path, cache: Path | None = None) -> EncodedTrajectory:
    """`encode_trajectory`, through a file in the folder ``cache`` that is renewed when a source changes."""
    if cache is None:
        return encode_trajectory(pdb, xtc)
    files = [p.resolve() for p in (pdb, xtc)]
    source = json.dumps([[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files])
    path = cache / f"{xtc.stem}-{zlib.crc32(str(files[1]).encode()):08x}.safetensors"
    trajectory = _read_cache(path, source)
    if trajectory is None:
        trajectory = encode_trajectory(pdb, xtc)
        meta = {"version": _CACHE_VERSION, "source": source, "name": trajectory.name}
        meta |= {"sequence": trajectory.sequence, "interval": repr(trajectory.interval)}
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        save_file(_tensors(trajectory), partial, metadata=meta)
        os.replace(partial, path)
    return trajectory
