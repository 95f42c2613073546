"""Masks of space-time attention: which token of which frame sees which."""

from __future__ import annotations

import torch
from torch import Tensor

from openmm_starmd.network.attention import KVCache


def token_masks(sees: Tensor, n_residues: int, joint_attention: bool, present: Tensor | None = None):
    """Masks (T * N, M * N) of the even and of the odd layers; they differ in separable attention only.

    With padding they are (B, 1, T * N, M * N), and tokens of padding are seen by none but themselves.
    """
    joint = sees.repeat_interleave(n_residues, 0).repeat_interleave(n_residues, 1)
    if present is not None:
        keys = present[:, 0].repeat(1, sees.shape[1])[:, None, None]
        joint = joint & (keys | torch.eye(*joint.shape, dtype=torch.bool, device=joint.device))
    if joint_attention:
        return joint, joint
    residue = torch.arange(n_residues, device=sees.device)
    same_residue = residue.repeat(sees.shape[0])[:, None] == residue.repeat(sees.shape[1])[None]
    rows = torch.arange(sees.shape[0], device=sees.device) + sees.shape[1] - sees.shape[0]
    same_frame = rows[:, None] == torch.arange(sees.shape[1], device=sees.device)[None]
    same_frame = same_frame.repeat_interleave(n_residues, 0).repeat_interleave(n_residues, 1)
    return joint & same_frame, joint & same_residue


def masks_behind(cache: KVCache, room: int, n_residues: int, joint_attention: bool):
    """Masks, for `Denoiser.encode` and `Denoiser.denoise`, of a frame that is the last of ``room`` frames in the cache.

    It sees the ``cache.n_frames`` first ones and itself. None where that is all.
    """
    if room == cache.n_frames + 1:
        return None
    device = cache.keys.device
    frame = torch.arange(room, device=device)
    sees = (frame < cache.n_frames) | (frame == room - 1)
    if not joint_attention:
        return token_masks(sees[None], n_residues, joint_attention)
    bias = torch.zeros(room, dtype=cache.keys.dtype, device=device).masked_fill(~sees, -torch.inf)
    return 2 * (bias[:, None].expand(room, n_residues).reshape(1, -1),)  # as attention kernels want it
