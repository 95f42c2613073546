"""Steps of a protein as a whole: residues move together as an elastic network of the previous frame has them move.

A noisy frame hides large motions of many residues less than it hides the motion of one. Independent residues, each with
a step size of its own, would take most of such a motion for noise. So the first estimate of the network has the
covariance of an elastic network for the steps; the springs are those of `fluctuations`, which have no parameter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openmm_starmd.geometry.rigid import full_precision
from openmm_starmd.network.fluctuations import covariances

INDEPENDENT = 0.2  # of the variance of a residue: what it does by itself


@full_precision
def step_covariance(ca: Tensor, present: Tensor | None = None) -> Tensor:
    """Covariance (B, T, 3 N, 3 N) of steps from CA (B, T, N, 3), nm; the unit is that of the springs, see `levels`.

    Residues that are not ``present`` (B, 1, N) have nothing to do with the others.
    """
    batch, frames, n, _ = ca.shape
    there = torch.ones_like(ca[..., 0]) if present is None else present.to(ca.dtype).expand(ca.shape[:-1])
    x, there = ca.flatten(0, 1).double(), there.flatten(0, 1).double()
    blocks, _ = covariances(x, there)
    together = blocks.transpose(2, 3).reshape(-1, 3 * n, 3 * n)
    own = torch.diag_embed(sizes(together).square().repeat_interleave(3, -1))
    covariance = (1 - INDEPENDENT) * together + INDEPENDENT * own
    return covariance.to(ca.dtype).unflatten(0, (batch, frames))


def sizes(covariance: Tensor) -> Tensor:
    """Root mean square size per axis (*, N) of the steps of residues that have a covariance (*, 3 N, 3 N)."""
    return covariance.diagonal(dim1=-2, dim2=-1).unflatten(-1, (-1, 3)).mean(-1).sqrt()


@full_precision
def noise_in(displacement: Tensor, covariance: Tensor, noise: Tensor) -> Tensor:
    """Part of displacements (B, T, N, 3) that is noise of a level (B, T, 1), if steps are normal with a covariance.

    The posterior mean of the noise: noise^2 (covariance + noise^2)^-1 times the displacement.
    """
    variance = noise.square()
    both = covariance + torch.diag_embed(variance.expand(covariance.shape[:-1]))
    solved, _ = torch.linalg.solve_ex(both, displacement.flatten(-2)[..., None])  # `solve` would wait for a GPU
    return (variance[..., None] * solved).view_as(displacement)
