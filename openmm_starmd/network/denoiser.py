"""The STAR-MD denoiser: invariant point attention within frames, joint attention over space and time.

Context copies and noisy frames pass through the same weights. A noisy frame sees the context copies before it and
itself; a context copy sees the context copies up to itself (block-causal, STAR-MD paper, section 3.3). The same rule,
applied one frame at a time with cached keys and values, is the rollout.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from openmm_starmd.geometry.rigid import Rigid, exponential, full_precision
from openmm_starmd.geometry.torsions import wrap
from openmm_starmd.network import wells
from openmm_starmd.network.attention import KVCache, SpaceTimeAttention, modulate, rotary_table
from openmm_starmd.network.config import NetworkConfig
from openmm_starmd.network.embedding import (
    ConditionEmbedding,
    Conditions,
    FrameInputs,
    Moments,
    PairEmbedding,
    ResidueEmbedding,
    Statics,
)
from openmm_starmd.network.invariants import BURIAL, burial, contact_mask, distances, gathered
from openmm_starmd.network.ipa import InvariantPointAttention
from openmm_starmd.network.parameterization import PARAMETERIZATIONS, in_parts
from openmm_starmd.network.pulls import Pulls
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.displacement import Displacement, centred
from openmm_starmd.protein.tokens import ResidueFeatures

STEP_STRIDES = 8  # step sizes are tabulated at 10 * 2**k ps
FARTHEST = 4.0  # sizes of the longest tabulated step, towards which the way to the reference structure is bounded


class EdgeTransition(nn.Module):
    """Update of pair features from the residue features of both ends."""

    def __init__(self, width: int, pair_width: int):
        super().__init__()
        self.ends = nn.Linear(width, 2 * pair_width)
        self.layers = nn.Sequential(nn.GELU(), nn.Linear(pair_width, pair_width))
        self.mix = nn.Linear(pair_width, pair_width)

    def forward(self, s: Tensor, z: Tensor, neighbours: Tensor | None) -> Tensor:
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


class Denoiser(nn.Module):
    """Predicts the way from noisy conformations to clean ones.

    Parameters
    ----------
    config : NetworkConfig

    Attributes
    ----------
    checkpointing : bool
        In training, compute each block again in the backward pass instead of keeping what is inside it.
    decides : bool
        In training, let gradients run through the odds of staying in a well, which no one else teaches then.
    """

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config, self.parameterization = config, PARAMETERIZATIONS[config.parameterization]
        self.checkpointing = self.decides = False
        self.condition = ConditionEmbedding(config.width)
        self.residues = ResidueEmbedding(config)
        self.pairs = PairEmbedding(config)
        self.blocks = nn.ModuleList(DiffusionBlock(config, last=k == config.blocks - 1) for k in range(config.blocks))
        self.modulation = nn.Linear(config.width, 2 * config.width)
        regression = config.torsions == "regression"
        self.torsions = nn.Linear(config.width, 14 if regression else 7)
        has_wells = config.parameterization == "previous" and not regression
        self.wells = nn.Linear(config.width, 2 * 4) if has_wells else None
        self.pulls = Pulls(config) if config.pulls else None
        self.reversion = nn.Linear(config.width, 9) if config.reversion else None
        self.register_buffer("step_scales", torch.ones(STEP_STRIDES, 9))
        if config.burial:
            self.register_buffer("burial_scales", torch.ones(STEP_STRIDES, len(BURIAL), 9))
        layers = config.blocks * config.attention_layers
        offsets = torch.tensor([0.0, 1.0, 1.0] * 2 * layers + [0.0, 1.0])[:, None]
        self.register_buffer("offsets", offsets, persistent=False)  # gains and gates are learned less 1
        self.register_buffer("parts", torch.tensor([0, 1, 2, 2, 2, 2, 2, 2, 3]), persistent=False)  # of nine numbers
        self._initialise()

    def _initialise(self) -> None:
        """Outputs and conditioning start at zero: an untrained denoiser returns the first estimate.

        That of side-chain torsions is drawn towards their wells, see `wells`.
        """
        zero = [self.torsions, self.modulation, *(b.update for b in self.blocks)]
        zero += [layer.condition for block in self.blocks for layer in block.attention]
        zero += [self.wells] if self.wells else []
        zero += [self.pulls.out] if self.pulls else []
        zero += [self.reversion, self.residues.way_back, self.pairs.reference] if self.reversion else []
        for layer in zero:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        if self.config.torsions == "regression":
            with torch.no_grad():
                self.torsions.bias[7:] = 1.0

    def statics(
        self,
        features: ResidueFeatures,
        reference: Conformation | None = None,
        single=None,
        pair=None,
        hidden=None,
        known: Tensor | None = None,
    ) -> Statics:
        """Time-independent inputs of systems (B, N).

        ``single`` and ``pair`` are optional precomputed features; in training, ``hidden`` residues have no type, and
        systems that are not ``known`` (B,) no reference structure.
        """
        dtype = self.step_scales.dtype
        residues = self.residues.static(features, single, hidden)
        known = None if known is None else known.to(dtype)[:, None, None, None]
        pairs = self.pairs.static(features, reference, pair, known)
        return Statics(
            features,
            residues,
            pairs,
            features.torsion_mask[:, None].to(dtype),
            features.torsion_period[:, None].to(dtype),
            contact_mask(features)[:, None],
            self.pulls and self.pulls.static(features, residues, pairs),
            features.present_in(residues[:, None, :, 0]),
            known,
        )

    def step_size(self, stride: Tensor) -> Tensor:
        """Root mean square size (*, 9) of one step of ``stride`` (*) ps: translation, rotation, torsions, angle."""
        k = torch.log2(stride / 10).clamp(0, STEP_STRIDES - 1.001)
        low = k.long()
        below, above = (functional.embedding(i, self.step_scales) for i in (low, low + 1))
        return torch.lerp(below, above, (k - low)[..., None])

    def step_size_buried(self, stride: Tensor, weights: Tensor) -> Tensor:
        """The same (B, T, N, 9) of residues as they are buried, weights (B, T, N, 8) of `burial`."""
        k = torch.log2(stride / 10).clamp(0, STEP_STRIDES - 1.001)
        low = k.long()
        below, above = (functional.embedding(i, self.burial_scales.flatten(1)) for i in (low, low + 1))
        return weights @ torch.lerp(below, above, (k - low)[..., None]).unflatten(-1, (-1, 9))

    def levels(self, sigma: Tensor, stride: Tensor) -> Tensor:
        """Spread, share and unit (B, T, 9, 3) at noise levels (B, T, 4), see `Conditions`."""
        return self.parameterization.levels(sigma.index_select(-1, self.parts), self.step_size(stride))

    def cache(self, batch: int, residues: int, capacity: int) -> KVCache:
        """Empty cache with room for ``capacity`` frames; `denoise` needs one more than it has context frames."""
        config = self.config
        layers, width = config.blocks * config.attention_layers, config.width // config.heads
        shape = (layers, batch, config.heads, capacity * residues, width)
        return KVCache.empty(shape, self.step_scales)

    def moments(self, time: Tensor, alpha: Tensor, sigma: Tensor, stride: Tensor) -> Moments:
        """The part of `conditions` that is the same for all conformations; shapes as in `FrameInputs`."""
        condition = self.condition(time, stride)
        layers = [layer.condition for block in self.blocks for layer in block.attention]
        modulation = torch.cat([layer(condition) for layer in (*layers, self.modulation)], -1)
        modulation = modulation.unflatten(-1, (-1, self.config.width)) + self.offsets
        return Moments(alpha, sigma[..., None, :], self.levels(sigma, stride)[..., None, :, :], modulation, stride)

    def conditions(
        self,
        statics: Statics,
        previous: Conformation,
        moments: Moments,
        index: Tensor,
        reference: Conformation | None = None,
    ) -> Conditions:
        """Conditions, computed before frames are looked at; shapes as in `FrameInputs`."""
        atoms, head_width = previous.backbone(), self.config.width // self.config.heads
        neighbours, way_back = self._neighbours(atoms, statics.present), None
        residues = self.residues.given(statics.residues, statics.torsion_mask, previous)
        size = self.step_scales[-1]
        if self.config.burial:
            weights = burial(atoms[..., 1, :], statics.present)
            size = weights @ self.burial_scales[-1]
            step = self.step_size_buried(moments.stride, weights)
            noise = moments.sigma.index_select(-1, self.parts)
            moments = moments._replace(levels=self.parameterization.levels(noise.expand_as(step), step))
        if self.reversion and reference is not None:
            way_back = self._way_back(statics, previous, reference, FARTHEST * size)
            residues = residues + self.residues.drawn_back(way_back, previous, size, statics.known)
        return Conditions(
            statics,
            previous,
            atoms,
            residues,
            self.pairs.given(statics.pairs, previous, atoms, neighbours),
            neighbours,
            way_back,
            self.pulls and self.pulls.given(statics.holds, previous),
            rotary_table(statics.features.residue_index, index, head_width),
            *moments,
        )

    def _neighbours(self, atoms: Tensor, present: Tensor | None) -> Tensor | None:
        """Nearest residues (B, T, N, K) by CA in frames of backbone ``atoms`` (B, T, N, 3, 3); None for all."""
        count, ca = self.config.neighbours, atoms[..., 1, :]
        if not count or ca.shape[-2] <= count:
            return None
        apart = distances(ca, ca)
        if present is not None:
            apart = apart.masked_fill(~present[..., None, :], torch.inf)
        return apart.topk(count, largest=False).indices

    @full_precision
    def _way_back(
        self, statics: Statics, previous: Conformation, reference: Conformation, farthest: Tensor
    ) -> Displacement:
        """From the previous frame to the reference structure; smoothly bounded, 0 where that is not told."""
        way = Displacement.between(previous, reference, statics.torsion_period)
        translation, rotation, torsion, angle = farthest.split([1, 1, 6, 1], -1)

        def bounded(x: Tensor, size: Tensor, square: Tensor) -> Tensor:
            return x * (1 + square / size.square()).rsqrt()

        way = Displacement(
            bounded(way.translation, translation, way.translation.square().sum(-1, keepdim=True)),
            bounded(way.rotation, rotation, way.rotation.square().sum(-1, keepdim=True)),
            bounded(way.torsion, torsion, way.torsion.square()) * statics.torsion_mask,
            bounded(way.angle, angle[..., 0], way.angle.square()),
        )
        return way if statics.known is None else way.scaled(statics.known[..., 0].expand(-1, 1, 4))

    def mask_behind(self, cache: KVCache, room: int, residues: int):
        """Masks, for `encode` and `denoise`, of a frame that is the last of ``room`` frames in the cache.

        It sees the ``cache.n_frames`` first ones and itself. None where that is all.
        """
        if room == cache.n_frames + 1:
            return None
        device = cache.keys.device
        frame = torch.arange(room, device=device)
        sees = (frame < cache.n_frames) | (frame == room - 1)
        if not self.config.joint_attention:
            return self._token_mask(sees[None], residues)
        bias = torch.zeros(room, dtype=cache.keys.dtype, device=device).masked_fill(~sees, -torch.inf)
        return 2 * (bias[:, None].expand(room, residues).reshape(1, -1),)  # as attention kernels want it

    @torch.no_grad()
    def encode(self, statics: Statics, context: FrameInputs, cache: KVCache, mask=None) -> KVCache:
        """Cache extended by context copies (B, T, N); each sees the cached frames and the copies up to itself.

        ``mask`` may say which of the cached frames a single one sees, see `mask_behind`.
        """
        n, frames, device = statics.features.residue_type.shape[-1], len(context.index), context.time.device
        if mask is None and (frames > 1 or not self.config.joint_attention):
            known, own = (torch.ones(frames, m, dtype=torch.bool, device=device) for m in (cache.n_frames, frames))
            mask = self._token_mask(torch.cat([known, own.tril()], 1), n)
        moments = self.moments(context.time, context.alpha, context.sigma, context.stride)
        conditions = self.conditions(statics, context.previous, moments, context.index, context.reference)
        self._trunk(conditions, context.conformation, mask, cache)
        return replace(cache, n_frames=cache.n_frames + frames)

    @torch.no_grad()
    def denoise(self, conditions: Conditions, noisy: Conformation, cache: KVCache, mask=None) -> Displacement:
        """Displacement (B, 1, N) of one noisy frame at one time, given the cache of its context frames.

        ``mask`` may say which of them it sees, see `mask_behind`.
        """
        if mask is None and not self.config.joint_attention:
            sees = torch.ones(1, cache.n_frames + 1, dtype=torch.bool, device=noisy.device)
            mask = self._token_mask(sees, noisy.shape[-1])
        return self._answer(conditions, noisy, *self._trunk(conditions, noisy, mask, cache))[0]

    def forward(
        self, statics: Statics, context: FrameInputs, noisy: FrameInputs
    ) -> tuple[Displacement, Displacement, Tensor | None]:
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
        odds : Tensor, shape (B, M, N, 4), or None
            Logarithms of the odds that chi1 to chi4 have stayed in their wells, see `wells`; None without them.
        """
        frames = FrameInputs.cat(context, noisy)
        split = len(context.index)
        is_noisy = torch.arange(len(frames.index), device=frames.index.device) >= split
        earlier = frames.index[:, None] > frames.index[None]
        same = torch.eye(len(is_noisy), dtype=torch.bool, device=is_noisy.device)
        sees = (earlier & ~is_noisy[None]) | same
        mask = self._token_mask(sees, statics.features.residue_type.shape[-1], statics.present)
        moments = self.moments(frames.time, frames.alpha, frames.sigma, frames.stride)
        conditions = self.conditions(statics, frames.previous, moments, frames.index, frames.reference)
        s, estimate, way, odds = self._trunk(conditions, frames.conformation, mask)

        def of_noisy(d: Displacement) -> Displacement:
            return Displacement(*(x[:, split:] for x in (d.translation, d.rotation, d.torsion, d.angle)))

        trunk = s[:, split:], of_noisy(estimate), of_noisy(way), None if odds is None else odds[:, split:]
        displacement, scale, odds = self._answer(conditions.behind(split), noisy.conformation, *trunk)
        return displacement, self.parameterization.unit_of_loss(scale, noisy.sigma), odds

    def _token_mask(self, sees: Tensor, n_residues: int, present: Tensor | None = None):
        """Masks (T * N, M * N) of the even and of the odd layers; they differ in separable attention only.

        With padding they are (B, 1, T * N, M * N), and tokens of padding are seen by none but themselves.
        """
        joint = sees.repeat_interleave(n_residues, 0).repeat_interleave(n_residues, 1)
        if present is not None:
            keys = present[:, 0].repeat(1, sees.shape[1])[:, None, None]
            joint = joint & (keys | torch.eye(*joint.shape, dtype=torch.bool, device=joint.device))
        if self.config.joint_attention:
            return joint, joint
        residue = torch.arange(n_residues, device=sees.device)
        same_residue = residue.repeat(sees.shape[0])[:, None] == residue.repeat(sees.shape[1])[None]
        rows = torch.arange(sees.shape[0], device=sees.device) + sees.shape[1] - sees.shape[0]
        same_frame = rows[:, None] == torch.arange(sees.shape[1], device=sees.device)[None]
        same_frame = same_frame.repeat_interleave(n_residues, 0).repeat_interleave(n_residues, 1)
        return joint & same_frame, joint & same_residue

    def _trunk(self, conditions: Conditions, conformation: Conformation, mask, cache: KVCache | None = None):
        """All blocks over frames (B, T, N): residue features, estimate, way from the last frame, odds by Bayes' rule.

        Keys and values go to ``cache``.
        """
        spread, _, unit = conditions.levels.unbind(-1)
        scale = in_parts(unit)
        way, estimate = self.parameterization.baseline(conditions, conformation)
        statics, previous = conditions.statics, conditions.previous
        odds = wells.log_odds(way, conditions.sigma, statics.torsion_period) if self.wells else None
        s = self.residues(conditions.residues, conformation, previous, way, spread, odds, statics.torsion_mask)
        neighbours = conditions.neighbours
        z = self.pairs(conditions.pairs, conformation, previous, conditions.previous_atoms, neighbours, statics)
        modulation = conditions.modulation.unbind(-2)
        advance = self._advance
        if self.checkpointing and torch.is_grad_enabled():
            advance = partial(checkpoint, self._advance, use_reentrant=False, preserve_rng_state=False)
        for k, block in enumerate(self.blocks):
            layers = range(k * len(block.attention), (k + 1) * len(block.attention))
            attend = [self._attend(i, modulation, mask, cache, s.shape) for i in layers]
            given = scale, conformation, conditions.rotary, attend, neighbours, statics.present
            s, z, estimate = advance(block, s, z, estimate, *given)
        return s, replace(estimate, translation=centred(estimate.translation, statics.present)), way, odds

    def _answer(
        self, conditions: Conditions, conformation: Conformation, s: Tensor, estimate: Displacement, way, odds
    ) -> tuple[Displacement, Displacement, Tensor | None]:
        """Displacement, its scale and learned odds, from what the blocks have made."""
        statics, scale = conditions.statics, in_parts(conditions.levels[..., 2])
        *_, shift, gain = conditions.modulation.unbind(-2)
        s = modulate(s, shift, gain)
        estimate = self._with_torsions(self.torsions(s), estimate, scale, statics.torsion_mask, conformation)
        if conditions.way_back is not None:
            estimate = self.reverted(conditions, conformation, estimate, self.reversion(s))
        if self.wells:
            learned, further = self.wells(s).chunk(2, -1)
            odds = odds[..., wells.CHI, 0] + learned
            weight = odds if self.decides else odds.detach()
            backbone, chi = estimate.torsion.split([2, 4], -1)
            hop = chi + scale.torsion[..., wells.CHI] * further
            chi = wells.blended(chi, hop, weight, way.torsion[..., wells.CHI])
            torsion = torch.cat([backbone, chi], -1) * statics.torsion_mask
            estimate = replace(estimate, torsion=torsion)
        if self.pulls:
            estimate = self.pulls(statics.holds, conditions.held, conformation, estimate, scale)
        return self.parameterization.to_score(estimate, conditions, conformation), scale, odds

    @staticmethod
    @full_precision
    def reverted(
        conditions: Conditions, conformation: Conformation, estimate: Displacement, shares: Tensor
    ) -> Displacement:
        """Estimate if steps are normal about a point on the way from the previous frame to the reference structure.

        The first estimate (`AroundPrevious`) has the previous frame as the mean of the step. A step of an
        Ornstein-Uhlenbeck process has it moved by learned ``shares`` (B, T, N, 9) of the way back; what it means for
        the denoised frame is that times the share of noise in the variance.
        """
        way, part = conditions.way_back, in_parts(shares * conditions.levels[..., 1])
        axes = conformation.frames.rotations.transpose(-1, -2) @ conditions.previous.frames.rotations
        return Displacement(
            centred(estimate.translation + part.translation * way.translation, conditions.statics.present),
            estimate.rotation + part.rotation * (axes @ way.rotation[..., None])[..., 0],
            estimate.torsion + part.torsion * way.torsion,
            estimate.angle + part.angle * way.angle,
        )

    @staticmethod
    def _attend(layer: int, modulation: list[Tensor], mask, cache: KVCache | None, shape: torch.Size):
        """Modulation, mask and cache of an attention layer."""
        room = cache and cache.layer(layer, *shape[1:3])
        return modulation[6 * layer : 6 * layer + 6], mask[layer % 2] if mask else None, room

    def _advance(self, block: DiffusionBlock, s, z, estimate, scale, conformation, rotary, attend, neighbours, present):
        """One block: residue and pair features, and the estimate."""
        moved = self._moved(conformation, estimate)
        s = s + block.ipa(functional.layer_norm(s, s.shape[-1:]), z, moved, neighbours, present)
        s = s + block.transition(s)
        for layer, (modulation, mask, cache) in zip(block.attention, attend, strict=True):
            s = layer(s, modulation, rotary, mask, cache)
        if block.edge is not None:
            z = block.edge(s, z, neighbours)
        local, turn = block.update(s).split(3, -1)
        step = (moved.rotations @ local[..., None])[..., 0]
        estimate = replace(
            estimate,
            translation=estimate.translation + scale.translation * step,
            rotation=estimate.rotation + scale.rotation * turn,
        )
        return s, z, estimate

    @staticmethod
    @full_precision
    def _moved(conformation: Conformation, estimate: Displacement) -> Rigid:
        """Frames at the present estimate; no gradient runs through them (AlphaFold 2, algorithm 20)."""
        frames = conformation.frames
        turn = exponential(estimate.rotation.detach())
        return Rigid(frames.rotations @ turn, frames.translations + estimate.translation.detach())

    def _with_torsions(self, out: Tensor, estimate, scale, mask: Tensor, conformation: Conformation):
        """Estimate completed by the torsion head's output (B, T, N, 7 or 14)."""
        if self.config.torsions == "diffusion":
            torsion = (estimate.torsion + scale.torsion * out[..., :6]) * mask
            return replace(estimate, torsion=torsion, angle=estimate.angle + scale.angle * out[..., 6])
        sine, cosine = out.chunk(2, -1)
        torsion = wrap(torch.atan2(sine[..., :6], cosine[..., :6]) - conformation.torsions) * mask
        angle = 1.96 + 0.1 * sine[..., 6].tanh() - conformation.angles
        return replace(estimate, torsion=torsion, angle=angle)
