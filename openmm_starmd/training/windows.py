"""Windows of frames: batches of them, and the trajectories of one length that they are drawn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from openmm_starmd.errors import StarMDError
from openmm_starmd.geometry.rigid import Rigid, superpose
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.displacement import centred
from openmm_starmd.protein.tokens import ResidueFeatures
from openmm_starmd.trajectories.encoding import EncodedTrajectory
from openmm_starmd.trajectories.packed import NUMBERS

PADDED_ANGLE = 2.0  # rad: N-CA-C of residues that are not there


@dataclass(frozen=True)
class Batch:
    """Windows of B systems of one length N."""

    features: ResidueFeatures  # (B, N)
    conformations: Conformation  # (B, L, N): each frame superposed on its predecessor, CA centroids at the origin
    strides: Tensor  # (B, L): gap of each frame to its predecessor, ps; for the first frame the stride of the window
    # ``"single"`` (B, N, C) and ``"pair"`` (B, N, N, C) where the model takes them
    precomputed: dict[str, Tensor] = field(default_factory=dict)
    # (B, L, N): reference structure, superposed on each frame, where the model is drawn back to it
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


def steps_within(
    trajectory: EncodedTrajectory, n_frames: int, stride_range: tuple[float, float]
) -> tuple[int, int, float]:
    """Least and greatest stride of windows of ``n_frames``, in trajectory frames, and the greatest in ps.

    A StarMDError refuses a trajectory that has no such window.
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


class Bucket:
    """K trajectories of one length, or padded to one, from which the windows of a batch are drawn at once.

    ``held`` tells whether all of their frames are in memory.
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
            self._frames = np.concatenate([self._padded(t.conformations.numbers(slice(None))) for t in trajectories])
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
