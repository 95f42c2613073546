"""Isotropic Gaussian on SO(3): the heat kernel, its score and samples of it.

The density with respect to the uniform (Haar) measure depends on the rotation angle w only (Nikolayev and Savyolova,
Textures and Microstructures 29, 201, 1997; Leach et al., "Denoising diffusion probabilistic models on SO(3)", 2022)::

    f(w, sigma) = sum_l (2l + 1) exp(-l (l + 1) sigma^2 / 2) sin((l + 1/2) w) / sin(w / 2)

The sum converges slowly where sigma is small. Poisson's summation formula turns it into images w - 2 pi k::

    f(w, sigma) = exp(sigma^2 / 8) sqrt(2 pi) / sigma^3 / sin(w / 2)
                  * sum_k (-1)^k (w - 2 pi k) exp(-(w - 2 pi k)^2 / (2 sigma^2))

of which seven reach float64 precision up to sigma = 2 and 1e-10 up to sigma = 3. Everything is computed in float64 and
returned in the dtype of the arguments. Sigma is accepted from 0.001 to 3 rad; beyond, the uniform distribution is a
better description.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from openmm_starmd.geometry.constants import constant, table

_IMAGES = 3
# The limits at angle 0 exist, but 0 / 0 stands in their way. Functions that are even in the angle are flat there: their
# values at these angles instead are exact to about 1e-8 (score over angle) and 1e-12 (density).
_SMALL_ANGLE = 3e-4
_TINY_ANGLE = 1e-6


@table
def _images(device: torch.device) -> tuple[Tensor, Tensor]:
    """2 pi k and (-1)^k of the images, float64."""
    k = torch.arange(-_IMAGES, _IMAGES + 1, dtype=torch.float64)
    return (2 * math.pi * k).to(device), (1 - 2 * (k % 2)).to(device)


def _image_sums(angle: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over images and its derivative in the angle, both divided by exp(-angle^2 / (2 sigma^2)); float64."""
    shift, sign = _images(angle.device)
    angle, variance = angle[..., None], sigma.square()[..., None]
    image = angle - shift
    weight = sign * torch.exp(shift * (angle - 0.5 * shift) / variance)
    return (image * weight).sum(-1), ((1 - image.square() / variance) * weight).sum(-1)


def _score_over_angle(angle: Tensor, sigma: Tensor) -> Tensor:
    """(d log f / dw) / w, even and smooth in w; float64."""
    w = angle.double().clamp_min(_SMALL_ANGLE)
    value, derivative = _image_sums(w, sigma.double())
    return (derivative / value - 0.5 / torch.tan(0.5 * w)) / w


def log_density(angle: Tensor, sigma: Tensor) -> Tensor:
    """Logarithm of the density with respect to the uniform measure, (1 - cos w) / pi dw on [0, pi].

    The rotation angle (*) lies in [0, pi]; it and the noise level sigma (*) are in radian.
    """
    angle, sigma = torch.broadcast_tensors(angle, sigma)
    w, s = angle.double(), sigma.double()
    near = w.clamp_min(_TINY_ANGLE)
    value, _ = _image_sums(near, s)
    constant = 0.5 * math.log(2 * math.pi) + s * s / 8 - 3 * torch.log(s)
    return (constant - w * w / (2 * s * s) + torch.log(value / torch.sin(0.5 * near))).to(angle.dtype)


def tangent(rotvec: Tensor, sigma: Tensor) -> Tensor:
    """Displacement (*, 3) by -sigma^2 times the gradient of the log density (Tweedie's formula), in local axes.

    ``rotvec`` (*, 3) is log(R_t^T R_0) from the noised rotation R_t to the clean R_0, radian, of norm at most pi; sigma
    (*) is the noise level, radian. Updates multiply on the right, R_t exp(...). For small angles and sigma the
    displacement tends to ``rotvec`` itself, but unlike that it is smooth across angle pi; it is odd in ``rotvec``.
    """
    ratio = _score_over_angle(torch.linalg.vector_norm(rotvec, dim=-1), sigma) * sigma.double().square()
    return rotvec * -ratio.to(rotvec.dtype)[..., None]


_SIGMA_RANGE = (0.01, 3.0)  # below, angle / sigma no longer depends on sigma (to 1e-5)
_MAX_RADIUS = 6.0  # standard deviations; 7.5e-8 of a 3-dimensional Gaussian lie beyond


@table
def _radial_table(device: torch.device, n_sigma: int = 256, n_radius: int = 512, n_angle: int = 2048) -> Tensor:
    """Ratio angle / sigma at equal quantiles of the norm of a 3-dimensional normal; (n_sigma, n_radius) float64.

    Tabulated against that norm and not against the quantile itself, because it is smooth in both tails: the identity
    for small sigma, and angle -> pi for large.
    """
    sigma = torch.logspace(*(math.log10(s) for s in _SIGMA_RANGE), n_sigma, dtype=torch.float64)[:, None]
    angle = torch.linspace(0, 1, n_angle, dtype=torch.float64) * (9 * sigma).clamp_max(math.pi)
    density = torch.exp(log_density(angle, sigma)) * (1 - torch.cos(angle)) / math.pi
    cumulative = torch.nn.functional.pad(torch.cumulative_trapezoid(density, angle), (1, 0))
    cumulative = cumulative / cumulative[:, -1:]
    radius = torch.linspace(0, _MAX_RADIUS, n_radius, dtype=torch.float64)
    quantile = torch.erf(radius / math.sqrt(2)) - math.sqrt(2 / math.pi) * radius * torch.exp(-0.5 * radius * radius)
    quantile = quantile.clamp_min(0).expand(n_sigma, -1).contiguous()
    right = torch.searchsorted(cumulative, quantile).clamp(1, n_angle - 1)
    low, high = cumulative.gather(1, right - 1), cumulative.gather(1, right)
    fraction = ((quantile - low) / (high - low).clamp_min(1e-300)).clamp(0, 1)
    return (torch.lerp(angle.gather(1, right - 1), angle.gather(1, right), fraction) / sigma).to(device)


def from_normal(sigma: Tensor, normal: Tensor) -> Tensor:
    """Rotation vectors (*, 3), radian, of IGSO(3) at ``sigma`` (*), from standard normal vectors (*, 3).

    The vector gives the direction; its norm is mapped to the angle of the same quantile, by bilinear interpolation of a
    table that is built at the first call.
    """
    table = _radial_table(sigma.device)
    n_sigma, n_radius = table.shape
    radius = torch.linalg.vector_norm(normal, dim=-1).double().clamp_min(1e-12)
    low, high = (math.log(s) for s in _SIGMA_RANGE)
    row = ((sigma.double().log() - low) * ((n_sigma - 1) / (high - low))).clamp(0, n_sigma - 1.001)
    column = (radius * ((n_radius - 1) / _MAX_RADIUS)).clamp_max(n_radius - 1.001)
    i, j = row.long(), column.long()
    u, v = row - i, column - j
    corners = constant((0, 1, n_radius, n_radius + 1), torch.int64, i.device)
    cell = table.flatten()[(i * n_radius + j)[..., None] + corners]
    per_sigma = (1 - u) * torch.lerp(cell[..., 0], cell[..., 1], v) + u * torch.lerp(cell[..., 2], cell[..., 3], v)
    angle = (sigma.double() * per_sigma).clamp_max(math.pi)
    return normal * (angle / radius).to(sigma.dtype)[..., None]
