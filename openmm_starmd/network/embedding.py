"""What the network is told: residue features, pair features, noise level and stride.

Everything geometric is expressed in residue frames, so the inputs are invariant under a common rotation and
translation of all frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from openmm_starmd.network.config import NetworkConfig
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.displacement import ROTATION, TRANSLATION, Displacement
from openmm_starmd.protein.residues import RESIDUE_TYPES
from openmm_starmd.protein.tokens import ResidueFeatures

BETA_CARBON = (-0.0535, -0.0770, -0.1210)  # nm, mean position in the residue frame, ff14SB
BIN_EDGES = (0.325, 5.075, 39)  # nm; C-beta distances of the paper, the last bin open
DISTANCE_CENTRES = (0.1, 1.6, 16)  # nm
PEPTIDE_GEOMETRY = (0.1335, 0.38, 0.243, 0.243)  # nm: C-N, CA-CA, C-CA, CA-N across a peptide bond
SIDE_CHAIN_BOND, SIDE_CHAIN_ANGLE = 0.151, 1.98  # nm, rad: a mean heavy-atom bond of side chains and its angle
CONTACT = 0.35  # nm
CONTACT_POINTS = 8
LOCAL_PAIR_WIDTH = 3 + 9 + DISTANCE_CENTRES[2] + 2 * 5
HARMONICS = (1, 2, 3)
FREQUENCIES = 8


@dataclass(frozen=True)
class FrameInputs:
    """Frames as the network gets them: noisy frames and context copies alike.

    Parameters
    ----------
    conformation, previous : Conformation, shape (B, T, N)
        Centred; the frame itself and its predecessor in the window (itself where there is none).
    time : Tensor, shape (B, T)
        Diffusion time; -1 for a context copy.
    alpha : Tensor, shape (B, T)
    sigma : Tensor, shape (B, T, 4)
        Signal and noise levels.
    stride : Tensor, shape (B, T)
        Physical time since the predecessor, ps.
    index : Tensor, shape (T,)
        Frame index in the window.
    """

    conformation: Conformation
    previous: Conformation
    time: Tensor
    alpha: Tensor
    sigma: Tensor
    stride: Tensor
    index: Tensor

    def frame(self, k: int) -> FrameInputs:
        """The frame at position k alone, the axis kept."""
        at = slice(k, k + 1)
        parts = [x[:, at] for x in (self.time, self.alpha, self.sigma, self.stride)]
        return FrameInputs(self.conformation[:, at], self.previous[:, at], *parts, self.index[at])

    @classmethod
    def cat(cls, a: FrameInputs, b: FrameInputs) -> FrameInputs:
        """Frames of ``a`` followed by those of ``b``."""
        join = [torch.cat([getattr(a, name), getattr(b, name)], 1) for name in ("time", "alpha", "sigma", "stride")]
        return cls(
            Conformation.cat([a.conformation, b.conformation], 1),
            Conformation.cat([a.previous, b.previous], 1),
            *join,
            torch.cat([a.index, b.index]),
        )


def beta_carbon(conformation: Conformation, residue_type: Tensor) -> Tensor:
    """C-beta (C-alpha of glycine) positions (*, N, 3), nm; ``residue_type`` broadcastable to (*, N)."""
    frames = conformation.frames
    offset = frames.rotations @ frames.translations.new_tensor(BETA_CARBON)
    glycine = residue_type == RESIDUE_TYPES.index("GLY")
    return frames.translations + offset * ~glycine[..., None]


def side_chain_points(conformation: Conformation, features: ResidueFeatures) -> tuple[Tensor, Tensor]:
    """Where the side chains run: C-beta, then one point behind each chi bond with mean bond lengths and angles.

    Returns
    -------
    points : Tensor, shape (*, N, 5, 3)
        nm.
    present : Tensor of bool, shape (*, N, 5)
    """
    chis = conformation.torsions[..., 2:]
    residue_type = features.per_frame("residue_type", conformation.angles).expand(conformation.shape)
    n, ca, _ = conformation.backbone().unbind(-2)
    chain = [n, ca, beta_carbon(conformation, residue_type)]
    x, radius = SIDE_CHAIN_BOND * -math.cos(SIDE_CHAIN_ANGLE), SIDE_CHAIN_BOND * math.sin(SIDE_CHAIN_ANGLE)
    for k in range(4):
        a, b, c = chain[-3:]
        axis = functional.normalize(c - b, dim=-1)
        normal = functional.normalize(torch.linalg.cross(b - a, axis), dim=-1)
        across = torch.linalg.cross(normal, axis)
        chi = chis[..., k, None]
        chain.append(c + x * axis + radius * (chi.cos() * across + chi.sin() * normal))
    mask = features.per_frame("torsion_mask", conformation.angles)[..., 2:].expand(*conformation.shape, 4)
    carbon = (residue_type != RESIDUE_TYPES.index("GLY"))[..., None]
    return torch.stack(chain[2:], -2), torch.cat([carbon, mask], -1)


def contacts(conformation: Conformation, features: ResidueFeatures) -> Tensor:
    """Closeness (*, N, N, 64) of the backbone atoms and side-chain points of two residues."""
    side, present = side_chain_points(conformation, features)
    points = torch.cat([conformation.backbone(), side], -2).flatten(-3, -2)
    there = torch.cat([torch.ones_like(present[..., :3]), present], -1).to(points.dtype).flatten(-2)
    near = torch.exp(-(distances(points, points) / CONTACT).square()) * there[..., None, :] * there[..., :, None]
    n = conformation.shape[-1]
    return near.unflatten(-1, (n, -1)).unflatten(-3, (n, -1)).transpose(-3, -2).flatten(-2)


def distances(a: Tensor, b: Tensor) -> Tensor:
    """All distances (*, N, N) between points (*, N, 3); differentiable at zero."""
    return ((a[..., :, None, :] - b[..., None, :, :]).square().sum(-1) + 1e-10).sqrt()


def distance_bins(d: Tensor) -> Tensor:
    """One-hot bins (*, 39) of distances in nm; nothing below the first edge."""
    low, high, n = BIN_EDGES
    edges = torch.linspace(low, high, n, dtype=d.dtype, device=d.device)
    upper = torch.cat([edges[1:], edges.new_tensor([math.inf])])
    return ((d[..., None] > edges) & (d[..., None] <= upper)).to(d.dtype)


def local_pairs(a: Conformation, b: Conformation) -> Tensor:
    """Residue j of ``b`` as residue i of ``a`` sees it, (*, N, N, LOCAL_PAIR_WIDTH).

    Position and orientation in the frame of i, radial functions of the C-alpha distance, and how far the backbone is
    from the geometry of a peptide bond, at two scales.
    """
    ra, rb = a.frames.rotations, b.frames.rotations
    n_a, ca_a, c_a = a.backbone().unbind(-2)
    n_b, ca_b, c_b = (n_a, ca_a, c_a) if b is a else b.backbone().unbind(-2)
    apart = ca_b[..., None, :, :] - ca_a[..., :, None, :]
    position = apart @ ra
    orientation = ra.transpose(-1, -2)[..., :, None, :, :] @ rb[..., None, :, :, :]
    d = (apart.square().sum(-1) + 1e-10).sqrt()
    low, high, n = DISTANCE_CENTRES
    centres = torch.linspace(low, high, n, dtype=d.dtype, device=d.device)
    radial = torch.exp(-(((d[..., None] - centres) * (n / (high - low))) ** 2))
    c_n, ca_ca, c_ca, ca_n = PEPTIDE_GEOMETRY
    strain = torch.stack(
        [
            distances(c_a, n_b) - c_n,
            distances(n_a, c_b) - c_n,
            d - ca_ca,
            distances(c_a, ca_b) - c_ca,
            distances(ca_a, n_b) - ca_n,
        ],
        -1,
    )
    return torch.cat([position, orientation.flatten(-2), radial, (strain / 0.02).tanh(), (strain / 0.2).tanh()], -1)


def harmonics(torsions: Tensor, mask: Tensor) -> Tensor:
    """Sines and cosines (*, N, 36) of the first three multiples of the torsions (*, N, 6), zero where absent."""
    parts = [f(k * torsions) * mask for k in HARMONICS for f in (torch.sin, torch.cos)]
    return torch.cat(parts, -1)


class ConditionEmbedding(nn.Module):
    """Noise level and stride of a frame, as the input of every AdaLN; output (B, T, 1, C)."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4 * FREQUENCIES + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.register_buffer("frequency", 0.7 * torch.arange(1, FREQUENCIES + 1), persistent=False)

    def forward(self, time: Tensor, stride: Tensor) -> Tensor:
        phases = torch.cat([3 * time[..., None] * self.frequency, stride.log()[..., None] / 3 * self.frequency], -1)
        context = (time < 0).to(phases.dtype)[..., None]
        return self.layers(torch.cat([phases.sin(), phases.cos(), context], -1))[..., None, :]


class ResidueEmbedding(nn.Module):
    """Residue features (B, T, N, C): type, chain ends, torsions, and the way from the previous frame."""

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.residue_type = nn.Embedding(len(RESIDUE_TYPES), width)
        self.n_end, self.c_end = nn.Embedding(3, width), nn.Embedding(3, width)
        around_previous = config.parameterization == "previous"
        diffused = config.torsions == "diffusion"
        inputs = 6 + diffused * (37 + around_previous * (37 + 7)) + around_previous * 9
        self.geometry = nn.Linear(inputs, width)
        if config.single_features:
            self.single = nn.Sequential(nn.LayerNorm(config.single_features), nn.Linear(config.single_features, width))

    def forward(self, features: ResidueFeatures, frames: FrameInputs, spread: Tensor, single: Tensor | None) -> Tensor:
        """``spread`` (B, T, 9): expected size of the way from the previous frame, noise included."""
        fixed = self.residue_type(features.residue_type) + self.n_end(features.n_end) + self.c_end(features.c_end)
        if self.config.single_features and single is not None:
            fixed = fixed + self.single(single)
        now, before = frames.conformation, frames.previous
        mask = features.per_frame("torsion_mask", now.angles).to(now.angles.dtype).expand(*now.shape, 6)
        parts = [mask]
        diffused = self.config.torsions == "diffusion"
        if diffused:
            parts += [harmonics(now.torsions, mask), now.angles[..., None] - 2.0]
        if self.config.parameterization == "previous":
            way = Displacement.between(before, now, features.per_frame("torsion_period", now.angles))
            s = spread[..., None, :]
            moved = way.translation / s[..., TRANSLATION, None]
            parts += [
                torch.einsum("...ij,...i->...j", before.frames.rotations, moved),
                torch.einsum("...ij,...i->...j", now.frames.rotations, moved),
                way.rotation / s[..., ROTATION, None],
            ]
            if diffused:
                parts += [harmonics(before.torsions, mask), before.angles[..., None] - 2.0]
                parts += [way.torsion * mask / s[..., 2:8], (way.angle / s[..., 8])[..., None]]
        return fixed[:, None] + self.geometry(torch.cat(parts, -1))


class PairEmbedding(nn.Module):
    """Pair features (B, T, N, N, C): sequence separation and geometry of this frame, its predecessor, the reference."""

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config = config
        self.relative = nn.Embedding(2 * config.max_relative_position + 2, config.pair_width)
        around_previous = config.parameterization == "previous"
        geometry = 3 * LOCAL_PAIR_WIDTH + CONTACT_POINTS**2 if around_previous else BIN_EDGES[2]
        self.geometry = nn.Linear(geometry, config.pair_width)
        self.mix = nn.Sequential(nn.GELU(), nn.Linear(config.pair_width, config.pair_width))
        if config.reference_structure:
            self.reference = nn.Linear(LOCAL_PAIR_WIDTH + BIN_EDGES[2], config.pair_width)
        if config.pair_features:
            self.pair = nn.Sequential(
                nn.LayerNorm(config.pair_features), nn.Linear(config.pair_features, config.pair_width)
            )

    def static(self, features: ResidueFeatures, reference: Conformation | None, pair: Tensor | None) -> Tensor:
        """The part that does not depend on time, (B, N, N, C); computed once a rollout."""
        limit = self.config.max_relative_position
        apart = features.residue_index[..., None, :] - features.residue_index[..., :, None]
        same = features.chain_index[..., None, :] == features.chain_index[..., :, None]
        z = self.relative(torch.where(same, apart.clamp(-limit, limit) + limit, 2 * limit + 1))
        if self.config.reference_structure and reference is not None:
            cb = beta_carbon(reference, features.residue_type)
            z = z + self.reference(torch.cat([local_pairs(reference, reference), distance_bins(distances(cb, cb))], -1))
        if self.config.pair_features and pair is not None:
            z = z + self.pair(pair)
        return z

    def forward(self, static: Tensor, features: ResidueFeatures, frames: FrameInputs) -> Tensor:
        now, before = frames.conformation, frames.previous
        if self.config.parameterization == "previous":
            pairs = [local_pairs(now, now), local_pairs(before, before), local_pairs(now, before)]
            geometry = torch.cat([*pairs, contacts(now, features)], -1)
        else:
            cb = beta_carbon(now, features.per_frame("residue_type", now.angles))
            geometry = distance_bins(distances(cb, cb))
        return self.mix(static[:, None] + self.geometry(geometry))
