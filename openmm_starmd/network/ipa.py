"""Invariant point attention within one frame (AlphaFold 2, supplementary algorithm 22)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from openmm_starmd.geometry.rigid import Rigid, full_precision

NM_TO_ANGSTROM = 10.0  # points live in Angstrom, as in the algorithm: the initial attention is a few residues wide


class InvariantPointAttention(nn.Module):
    """Attention over residues by features, by pair features and by distances of points in the residue frames.

    The squared distance of a query and a key point is expanded, and the query's own square dropped: it is constant
    under the softmax. What remains is one dot product of longer vectors, so that no (N, N, points) array is made.
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
    def forward(
        self, s: Tensor, z: Tensor, frames: Rigid, neighbours: Tensor | None = None, present: Tensor | None = None
    ) -> Tensor:
        """Update residue features (B, T, N, C) by invariant point attention (AlphaFold 2, algorithm 22).

        Pair features ``z`` are (B, T, N, N, C) or, of neighbours (B, T, N, K), (B, T, N, K, C); other residues have no
        bias and add no pair features. The frames (B, T, N), nm, are not far from the origin. Only residues that are
        ``present`` (B, 1, N) are seen.
        """
        precise = torch.promote_types(s.dtype, torch.float32)
        s, z = s.to(precise), z.to(precise)
        h, c, p = self.heads, self.head_width, self.query_points
        lead = s.shape[:-1]
        rotations, origins = frames.rotations, NM_TO_ANGSTROM * frames.translations[..., None, :]
        local = self.points(s).view(*lead, -1, 3)
        points = (local @ rotations.transpose(-1, -2) + origins).view(*lead, h, -1, 3)
        query_p, key_p, value_p = points.split([p, p, self.value_points], -2)
        q, k, v = self.qkv(s).view(*lead, h, 3 * c).split(c, -1)

        weight = functional.softplus(self.point_weight) * math.sqrt(2 / (9 * p))
        queries = torch.cat([q * c**-0.5, weight[:, None] * query_p.flatten(-2)], -1).transpose(-2, -3)
        keys = torch.cat([k, key_p.flatten(-2)], -1).transpose(-2, -3)
        offset = -0.5 * weight * key_p.square().sum((-1, -2))
        logits = queries @ keys.transpose(-1, -2) + offset.transpose(-1, -2)[..., None, :]
        bias = self.pair_bias(z).movedim(-1, -3)
        if neighbours is not None:
            index = neighbours[..., None, :, :].expand(bias.shape)
            bias = torch.zeros_like(logits).scatter(-1, index, bias)
        logits = (logits + bias) * math.sqrt(1 / 3)
        if present is not None:
            logits = logits.masked_fill(~present[..., None, None, :], -math.inf)
        attention = logits.softmax(-1)  # (B, T, H, N, N)

        values = torch.cat([v, value_p.flatten(-2)], -1).transpose(-2, -3)
        gathered = (attention @ values).transpose(-2, -3)  # (B, T, N, H, C + 3 P)
        features, seen = gathered.split([c, 3 * self.value_points], -1)
        seen = (seen.reshape(*lead, -1, 3) - origins) @ rotations / NM_TO_ANGSTROM
        norms = (seen.square().sum(-1) + 1e-8).sqrt()
        to_pairs = attention if neighbours is None else attention.gather(-1, index)
        over_pairs = to_pairs.movedim(-3, -2) @ z  # (B, T, N, H, C)
        return self.out(torch.cat([features.flatten(-2), seen.flatten(-2), norms, over_pairs.flatten(-2)], -1))
