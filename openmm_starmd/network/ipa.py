"""Invariant point attention within one frame (AlphaFold 2, supplementary algorithm 22)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from openmm_starmd.geometry.rigid import Rigid, full_precision

NM_TO_ANGSTROM = (
    10.0  # points live in Angstrom, as in the algorithm, so that the initial attention is a few residues wide
)


class InvariantPointAttention(nn.Module):
    """Attention over residues by features, by pair features and by distances of points in the residue frames.

    The squared distance of a query and a key point is expanded, and the query's own square dropped: it is constant
    under the softmax. What remains is one dot product of longer vectors, so that no (N, N, points) array is made.

    Parameters
    ----------
    width, pair_width, heads, query_points, value_points : int
    """

    def __init__(self, width: int, pair_width: int, heads: int, query_points: int, value_points: int):
        super().__init__()
        self.heads, self.query_points, self.value_points = heads, query_points, value_points
        self.head_width = width // heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.points = nn.Linear(width, 3 * heads * (2 * query_points + value_points))
        self.pair_bias = nn.Linear(pair_width, heads, bias=False)
        self.point_weight = nn.Parameter(torch.full((heads,), math.log(math.expm1(1.0))))
        self.out = nn.Linear(heads * (self.head_width + 4 * value_points + pair_width), width)

    @full_precision
    def forward(self, s: Tensor, z: Tensor, frames: Rigid) -> Tensor:
        """
        Parameters
        ----------
        s : Tensor, shape (B, T, N, C)
        z : Tensor, shape (B, T, N, N, C)
        frames : Rigid, shape (B, T, N)
            Centred, nm.

        Returns
        -------
        Tensor, shape (B, T, N, C)
        """
        precise = torch.promote_types(s.dtype, torch.float32)
        s, z = s.to(precise), z.to(precise)
        h, p, v = self.heads, self.query_points, self.value_points
        lead, n, width = s.shape[:-1], s.shape[-2], self.head_width
        rotations = frames.rotations.reshape(-1, 3, 3)
        origins = NM_TO_ANGSTROM * frames.translations.reshape(-1, 1, 3)
        local = self.points(s).view(len(origins), -1, 3)
        points = torch.baddbmm(origins, local, rotations.transpose(-1, -2)).view(-1, n, h, 2 * p + v, 3)
        query_p, key_p, value_p = points.flatten(-2).split([3 * p, 3 * p, 3 * v], -1)
        q, k, value = self.qkv(s).view(-1, n, h, 3 * width).split(width, -1)

        weight = (functional.softplus(self.point_weight) * math.sqrt(2 / (9 * p)))[:, None]
        offset = (-0.5 * weight) * key_p.square().sum(-1, keepdim=True)
        one = offset.new_ones(()).expand_as(offset)
        queries = by_head(torch.cat([q * width**-0.5, weight * query_p, one], -1))
        keys = by_head(torch.cat([k, key_p, offset], -1))
        bias = self.pair_bias(z).view(-1, n, n, h).permute(0, 3, 1, 2).reshape(-1, n, n)
        share = math.sqrt(1 / 3)
        attention = torch.baddbmm(bias, queries, keys.transpose(-1, -2), beta=share, alpha=share).softmax(-1)

        gathered = torch.bmm(attention, by_head(torch.cat([value, value_p], -1))).unflatten(0, (-1, h)).transpose(1, 2)
        features, seen = gathered.split([width, 3 * v], -1)
        seen = torch.bmm(seen.reshape(len(origins), -1, 3) - origins, rotations) / NM_TO_ANGSTROM
        norms = (seen.square().sum(-1) + 1e-8).sqrt()
        by_residue = attention.unflatten(0, (-1, h)).transpose(1, 2).reshape(-1, h, n)
        over_pairs = torch.bmm(by_residue, z.reshape(-1, n, z.shape[-1]))
        parts = features.flatten(-2), seen.view(*gathered.shape[:2], -1), norms.view(*gathered.shape[:2], -1)
        return self.out(torch.cat([*parts, over_pairs.view(*gathered.shape[:2], -1)], -1)).view(*lead, -1)


def by_head(x: Tensor) -> Tensor:
    """Numbers (B * T, N, H, C) as a matrix a head, (B * T * H, N, C)."""
    return x.transpose(1, 2).flatten(0, 1)
