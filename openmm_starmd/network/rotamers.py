"""The rotamer stay-or-hop classifier: torsions that a step leaves in their rotamers, and torsions that hop.

Most torsions stay where they are in a step, some hop. Which of them a noisy one did depends exponentially on how far it
is from the last frame and on the noise level. Where hops are rare a network sees few such cases, and a squared error
hardly minds if it lets too many torsions through. So Bayes' rule tells it what distance and noise make of a few shares
of hops; from there it learns the log-odds of staying of side-chain torsions as a classifier does, by cross-entropy. Its
estimate is the mean of that of torsions that stay and that of torsions that hop, weighed by the learned odds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from openmm_starmd.geometry.constants import constant
from openmm_starmd.geometry.rigid import full_precision
from openmm_starmd.protein.displacement import ROTATION, TORSION, Displacement

HOP_SHARES = (0.3, 0.03, 0.003)
PRIOR_ODDS = tuple(math.log((1 - share) / share) for share in HOP_SHARES)  # of staying, logarithms
TORSION_WIDTH, ROTATION_WIDTH = 0.3, 0.4  # rad: how far (per axis) they turn in a step without leaving their rotamer
HOP = math.pi / 3
CHI = slice(2, 6)  # phi and psi must agree with the frames of their residues, which hop by themselves


@full_precision
def bayes_log_odds(delta: Displacement, sigma: Tensor, period: Tensor) -> Tensor:
    """Log-odds (*, N, 7, 3) that the six torsions and the residues have stayed in their rotamers.

    A step turns them by a normal distribution about the last frame or, with each of the `HOP_SHARES`, to anywhere.
    ``delta`` (*, N) leads from the last frame to the noisy one, of noise levels (*, 1, 4); the period (*, N, 6) of the
    torsions is in rad.
    """

    def likelihood(square: Tensor, level: Tensor, width: float, room: Tensor | float, axes: int) -> Tensor:
        variance = level.square() + width**2
        return -0.5 * (square / variance + axes * (2 * math.pi * variance).log()) + room

    torsion = likelihood(delta.torsion.square(), sigma[..., TORSION, None], TORSION_WIDTH, period.log(), 1)
    square, room = delta.rotation.square().sum(-1, keepdim=True), math.log(8 * math.pi**2)
    rotation = likelihood(square, sigma[..., ROTATION, None], ROTATION_WIDTH, room, 3)
    return torch.cat([torsion, rotation], -1)[..., None] + constant(PRIOR_ODDS, sigma.dtype, sigma.device)


@full_precision
def blended(stay: Tensor, hop: Tensor, log_odds: Tensor, delta: Tensor) -> Tensor:
    """Mean displacement (*, N, 4) to the clean frame over torsions that stay and torsions that hop.

    ``stay`` and ``hop`` (*, N, 4) are the displacements in either case, ``log_odds`` (*, N, 4) those of staying; a
    torsion that stays gets to the edge of its rotamer at most. ``delta`` (*, N, 4) leads from the last frame.
    """
    return torch.lerp(hop, (delta + stay).clamp(-HOP, HOP) - delta, log_odds.sigmoid())


def stayed(delta: Tensor) -> Tensor:
    """Tell which torsions have stayed in their rotamers, from the displacement (*, N, 4) between two clean frames."""
    return delta.abs() < HOP
