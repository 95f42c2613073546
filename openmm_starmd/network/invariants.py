"""Points of residues, and how residues see each other: numbers that no common rotation or translation changes."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from openmm_starmd.geometry.constants import constant, table
from openmm_starmd.geometry.rigid import full_precision
from openmm_starmd.protein.conformation import Conformation
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
RADIAL_SHARPNESS = DISTANCE_CENTRES[2] / (DISTANCE_CENTRES[1] - DISTANCE_CENTRES[0])
HARMONICS = 3
NEAR, NEAR_EDGE = 1.0, 0.05  # nm: CA that bury a residue, and how soft that distance is
BURIAL = (0.0, 1.0, 2.0, 4.0, 6.0, 9.0, 12.0, 16.0)  # residues near, at which sizes of steps are tabulated


def beta_carbon(conformation: Conformation, residue_type: Tensor) -> Tensor:
    """C-beta (C-alpha of glycine) positions (*, N, 3), nm; ``residue_type`` broadcastable to (*, N)."""
    frames = conformation.frames
    offset = frames.rotations @ constant(BETA_CARBON, frames.translations.dtype, frames.translations.device)
    glycine = residue_type == RESIDUE_TYPES.index("GLY")
    return frames.translations + offset * ~glycine[..., None]


@table
def _side_chain_tables(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Linear maps of `contact_points`, each (inputs, outputs), with all axes as matrix columns.

    From cosine and sine of the N-CA-C angle to the normal of N-CA-CB; from that normal to the axes along, across and
    normal to the CA-CB bond, and what is added to them; from cosine and sine of a chi and 1 to the axes of the next
    bond in those of the last. Beside them the place of CB.
    """
    x, y, z = (component / math.hypot(*BETA_CARBON) for component in BETA_CARBON)
    normal = [[0, z, -y], [-z, 0, x]]
    across = [[0, -z, y], [z, 0, -x], [-y, x, 0]]
    axes = [[entry for j in range(3) for entry in (0, across[k][j], k == j)] for k in range(3)]
    along = [[component, 0, 0] for component in (x, y, z)]
    c, s = -math.cos(SIDE_CHAIN_ANGLE), math.sin(SIDE_CHAIN_ANGLE)
    turn = [[0, 0, 0, s, c, 0, 0, 0, 1], [0, 0, 0, 0, 0, -1, s, c, 0], [c, -s, 0, 0, 0, 0, 0, 0, 0]]
    return tuple(torch.tensor(table, dtype=dtype, device=device) for table in (normal, axes, along, turn, BETA_CARBON))


@full_precision
def contact_points(conformation: Conformation) -> Tensor:
    """N, CA, C, CB, then one point behind each chi bond with mean bond lengths and angles, (*, N, 8, 3) in nm.

    Points that a residue does not have get a place, too; see `contact_mask`.
    """
    tables = _side_chain_tables(conformation.angles.dtype, conformation.device)
    normal_table, axes_table, along, turn_table, beta_carbon = tables
    direction = torch.stack([conformation.angles.cos(), conformation.angles.sin()], -1)
    normal = functional.normalize(direction @ normal_table, dim=-1)
    axes = (normal @ axes_table).unflatten(-1, (3, 3)) + along
    chis = conformation.torsions[..., 2:]
    turns = torch.stack([chis.cos(), chis.sin(), torch.ones_like(chis)], -1) @ turn_table
    bonds = []
    for turn in turns.unflatten(-1, (3, 3)).unbind(-3):
        axes = axes @ turn
        bonds.append(axes[..., 0])
    chain = torch.stack(bonds, -2).cumsum(-2) * SIDE_CHAIN_BOND + beta_carbon
    frames, side = conformation.frames, beta_carbon.expand(*conformation.shape, 1, 3)
    local = torch.cat([conformation.local_backbone(), side, chain], -2)
    return local @ frames.rotations.transpose(-1, -2) + frames.translations[..., None, :]


def contact_mask(features: ResidueFeatures) -> Tensor:
    """Mask (*, N, 8) of the `contact_points` that residues (*, N) have."""
    carbon = (features.residue_type != RESIDUE_TYPES.index("GLY"))[..., None]
    backbone = torch.ones_like(carbon).expand(*carbon.shape[:-1], 3)
    return torch.cat([backbone, carbon, features.torsion_mask[..., 2:]], -1)


def contacts(points: Tensor, mask: Tensor) -> Tensor:
    """Closeness (*, N, N, 64) of the `contact_points` (*, N, 8, 3) of two residues."""
    n = points.shape[-3]
    x, mask = points.flatten(-3, -2).transpose(-1, -2).contiguous(), mask.to(points.dtype).flatten(-2)
    square = (x[..., :, None] - x[..., None, :]).square().sum(-3)
    near = torch.exp(square * -(CONTACT**-2)) * (mask[..., None, :] * mask[..., :, None])
    return near.unflatten(-1, (n, -1)).unflatten(-3, (n, -1)).transpose(-3, -2).flatten(-2)


def gathered(x: Tensor, neighbours: Tensor) -> Tensor:
    """Features (*, N, ...) of the neighbours (*, N, K), shape (*, N, K, ...)."""
    n, flat = neighbours.shape[-2], neighbours.flatten(0, -3)
    rows = flat + n * torch.arange(len(flat), device=x.device)[:, None, None]
    rest = x.shape[neighbours.dim() - 1 :]
    return x.reshape(-1, *rest).index_select(0, rows.flatten()).view(*neighbours.shape, *rest)


def neighbour_contacts(points: Tensor, mask: Tensor, neighbours: Tensor) -> Tensor:
    """`contacts` (*, N, K, 64) of residues and their neighbours (*, N, K)."""
    mask = mask.to(points.dtype).expand(*points.shape[:-1])
    own, other = (x[..., None, :, None] for x in points.unbind(-1)), gathered(points, neighbours)[..., None, :, :]
    square = sum((a - b).square() for a, b in zip(own, other.unbind(-1), strict=True))
    near = torch.exp(square * -(CONTACT**-2))
    return (near * (mask[..., None, :, None] * gathered(mask, neighbours)[..., None, :])).flatten(-2)


@full_precision
def burial(ca: Tensor, present: Tensor | None = None) -> Tensor:
    """Numbers of other residues near residues of CA positions (*, N, 3), nm, as weights (*, N, 8) of the `BURIAL`.

    The weights add up to one: those of the two that the (smooth) number lies between.
    """
    near = torch.sigmoid((NEAR - distances(ca, ca)) / NEAR_EDGE)
    near = near * (1 - torch.eye(ca.shape[-2], dtype=ca.dtype, device=ca.device))
    count = (near if present is None else near * present[..., None, :]).sum(-1, keepdim=True)
    knots = constant(BURIAL, ca.dtype, ca.device)
    place = ((count - knots[:-1]) / knots.diff()).clamp(0, 1)  # of the way from each of them to the next
    return functional.pad(place, (1, 0), value=1.0) - functional.pad(place, (0, 1))


def distances(a: Tensor, b: Tensor) -> Tensor:
    """All distances (*, N, N) between points (*, N, 3); on a GPU `cdist` takes a block of threads for each of them."""
    if a.is_cuda:
        return torch.linalg.vector_norm(a[..., :, None, :] - b[..., None, :, :], dim=-1)
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def distance_bins(d: Tensor) -> Tensor:
    """One-hot bins (*, 39) of distances in nm; nothing below the first edge."""
    low, high, n = BIN_EDGES
    edges = torch.linspace(low, high, n, dtype=d.dtype, device=d.device)
    upper = torch.cat([edges[1:], edges.new_full((1,), math.inf)])
    return ((d[..., None] > edges) & (d[..., None] <= upper)).to(d.dtype)


@table
def _pair_tables(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Centres of radial functions; atoms of both ends and length of each distance across a peptide bond; its scales."""
    low, high, n = DISTANCE_CENTRES
    c_n, ca_ca, c_ca, ca_n = PEPTIDE_GEOMETRY
    lengths = torch.tensor([c_n, c_n, ca_ca, c_ca, ca_n], dtype=dtype)[:, None, None]
    scales = torch.tensor([[50.0], [5.0]], dtype=dtype)
    start, end = torch.tensor([2, 0, 1, 2, 1]), torch.tensor([0, 2, 1, 1, 0])  # of N, CA, C
    tables = torch.linspace(low, high, n, dtype=dtype), start, end, lengths, scales
    return tuple(table.to(device) for table in tables)


@full_precision
def local_pairs(rotations: Tensor, atoms: Tensor, other_rotations: Tensor, other_atoms: Tensor) -> Tensor:
    """Other residues j as residues i see them, (*, N, N, LOCAL_PAIR_WIDTH).

    Position and orientation in the frame of i, radial functions of the C-alpha distance, and how far the backbone is
    from the geometry of a peptide bond, at two scales. Rotations are (*, N, 3, 3), atoms (*, N, 3 or more, 3), nm, with
    N, CA and C first.
    """
    centres, start, end, lengths, scales = _pair_tables(atoms.dtype, atoms.device)
    ca, other_ca = atoms[..., 1, :], other_atoms[..., 1, :]
    position = (other_ca[..., None, :, :] - ca[..., :, None, :]) @ rotations
    orientation = torch.einsum("...iab,...jac->...ijbc", rotations, other_rotations).flatten(-2)
    starts, ends = atoms.index_select(-2, start), other_atoms.index_select(-2, end)
    d = distances(starts.transpose(-3, -2), ends.transpose(-3, -2)).clamp_min(1e-5)  # (*, 5, N, N)
    radial = torch.exp(-((d[..., 2, :, :, None] - centres) * RADIAL_SHARPNESS).square())
    strain = ((d - lengths).movedim(-3, -1)[..., None, :] * scales).tanh().flatten(-2)
    return torch.cat([position, orientation, radial, strain], -1)


@full_precision
def local_neighbours(
    rotations: Tensor, atoms: Tensor, other_rotations: Tensor, other_atoms: Tensor, neighbours: Tensor
) -> Tensor:
    """`local_pairs` (*, N, K, LOCAL_PAIR_WIDTH) of residues and their neighbours (*, N, K)."""
    centres, start, end, lengths, scales = _pair_tables(atoms.dtype, atoms.device)
    turned, others = gathered(other_rotations, neighbours), gathered(other_atoms[..., :3, :], neighbours)
    position = (others[..., 1, :] - atoms[..., None, 1, :]) @ rotations
    orientation = torch.einsum("...iab,...ikac->...ikbc", rotations, turned).flatten(-2)
    apart = atoms.index_select(-2, start)[..., None, :, :] - others.index_select(-2, end)
    d = apart.square().sum(-1).sqrt().clamp_min(1e-5)  # (*, N, K, 5)
    radial = torch.exp(-((d[..., 2, None] - centres) * RADIAL_SHARPNESS).square())
    strain = ((d - lengths.flatten())[..., None, :] * scales).tanh().flatten(-2)
    return torch.cat([position, orientation, radial, strain], -1)


def harmonics(torsions: Tensor, mask: Tensor) -> Tensor:
    """Sines and cosines (*, N, 36) of the first three multiples of the torsions (*, N, 6), zero where absent."""
    multiples = torch.arange(1, HARMONICS + 1, dtype=torsions.dtype, device=torsions.device)[:, None]
    phases = torsions[..., None, :] * multiples
    return (torch.stack([phases.sin(), phases.cos()], -2) * mask[..., None, None, :]).flatten(-3)
