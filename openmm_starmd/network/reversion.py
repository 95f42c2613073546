"""Reversion: steps of residues that a reference structure draws back, as in an Ornstein-Uhlenbeck process."""

from __future__ import annotations

from torch import Tensor

from openmm_starmd.geometry.rigid import full_precision
from openmm_starmd.network.embedding import Conditions, StaticInputs
from openmm_starmd.network.parameterization import in_parts
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.displacement import Displacement, centred


@full_precision
def to_reference(
    static: StaticInputs, previous: Conformation, reference: Conformation, farthest: Tensor
) -> Displacement:
    """Displacement from the previous frame to the reference structure; smoothly bounded, 0 without one."""
    delta = Displacement.between(previous, reference, static.torsion_period)
    translation, rotation, torsion, angle = farthest.split([1, 1, 6, 1], -1)

    def bounded(x: Tensor, size: Tensor, square: Tensor) -> Tensor:
        return x * (1 + square / size.square()).rsqrt()

    delta = Displacement(
        bounded(delta.translation, translation, delta.translation.square().sum(-1, keepdim=True)),
        bounded(delta.rotation, rotation, delta.rotation.square().sum(-1, keepdim=True)),
        bounded(delta.torsion, torsion, delta.torsion.square()) * static.torsion_mask,
        bounded(delta.angle, angle[..., 0], delta.angle.square()),
    )
    return delta if static.has_reference is None else delta.scaled(static.has_reference[..., 0].expand(-1, 1, 4))


@full_precision
def reverted(
    conditions: Conditions, conformation: Conformation, estimate: Displacement, shares: Tensor
) -> Displacement:
    """Estimate if steps are normal about a point between the previous frame and the reference structure.

    The first estimate (`AroundPrevious`) has the previous frame as the mean of the step. A step of an
    Ornstein-Uhlenbeck process has it moved by learned ``shares`` (B, T, N, 9) of the displacement to the
    reference; what it means for the denoised frame is that times the share of noise in the variance.
    """
    delta, part = conditions.to_reference, in_parts(shares * conditions.levels[..., 1])
    moved = conditions.noise_in(shares[..., :1] * delta.translation)
    axes = conformation.frames.rotations.transpose(-1, -2) @ conditions.previous.frames.rotations
    return Displacement(
        centred(estimate.translation + moved, conditions.static.present),
        estimate.rotation + part.rotation * (axes @ delta.rotation[..., None])[..., 0],
        estimate.torsion + part.torsion * delta.torsion,
        estimate.angle + part.angle * delta.angle,
    )
