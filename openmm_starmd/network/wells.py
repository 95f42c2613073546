"""Torsions and residues that a step leaves in their wells: what the noise level alone tells about that.

Most torsions stay where they are in a step, some hop. Which of them a noisy one did depends exponentially on how far it
is from the last frame and on the noise level; where hops are rare a network sees few such cases, and lets too many
torsions through. Bayes' rule knows the answer up to the share of hops. The network gets it for three such shares, and
weighs the ways back that belong to them.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from openmm_starmd.geometry.rigid import full_precision
from openmm_starmd.protein.displacement import ROTATION, TORSION, Displacement

HOP_SHARES = (0.3, 0.03, 0.003)
TORSION_WELL, ROTATION_WELL = 0.3, 0.4  # rad: how far (per axis) they turn in a step without leaving their well
WIDTH = 7 * len(HOP_SHARES)  # of six torsions and the residue's rotation


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # made within a jump, it must do for training, too
def _prior(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Logarithms of the odds of staying, (3,)."""
    return torch.tensor([math.log((1 - share) / share) for share in HOP_SHARES], dtype=dtype, device=device)


@full_precision
def staying(way: Displacement, sigma: Tensor, period: Tensor) -> Tensor:
    """Probabilities (*, N, 7, 3) that the six torsions and the residues have stayed in their wells.

    A step turns them by a normal distribution about the last frame or, with each of the `HOP_SHARES`, to anywhere.

    Parameters
    ----------
    way : Displacement, shape (*, N)
        From the last frame to the noisy one.
    sigma : Tensor, shape (*, 1, 4)
    period : Tensor, shape (*, N, 6)
        Of the torsions, rad.
    """

    def log_odds(square: Tensor, level: Tensor, well: float, room: Tensor | float, axes: int) -> Tensor:
        variance = level.square() + well**2
        return -0.5 * (square / variance + axes * (2 * math.pi * variance).log()) + room

    torsion = log_odds(way.torsion.square(), sigma[..., TORSION, None], TORSION_WELL, period.log(), 1)
    square, room = way.rotation.square().sum(-1, keepdim=True), math.log(8 * math.pi**2)
    rotation = log_odds(square, sigma[..., ROTATION, None], ROTATION_WELL, room, 3)
    return (torch.cat([torsion, rotation], -1)[..., None] + _prior(sigma.dtype, sigma.device)).sigmoid()


@full_precision
def drawn_back(estimate: Displacement, trust: Tensor, stays: Tensor, way: Displacement, sigma: Tensor) -> Displacement:
    """An estimate of the way back, and in addition the ways into the wells.

    Parameters
    ----------
    estimate, way : Displacement, shape (*, N)
    trust : Tensor, shape (*, N, 21)
        What share of each; the network's output.
    stays : Tensor, shape (*, N, 7, 3)
        As `staying` has it.
    sigma : Tensor, shape (*, 1, 4)
    """
    share = (trust.unflatten(-1, stays.shape[-2:]) * stays).sum(-1)
    turn, noise = sigma[..., ROTATION, None].square(), sigma[..., TORSION, None].square()
    return replace(
        estimate,
        rotation=estimate.rotation - share[..., 6:] * turn / (turn + ROTATION_WELL**2) * way.rotation,
        torsion=estimate.torsion - share[..., :6] * noise / (noise + TORSION_WELL**2) * way.torsion,
    )
