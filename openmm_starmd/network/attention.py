"""Joint space-time attention: every residue of a frame attends to every residue of the frames it may see.

Only keys and values of residue features are cached, so memory grows as O(N L) (STAR-MD paper, section 3.2 and
appendix B); pair features never are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

ROTARY_BASE = 100.0


@dataclass(frozen=True)
class KVCache:
    """Keys and values of the context frames, one pair a layer; a value: extending it gives a new one.

    Parameters
    ----------
    keys, values : tuple of Tensor, shape (B, H, L * N, C / H)
    n_frames : int
        Context frames L.
    """

    keys: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()
    n_frames: int = 0

    def extended(self, keys: list[Tensor], values: list[Tensor], n_frames: int) -> KVCache:
        """Cache with ``n_frames`` more context frames."""
        if self.n_frames:
            keys = [torch.cat(pair, 2) for pair in zip(self.keys, keys, strict=True)]
            values = [torch.cat(pair, 2) for pair in zip(self.values, values, strict=True)]
        return KVCache(tuple(keys), tuple(values), self.n_frames + n_frames)

    @property
    def nbytes(self) -> int:
        """Memory of all keys and values: 2 * layers * B * N * L * C * bytes per number."""
        return sum(x.nbytes for x in (*self.keys, *self.values))


def rotary_table(residue_index: Tensor, frame_index: Tensor, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of 2-D rotary position embedding (RoFormer, arXiv:2104.09864, on two axes).

    The first half of a head's channels turns with the residue index, the second with the frame index.

    Parameters
    ----------
    residue_index : Tensor, shape (B, N)
    frame_index : Tensor, shape (T,)

    Returns
    -------
    cosine, sine : Tensor, shape (B, 1, T * N, head_width / 2)
    """
    n = head_width // 4
    frequency = ROTARY_BASE ** (-torch.arange(n, device=residue_index.device, dtype=torch.float32) / n)
    batch, residues = residue_index.shape
    shape = (batch, len(frame_index), residues, n)
    over_residues = (residue_index[:, None, :, None] * frequency).expand(shape)
    over_frames = (frame_index[None, :, None, None] * frequency).expand(shape)
    phase = torch.cat([over_residues, over_frames], -1).flatten(1, 2)[:, None]
    return phase.cos(), phase.sin()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Apply rotary embedding to queries or keys (B, H, T * N, C / H)."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cosine - b * sine, a * sine + b * cosine], -1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer normalisation without weights, then the conditioned affine map (AdaLN)."""
    return functional.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


class SpaceTimeAttention(nn.Module):
    """Attention and transition, both modulated by noise level and stride (AdaLN, DiT arXiv:2212.09748).

    Parameters
    ----------
    width, heads : int
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.condition = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.transition = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(
        self, s: Tensor, condition: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        Parameters
        ----------
        s : Tensor, shape (B, T, N, C)
        condition : Tensor, shape (B, T, 1, C)
        rotary : cosine and sine of the T * N tokens
        mask : Tensor of bool, shape (T * N, M + T * N), or None where every token sees all
        context : (keys, values) of M cached tokens, or None

        Returns
        -------
        s, and this layer's own keys and values, (B, H, T * N, C / H)
        """
        batch, frames, residues, width = s.shape
        shift_a, scale_a, gate_a, shift_t, scale_t, gate_t = self.condition(condition).chunk(6, -1)
        qkv = self.qkv(modulate(s, shift_a, scale_a)).view(batch, frames * residues, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        keys, values = (k, v) if context is None else (torch.cat([context[0], k], 2), torch.cat([context[1], v], 2))
        attended = functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        attended = attended.transpose(1, 2).reshape(batch, frames, residues, width)
        s = s + (1 + gate_a) * self.out(attended)
        s = s + (1 + gate_t) * self.transition(modulate(s, shift_t, scale_t))
        return s, k, v
