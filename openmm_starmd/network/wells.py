"""Torsions that a step leaves in their wells, and torsions that hop.

Most torsions stay where they are in a step, some hop. Which of them a noisy one did depends exponentially on how far it
is from the last frame and on the noise level. Where hops are rare a network sees few such cases, and a squared error
hardly minds if it lets too many torsions through. So Bayes' rule tells it what distance and noise make of a few shares
of hops; from there it learns the odds of staying of side-chain torsions as a classifier does, by cross-entropy. Its
estimate is the mean of that of torsions that stay and that of torsions that hop, weighed by these odds.
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
TORSION_WELL, ROTATION_WELL = 0.3, 0.4  # rad: how far (per axis) they turn in a step without leaving their well
HOP = math.pi / 3
CHI = slice(2, 6)  # phi and psi must agree with the frames of their residues, which hop by themselves


@full_precision
def log_odds(way: Displacement, sigma: Tensor, period: Tensor) -> Tensor:
    """Logarithms (*, N, 7, 3) of the odds that the six torsions and the residues have stayed in their wells.

    A step turns them by a normal distribution about the last frame or, with each of the `HOP_SHARES`, to anywhere.

    Parameters
    ----------
    way : Displacement, shape (*, N)
        From the last frame to the noisy one.
    sigma : Tensor, shape (*, 1, 4)
    period : Tensor, shape (*, N, 6)
        Of the torsions, rad.
    """

    def likelihood(square: Tensor, level: Tensor, well: float, room: Tensor | float, axes: int) -> Tensor:
        variance = level.square() + well**2
        return -0.5 * (square / variance + axes * (2 * math.pi * variance).log()) + room

    torsion = likelihood(way.torsion.square(), sigma[..., TORSION, None], TORSION_WELL, period.log(), 1)
    square, room = way.rotation.square().sum(-1, keepdim=True), math.log(8 * math.pi**2)
    rotation = likelihood(square, sigma[..., ROTATION, None], ROTATION_WELL, room, 3)
    return torch.cat([torsion, rotation], -1)[..., None] + constant(PRIOR_ODDS, sigma.dtype, sigma.device)


@full_precision
def blended(stay: Tensor, hop: Tensor, odds: Tensor, way: Tensor) -> Tensor:
    """Mean of the ways back (*, N, 4) of torsions that stay and of torsions that hop.

    Parameters
    ----------
    stay, hop : Tensor, shape (*, N, 4)
        Ways back in either case; who stays gets no further than to the edge of the well.
    odds : Tensor, shape (*, N, 4)
        Logarithms of the odds of staying.
    way : Tensor, shape (*, N, 4)
        From the last frame.
    """
    return torch.lerp(hop, (way + stay).clamp(-HOP, HOP) - way, odds.sigmoid())


def stayed(way: Tensor) -> Tensor:
    """Whether torsions have stayed in their wells, from the way (*, N, 4) between two clean frames."""
    return way.abs() < HOP
