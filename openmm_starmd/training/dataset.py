"""Training data: windows of frames, drawn at every stride from trajectories of molecular dynamics."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Generator

from openmm_starmd.errors import StarMDError
from openmm_starmd.protein.displacement import superposed
from openmm_starmd.training import precomputed
from openmm_starmd.training.settings import STRIDE_RANGE
from openmm_starmd.training.windows import Batch, Bucket, aligned, steps_within
from openmm_starmd.trajectories.encoding import EncodedTrajectory, load_trajectory
from openmm_starmd.trajectories.packed import NUMBERS, unpack
from openmm_starmd.trajectories.sources import Source, TrajectoryFile, as_source

HELD_BYTES = 2**30  # data up to this size are kept in memory as a whole
PADDING = 8  # residues: proteins whose lengths have one multiple of it above them may share a batch
_ALL = slice(None)


class TrajectoryDataset:
    """Trajectories of proteins, and random windows of them.

    Parameters
    ----------
    sources : source, or sequence of sources
        `Folder`, `Files`, `ATLAS`, `MdCATH`; a path stands for a folder or for mdtraj's HDF5, a pair for topology and
        trajectory.
    exclude : sequence of str
        One-letter sequences to hold out.
    only : sequence of str, optional
        The only one-letter sequences to read: the other side of ``exclude``.
    exclude_names, only_names : sequence of str
        The same by patterns of trajectory names, such as ``"villin_*"``.
    held_out : TrajectoryDataset, optional
        Trajectories to leave out; others of the same sequences are read.
    cache : path, optional
        Folder for encoded trajectories; with it a second start takes no time, and where they take more than
        `HELD_BYTES`, frames are read from disk when a window needs them.
    temperature : float, optional
        K: trajectories known to be at another are passed over. Without it all have to be at one.
    n_frames : int, optional
        Trajectories too short for windows of so many frames at a stride in ``stride_range`` are refused.
    stride_range : (float, float)
        ps.
    single_features, pair_features : int
        Channels of the precomputed features that the model takes; 0 for none.
    batch_residues : int
        Residues of the windows of a batch: proteins whose lengths differ by less than `PADDING` share it, and the
        shorter the more windows it has. 0 for batches of one length and a given number of windows.

    Raises
    ------
    StarMDError
        If there is nothing to read, or trajectories are unfit: one line for whatever is wrong with any of them.
    """

    def __init__(
        self,
        sources: Source | str | os.PathLike | Sequence,
        *,
        exclude: Iterable[str] = (),
        only: Iterable[str] | None = None,
        exclude_names: Iterable[str] = (),
        only_names: Iterable[str] = ("*",),
        held_out: TrajectoryDataset | None = None,
        cache: str | os.PathLike | None = None,
        temperature: float | None = None,
        n_frames: int | None = None,
        stride_range: tuple[float, float] = STRIDE_RANGE,
        single_features: int = 0,
        pair_features: int = 0,
        batch_residues: int = 0,
    ):
        self._sources = [as_source(s) for s in (list(sources) if isinstance(sources, list | tuple) else [sources])]
        self._exclude = frozenset(exclude)
        self._only = None if only is None else frozenset(only)
        self._exclude_names, self._only_names = tuple(exclude_names), tuple(only_names)
        self._batch_residues = batch_residues
        self._held_out = set() if held_out is None else {file.place for file in held_out._read}
        self._cache = None if cache is None else Path(cache)
        self._temperature, self._n_frames, self._stride_range = temperature, n_frames, stride_range
        self._channels = {"single": single_features, "pair": pair_features}
        self._read: set[TrajectoryFile] = set()
        self.trajectories: list[EncodedTrajectory] = []
        self.lengths: dict[int, list[EncodedTrajectory]] = {}
        """Trajectories by number of residues."""
        self._buckets: dict[int, Bucket] = {}
        self.refresh()
        if not self.trajectories:
            raise StarMDError(
                f"No trajectory found in {', '.join(map(str, self._sources))}: NAME.pdb + NAME.xtc (.dcd, .trr, .nc, "
                f".h5) are needed (and NAME.done, where a folder holds any such) {self._restriction()}"
            )

    def _restriction(self) -> str:
        kept = "" if self._only is None else f" among {', '.join(sorted(self._only))}"
        dropped = f" other than {', '.join(sorted(self._exclude))}" if self._exclude else ""
        others = " beside those held out" if self._held_out else ""
        return (f"of sequences{kept}{dropped}" if kept or dropped else "of any sequence") + f"{others}."

    def refresh(self) -> list[str]:
        """Read trajectories that have been finished since the last look; returns their names."""
        found = [file for source in self._sources for file in source.find() if file.place not in self._held_out]
        found = [file for file in found if _matches(file, self._only_names)]
        found = [file for file in found if not _matches(file, self._exclude_names)]
        if self._temperature is not None:
            found = [file for file in found if file.temperature in (None, self._temperature)]
        _require_one_temperature(found)
        files = [file for file in dict.fromkeys(found) if file not in self._read]
        new, problems = [], []
        for file in files:
            try:
                new.append(self._load(file))
            except StarMDError as error:
                problems += str(error).splitlines()
        if problems:
            raise StarMDError("\n".join(["Training data are unfit:", *problems]))
        self._read.update(files)
        new = [t for t in new if t.sequence not in self._exclude and (self._only is None or t.sequence in self._only)]
        for trajectory in new:
            self.trajectories.append(trajectory)
            self.lengths.setdefault(trajectory.n_residues, []).append(trajectory)
        held = sum(t.n_frames * t.n_residues for t in self.trajectories) * NUMBERS * 4 <= HELD_BYTES
        together: dict[int, list[EncodedTrajectory]] = {}
        for length, trajectories in self.lengths.items():
            room = PADDING * math.ceil(length / PADDING) if self._batch_residues else length
            together.setdefault(room, []).extend(trajectories)
        for room, trajectories in together.items():
            known = self._buckets.get(room)
            if known is None or (len(known.weights), known.held) != (len(trajectories), held):
                self._buckets[room] = Bucket(trajectories, held)
        return [trajectory.name for trajectory in new]

    def _load(self, file: TrajectoryFile) -> EncodedTrajectory:
        trajectory = load_trajectory(file, self._cache)
        if self._n_frames:
            steps_within(trajectory, self._n_frames, self._stride_range)
        return replace(trajectory, precomputed=precomputed.find(file, trajectory.n_residues, self._channels))

    def window_batch(
        self,
        batch_size: int,
        n_frames: int,
        generator: Generator,
        stride_range: tuple[float, float] = STRIDE_RANGE,
        share: slice = _ALL,
        references: bool = False,
    ) -> Batch:
        """Random windows of ``n_frames`` frames of systems of one length, or of similar ones (``batch_residues``).

        Trajectories are drawn in proportion to the square root of their frames, so that a few long ones do not drown
        many short ones; first the length that all of a batch have, then the systems. Strides are log-uniform in
        ``stride_range`` (ps) as far as the trajectory is long enough for, rounded to its interval. Starts are uniform.
        Half of the windows run backwards: equilibrium dynamics is reversible.

        With ``references`` they have reference structures: half of the time the first frame of their trajectory, else
        that of any trajectory of the same molecule. With ``batch_residues``, ``batch_size`` is the most of windows.

        Only the windows in the slice ``share`` are read and returned: the shares of several processes, of the same
        generator, make up the batch of one.
        """
        buckets = list(self._buckets.values())
        sizes = [self._windows_of(bucket, batch_size) for bucket in buckets]
        weights = torch.stack([bucket.weights.sum() / size for bucket, size in zip(buckets, sizes, strict=True)])
        which = int(torch.multinomial(weights, 1, generator=generator))
        bucket, batch_size = buckets[which], sizes[which]
        chosen = torch.multinomial(bucket.weights, batch_size, replacement=True, generator=generator)[share]
        uniform = torch.rand(batch_size, 3, dtype=torch.float64, generator=generator)[share]
        index, strides = bucket.windows(chosen, uniform, n_frames, stride_range)
        features = bucket.features[chosen]
        present = None if features.present is None else features.present[:, None]
        windows, reference = aligned(unpack(bucket.numbers(chosen, index)), present), None
        if references:
            uniform = torch.rand(batch_size, 2, dtype=torch.float64, generator=generator)[share]
            reference = superposed(unpack(bucket.references(chosen, uniform))[:, None], windows, present)
        return Batch(
            features,
            windows,
            strides.float()[:, None].repeat(1, n_frames),
            precomputed.read([bucket.trajectories[which].precomputed for which in chosen.tolist()]),
            reference,
        )

    def _windows_of(self, bucket: Bucket, batch_size: int) -> int:
        """Windows of a batch; the weight of a bucket is shared among them, so that none is drawn too often."""
        if not self._batch_residues:
            return batch_size
        return max(1, min(batch_size, self._batch_residues // bucket.features.residue_type.shape[-1]))


def _matches(file: TrajectoryFile, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(file.name, pattern) for pattern in patterns)


def _require_one_temperature(files: list[TrajectoryFile]) -> None:
    known = sorted({file.temperature for file in files if file.temperature is not None})
    if len(known) > 1:
        raise StarMDError(
            f"Trajectories are at {', '.join(f'{t:g}' for t in known)} K, but a model learns one temperature; choose "
            f"one of them, such as temperature={known[0]:g}."
        )
