"""Trajectory files as conformations, read once into a compact store so that a second start is instant."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from openmm_starmd.errors import StarMDError
from openmm_starmd.protein.conformation import Conformation, from_positions
from openmm_starmd.protein.tokens import ResidueFeatures
from openmm_starmd.trajectories import compact
from openmm_starmd.trajectories.inspection import Inspection
from openmm_starmd.trajectories.packed import NUMBERS, SUFFIX, StoredConformations, Writer, pack, read
from openmm_starmd.trajectories.reader import ProteinTrajectory
from openmm_starmd.trajectories.sources import TrajectoryFile
from openmm_starmd.trajectories.times import frame_interval

_CACHE_VERSION = 3
_REMEDY = "give the interval if the times in the file are wrong"


@dataclass(frozen=True)
class EncodedTrajectory:
    """One trajectory as the network sees it."""

    name: str
    sequence: str  # One-letter sequence
    features: ResidueFeatures  # (N)
    conformations: StoredConformations | Conformation  # (T, N): float32
    interval: float  # time between trajectory frames, ps
    temperature: float | None = None  # K, where it is known
    # files of precomputed features, by kind; see `openmm_starmd.training.precomputed`
    precomputed: dict[str, Path] = field(default_factory=dict)

    @property
    def n_frames(self) -> int:
        """Number of trajectory frames T."""
        return self.conformations.shape[0]

    @property
    def n_residues(self) -> int:
        """Number of residue tokens N."""
        return self.conformations.shape[1]


def _interval(file: TrajectoryFile, has_times: bool, times: np.ndarray) -> float:
    if file.interval is not None:
        frame_interval(file.interval * np.arange(len(times)), file.label, _REMEDY)  # two frames at least
        return float(file.interval)
    if not has_times:
        raise StarMDError(
            f"{file.label} does not tell the times of its frames; give the interval, such as Folder(path, interval=10) "
            'or in a TOML file {source = "folder", path = "...", interval = 10}, ps.'
        )
    return frame_interval(times, file.label, _REMEDY)


def _encode(file: TrajectoryFile, append) -> tuple[str, ResidueFeatures, float]:
    """Sequence, features and interval of a trajectory, whose frames go to ``append`` in chunks (T, N, 13)."""
    protein = ProteinTrajectory(file)
    inspection, times = Inspection(protein.tokens), [np.zeros(0)]
    for positions, chunk_times in protein.chunks():
        inspection.look(positions)
        times.append(chunk_times)
        if inspection.wrong_topology:
            break
        append(pack(from_positions(torch.from_numpy(positions).double(), protein.tokens)))
    problems = [f"{file.label}: {problem}." for problem in inspection.problems()]
    try:
        interval = None if inspection.wrong_topology else _interval(file, protein.has_times, np.concatenate(times))
    except StarMDError as error:
        problems.append(str(error))
    if problems:
        raise StarMDError("\n".join(problems))
    return protein.tokens.sequence, protein.tokens.features, interval


def encode_trajectory(file: TrajectoryFile) -> EncodedTrajectory:
    """Read and encode one trajectory, into memory.

    An UnsupportedTopologyError refuses a topology that holds no protein that residue tokens can describe. A StarMDError
    says that the files are damaged or do not belong together, or has a line for each of: frames too few, uneven or
    without times, molecules broken over a periodic boundary, duplicate frames, D residues.
    """
    chunks: list[np.ndarray] = []
    sequence, features, interval = _encode(file, chunks.append)
    numbers = np.concatenate(chunks)
    stored = StoredConformations(numbers, numbers.shape[:2])
    return EncodedTrajectory(file.name, sequence, features, stored, interval, file.temperature)


def _stored(path: Path, file: TrajectoryFile, source) -> EncodedTrajectory | None:
    found = read(path, source, lambda facts: len(facts["sequence"]))
    if found is None:
        return None
    facts, conformations = found
    dtypes = {"torsion_mask": torch.bool, "torsion_period": torch.float64}
    features = {k: torch.tensor(v, dtype=dtypes.get(k, torch.int64)) for k, v in facts["features"].items()}
    return EncodedTrajectory(
        file.name, facts["sequence"], ResidueFeatures(**features), conformations, facts["interval"], file.temperature
    )


def load_trajectory(file: TrajectoryFile, cache: Path | None = None) -> EncodedTrajectory:
    """`encode_trajectory`, through files in the folder ``cache`` that are renewed when a source changes.

    Frames of a trajectory in the cache are read when they are asked for, and at no time is all of it in memory. A
    trajectory that is encoded already is taken as it is.
    """
    if file.path.name == compact.INDEX:
        sequence, features, interval, stored = compact.load(file.path, file.group)
        return EncodedTrajectory(file.name, sequence, features, stored, interval, file.temperature)
    if file.path.suffix == SUFFIX:
        if (trajectory := _stored(file.path.with_suffix(""), file, None)) is None:
            raise StarMDError(f"{file.path} is torn, or its .json is missing; encode the trajectory again.")
        return trajectory
    if cache is None:
        return encode_trajectory(file)
    files = [[str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in file.sources]
    source = [_CACHE_VERSION, NUMBERS, files, file.interval]
    path = cache / f"{file.name}-{zlib.crc32(files[-1][0].encode()):08x}"
    if (trajectory := _stored(path, file, source)) is not None:
        return trajectory
    with Writer(path) as writer:
        sequence, features, interval = _encode(file, writer.append)
        lists = {name: value.tolist() for name, value in vars(features).items() if value is not None}
        writer.finish({"source": source, "sequence": sequence, "interval": interval, "features": lists})
    return _stored(path, file, source)
