"""Meaning of the network's output: the first estimate that it corrects, and the units of its corrections."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from openmm_starmd.geometry import igso3
from openmm_starmd.geometry.rigid import full_precision
from openmm_starmd.geometry.torsions import wrap, wrapped_normal_score
from openmm_starmd.network.embedding import Conditions
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.displacement import ROTATION, TORSION, Displacement, centred


class AroundPrevious:
    """Corrections of the displacement to the previous frame.

    The first estimate is the posterior mean if steps were normal with the tabulated sizes (the skip connection and
    output scale of EDM, arXiv:2206.00364, equation 7, with the previous frame as the mean of the data).
    """

    def levels(self, noise: Tensor, step: Tensor) -> Tensor:
        """Spread, share and unit (*, 9, 3), see `Conditions`, of noise levels and step sizes (*, 9)."""
        spread = (step**2 + noise**2).sqrt()
        return torch.stack([spread, (noise / spread) ** 2, step * noise / spread], -1)

    @full_precision
    def baseline(self, conditions: Conditions, now: Conformation) -> tuple[Displacement, Displacement]:
        """Displacement from the previous frame, and first estimate of the displacement to the clean one."""
        spread, share, _ = conditions.levels.unbind(-1)
        period = conditions.static.torsion_period
        delta = Displacement.between(conditions.previous, now, period)
        variance = conditions.sigma[..., TORSION, None].square()
        estimate = Displacement(
            -conditions.noise_in(delta.translation),
            -share[..., 1:2] * igso3.tangent(delta.rotation, spread[..., ROTATION].expand(now.shape)),
            variance * wrapped_normal_score(delta.torsion, spread[..., 2:8], period),
            -share[..., 8] * delta.angle,
        )
        return delta, estimate

    def to_score(self, estimate: Displacement, conditions: Conditions, now: Conformation) -> Displacement:
        """``sigma**2`` times the score: the estimate itself."""
        return estimate

    def unit_of_loss(self, scale: Displacement, sigma: Tensor) -> Displacement:
        """The error that the first estimate alone would make."""
        return scale


class Plain:
    """Clean frames directly, as in the STAR-MD paper: the first estimate is the noisy frame."""

    def levels(self, noise: Tensor, step: Tensor) -> Tensor:
        """Spread, share and unit (*, 9, 3), see `Conditions`, of noise levels and step sizes (*, 9)."""
        of_frames, of_torsions, of_angle = noise.split([2, 6, 1], -1)
        unit = torch.cat([torch.ones_like(of_frames), of_torsions / (1 + of_torsions**2).sqrt(), of_angle], -1)
        return torch.stack([noise, torch.zeros_like(noise), unit], -1)

    def baseline(self, conditions: Conditions, now: Conformation) -> tuple[Displacement, Displacement]:
        """No displacement from the previous frame, and none to the clean one."""
        zero = torch.zeros_like(now.frames.translations)
        nothing = Displacement(zero, zero, torch.zeros_like(now.torsions), torch.zeros_like(now.angles))
        return nothing, nothing

    def to_score(self, estimate: Displacement, conditions: Conditions, now: Conformation) -> Displacement:
        """``sigma**2`` times the score, from the displacement to the clean frames."""
        alpha = conditions.alpha[..., None, None]
        clean = centred(now.frames.translations + estimate.translation, conditions.static.present)
        level = conditions.sigma[..., ROTATION].expand(estimate.rotation.shape[:-1])
        return replace(
            estimate,
            translation=alpha * clean - now.frames.translations,
            rotation=igso3.tangent(wrap_rotation(estimate.rotation), level),
        )

    def unit_of_loss(self, scale: Displacement, sigma: Tensor) -> Displacement:
        """The noise levels (*, 4) as parts of a displacement."""
        sigma = sigma[..., None, :]
        return Displacement(sigma[..., :1], sigma[..., 1:2], sigma[..., 2:3], sigma[..., 3])


PARAMETERIZATIONS = {"previous": AroundPrevious(), "plain": Plain()}


def in_parts(numbers: Tensor) -> Displacement:
    """Nine numbers (*, 9) as factors of the parts of a displacement."""
    return Displacement(numbers[..., :1], numbers[..., 1:2], numbers[..., 2:8], numbers[..., 8])


def wrap_rotation(rotvec: Tensor) -> Tensor:
    """Equal rotation with a norm of at most pi."""
    angle = rotvec.square().sum(-1, keepdim=True).add(1e-12).sqrt()
    return rotvec * (wrap(angle) / angle)
