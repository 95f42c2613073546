"""The STAR-MD denoiser: invariant point attention within frames, joint attention over space and time.

Context copies and noisy frames pass through the same weights. A noisy frame sees the context copies before it and
itself; a context copy sees the context copies up to itself (block-causal, STAR-MD paper, section 3.3). The same rule,
applied one frame at a time with cached keys and values, is the rollout.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from openmm_starmd.geometry import igso3
from openmm_starmd.geometry.rigid import Rigid, exponential, full_precision, logarithm
from openmm_starmd.geometry.torsions import wrap, wrapped_normal_score
from openmm_starmd.network.attention import KVCache, SpaceTimeAttention, rotary_table
from openmm_starmd.network.config import NetworkConfig
from openmm_starmd.network.embedding import ConditionEmbedding, FrameInputs, PairEmbedding, ResidueEmbedding
from openmm_starmd.network.ipa import InvariantPointAttention
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.displacement import ROTATION, TORSION, Displacement, centred
from openmm_starmd.protein.tokens import ResidueFeatures

STEP_STRIDES = 8  # step sizes are tabulated at 10 * 2**k ps


@dataclass(frozen=True)
class Statics:
    """What a rollout or a training window computes once.

    Parameters
    ----------
    features : ResidueFeatures, shape (B, N)
    pair : Tensor, shape (B, N, N, C)
        Time-independent pair features.
    single : Tensor, shape (B, N, C), or None
        Precomputed residue features.
    """

    features: ResidueFeatures
    pair: Tensor
    single: Tensor | None = None


class EdgeTransition(nn.Module):
    """Update of pair features from the residue features of both ends."""

    def __init__(self, width: int, pair_width: int):
        super().__init__()
        self.ends = nn.Linear(width, 2 * pair_width)
        self.layers = nn.Sequential(nn.GELU(), nn.Linear(pair_width, pair_width))
        self.mix = nn.Linear(pair_width, pair_width)

    def forward(self, s: Tensor, z: Tensor) -> Tensor:
        a, b = self.ends(s).chunk(2, -1)
        return z + self.layers(
            self.mix(functional.layer_norm(z, z.shape[-1:])) + a[..., :, None, :] + b[..., None, :, :]
        )


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


class Denoiser(nn.Module):
    """Predicts the way from noisy conformations to clean ones.

    Parameters
    ----------
    config : NetworkConfig

    Attributes
    ----------
    checkpointing : bool
        In training, compute each block again in the backward pass instead of keeping what is inside it.
    """

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config = config
        self.checkpointing = False
        self.condition = ConditionEmbedding(config.width)
        self.residues = ResidueEmbedding(config)
        self.pairs = PairEmbedding(config)
        self.blocks = nn.ModuleList(DiffusionBlock(config, last=k == config.blocks - 1) for k in range(config.blocks))
        self.modulation = nn.Linear(config.width, 2 * config.width)
        regression = config.torsions == "regression"
        self.torsions = nn.Linear(config.width, 14 if regression else 7)
        self.register_buffer("step_scales", torch.ones(STEP_STRIDES, 9))
        self._initialise()

    def _initialise(self) -> None:
        """Outputs and conditioning start at zero: an untrained denoiser returns its baseline, `_baseline`."""
        zero = [self.torsions, self.modulation, *(b.update for b in self.blocks)]
        zero += [layer.condition for block in self.blocks for layer in block.attention]
        for layer in zero:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        if self.config.torsions == "regression":
            with torch.no_grad():
                self.torsions.bias[7:] = 1.0

    def statics(
        self, features: ResidueFeatures, reference: Conformation | None = None, single=None, pair=None
    ) -> Statics:
        """Time-independent inputs of systems (B, N); ``single`` and ``pair`` are optional precomputed features."""
        return Statics(features, self.pairs.static(features, reference, pair), single)

    def step_size(self, stride: Tensor) -> Tensor:
        """Root mean square size (*, 9) of one step of ``stride`` (*) ps: translation, rotation, torsions, angle."""
        k = torch.log2(stride / 10).clamp(0, STEP_STRIDES - 1.001)
        low = k.long()
        return torch.lerp(self.step_scales[low], self.step_scales[low + 1], (k - low)[..., None])

    def encode(self, statics: Statics, context: FrameInputs, cache: KVCache | None = None) -> KVCache:
        """Cache extended by context copies (B, T, N); each sees the cached frames and the copies up to itself."""
        cache = cache or KVCache()
        n, frames = statics.features.residue_type.shape[-1], len(context.index)
        mask = None
        if frames > 1 or not self.config.joint_attention:
            sees = torch.cat([torch.ones(frames, cache.n_frames), torch.ones(frames, frames).tril()], 1).bool()
            mask = self._token_mask(sees.to(context.time.device), n)
        _, _, keys, values = self._trunk(statics, context, mask, cache)
        return cache.extended(keys, values, frames)

    def denoise(self, statics: Statics, noisy: FrameInputs, cache: KVCache) -> Displacement:
        """Displacement (B, 1, N) of one noisy frame, given the cache of its context frames."""
        n, mask = statics.features.residue_type.shape[-1], None
        if not self.config.joint_attention:
            mask = self._token_mask(torch.ones(1, cache.n_frames + 1, device=noisy.time.device).bool(), n)
        return self._trunk(statics, noisy, mask, cache)[0]

    def forward(self, statics: Statics, context: FrameInputs, noisy: FrameInputs) -> tuple[Displacement, Displacement]:
        """Block-causal pass over a window.

        Parameters
        ----------
        context : FrameInputs, shape (B, L, N)
        noisy : FrameInputs, shape (B, M, N)
            The frame of index l sees the context frames of index < l and itself.

        Returns
        -------
        displacement : Displacement, shape (B, M, N)
            Estimate of ``sigma**2`` times the score.
        scale : Displacement, shape broadcastable to the same
            Unit of the loss: the error that the baseline alone would make, or sigma without a baseline.
        """
        frames = FrameInputs.cat(context, noisy)
        split = len(context.index)
        is_noisy = torch.arange(len(frames.index), device=frames.index.device) >= split
        earlier = frames.index[:, None] > frames.index[None]
        same = torch.eye(len(is_noisy), dtype=torch.bool, device=is_noisy.device)
        sees = (earlier & ~is_noisy[None]) | same
        mask = self._token_mask(sees, statics.features.residue_type.shape[-1])
        displacement, scale, _, _ = self._trunk(statics, frames, mask, KVCache())
        if self.config.parameterization == "plain":
            levels = frames.sigma[..., None, :]
            scale = Displacement(levels[..., :1], levels[..., 1:2], levels[..., 2:3], levels[..., 3])

        def of_noisy(d: Displacement) -> Displacement:
            return Displacement(*(x[:, split:] for x in (d.translation, d.rotation, d.torsion, d.angle)))

        return of_noisy(displacement), of_noisy(scale)

    def _token_mask(self, sees: Tensor, n_residues: int):
        """Masks (T * N, M * N) of the even and of the odd layers; they differ in separable attention only."""
        joint = sees.repeat_interleave(n_residues, 0).repeat_interleave(n_residues, 1)
        if self.config.joint_attention:
            return joint, joint
        residue = torch.arange(n_residues, device=sees.device)
        same_residue = residue.repeat(sees.shape[0])[:, None] == residue.repeat(sees.shape[1])[None]
        rows = torch.arange(sees.shape[0], device=sees.device) + sees.shape[1] - sees.shape[0]
        same_frame = rows[:, None] == torch.arange(sees.shape[1], device=sees.device)[None]
        same_frame = same_frame.repeat_interleave(n_residues, 0).repeat_interleave(n_residues, 1)
        return joint & same_frame, joint & same_residue

    def _trunk(self, statics: Statics, frames: FrameInputs, mask, cache: KVCache):
        """All blocks over frames (B, T, N): displacement, its scale, and keys and values of every layer."""
        features, config = statics.features, self.config
        estimate, scale, spread = self._baseline(features, frames)
        condition = self.condition(frames.time, frames.stride)
        s = self.residues(features, frames, spread, statics.single)
        z = self.pairs(statics.pair, features, frames)
        rotary = rotary_table(features.residue_index, frames.index, config.width // config.heads)
        keys, values = [], []
        advance = self._advance
        if self.checkpointing and torch.is_grad_enabled():
            advance = partial(checkpoint, self._advance, use_reentrant=False)
        for block in self.blocks:
            attend = condition, rotary, mask, cache, len(keys)
            s, z, estimate, new = advance(block, s, z, estimate, scale, frames.conformation, attend)
            keys += [key for key, _ in new]
            values += [value for _, value in new]
        shift, gain = self.modulation(condition).chunk(2, -1)
        out = self.torsions(functional.layer_norm(s, s.shape[-1:]) * (1 + gain) + shift)
        estimate = self._with_torsions(out, estimate, scale, features, frames)
        return self._to_score(estimate, frames), scale, keys, values

    def _advance(self, block: DiffusionBlock, s: Tensor, z: Tensor, estimate, scale, conformation, attend):
        """One block: residue and pair features, estimate, and keys and values of its layers."""
        condition, rotary, mask, cache, first = attend
        moved, new = self._moved(conformation, estimate), []
        s = s + block.ipa(functional.layer_norm(s, s.shape[-1:]), z, moved)
        s = s + block.transition(s)
        for k, layer in enumerate(block.attention, first):
            context = (cache.keys[k], cache.values[k]) if cache.n_frames else None
            s, key, value = layer(s, condition, rotary, mask[k % 2] if mask else None, context)
            new.append((key, value))
        if block.edge is not None:
            z = block.edge(s, z)
        local, turn = block.update(s).split(3, -1)
        step = (moved.rotations @ local[..., None])[..., 0]
        estimate = replace(
            estimate,
            translation=centred(estimate.translation + scale.translation * step),
            rotation=estimate.rotation + scale.rotation * turn,
        )
        return s, z, estimate, new

    @staticmethod
    @full_precision
    def _moved(conformation: Conformation, estimate: Displacement) -> Rigid:
        """Frames at the present estimate; no gradient runs through them (AlphaFold 2, algorithm 20)."""
        frames = conformation.frames
        turn = exponential(estimate.rotation.detach())
        return Rigid(frames.rotations @ turn, frames.translations + estimate.translation.detach())

    @full_precision
    def _baseline(self, features: ResidueFeatures, frames: FrameInputs):
        """First estimate, unit of the corrections to it, and spread (B, T, 9) of the frame about its predecessor.

        Around the previous frame: the posterior mean if steps were normal with the tabulated sizes (the skip connection
        and output scale of EDM, arXiv:2206.00364, equation 7, with the previous frame as the mean of the data).
        """
        now, sigma = frames.conformation, frames.sigma
        levels = sigma[..., None, :]
        if self.config.parameterization == "plain":
            zero = torch.zeros_like(now.frames.translations)
            nothing = Displacement(zero, zero, torch.zeros_like(now.torsions), torch.zeros_like(now.angles))
            one = torch.ones_like(levels[..., 0])
            unit = levels[..., TORSION] / (1 + levels[..., TORSION] ** 2).sqrt()
            return nothing, Displacement(one[..., None], one[..., None], unit[..., None], one * levels[..., 3]), sigma
        step = self.step_size(frames.stride)[..., None, :]
        noise = levels[..., [0, 1, 2, 2, 2, 2, 2, 2, 3]]
        spread = (step**2 + noise**2).sqrt()
        share, unit = (noise / spread) ** 2, step * noise / spread
        before = frames.previous
        way_back = now.frames.rotations.transpose(-1, -2) @ before.frames.rotations
        rotation_spread = spread[..., ROTATION].expand(now.shape)
        period = features.per_frame("torsion_period", now.angles)
        torsion = noise[..., 2:8] ** 2 * wrapped_normal_score(now.torsions - before.torsions, spread[..., 2:8], period)
        estimate = Displacement(
            share[..., :1] * (before.frames.translations - now.frames.translations),
            share[..., 1:2] * igso3.tangent(logarithm(way_back), rotation_spread),
            torsion,
            share[..., 8] * (before.angles - now.angles),
        )
        return estimate, Displacement(unit[..., :1], unit[..., 1:2], unit[..., 2:8], unit[..., 8]), spread[..., 0, :]

    def _with_torsions(self, out: Tensor, estimate, scale, features: ResidueFeatures, frames: FrameInputs):
        """Estimate completed by the torsion head's output (B, T, N, 7 or 14)."""
        mask = features.per_frame("torsion_mask", frames.conformation.angles)
        if self.config.torsions == "diffusion":
            torsion = (estimate.torsion + scale.torsion * out[..., :6]) * mask
            return replace(estimate, torsion=torsion, angle=estimate.angle + scale.angle * out[..., 6])
        sine, cosine = out.chunk(2, -1)
        torsion = wrap(torch.atan2(sine[..., :6], cosine[..., :6]) - frames.conformation.torsions) * mask
        angle = 1.96 + 0.1 * sine[..., 6].tanh() - frames.conformation.angles
        return replace(estimate, torsion=torsion, angle=angle)

    def _to_score(self, estimate: Displacement, frames: FrameInputs) -> Displacement:
        """``sigma**2`` times the score; the plain parameterisation estimates clean frames instead."""
        if self.config.parameterization == "previous":
            return estimate
        now, alpha, sigma = frames.conformation.frames, frames.alpha[..., None, None], frames.sigma[..., None, :]
        clean = centred(now.translations + estimate.translation)
        level = sigma[..., ROTATION].expand(estimate.rotation.shape[:-1])
        return replace(
            estimate,
            translation=alpha * clean - now.translations,
            rotation=igso3.tangent(wrap_rotation(estimate.rotation), level),
        )


def wrap_rotation(rotvec: Tensor) -> Tensor:
    """The same rotation with a norm of at most pi."""
    angle = rotvec.square().sum(-1, keepdim=True).add(1e-12).sqrt()
    return rotvec * (wrap(angle) / angle)
