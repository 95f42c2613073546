"""Pulls between residues: what many degrees of freedom of the denoised frame must do together.

Two charged groups that hold each other keep their distance, while each of the dozen torsions between them is free to
turn some twenty degrees: errors of torsions that are right one by one add up to a broken salt bridge. So the network
may ask for a change of the distance between two points of two residues. Frames and torsions bring it about together,
each as far as its place is uncertain and moves the points: the Kalman filter's answer to a measured distance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from openmm_starmd.geometry.constants import constant
from openmm_starmd.geometry.rigid import full_precision
from openmm_starmd.network.config import NetworkConfig
from openmm_starmd.network.invariants import BETA_CARBON, CONTACT_POINTS, SIDE_CHAIN_BOND, contact_points
from openmm_starmd.network.rotamers import CHI
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.displacement import Displacement, centred
from openmm_starmd.protein.tokens import ResidueFeatures

POINTS = 3  # of a residue: N, C, and the end of its side chain
BOND_STARTS, BOND_ENDS = (1, 3, 4, 5), (3, 4, 5, 6)  # of chi1 to chi4, among the contact points
BOND_LENGTHS = (math.hypot(*BETA_CARBON), *3 * (SIDE_CHAIN_BOND,))  # nm
YIELDING = 0.1, 0.3  # of translations and rotations, beside chis: the chain holds residues back
FLUCTUATION = 0.03  # nm: how far distances that pulls keep vary
REACHES = (1.0, 2.0, 4.0, 8.0)  # within which a changed distance is drawn back, in its uncertainties
FARTHEST = 5.0  # the same of a change as an input
CENTRES, WIDTH = (0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1.1, 1.3), 0.12  # nm, of the radial functions of distances
INPUTS = 2 * len(CENTRES) + len(REACHES) + 2


@dataclass(frozen=True)
class PullInputs:
    """Features of residues that pulls take, computed once a rollout."""

    ends: Tensor  # (B, 1, N, 1, 8): 1 at the contact point that is the end of the side chain
    turning: Tensor  # (B, 1, N, 3, 4, 1): 1 / nm, the length of the chi's bond, where a chi moves a point; else 0
    # (N, 1, N): 1 where a point and an end are not of the same residue; else 0. (B, 1, N, 1, N) with padding, where it
    # is 0
    apart: Tensor
    offset: Tensor  # (B, 1, N, N, C): of the hidden features of a pair of residues
    gate: Tensor  # (B, 1, N, N, C): the same
    present: Tensor | None = None  # (B, 1, N) of bool

    def expand(self, batch: int) -> PullInputs:
        """Features of ``batch`` replicas of one system; they share the memory."""
        parts = {name: getattr(self, name) for name in ("ends", "turning", "offset", "gate")}
        return replace(self, **{name: x.expand(batch, *x.shape[1:]) for name, x in parts.items()})


def from_ends(points: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (*, N, 3, N) of `Pulls.points` (*, N, 3, 3) from ends, and unit vectors (*, N, 3, N, 3) from those."""
    away = points[..., None, :] - points[..., None, None, :, -1, :]
    d = (away.square().sum(-1) + 1e-8).sqrt()
    return d, away / d[..., None]


class Pulls(nn.Module):
    """Correction of an estimate by pulls; an untrained one leaves it as it is.

    Every residue's N, C and side chain's end are pulled to or pushed from the ends of the other residues. What it knows
    of two residues are their types, their separation along the chain, and these distances in the previous and in the
    denoised frame: a pair potential with a memory.
    """

    def __init__(self, config: NetworkConfig):
        super().__init__()
        width = config.pair_width
        self.ends = nn.Linear(config.width, 4 * width)
        self.pair = nn.Linear(width, width)
        self.mix = nn.Linear(POINTS * INPUTS, width)
        self.middle = nn.Linear(width, width)
        self.out = nn.Linear(width, POINTS * (len(REACHES) + 1))

    def static(self, features: ResidueFeatures, residues: Tensor, pairs: Tensor) -> PullInputs:
        """The part that no conformation has to do with, from static features (B, N, C) and (B, N, N, C).

        Where the last chi only exchanges two alike atoms, the side chain ends before it.
        """
        period, has = features.torsion_period[..., CHI], features.torsion_mask[..., CHI]
        moving = (has & (period > 4)).to(residues.dtype)
        numbers = torch.arange(CONTACT_POINTS, device=moving.device)
        ends = (numbers == 3 + moving.sum(-1, keepdim=True)).to(moving.dtype)
        is_end = (torch.arange(POINTS, device=moving.device) == POINTS - 1)[:, None]
        turning = (is_end * (moving / constant(BOND_LENGTHS, moving.dtype, moving.device))[..., None, :])[..., None]
        a, b, c, d = self.ends(functional.layer_norm(residues, residues.shape[-1:])).chunk(4, -1)
        offset = self.pair(pairs) + a[..., :, None, :] + b[..., None, :, :]
        gate = 1 + c[..., :, None, :] * d[..., None, :, :]
        apart = 1 - torch.eye(residues.shape[-2], dtype=moving.dtype, device=moving.device)[:, None]
        present = features.present_in(residues[:, None, :, 0])
        if present is not None:
            apart = apart * (present[..., :, None, None] & present[..., None, None, :])
        return PullInputs(ends[:, None, :, None], turning[:, None], apart, offset[:, None], gate[:, None], present)

    @staticmethod
    def points(atoms: Tensor, pull_inputs: PullInputs) -> Tensor:
        """N, C and the side chain's end (*, N, 3, 3) of contact points (*, N, 8, 3)."""
        return torch.cat([atoms[..., 0:3:2, :], pull_inputs.ends.to(atoms.dtype) @ atoms], -2)

    def from_previous(self, pull_inputs: PullInputs, previous: Conformation) -> Tensor:
        """Distances (B, T, N, 3, N) in the previous frames."""
        return from_ends(self.points(contact_points(previous), pull_inputs))[0]

    @full_precision
    def forward(
        self,
        pull_inputs: PullInputs,
        previous_distances: Tensor,
        conformation: Conformation,
        estimate: Displacement,
        unit: Displacement,
    ) -> Displacement:
        """Correct an estimate by the pulls between residues.

        The estimate (B, T, N) leads from the conformation to the denoised frame. ``previous_distances`` (B, T, N, 3, N)
        are distances in the previous frame, ``unit`` the uncertainties of the parts of the estimate.
        """
        yielding = [share * x.square() for share, x in zip(YIELDING, (unit.translation, unit.rotation), strict=True)]
        of_chi = unit.torsion[..., CHI].square()
        with torch.no_grad():  # as of the frames in AlphaFold 2, algorithm 20
            denoised = estimate.apply(conformation)
            atoms = contact_points(denoised)
            points = self.points(atoms, pull_inputs)
            levers = points - atoms[..., 1:2, :]
            arms = self._arms(atoms, points, pull_inputs)
            d, away = from_ends(points)
            spread = self._spread(away, levers, arms, yielding, of_chi)
            moved = (d - previous_distances) / spread
            reaches, centres = (constant(values, d.dtype, d.device) for values in (REACHES, CENTRES))
            back = moved[..., None] * torch.exp(-(moved[..., None] / reaches).square())
            radial = [torch.exp(-((x[..., None] - centres) / WIDTH).square()) for x in (d, previous_distances)]
            sizes = [moved.clamp(-FARTHEST, FARTHEST)[..., None], spread.log()[..., None]]
            inputs = torch.cat([*radial, back, *sizes], -1).transpose(-3, -2).flatten(-2)
        x = functional.gelu(self.mix(inputs) + pull_inputs.offset) * pull_inputs.gate
        x = x + functional.gelu(self.middle(x))
        asked = self.out(x).unflatten(-1, (POINTS, -1)).transpose(-3, -2)
        pull = ((asked[..., :-1] * back).sum(-1) + asked[..., -1]) / spread * pull_inputs.apart
        forces = pull[..., None] * away
        force = forces.sum(-2)
        force = torch.cat([force[..., :2, :], (force[..., 2, :] - forces.sum((-4, -3)))[..., None, :]], -2)
        torque = torch.linalg.cross(levers, force, dim=-1).sum(-2)
        chi = of_chi * (arms @ force[..., None]).sum(-3)[..., 0]
        backbone, side = estimate.torsion.split([2, 4], -1)
        return replace(
            estimate,
            translation=centred(estimate.translation + yielding[0] * force.sum(-2), pull_inputs.present),
            rotation=estimate.rotation + yielding[1] * (torque[..., None, :] @ denoised.frames.rotations)[..., 0, :],
            torsion=torch.cat([backbone, side + chi], -1),
        )

    @staticmethod
    def _arms(atoms: Tensor, points: Tensor, pull_inputs: PullInputs) -> Tensor:
        """Velocities (*, N, 3, 4, 3) of points (*, N, 3, 3) as chi1 to chi4 turn."""
        starts_and_ends = (constant(at, torch.int64, atoms.device) for at in (BOND_STARTS, BOND_ENDS))
        start, end = (atoms.index_select(-2, at) for at in starts_and_ends)
        axes, apart = (end - start)[..., None, :, :], points[..., :, None, :] - end[..., None, :, :]
        return torch.linalg.cross(axes.expand_as(apart), apart, dim=-1) * pull_inputs.turning.to(atoms.dtype)

    @staticmethod
    def _spread(away: Tensor, levers: Tensor, arms: Tensor, yielding: list[Tensor], of_chi: Tensor) -> Tensor:
        """Uncertainty (*, N, 3, N) of distances along unit vectors (*, N, 3, N, 3), nm."""
        translation, rotation = yielding
        level = (translation + rotation * levers.square().sum(-1))[..., None]
        rows = torch.cat([levers[..., None, :], arms], -2)
        weights = torch.cat([-rotation, of_chi], -1)[..., None]
        own = ((away @ rows.transpose(-1, -2)).square() @ weights[..., None, :, :])[..., 0] + level
        of_ends = away.movedim(-2, -4).flatten(-3, -2) @ rows[..., -1, :, :].transpose(-1, -2)
        others = (of_ends.square() @ weights)[..., 0] + level[..., -1, :]
        return (own + others.unflatten(-1, own.shape[-3:-1]).movedim(-3, -1) + FLUCTUATION**2).sqrt()
