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

from openmm_starmd.geometry.torsions import wrap
from openmm_starmd.network import elastic_steps, reversion, rotamers
from openmm_starmd.network.attention import KVCache, modulate, rotary_table
from openmm_starmd.network.block import DiffusionBlock
from openmm_starmd.network.config import NetworkConfig
from openmm_starmd.network.embedding import (
    ConditionEmbedding,
    Conditions,
    FrameInputs,
    ResidueEmbedding,
    StaticInputs,
    TimeConditioning,
)
from openmm_starmd.network.fluctuations import fluctuations
from openmm_starmd.network.invariants import BURIAL, burial, contact_mask, distances
from openmm_starmd.network.masks import masks_behind, token_masks
from openmm_starmd.network.pair_embedding import PairEmbedding
from openmm_starmd.network.parameterization import PARAMETERIZATIONS, in_parts
from openmm_starmd.network.pulls import Pulls
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.displacement import Displacement, centred
from openmm_starmd.protein.tokens import ResidueFeatures

STEP_STRIDES = 8  # step sizes are tabulated at 10 * 2**k ps
FARTHEST = 4.0  # sizes of the longest tabulated step: bound of the displacement to the reference structure


class Denoiser(nn.Module):
    """Predicts the displacement from noisy conformations to clean ones.

    In training, ``checkpointing`` has each block computed again in the backward pass instead of keeping what is inside
    it, and ``classifier_gradient`` lets gradients run through the classifier's log-odds, which no loss of their own
    teaches then.
    """

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config, self.parameterization = config, PARAMETERIZATIONS[config.parameterization]
        self.checkpointing = self.classifier_gradient = False
        self.condition = ConditionEmbedding(config.width)
        self.residues = ResidueEmbedding(config)
        self.pairs = PairEmbedding(config)
        self.blocks = nn.ModuleList(DiffusionBlock(config, last=k == config.blocks - 1) for k in range(config.blocks))
        self.modulation = nn.Linear(config.width, 2 * config.width)
        regression = config.torsions == "regression"
        self.torsions = nn.Linear(config.width, 14 if regression else 7)
        classifies = config.parameterization == "previous" and not regression
        self.wells = nn.Linear(config.width, 2 * 4) if classifies else None
        self.pulls = Pulls(config) if config.pulls else None
        self.reversion = nn.Linear(config.width, 9) if config.reversion else None
        self.register_buffer("step_scales", torch.ones(STEP_STRIDES, 9))
        if config.burial:
            self.register_buffer("burial_scales", torch.ones(STEP_STRIDES, len(BURIAL), 9))
        if config.elastic_steps:
            self.register_buffer("elastic_scales", torch.ones(STEP_STRIDES, 1))
        layers = config.blocks * config.attention_layers
        offsets = torch.tensor([0.0, 1.0, 1.0] * 2 * layers + [0.0, 1.0])[:, None]
        self.register_buffer("offsets", offsets, persistent=False)  # gains and gates are learned less 1
        self.register_buffer("parts", torch.tensor([0, 1, 2, 2, 2, 2, 2, 2, 3]), persistent=False)  # of nine numbers
        self._initialise()

    def _initialise(self) -> None:
        """Outputs and conditioning start at zero: an untrained denoiser returns the first estimate.

        The estimate of side-chain torsions is drawn towards their rotamers, see `rotamers`.
        """
        zero = [self.torsions, self.modulation, *(b.update for b in self.blocks)]
        zero += [layer.condition for block in self.blocks for layer in block.attention]
        zero += [self.wells] if self.wells else []
        zero += [self.pulls.out] if self.pulls else []
        zero += [self.reversion, self.residues.way_back, self.pairs.reference] if self.reversion else []
        zero += [self.residues.fluctuations, self.pairs.fluctuations] if self.config.fluctuations else []
        for layer in zero:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        if self.config.torsions == "regression":
            with torch.no_grad():
                self.torsions.bias[7:] = 1.0

    def static_inputs(
        self,
        features: ResidueFeatures,
        reference: Conformation | None = None,
        single=None,
        pair=None,
        hidden=None,
        has_reference: Tensor | None = None,
    ) -> StaticInputs:
        """Time-independent inputs of systems (B, N).

        ``single`` and ``pair`` are optional precomputed features; in training, ``hidden`` residues have no type, and
        systems without ``has_reference`` (B,) no reference structure.
        """
        dtype = self.step_scales.dtype
        residues = self.residues.static(features, single, hidden)
        if has_reference is not None:
            has_reference = has_reference.to(dtype)[:, None, None, None]
        pairs = self.pairs.static(features, reference, pair, has_reference)
        present = features.present_in(residues[:, None, :, 0])
        if self.config.fluctuations and reference is not None:
            own, mutual = fluctuations(reference.frames, None if present is None else present[:, 0])
            told = self.residues.fluctuations(own), self.pairs.fluctuations(mutual)
            if has_reference is not None:
                told = told[0] * has_reference[:, :, 0], told[1] * has_reference
            residues, pairs = residues + told[0], pairs + told[1]
        return StaticInputs(
            features,
            residues,
            pairs,
            features.torsion_mask[:, None].to(dtype),
            features.torsion_period[:, None].to(dtype),
            contact_mask(features)[:, None],
            self.pulls and self.pulls.static(features, residues, pairs),
            present,
            has_reference,
        )

    def step_size(self, stride: Tensor) -> Tensor:
        """Root mean square size (*, 9) of one step of ``stride`` (*) ps: translation, rotation, torsions, angle."""
        return _interpolated(stride, self.step_scales)

    def step_size_buried(self, stride: Tensor, weights: Tensor) -> Tensor:
        """Size (B, T, N, 9) of one step of residues by how buried they are, weights (B, T, N, 8) of `burial`."""
        return weights @ _interpolated(stride, self.burial_scales.flatten(1)).unflatten(-1, (-1, 9))

    def step_covariance(self, stride: Tensor, ca: Tensor, present: Tensor | None) -> Tensor:
        """Covariance (B, T, 3 N, 3 N), nm^2, of one step of ``stride`` (B, T or more) ps from CA (B, T, N, 3)."""
        scale = _interpolated(stride[:, : ca.shape[1]], self.elastic_scales)
        return scale.square()[..., None] * elastic_steps.step_covariance(ca, present)

    def levels(self, sigma: Tensor, stride: Tensor) -> Tensor:
        """Spread, share and unit (B, T, 9, 3) at noise levels (B, T, 4), see `Conditions`."""
        return self.parameterization.levels(sigma.index_select(-1, self.parts), self.step_size(stride))

    def cache(self, batch: int, residues: int, capacity: int) -> KVCache:
        """Empty cache with room for ``capacity`` frames; `denoise` needs one more than it has context frames."""
        config = self.config
        layers, width = config.blocks * config.attention_layers, config.width // config.heads
        shape = (layers, batch, config.heads, capacity * residues, width)
        return KVCache.empty(shape, self.step_scales)

    def time_conditioning(self, time: Tensor, alpha: Tensor, sigma: Tensor, stride: Tensor) -> TimeConditioning:
        """The part of `conditions` that is the same for all conformations; shapes as in `FrameInputs`."""
        condition = self.condition(time, stride)
        layers = [layer.condition for block in self.blocks for layer in block.attention]
        modulation = torch.cat([layer(condition) for layer in (*layers, self.modulation)], -1)
        modulation = modulation.unflatten(-1, (-1, self.config.width)) + self.offsets
        levels = self.levels(sigma, stride)[..., None, :, :]
        return TimeConditioning(alpha, sigma[..., None, :], levels, modulation, stride)

    def conditions(
        self,
        static: StaticInputs,
        previous: Conformation,
        conditioning: TimeConditioning,
        index: Tensor,
        reference: Conformation | None = None,
    ) -> Conditions:
        """Conditions, computed before frames are looked at; shapes as in `FrameInputs`."""
        atoms, head_width = previous.backbone(), self.config.width // self.config.heads
        neighbours, to_reference = self._neighbours(atoms, static.present), None
        residues = self.residues.from_previous(static.residues, static.torsion_mask, previous)
        size, covariance, ca = self.step_scales[-1], None, atoms[..., 1, :]
        if self.config.burial or self.config.elastic_steps:
            if self.config.burial:
                weights = burial(ca, static.present)
                size, step = weights @ self.burial_scales[-1], self.step_size_buried(conditioning.stride, weights)
            else:
                step = self.step_size(conditioning.stride)[..., None, :].expand(-1, -1, ca.shape[2], -1)
            if self.config.elastic_steps:
                covariance = self.step_covariance(conditioning.stride, ca, static.present)
                moved = elastic_steps.sizes(covariance)[..., None]
                shape = torch.broadcast_shapes(step.shape[:-1], moved.shape[:-1])
                step = torch.cat([moved.expand(*shape, 1), step[..., 1:].expand(*shape, -1)], -1)
            noise = conditioning.sigma.index_select(-1, self.parts).expand_as(step)
            conditioning = conditioning._replace(levels=self.parameterization.levels(noise, step))
        if self.reversion and reference is not None:
            to_reference = reversion.to_reference(static, previous, reference, FARTHEST * size)
            residues = residues + self.residues.drawn_back(to_reference, previous, size, static.has_reference)
        return Conditions(
            static,
            previous,
            atoms,
            residues,
            self.pairs.from_previous(static.pairs, previous, atoms, neighbours),
            neighbours,
            to_reference,
            self.pulls and self.pulls.from_previous(static.pull_inputs, previous),
            covariance,
            rotary_table(static.features.residue_index, index, head_width),
            *conditioning,
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

    def mask_behind(self, cache: KVCache, room: int, residues: int):
        """Masks of `masks_behind` for the attention of this network."""
        return masks_behind(cache, room, residues, self.config.joint_attention)

    @torch.no_grad()
    def encode(self, static: StaticInputs, context: FrameInputs, cache: KVCache, mask=None) -> KVCache:
        """Cache extended by context copies (B, T, N); each sees the cached frames and the copies up to itself.

        ``mask`` may say which of the cached frames a single one sees, see `mask_behind`.
        """
        n, frames, device = static.features.residue_type.shape[-1], len(context.index), context.time.device
        if mask is None and (frames > 1 or not self.config.joint_attention):
            known, own = (torch.ones(frames, m, dtype=torch.bool, device=device) for m in (cache.n_frames, frames))
            mask = token_masks(torch.cat([known, own.tril()], 1), n, self.config.joint_attention)
        conditioning = self.time_conditioning(context.time, context.alpha, context.sigma, context.stride)
        conditions = self.conditions(static, context.previous, conditioning, context.index, context.reference)
        self._trunk(conditions, context.conformation, mask, cache)
        return replace(cache, n_frames=cache.n_frames + frames)

    @torch.no_grad()
    def denoise(self, conditions: Conditions, noisy: Conformation, cache: KVCache, mask=None) -> Displacement:
        """Displacement (B, 1, N) of one noisy frame at one time, given the cache of its context frames.

        ``mask`` may say which of them it sees, see `mask_behind`.
        """
        if mask is None and not self.config.joint_attention:
            sees = torch.ones(1, cache.n_frames + 1, dtype=torch.bool, device=noisy.device)
            mask = token_masks(sees, noisy.shape[-1], self.config.joint_attention)
        return self._answer(conditions, noisy, *self._trunk(conditions, noisy, mask, cache))[0]

    def forward(
        self, static: StaticInputs, context: FrameInputs, noisy: FrameInputs
    ) -> tuple[Displacement, Displacement, Tensor | None]:
        """Block-causal pass over a window of L context copies (B, L, N) and M noisy frames (B, M, N).

        The noisy frame of index l sees the context frames of index < l and itself. The result is the estimated
        displacement (B, M, N), ``sigma**2`` times the score; the unit of the loss, broadcastable to it: the error that
        the baseline alone would make, or sigma without a baseline; and the log-odds (B, M, N, 4) that chi1 to chi4 have
        stayed in their rotamers, see `rotamers`, or None without the classifier.
        """
        frames = FrameInputs.cat(context, noisy)
        split = len(context.index)
        is_noisy = torch.arange(len(frames.index), device=frames.index.device) >= split
        earlier = frames.index[:, None] > frames.index[None]
        same = torch.eye(len(is_noisy), dtype=torch.bool, device=is_noisy.device)
        sees = (earlier & ~is_noisy[None]) | same
        mask = token_masks(sees, static.features.residue_type.shape[-1], self.config.joint_attention, static.present)
        conditioning = self.time_conditioning(frames.time, frames.alpha, frames.sigma, frames.stride)
        conditions = self.conditions(static, frames.previous, conditioning, frames.index, frames.reference)
        trunk = self._trunk(conditions, frames.conformation, mask)
        trunk = [x if x is None else x[:, split:] for x in trunk]
        displacement, scale, log_odds = self._answer(conditions.behind(split), noisy.conformation, *trunk)
        return displacement, self.parameterization.unit_of_loss(scale, noisy.sigma), log_odds

    def _trunk(self, conditions: Conditions, conformation: Conformation, mask, cache: KVCache | None = None):
        """All blocks over frames (B, T, N): residue features, estimate, displacement from the last frame, log-odds.

        Keys and values go to ``cache``.
        """
        spread, _, unit = conditions.levels.unbind(-1)
        scale = in_parts(unit)
        delta, estimate = self.parameterization.baseline(conditions, conformation)
        static, previous = conditions.static, conditions.previous
        log_odds = rotamers.bayes_log_odds(delta, conditions.sigma, static.torsion_period) if self.wells else None
        s = self.residues(conditions.residues, conformation, previous, delta, spread, log_odds, static.torsion_mask)
        neighbours = conditions.neighbours
        z = self.pairs(conditions.pairs, conformation, previous, conditions.previous_atoms, neighbours, static)
        modulation = conditions.modulation.unbind(-2)
        for k, block in enumerate(self.blocks):
            advance = block
            if self.checkpointing and torch.is_grad_enabled():
                advance = partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)
            layers = range(k * len(block.attention), (k + 1) * len(block.attention))
            attend = [self._attend(i, modulation, mask, cache, s.shape) for i in layers]
            arguments = scale, conformation.frames, conditions.rotary, attend, neighbours, static.present
            s, z, estimate = advance(s, z, estimate, *arguments)
        return s, replace(estimate, translation=centred(estimate.translation, static.present)), delta, log_odds

    @staticmethod
    def _attend(layer: int, modulation: list[Tensor], mask, cache: KVCache | None, shape: torch.Size):
        """Modulation, mask and cache of an attention layer."""
        room = cache and cache.layer(layer, *shape[1:3])
        return modulation[6 * layer : 6 * layer + 6], mask[layer % 2] if mask else None, room

    def _answer(
        self, conditions: Conditions, conformation: Conformation, s: Tensor, estimate: Displacement, delta, log_odds
    ) -> tuple[Displacement, Displacement, Tensor | None]:
        """Displacement, its scale and learned log-odds, from what the blocks have made."""
        static, scale = conditions.static, in_parts(conditions.levels[..., 2])
        *_, shift, gain = conditions.modulation.unbind(-2)
        s = modulate(s, shift, gain)
        estimate = self._with_torsions(self.torsions(s), estimate, scale, static.torsion_mask, conformation)
        if conditions.to_reference is not None:
            estimate = reversion.reverted(conditions, conformation, estimate, self.reversion(s))
        if self.wells:
            learned, further = self.wells(s).chunk(2, -1)
            log_odds = log_odds[..., rotamers.CHI, 0] + learned
            weight = log_odds if self.classifier_gradient else log_odds.detach()
            backbone, chi = estimate.torsion.split([2, 4], -1)
            hop = chi + scale.torsion[..., rotamers.CHI] * further
            chi = rotamers.blended(chi, hop, weight, delta.torsion[..., rotamers.CHI])
            torsion = torch.cat([backbone, chi], -1) * static.torsion_mask
            estimate = replace(estimate, torsion=torsion)
        if self.pulls:
            estimate = self.pulls(static.pull_inputs, conditions.previous_distances, conformation, estimate, scale)
        return self.parameterization.to_score(estimate, conditions, conformation), scale, log_odds

    def _with_torsions(self, out: Tensor, estimate, scale, mask: Tensor, conformation: Conformation):
        """Estimate completed by the torsion head's output (B, T, N, 7 or 14)."""
        if self.config.torsions == "diffusion":
            torsion = (estimate.torsion + scale.torsion * out[..., :6]) * mask
            return replace(estimate, torsion=torsion, angle=estimate.angle + scale.angle * out[..., 6])
        sine, cosine = out.chunk(2, -1)
        torsion = wrap(torch.atan2(sine[..., :6], cosine[..., :6]) - conformation.torsions) * mask
        angle = 1.96 + 0.1 * sine[..., 6].tanh() - conformation.angles
        return replace(estimate, torsion=torsion, angle=angle)


def _interpolated(stride: Tensor, table: Tensor) -> Tensor:
    """Row (*, C) for strides (*), ps, of a table (`STEP_STRIDES`, C)."""
    k = torch.log2(stride / 10).clamp(0, STEP_STRIDES - 1.001)
    low = k.long()
    below, above = (functional.embedding(i, table) for i in (low, low + 1))
    return torch.lerp(below, above, (k - low)[..., None])
