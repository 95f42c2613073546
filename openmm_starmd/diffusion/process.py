"""Forward noising of conformations on R3 x SO(3) x torus, and the quantities that the reverse process needs.

Translations follow ``x_t = alpha x_0 + sigma eps``; rotations ``R_t ~ IGSO3(R_0, sigma)`` with the noise on the right;
torsions a wrapped normal; the N-CA-C angle a normal. A displacement returned by `score_displacement` is always
``sigma**2`` times the score, which is the expected displacement to the clean conformation (Tweedie).
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from openmm_starmd.geometry import igso3
from openmm_starmd.geometry.constants import constant
from openmm_starmd.geometry.rigid import Rigid, full_precision, logarithm
from openmm_starmd.geometry.torsions import wrapped_normal_score
from openmm_starmd.network.config import ProcessConfig
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.displacement import ROTATION, TORSION, Displacement, per_replica, tangent_noise
from openmm_starmd.protein.tokens import ResidueFeatures

BETA_MIN, BETA_MAX = 0.1, 20.0
PAPER_ROTATION = (0.1, 1.5)
PAPER_MIN_TIME = 0.01
LEAST_ROTATION = 0.02  # below this level IGSO(3) is a normal distribution in the tangent space


class Process:
    """Noise levels as functions of diffusion time t in [0, 1], and the forward kernel.

    Parameters
    ----------
    config : ProcessConfig
    """

    def __init__(self, config: ProcessConfig):
        self.config = config
        self.min_time = PAPER_MIN_TIME if config.schedule == "paper" else 0.0

    def alpha(self, t: Tensor) -> Tensor:
        """Signal level of the translations, shape of ``t``; 1 for the geometric schedule."""
        if self.config.schedule == "geometric":
            return torch.ones_like(t)
        return torch.exp(-0.5 * self._integrated_beta(t))

    @staticmethod
    def _integrated_beta(t: Tensor) -> Tensor:
        return BETA_MIN * t + 0.5 * (BETA_MAX - BETA_MIN) * t**2

    def sigma(self, t: Tensor) -> Tensor:
        """Noise levels of translation (nm), rotation, torsion and angle (rad), shape (*t.shape, 4)."""
        c = self.config
        torsion, angle = (low * (high / low) ** t for low, high in (c.torsion, c.angle))
        if c.schedule == "geometric":
            translation, rotation = (low * (high / low) ** t for low, high in (c.translation, c.rotation))
        else:
            translation = torch.sqrt(-torch.expm1(-self._integrated_beta(t)))
            low, high = PAPER_ROTATION
            rotation = torch.log(t * math.exp(high) + (1 - t) * math.exp(low))
        return torch.stack([translation, rotation, torsion, angle], -1)

    def increment(self, t: Tensor, t_next: Tensor) -> tuple[Tensor, Tensor]:
        """Growth of translations (*) and variance (*, 4) that the reverse SDE adds from times (*) to earlier ones."""
        variance = self.sigma(t) ** 2 - self.sigma(t_next) ** 2
        if self.config.schedule == "geometric":
            return torch.ones_like(t), variance
        beta = self._integrated_beta(t) - self._integrated_beta(t_next)
        return 1 + beta / 2, torch.cat([beta[..., None], variance[..., 1:]], -1)

    @full_precision
    def noise(self, template: Tensor, sigma: Tensor, features: ResidueFeatures, generator) -> Displacement:
        """Displacements that the forward kernel adds at given noise levels.

        Parameters
        ----------
        template : Tensor, shape (B, *, N)
            Gives shape, dtype and device.
        sigma : Tensor, shape broadcastable to (B, *, 4)
        generator : torch.Generator or one for each replica
        """
        mask, present = features.per_frame("torsion_mask", template), features.present_in(template)
        normal = tangent_noise(template, mask, generator, present)
        level, noise = sigma[..., None, ROTATION].expand(template.shape), normal.scaled(sigma)
        drawn = igso3.from_normal(level.clamp_min(LEAST_ROTATION), normal.rotation)
        return replace(noise, rotation=torch.where((level < LEAST_ROTATION)[..., None], noise.rotation, drawn))

    @full_precision
    def perturb(
        self, clean: Conformation, alpha: Tensor, sigma: Tensor, features: ResidueFeatures, generator
    ) -> Conformation:
        """Sample the forward kernel.

        Parameters
        ----------
        clean : Conformation, shape (B, *, N)
            Centred.
        alpha : Tensor, shape (B, *)
        sigma : Tensor, shape (B, *, 4)
        generator : torch.Generator or one for each replica
        """
        frames = Rigid(clean.frames.rotations, clean.frames.translations * alpha[..., None, None])
        noise = self.noise(clean.angles, sigma, features, generator)
        return noise.apply(Conformation(frames, clean.torsions, clean.angles))

    def context_copy(self, clean: Conformation, features: ResidueFeatures, generator) -> Conformation:
        """The slightly noised copy of a conformation (B, *, N) that enters the history (paper, section 3.3).

        With probability ``context_probability`` a frame is noised, at a level drawn uniformly.
        """
        c = self.config
        levels = per_replica(
            lambda rows, g: torch.rand(2, *rows.shape, generator=g, dtype=rows.dtype, device=g.device).movedim(0, -1),
            clean.angles[..., 0],
            generator,
        )
        level = levels[..., 0] * (levels[..., 1] < c.context_probability)
        if c.schedule == "geometric":
            sigma = level[..., None] * constant(c.context_noise, level.dtype, level.device)
            alpha = torch.ones_like(level)
        else:
            t = level * c.context_time
            noised = (level > 0).to(level.dtype)
            sigma, alpha = self.sigma(t) * noised[..., None], self.alpha(t)
        return self.perturb(clean, alpha, sigma, features, generator)

    def context_sigma(self, like: Tensor) -> Tensor:
        """Noise levels (4,) by which the network scales what it is told of context copies."""
        c = self.config
        if c.schedule == "geometric":
            return constant(c.context_noise, like.dtype, like.device)
        return self.sigma(like.new_full((), c.context_time))

    @staticmethod
    def origin(like: Conformation) -> Conformation:
        """Centre of the noise at t = 1 where no frame is known: nothing is moved or turned; angles of ``like``."""
        frames = Rigid.identity(like.shape, like.angles.dtype, like.angles.device)
        return Conformation(frames, torch.zeros_like(like.torsions), like.angles)

    @full_precision
    def score_displacement(
        self, noisy: Conformation, clean: Conformation, alpha: Tensor, sigma: Tensor, features: ResidueFeatures
    ) -> Displacement:
        """``sigma**2`` times the score of the forward kernel from ``clean`` at ``noisy``, shapes (B, *, N)."""
        s = sigma[..., None, :]
        delta = noisy.frames.rotations.transpose(-1, -2) @ clean.frames.rotations
        period = features.per_frame("torsion_period", noisy.angles)
        torsion_sigma = s[..., TORSION, None]
        torsion = torsion_sigma**2 * wrapped_normal_score(noisy.torsions - clean.torsions, torsion_sigma, period)
        return Displacement(
            alpha[..., None, None] * clean.frames.translations - noisy.frames.translations,
            igso3.tangent(logarithm(delta), s[..., ROTATION].expand(noisy.shape)),
            torsion * features.per_frame("torsion_mask", noisy.angles),
            clean.angles - noisy.angles,
        )
