"""Fluctuations of the reference structure as an elastic network of its CA has them.

Springs between all CA get weaker with the sixth power of their distance (Hinsen, Proteins 33, 417, 1998), so that there
is neither a cutoff nor a parameter to fit. The denoiser gets the covariances of the elastic network's motion.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openmm_starmd.geometry.rigid import Rigid, full_precision

LENGTH, POWER = 0.38, 6  # nm: a spring of that length has the stiffness 1
BODY_STIFFNESS, TETHER = 1e3, 1e-3  # stiffness of translation and rotation as a whole, and of each residue by itself
CLOSEST = 0.2  # nm
LEAST_SQUARE = 0.1  # of the fluctuation of a distance
MEAN_LOG, SPREAD_LOG, SPREAD = (2.0, 1.5), 0.4, 0.2  # of small proteins; of residues and of pairs
OWN_WIDTH, PAIR_WIDTH = 10, 10


@full_precision
def fluctuations(frames: Rigid, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Features of residues, (B, N, 10), and of pairs of them, (B, N, N, 10), of reference structures (B, N).

    Of residues: logarithm of the root mean square fluctuation, and its covariance in the residue's frame, divided by
    the mean square. Of pairs: logarithm of the root mean square fluctuation of the distance, and the cross-covariance
    in the frames of both, divided by the root mean squares of both. All are scaled to the order of 1. Residues that are
    not ``present`` (B, N) take no part.
    """
    dtype = frames.translations.dtype
    ca, rotations = frames.translations.double(), frames.rotations.double()
    there = torch.ones_like(ca[..., 0]) if present is None else present.to(ca.dtype)
    covariance, direction = covariances(ca, there)
    size = covariance.diagonal(dim1=1, dim2=2).diagonal(dim1=1, dim2=2).sum(-1).sqrt()  # (B, N)
    own = covariance.diagonal(dim1=1, dim2=2).movedim(-1, 1)  # (B, N, 3, 3)
    along = torch.einsum("bijx,bijxy,bijy->bij", direction, own[:, :, None] + own[:, None] - 2 * covariance, direction)
    local = torch.einsum("bixa,bijxy,bjyc->bijac", rotations, covariance, rotations)
    local = (local / (SPREAD * size[:, :, None] * size[:, None])[..., None, None]).flatten(-2)
    squares = size.square(), along.clamp_min(LEAST_SQUARE)
    logs = [(0.5 * x.log() - mean)[..., None] / SPREAD_LOG for x, mean in zip(squares, MEAN_LOG, strict=True)]
    residues = torch.cat([logs[0], local.diagonal(dim1=1, dim2=2).movedim(-1, 1)], -1)
    pairs = torch.cat([logs[1], local], -1)
    both = there[:, :, None] * there[:, None]
    return (residues * there[..., None]).to(dtype), (pairs * both[..., None]).to(dtype)


def covariances(ca: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Covariances (B, N, N, 3, 3) of CA (B, N, 3), float64, and the directions (B, N, N, 3) from one to the other."""
    batch, n = there.shape
    eye, axes = (torch.eye(k, dtype=ca.dtype, device=ca.device) for k in (n, 3))
    apart = ca[:, :, None] - ca[:, None]
    distance = apart.norm(dim=-1).clamp_min(CLOSEST)
    direction = apart / distance[..., None]
    spring = (LENGTH / distance) ** POWER * (1 - eye) * there[:, :, None] * there[:, None]
    blocks = spring[..., None, None] * direction[..., :, None] * direction[..., None, :]
    own = torch.where(there[..., None, None] > 0, blocks.sum(2) + TETHER * axes, axes)
    hessian = torch.diag_embed(own.movedim(1, -1)).movedim((-2, -1), (1, 2)) - blocks
    flat = hessian.transpose(2, 3).reshape(batch, 3 * n, 3 * n)
    rigid = _rigid_motions(ca, there)
    inverse, _ = torch.linalg.inv_ex(flat + BODY_STIFFNESS * rigid @ rigid.mT)  # `inv` would wait for a GPU
    return inverse.unflatten(1, (n, 3)).unflatten(3, (n, 3)).transpose(2, 3), direction


def _rigid_motions(ca: Tensor, there: Tensor) -> Tensor:
    """Basis (B, 3 N, 6) of the motions of the residues that are there as one body."""
    centre = (ca * there[..., None]).sum(1, keepdim=True) / there.sum(1)[:, None, None]
    axes = torch.eye(3, dtype=ca.dtype, device=ca.device)
    shifts = axes.expand(*ca.shape[:2], 3, 3)
    turns = torch.linalg.cross(axes.expand_as(shifts), (ca - centre)[..., None, :].expand_as(shifts)).mT
    motions = torch.cat([shifts, turns], -1) * there[..., None, None]
    return motions.flatten(1, 2)
