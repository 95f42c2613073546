"""Training data: windows of frames, drawn at every stride from trajectories of molecular dynamics."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from openmm_starmd.errors import StarMDError
from openmm_starmd.geometry.rigid import Rigid, superpose
from openmm_starmd.network.invariants import burial
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.displacement import Displacement, centred, superposed
from openmm_starmd.protein.tokens import ResidueFeatures
from openmm_starmd.training import precomputed
from openmm_starmd.training.config import STRIDE_RANGE
from openmm_starmd.trajectories.encoding import EncodedTrajectory, load_trajectory
from openmm_starmd.trajectories.packed import NUMBERS, unpack
from openmm_starmd.trajectories.sources import Source, TrajectoryFile, as_source

STEP_STRIDES = tuple(10.0 * 2**k for k in range(8))
HELD_BYTES = 2**30  # data up to this size are kept in memory as a whole
PADDING = 8  # residues: proteins whose lengths have one multiple of it above them may share a batch
LEAST_STEP = 0.005  # nm and rad: below that the data do not tell a size
MEASURED = 400  # trajectories, at most, that sizes of steps are taken from
LEAST_SAMPLES = 1.0  # a class of residues needs at least so many
PADDED_ANGLE = 2.0  # rad: N-CA-C of residues that are not there
_ALL = slice(None)


@dataclass(frozen=True)
class Batch:
    """Windows of B systems of one length N.

    Parameters
    ----------
    features : ResidueFeatures, shape (B, N)
    conformations : Conformation, shape (B, L, N)
        Each frame superposed on its predecessor, CA centroids at the origin.
    strides : Tensor, shape (B, L)
        Gap of each frame to its predecessor, ps; for the first frame the stride of the window.
    precomputed : dict of Tensor
        ``"single"`` (B, N, C) and ``"pair"`` (B, N, N, C) where the model takes them.
    reference : Conformation, shape (B, L, N), optional
        Reference structure, superposed on each frame, where the model is drawn back to it.
    """

    features: ResidueFeatures
    conformations: Conformation
    strides: Tensor
    precomputed: dict[str, Tensor] = field(default_factory=dict)
    reference: Conformation | None = None

    def to(self, device) -> Batch:
        """The batch on another device."""
        precomputed = {kind: tensor.to(device) for kind, tensor in self.precomputed.items()}
        reference = None if self.reference is None else self.reference.to(device)
        moved = self.features.to(device), self.conformations.to(device), self.strides.to(device)
        return Batch(*moved, precomputed, reference)


def aligned(windows: Conformation, present: Tensor | None = None) -> Conformation:
    """Windows (B, L, N) with every frame superposed on its predecessor and CA centroids at the origin.

    Superposition is on N, CA and C of all residues, those ``present`` (B, 1, N); the first frame keeps its orientation.
    """
    points, weights = windows.backbone().flatten(-3, -2), None
    if present is not None:
        weights = present.repeat_interleave(3, -1).expand(points[:, 1:, :, 0].shape).to(points.dtype)
    turns = superpose(points[:, 1:], points[:, :-1], weights).rotations
    total = [torch.eye(3, dtype=turns.dtype, device=turns.device).expand(len(turns), 3, 3)]
    for step in range(turns.shape[1]):
        total.append(total[-1] @ turns[:, step])
    rotation = torch.stack(total, 1)[:, :, None]
    turned = rotation @ centred(windows.frames.translations, present)[..., None]
    return Conformation(Rigid(rotation @ windows.frames.rotations, turned[..., 0]), windows.torsions, windows.angles)


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
        self._buckets: dict[int, _Bucket] = {}
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
                self._buckets[room] = _Bucket(trajectories, held)
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

    def _windows_of(self, bucket: _Bucket, batch_size: int) -> int:
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


def steps_within(
    trajectory: EncodedTrajectory, n_frames: int, stride_range: tuple[float, float]
) -> tuple[int, int, float]:
    """Least and greatest stride of windows of ``n_frames``, in trajectory frames, and the greatest in ps.

    Raises
    ------
    StarMDError
        If the trajectory has no such window.
    """
    low, high = stride_range
    longest = (trajectory.n_frames - 1) // max(n_frames - 1, 1)
    least = max(1, math.ceil(low / trajectory.interval - 0.5))
    if longest < least or trajectory.interval > high:
        raise StarMDError(
            f"{trajectory.name} has {trajectory.n_frames} frames at {trajectory.interval:g} ps: it holds no window of "
            f"{n_frames} frames at a stride between {low:g} and {high:g} ps. Leave it out, or ask for less."
        )
    return least, longest, min(high, longest * trajectory.interval)


class _Bucket:
    """Trajectories of one length, or padded to one, from which the windows of a batch are drawn at once.

    Parameters
    ----------
    trajectories : sequence of K EncodedTrajectory
    held : bool
        Keep all of their frames in memory.
    """

    def __init__(self, trajectories: Sequence[EncodedTrajectory], held: bool):
        self.trajectories, self.held = trajectories, held
        self.features = ResidueFeatures.stack([t.features for t in trajectories])
        self._n_frames = torch.tensor([t.n_frames for t in trajectories])
        self._interval = torch.tensor([t.interval for t in trajectories], dtype=torch.float64)
        self.weights = self._n_frames.double().sqrt()
        self._limits: dict[tuple, Tensor] = {}
        self._first: np.ndarray | None = None
        molecules: dict[tuple, list[int]] = {}
        for place, t in enumerate(trajectories):
            molecules.setdefault((t.sequence, *t.features.n_end.tolist(), *t.features.c_end.tolist()), []).append(place)
        self._alike = {place: alike for alike in molecules.values() for place in alike}
        if held:
            self._frames = np.concatenate([self._padded(t.conformations.numbers(_ALL)) for t in trajectories])
            self._starts = self._n_frames.cumsum(0) - self._n_frames

    def windows(
        self, chosen: Tensor, uniform: Tensor, n_frames: int, stride_range: tuple[float, float]
    ) -> tuple[Tensor, Tensor]:
        """Frames (B, L) and strides (B), ps, of windows of the trajectories ``chosen`` (B); ``uniform`` is (B, 3)."""
        if (n_frames, stride_range) not in self._limits:
            limits = [steps_within(t, n_frames, stride_range)[1:] for t in self.trajectories]
            self._limits[n_frames, stride_range] = torch.tensor(limits, dtype=torch.float64).T
        longest, high = self._limits[n_frames, stride_range][:, chosen]
        for_stride, for_start, for_direction = uniform.unbind(-1)
        low, interval = stride_range[0], self._interval[chosen]
        stride = low * (high.clamp_min(low) / low) ** for_stride
        step = torch.minimum((stride / interval).round().clamp_min(1), longest).long()
        start = (for_start * (self._n_frames[chosen] - (n_frames - 1) * step)).long()
        index = start[:, None] + step[:, None] * torch.arange(n_frames)
        return torch.where(for_direction[:, None] < 0.5, index, index.flip(1)), step * interval

    def numbers(self, chosen: Tensor, index: Tensor) -> np.ndarray:
        """Numbers (B, L, N, 13) for `unpack`, of the frames ``index`` (B, L) of the trajectories ``chosen`` (B)."""
        if self.held:
            return self._frames[(self._starts[chosen][:, None] + index).numpy()]
        found = zip(chosen.tolist(), index, strict=True)
        return np.stack([self._padded(self.trajectories[k].conformations.numbers(frames)) for k, frames in found])

    def references(self, chosen: Tensor, uniform: Tensor) -> np.ndarray:
        """Numbers (B, N, 13) for `unpack`, of reference structures of the trajectories ``chosen`` (B)."""
        if self._first is None:
            self._first = np.stack([self._padded(t.conformations.numbers(slice(0, 1)))[0] for t in self.trajectories])
        places = []
        for own, (for_own, for_other) in zip(chosen.tolist(), uniform.tolist(), strict=True):
            alike = self._alike[own]
            places.append(own if for_own < 0.5 else alike[int(for_other * len(alike))])
        return self._first[places]

    def _padded(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers (T, N, 13) of the residues of the longest."""
        missing = self.features.residue_type.shape[-1] - numbers.shape[1]
        if not missing:
            return numbers
        padding = np.zeros((len(numbers), missing, NUMBERS), np.float32)
        padding[..., -1] = PADDED_ANGLE
        return np.concatenate([numbers, padding], 1)


def step_scales(dataset: TrajectoryDataset, strides: Sequence[float] = STEP_STRIDES, n_windows: int = 20_000) -> Tensor:
    """Root mean square size of one step, after superposition.

    Parameters
    ----------
    dataset : TrajectoryDataset
    strides : sequence of K floats
        ps. A stride that no trajectory can show (within 20 %) gets the row of the nearest that one can.
    n_windows : int
        About how many pairs of frames are measured for each stride, evenly spread over the data.

    Returns
    -------
    Tensor, shape (K, 9)
        translation per axis (nm), rotation per axis (rad), six torsions and the N-CA-C angle (rad). Torsions that the
        data do not have get 1.
    """
    return _sizes(dataset, strides, n_windows, lambda ca: torch.ones_like(ca[..., :1]))[:, 0]


def burial_scales(
    dataset: TrajectoryDataset, strides: Sequence[float] = STEP_STRIDES, n_windows: int = 20_000
) -> Tensor:
    """`step_scales` (K, 8, 9) of residues by how many others are near them, see `burial`."""
    return _sizes(dataset, strides, n_windows, burial).clamp_min(LEAST_STEP)


def _sizes(dataset: TrajectoryDataset, strides: Sequence[float], n_windows: int, weights: Callable) -> Tensor:
    """Sizes (K, C, 9) of steps by classes of residues, of which ``weights`` of CA (T, N, 3) tells the shares (T, N, C).

    A class that the data do not have gets those of the nearest that they have.
    """
    rows, measured = {}, dataset.trajectories[:: math.ceil(len(dataset.trajectories) / MEASURED)]
    for k, stride in enumerate(strides):
        total, count = torch.zeros(()), torch.zeros(())
        for trajectory in measured:
            step = max(1, round(stride / trajectory.interval))
            if step < trajectory.n_frames and abs(step * trajectory.interval - stride) <= 0.2 * stride:
                few = math.ceil(n_windows / len(measured))
                squares, numbers = _squared_steps(trajectory, step, few, weights)
                total, count = total + squares, count + numbers
        if count.any():
            rows[k] = torch.where(count >= LEAST_SAMPLES, (total / count.clamp_min(1e-9)).sqrt(), torch.nan)
    if not rows:
        raise StarMDError(f"No trajectory has frames at any stride of {', '.join(f'{s:g}' for s in strides)} ps.")
    nearest = [
        min(rows, key=lambda known, k=k: abs(math.log(strides[known] / strides[k]))) for k in range(len(strides))
    ]
    table = torch.stack([rows[k] for k in nearest])
    classes = range(table.shape[1])
    filled = table.clone()
    for place in classes:
        for other in sorted(classes, key=lambda c, place=place: abs(c - place)):
            filled[:, place] = torch.where(filled[:, place].isnan(), table[:, other], filled[:, place])
    return filled.nan_to_num(1.0).float()


def _squared_steps(
    trajectory: EncodedTrajectory, step: int, n_windows: int, weights: Callable
) -> tuple[Tensor, Tensor]:
    """Sums over pairs of frames of the squared displacements, and how many numbers went into each; both (C, 9)."""
    starts = torch.linspace(0, trajectory.n_frames - 1 - step, n_windows, dtype=torch.float64).round().long().unique()
    pairs = aligned(Conformation.stack([trajectory.conformations[starts], trajectory.conformations[starts + step]], 1))
    move = Displacement.between(pairs[:, 0], pairs[:, 1], trajectory.features.torsion_period)
    squares = [move.translation.double().square().mean(-1, keepdim=True)]
    squares += [move.rotation.double().square().mean(-1, keepdim=True)]
    squares += [move.torsion.double().square(), move.angle.double().square()[..., None]]
    mask = torch.ones(trajectory.n_residues, 9, dtype=torch.float64)
    mask[:, 2:8] = trajectory.features.torsion_mask
    shares = weights(pairs[:, 0].frames.translations.double())
    return torch.einsum("tnc,tnk->ck", shares, torch.cat(squares, -1) * mask), torch.einsum("tnc,nk->ck", shares, mask)
