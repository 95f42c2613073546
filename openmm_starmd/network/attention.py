"""Joint space-time attention: every residue of a frame attends to every residue of the frames it may see.

Only keys and values of residue features are cached, so memory grows as O(N L) (STAR-MD paper, section 3.2 and
appendix B); pair features never are. Attention runs in the precision of the cache: long ones are kept in bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

ROTARY_BASE = 100.0
HALF_ABOVE = 2**23  # keys and values of one replica; see benchmarks/PERFORMANCE.md


@dataclass(frozen=True)
class KVCache:
    """Keys and values of the context frames of every layer, in memory that is there from the start.

    Frames are written behind the ``n_frames`` that are known; a cache of more frames shares the memory of the one that
    it was made from, so only one line of frames can be kept in it.
    """

    keys: Tensor  # (layers, B, H, capacity * N, C / H)
    values: Tensor  # (layers, B, H, capacity * N, C / H)
    n_frames: int = 0  # context frames L

    @classmethod
    def empty(cls, shape: tuple[int, int, int, int, int], like: Tensor) -> KVCache:
        """Room for keys and values of a shape, of the dtype of ``like`` or, if they are many, in bfloat16.

        Half the memory, for a few percent of the time on a CPU. What counts are those of one replica, so that it is
        the same alone and within a batch.
        """
        layers, batch, *rest = shape
        dtype = torch.bfloat16 if 2 * layers * math.prod(rest) > HALF_ABOVE else like.dtype
        return cls(*(like.new_zeros(shape, dtype=dtype) for _ in range(2)))  # what is masked must be finite, too

    def layer(self, k: int, n_frames: int, residues: int) -> LayerCache:
        """Keys and values of layer ``k``, with room for ``n_frames`` new frames."""
        known, end = self.n_frames * residues, (self.n_frames + n_frames) * residues
        if end > self.keys.shape[3]:
            raise ValueError(
                f"The cache has room for {self.keys.shape[3] // residues} frames, but {end // residues} are needed; "
                "make it with a greater capacity."
            )
        return LayerCache(self.keys[k, :, :, :end], self.values[k, :, :, :end], known)

    def moved(self, start: int, frames: int, residues: int) -> KVCache:
        """Cache extended by ``frames`` frames that were written from ``start`` on, out of line."""
        if start != self.n_frames:
            old, new = (slice(k * residues, (k + frames) * residues) for k in (start, self.n_frames))
            for part in (self.keys, self.values):
                part[:, :, :, new] = part[:, :, :, old]
        return replace(self, n_frames=self.n_frames + frames)

    @property
    def nbytes(self) -> int:
        """Memory of all keys and values: 2 * layers * B * N * capacity * C * bytes per number."""
        return self.keys.nbytes + self.values.nbytes


class LayerCache(NamedTuple):
    """Keys and values (B, H, M, C / H) of one layer, of which the first ``known`` are filled."""

    keys: Tensor
    values: Tensor
    known: int

    def filled(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values, those of the new frames written behind the known ones."""
        self.keys[:, :, self.known :] = keys
        self.values[:, :, self.known :] = values
        return self.keys, self.values


def rotary_table(residue_index: Tensor, frame_index: Tensor, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine of 2-D rotary position embedding (RoFormer, arXiv:2104.09864, on two axes).

    Both have the shape (B, 1, T * N, head_width). The first quarter of a head's channels turns with the residue index
    (B, N), the second with the frame index (T,); each channel is turned with that half a head away.
    """
    n = head_width // 4
    frequency = ROTARY_BASE ** (-torch.arange(n, device=residue_index.device, dtype=torch.float32) / n)
    batch, residues = residue_index.shape
    shape = (batch, len(frame_index), residues, n)
    over_residues = (residue_index[:, None, :, None] * frequency).expand(shape)
    over_frames = (frame_index[None, :, None, None] * frequency).expand(shape)
    phase = torch.cat([over_residues, over_frames], -1).flatten(1, 2)[:, None]
    cosine, sine = phase.cos(), phase.sin()
    return torch.cat([cosine, cosine], -1), torch.cat([-sine, sine], -1)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Apply rotary embedding to queries or keys (*, B, H, T * N, C / H)."""
    return torch.addcmul(x * cosine, x.roll(x.shape[-1] // 2, -1), sine)


def modulate(x: Tensor, shift: Tensor, gain: Tensor) -> Tensor:
    """Layer normalisation without weights, then the conditioned affine map (AdaLN)."""
    return torch.addcmul(shift, functional.layer_norm(x, x.shape[-1:]), gain)


class SpaceTimeAttention(nn.Module):
    """Attention and transition, both modulated by noise level and stride (AdaLN, DiT arXiv:2212.09748)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.condition = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.transition = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(
        self, s: Tensor, modulation: Sequence[Tensor], rotary: tuple[Tensor, Tensor], mask: Tensor | None, cache=None
    ) -> Tensor:
        """Update residue features by attention of every token to those that its mask leaves, and by a transition.

        The features are (B, T, N, C). ``modulation`` holds shift, gain and gate of attention and of transition, each
        (B, T, 1, C); ``rotary`` cosine and sine of the T * N tokens. The mask (T * N, M + T * N), bool, is None where
        every token sees all. This layer's own keys and values are written into the cache of the M tokens that are
        known.
        """
        batch, frames, residues, width = s.shape
        shift_a, gain_a, gate_a, shift_t, gain_t, gate_t = modulation
        qkv = self.qkv(modulate(s, shift_a, gain_a)).view(batch, frames * residues, 3, self.heads, -1)
        q, k = rotate(qkv[:, :, :2].permute(2, 0, 3, 1, 4), *rotary)
        v = qkv[:, :, 2].transpose(1, 2)
        keys, values = (k, v) if cache is None else cache.filled(k, v)
        attended = functional.scaled_dot_product_attention(q.to(keys.dtype), keys, values, attn_mask=mask).to(v.dtype)
        attended = attended.transpose(1, 2).reshape(batch, frames, residues, width)
        s = torch.addcmul(s, gate_a, self.out(attended))
        return torch.addcmul(s, gate_t, self.transition(modulate(s, shift_t, gain_t)))
