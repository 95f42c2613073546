"""Sizes of one step in the data, by stride, torsion and burial: what the network measures displacements in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from openmm_starmd.errors import StarMDError
from openmm_starmd.network.elastic_steps import sizes, step_covariance
from openmm_starmd.network.invariants import burial
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.displacement import Displacement
from openmm_starmd.protein.tokens import ResidueFeatures
from openmm_starmd.training.dataset import TrajectoryDataset
from openmm_starmd.training.windows import aligned
from openmm_starmd.trajectories.encoding import EncodedTrajectory

STEP_STRIDES = tuple(10.0 * 2**k for k in range(8))
LEAST_STEP = 0.005  # nm and rad: below that the data do not tell a size
MEASURED = 400  # trajectories, at most, that sizes of steps are taken from
LEAST_SAMPLES = 1.0  # a class of residues needs at least so many


def step_scales(dataset: TrajectoryDataset, strides: Sequence[float] = STEP_STRIDES, n_windows: int = 20_000) -> Tensor:
    """Root mean square size (K, 9) of one step, after superposition, at each of K strides (ps).

    The numbers are the translation per axis (nm), the rotation per axis (rad), six torsions and the N-CA-C angle (rad).
    Torsions that the data do not have get 1. A stride that no trajectory can show (within 20 %) gets the row of the
    nearest that one can. About ``n_windows`` pairs of frames, evenly spread over the data, are measured for each
    stride.
    """
    return _sizes(dataset, strides, n_windows, lambda ca: torch.ones_like(ca[..., :1]))[:, 0]


def burial_scales(
    dataset: TrajectoryDataset, strides: Sequence[float] = STEP_STRIDES, n_windows: int = 20_000
) -> Tensor:
    """`step_scales` (K, 8, 9) of residues by how many others are near them, see `burial`."""
    return _sizes(dataset, strides, n_windows, burial).clamp_min(LEAST_STEP)


def elastic_scales(
    dataset: TrajectoryDataset, strides: Sequence[float] = STEP_STRIDES, n_windows: int = 2_000
) -> Tensor:
    """Sizes (K, 1) of the translations of steps of CA, in units of those of `elastic_steps.step_covariance`."""
    return _by_stride(dataset, strides, n_windows, _elastic_squares).float()


def _sizes(dataset: TrajectoryDataset, strides: Sequence[float], n_windows: int, weights: Callable) -> Tensor:
    """Sizes (K, C, 9) of steps by classes of residues, of which ``weights`` of CA (T, N, 3) tells the shares (T, N, C).

    A class that the data do not have gets those of the nearest that they have.
    """
    table = _by_stride(dataset, strides, n_windows, lambda pairs, features: _squared_steps(pairs, features, weights))
    classes = range(table.shape[1])
    filled = table.clone()
    for place in classes:
        for other in sorted(classes, key=lambda c, place=place: abs(c - place)):
            filled[:, place] = torch.where(filled[:, place].isnan(), table[:, other], filled[:, place])
    return filled.nan_to_num(1.0).float()


def _by_stride(dataset: TrajectoryDataset, strides: Sequence[float], n_windows: int, sums: Callable) -> Tensor:
    """Root mean squares (K, ...) at each of K strides, nan where the data tell none.

    ``sums`` of pairs of frames (T, 2, N) and the features of the residues gives sums of squares and what to divide
    them by.
    """
    rows, measured = {}, dataset.trajectories[:: math.ceil(len(dataset.trajectories) / MEASURED)]
    for k, stride in enumerate(strides):
        total, count = torch.zeros(()), torch.zeros(())
        for trajectory in measured:
            step = max(1, round(stride / trajectory.interval))
            if step < trajectory.n_frames and abs(step * trajectory.interval - stride) <= 0.2 * stride:
                few = math.ceil(n_windows / len(measured))
                squares, numbers = sums(_pairs(trajectory, step, few), trajectory.features)
                total, count = total + squares, count + numbers
        if count.any():
            rows[k] = torch.where(count >= LEAST_SAMPLES, (total / count.clamp_min(1e-9)).sqrt(), torch.nan)
    if not rows:
        raise StarMDError(f"No trajectory has frames at any stride of {', '.join(f'{s:g}' for s in strides)} ps.")
    nearest = [
        min(rows, key=lambda known, k=k: abs(math.log(strides[known] / strides[k]))) for k in range(len(strides))
    ]
    return torch.stack([rows[k] for k in nearest])


def _pairs(trajectory: EncodedTrajectory, step: int, few: int) -> Conformation:
    """At most ``few`` pairs (T, 2, N) of frames ``step`` apart, the second superposed on the first."""
    starts = torch.linspace(0, trajectory.n_frames - 1 - step, few, dtype=torch.float64).round().long().unique()
    return aligned(Conformation.stack([trajectory.conformations[starts], trajectory.conformations[starts + step]], 1))


def _elastic_squares(pairs: Conformation, features: ResidueFeatures) -> tuple[Tensor, Tensor]:
    """Sums of squared translations and of the variances that an elastic network has for them; both (1,)."""
    before, after = pairs.frames.translations.double().unbind(1)
    expected = sizes(step_covariance(before[:, None]))
    return (after - before).square().mean(-1).sum()[None], expected.square().sum()[None]


def _squared_steps(pairs: Conformation, features: ResidueFeatures, weights: Callable) -> tuple[Tensor, Tensor]:
    """Sums over pairs of frames of the squared displacements, and how many numbers went into each; both (C, 9)."""
    move = Displacement.between(pairs[:, 0], pairs[:, 1], features.torsion_period)
    squares = [move.translation.double().square().mean(-1, keepdim=True)]
    squares += [move.rotation.double().square().mean(-1, keepdim=True)]
    squares += [move.torsion.double().square(), move.angle.double().square()[..., None]]
    mask = torch.ones(pairs.shape[-1], 9, dtype=torch.float64)
    mask[:, 2:8] = features.torsion_mask
    shares = weights(pairs[:, 0].frames.translations.double())
    return torch.einsum("tnc,tnk->ck", shares, torch.cat(squares, -1) * mask), torch.einsum("tnc,nk->ck", shares, mask)
