"""One block of the denoiser (STAR-MD paper, figure 2) and its update of pair features."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn
from torch.nn import functional

from openmm_starmd.geometry.rigid import Rigid, exponential, full_precision
from openmm_starmd.network.attention import SpaceTimeAttention
from openmm_starmd.network.config import NetworkConfig
from openmm_starmd.network.invariants import gathered
from openmm_starmd.network.ipa import InvariantPointAttention
from openmm_starmd.protein.displacement import Displacement


class EdgeTransition(nn.Module):
    """Update of pair features from the residue features of both ends."""

    def __init__(self, width: int, pair_width: int):
        super().__init__()
        self.ends = nn.Linear(width, 2 * pair_width)
        self.layers = nn.Sequential(nn.GELU(), nn.Linear(pair_width, pair_width))
        self.mix = nn.Linear(pair_width, pair_width)

    def forward(self, s: Tensor, z: Tensor, neighbours: Tensor | None) -> Tensor:
        """Update pair features ``z`` of residues with features ``s``."""
        a, b = self.ends(s).chunk(2, -1)
        b = b[..., None, :, :] if neighbours is None else gathered(b.contiguous(), neighbours)
        return z + self.layers(self.mix(functional.layer_norm(z, z.shape[-1:])) + a[..., :, None, :] + b)


class DiffusionBlock(nn.Module):
    """One block of the paper's figure 2: IPA, space-time attention, edge transition, frame update."""

    def __init__(self, config: NetworkConfig, last: bool):
        super().__init__()
        width = config.width
        self.ipa = InvariantPointAttention(
            width, config.pair_width, config.heads, config.query_points, config.value_points
        )
        self.transition = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.attention = nn.ModuleList(SpaceTimeAttention(width, config.heads) for _ in range(config.attention_layers))
        self.edge = None if last else EdgeTransition(width, config.pair_width)
        self.update = nn.Linear(width, 6)

    def forward(
        self, s, z, estimate: Displacement, scale: Displacement, frames: Rigid, rotary, layers, neighbours, present
    ):
        """Residue features (B, T, N, C), pair features and estimate after the block, from those before it.

        The estimate is the displacement from the frames (B, T, N) of the noisy conformation, and ``scale`` the unit of
        its update. ``layers`` are modulation, mask and cache of each attention layer, as `SpaceTimeAttention` takes
        them; neighbours and present are those of `InvariantPointAttention`.
        """
        moved = _moved(frames, estimate)
        s = s + self.ipa(functional.layer_norm(s, s.shape[-1:]), z, moved, neighbours, present)
        s = s + self.transition(s)
        for layer, (modulation, mask, cache) in zip(self.attention, layers, strict=True):
            s = layer(s, modulation, rotary, mask, cache)
        if self.edge is not None:
            z = self.edge(s, z, neighbours)
        local, turn = self.update(s).split(3, -1)
        step = (moved.rotations @ local[..., None])[..., 0]
        estimate = replace(
            estimate,
            translation=estimate.translation + scale.translation * step,
            rotation=estimate.rotation + scale.rotation * turn,
        )
        return s, z, estimate


@full_precision
def _moved(frames: Rigid, estimate: Displacement) -> Rigid:
    """Frames at the present estimate; no gradient runs through them (AlphaFold 2, algorithm 20)."""
    turn = exponential(estimate.rotation.detach())
    return Rigid(frames.rotations @ turn, frames.translations + estimate.translation.detach())
