"""Inputs of the network, and the embedding of noise levels, strides and residues."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from openmm_starmd.network import elastic_steps, rotamers
from openmm_starmd.network.config import NetworkConfig
from openmm_starmd.network.fluctuations import OWN_WIDTH
from openmm_starmd.network.invariants import harmonics
from openmm_starmd.network.pulls import PullInputs
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.displacement import Displacement
from openmm_starmd.protein.residues import RESIDUE_TYPES
from openmm_starmd.protein.tokens import ResidueFeatures

FREQUENCIES = 8


@dataclass(frozen=True)
class StaticInputs:
    """Tensors that a rollout or a training window computes once."""

    features: ResidueFeatures  # (B, N)
    residues: Tensor  # (B, N, C): part of the residue features that does not depend on time
    pairs: Tensor  # (B, N, N, C): the same of the pair features
    torsion_mask: Tensor  # (B, 1, N, 6): of the residues, as numbers of the network's dtype
    torsion_period: Tensor  # (B, 1, N, 6): the same
    contact_mask: Tensor  # (B, 1, N, 8) of bool
    pull_inputs: PullInputs | None = None  # what pulls are told of the residues, where the network has them
    present: Tensor | None = None  # (B, 1, N) of bool: false for padding
    # (B, 1, 1, 1): 1 where the reference structure is told, else 0; None where it always is
    has_reference: Tensor | None = None

    def expand(self, batch: int) -> StaticInputs:
        """Static inputs of ``batch`` replicas of one system; they share the memory."""
        parts = {name: x.expand(batch, *x.shape[1:]) for name, x in vars(self).items() if isinstance(x, Tensor)}
        features, pull_inputs = self.features[0].expand(batch), self.pull_inputs and self.pull_inputs.expand(batch)
        return replace(self, **parts, features=features, pull_inputs=pull_inputs)


@dataclass(frozen=True)
class FrameInputs:
    """Frames as the network gets them: noisy frames and context copies alike."""

    conformation: Conformation  # (B, T, N): centred
    previous: Conformation  # (B, T, N): centred predecessor in the window; the frame itself where there is none
    time: Tensor  # (B, T): diffusion time; -1 for a context copy
    alpha: Tensor  # (B, T): signal level
    sigma: Tensor  # (B, T, 4): noise levels
    stride: Tensor  # (B, T): physical time since the predecessor, ps
    index: Tensor  # (T,): frame index in the window
    # (B, T, N): reference structure, superposed on each predecessor; for networks with ``reversion``
    reference: Conformation | None = None

    def frame(self, k: int) -> FrameInputs:
        """The frame at position k alone, the axis kept."""
        return self.frames(k, k + 1)

    def frames(self, start: int, stop: int) -> FrameInputs:
        """The frames at positions ``start`` to ``stop - 1``."""
        at = slice(start, stop)
        parts = [x[:, at] for x in (self.time, self.alpha, self.sigma, self.stride)]
        reference = None if self.reference is None else self.reference[:, at]
        return FrameInputs(self.conformation[:, at], self.previous[:, at], *parts, self.index[at], reference)

    @classmethod
    def cat(cls, a: FrameInputs, b: FrameInputs) -> FrameInputs:
        """Frames of ``a`` followed by those of ``b``."""
        join = [torch.cat([getattr(a, name), getattr(b, name)], 1) for name in ("time", "alpha", "sigma", "stride")]
        return cls(
            Conformation.cat([a.conformation, b.conformation], 1),
            Conformation.cat([a.previous, b.previous], 1),
            *join,
            torch.cat([a.index, b.index]),
            None if a.reference is None else Conformation.cat([a.reference, b.reference], 1),
        )


class TimeConditioning(NamedTuple):
    """Features of diffusion times and strides, whatever the conformations; see `Conditions`."""

    alpha: Tensor
    sigma: Tensor
    levels: Tensor
    modulation: Tensor
    stride: Tensor


@dataclass(frozen=True)
class Conditions:
    """All that is known of frames (B, T, N) before they are looked at.

    Where one frame is denoised at many times, everything that depends on the time counts them along T, the rest has a
    single frame; `at` takes one time.
    """

    static: StaticInputs
    previous: Conformation  # (B, T, N)
    previous_atoms: Tensor  # (B, T, N, 3, 3): its backbone, nm
    residues: Tensor  # (B, T, N, C): part of the residue features that static inputs and previous frames give
    pairs: Tensor  # (B, T, N, N, C) or, of neighbours, (B, T, N, K, C): the same of the pair features
    # (B, T, N, K) of int: nearest residues in the previous frame; None where pairs are those of all
    neighbours: Tensor | None
    # (B, T, N): from the previous frame to the reference structure, bounded; see `network.reversion`
    to_reference: Displacement | None
    previous_distances: Tensor | None  # (B, T, N, 3, N): distances of the previous frame, see `Pulls`
    covariance: Tensor | None  # (B, T, 3 N, 3 N): of the translations of a step, nm^2, see `elastic_steps`
    rotary: tuple[Tensor, Tensor]  # cosine and sine of the tokens
    alpha: Tensor  # (B, T)
    sigma: Tensor  # (B, T, 1, 4): noise levels
    # (B, T, 1, 9, 3), or (B, T, N, 9, 3) where residues have sizes of their own: of translation, rotation, torsions and
    # angle the spread about the previous frame (noise included), the share of noise in its variance and the unit of the
    # corrections
    levels: Tensor
    # (B, T, 1, 6 * layers + 2, C): shifts, gains and gates of every layer, shift and gain of the output
    modulation: Tensor
    stride: Tensor  # (B, T): ps

    def at(self, k: Tensor) -> Conditions:
        """At the time of position k (1,) alone."""
        return replace(self, **{name: getattr(self, name).index_select(1, k) for name in TimeConditioning._fields})

    def noise_in(self, displacement: Tensor) -> Tensor:
        """Part of displacements (B, T, N, 3) from the previous frame, nm, that is noise if steps are normal."""
        if self.covariance is None:
            return self.levels[..., :1, 1] * displacement
        return elastic_steps.noise_in(displacement, self.covariance, self.sigma[..., 0])

    def behind(self, k: int) -> Conditions:
        """Input of the output part for the frames from position k on."""
        behind = "previous", "to_reference", "previous_distances", "covariance", *TimeConditioning._fields
        parts = {name: getattr(self, name) for name in behind}
        parts = {name: None if x is None else x[:, k:] for name, x in parts.items()}
        return replace(self, **parts)


class ConditionEmbedding(nn.Module):
    """Noise level and stride of a frame, as the input of every AdaLN; output (B, T, 1, C)."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4 * FREQUENCIES + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.register_buffer("frequency", 0.7 * torch.arange(1, FREQUENCIES + 1), persistent=False)

    def forward(self, time: Tensor, stride: Tensor) -> Tensor:
        """Embed diffusion times and strides (B, T), ps."""
        phases = torch.cat([3 * time[..., None] * self.frequency, stride.log()[..., None] / 3 * self.frequency], -1)
        context = (time < 0).to(phases.dtype)[..., None]
        return self.layers(torch.cat([phases.sin(), phases.cos(), context], -1))[..., None, :]


class ResidueEmbedding(nn.Module):
    """Residue features (B, T, N, C): type, chain ends, torsions, and the displacement from the previous frame.

    The columns of ``geometry`` are, as far as the configuration has them: which torsions there are; torsions and angle
    of the frame; displacement from the previous frame; torsions and angle of that; how these have turned; whether they
    have stayed in their rotamers.
    """

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.residue_type = nn.Embedding(len(RESIDUE_TYPES), width)
        self.n_end, self.c_end = nn.Embedding(3, width), nn.Embedding(3, width)
        self.around_previous = config.parameterization == "previous"
        self.diffused = config.torsions == "diffusion"
        both = self.around_previous and self.diffused
        self.columns = [
            6,
            37 * self.diffused,
            9 * self.around_previous,
            37 * both,
            7 * both,
            7 * len(rotamers.HOP_SHARES) * both,
        ]
        self.geometry = nn.Linear(sum(self.columns), width)
        if config.single_features:
            self.single = nn.Sequential(nn.LayerNorm(config.single_features), nn.Linear(config.single_features, width))
        if config.reversion:
            self.way_back = nn.Linear(3 + 3 + 6 + 1, width)
        if config.fluctuations:
            self.fluctuations = nn.Linear(OWN_WIDTH, width)

    def static(self, features: ResidueFeatures, single: Tensor | None, hidden: Tensor | None = None) -> Tensor:
        """The part that no conformation has to do with, (B, N, C); computed once a rollout.

        The types of residues where ``hidden`` (B, N) is true count as unknown.
        """
        types = self.residue_type(features.residue_type)
        if hidden is not None:
            types = types.masked_fill(hidden[..., None], 0.0)
        fixed = types + self.n_end(features.n_end) + self.c_end(features.c_end)
        if self.config.single_features and single is not None:
            fixed = fixed + self.single(single)
        present = self.geometry.weight.split(self.columns, 1)[0]
        return fixed + functional.linear(features.torsion_mask.to(present.dtype), present, self.geometry.bias)

    def from_previous(self, static: Tensor, mask: Tensor, previous: Conformation) -> Tensor:
        """The part that the previous frames know, (B, T, N, C); computed once where they are denoised repeatedly."""
        if not (self.around_previous and self.diffused):
            return static[:, None]
        weight = self.geometry.weight.split(self.columns, 1)[3]
        return static[:, None] + functional.linear(self._torsions(previous, mask), weight)

    def drawn_back(
        self, delta: Displacement, previous: Conformation, size: Tensor, has_reference: Tensor | None
    ) -> Tensor:
        """Features (B, T, N, C) of the displacement to the reference structure, in units of ``size`` (*, 9)."""
        translation = (delta.translation[..., None, :] @ previous.frames.rotations)[..., 0, :]
        of_frames = [translation / size[..., :1], delta.rotation / size[..., 1:2]]
        others = [delta.torsion / size[..., 2:8], (delta.angle / size[..., 8])[..., None]]
        told = self.way_back(torch.cat([*of_frames, *others], -1))
        return told if has_reference is None else told * has_reference

    @staticmethod
    def _torsions(conformation: Conformation, mask: Tensor) -> Tensor:
        return torch.cat([harmonics(conformation.torsions, mask), conformation.angles[..., None] - 2.0], -1)

    def forward(
        self,
        cached: Tensor,
        now: Conformation,
        previous: Conformation,
        delta: Displacement,
        spread: Tensor,
        log_odds: Tensor | None,
        mask: Tensor,
    ) -> Tensor:
        """Residue features (B, T, N, C) of frames and their predecessors.

        ``spread`` (B, T, 1, 9) is the expected size of the ``delta`` from the previous frame, noise included.
        ``log_odds`` (B, T, N, 7, 3) are those of `rotamers.bayes_log_odds`, or None where the configuration has no
        classifier.
        """
        _, of_now, moved, _, turned, stayed = self.geometry.weight.split(self.columns, 1)
        parts, weights = [], []
        if self.diffused:
            parts, weights = [self._torsions(now, mask)], [of_now]
        if self.around_previous:
            translation = (delta.translation / spread[..., :1])[..., None, :]
            parts += [(translation @ frames.rotations)[..., 0, :] for frames in (previous.frames, now.frames)]
            parts += [delta.rotation / spread[..., 1:2]]
            weights.append(moved)
            if self.diffused:
                parts += [delta.torsion * mask / spread[..., 2:8], (delta.angle / spread[..., 8])[..., None]]
                stays = log_odds.sigmoid()
                parts += [(stays[..., :6, :] * mask[..., None]).flatten(-2), stays[..., 6, :]]
                weights += [turned, stayed]
        if not parts:
            return cached.expand(*now.shape, -1)
        return cached + functional.linear(torch.cat(parts, -1), torch.cat(weights, 1))
