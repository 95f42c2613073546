"""Angles and dihedrals of points, rotation about an axis, and the wrapped normal distribution on the circle.

Angles are in radian. All functions broadcast over leading axes and are differentiable.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TWO_PI = 2.0 * math.pi
_IMAGES = 3


def wrap(angle: Tensor, period: float | Tensor = TWO_PI) -> Tensor:
    """Bring an angle (*), radian, into (-period/2, period/2].

    The period is smaller than 2 pi for a symmetric group, such as pi for chi2 of PHE; it broadcasts to the angle.
    """
    half = 0.5 * period
    return half - torch.remainder(half - angle, period)


def measure_dihedral(p0: Tensor, p1: Tensor, p2: Tensor, p3: Tensor) -> Tensor:
    """Dihedral p0-p1-p2-p3 (*) of points (*, 3), in [-pi, pi], with the sign of IUPAC-IUB (Biochemistry 9, 3471, 1970).

    Positive when, seen along p1 -> p2, the far bond is turned clockwise from the near one. Collinear points give 0 with
    zero gradient instead of NaN.
    """
    axis = torch.nn.functional.normalize(p2 - p1, dim=-1)
    near, far = p0 - p1, p3 - p2
    near = near - (near * axis).sum(-1, keepdim=True) * axis
    far = far - (far * axis).sum(-1, keepdim=True) * axis
    cosine = (near * far).sum(-1)
    sine = (torch.linalg.cross(axis, near) * far).sum(-1)
    degenerate = cosine.abs() + sine.abs() < torch.finfo(cosine.dtype).tiny
    return torch.atan2(sine, torch.where(degenerate, torch.ones_like(cosine), cosine))


def measure_angle(p0: Tensor, p1: Tensor, p2: Tensor) -> Tensor:
    """Angle p0-p1-p2 (*) of points (*, 3), in [0, pi], by the half-angle form that stays accurate near 0 and pi."""
    a = torch.nn.functional.normalize(p0 - p1, dim=-1)
    b = torch.nn.functional.normalize(p2 - p1, dim=-1)
    return 2.0 * torch.atan2(torch.linalg.vector_norm(a - b, dim=-1), torch.linalg.vector_norm(a + b, dim=-1))


def rotate_about(points: Tensor, origin: Tensor, axis: Tensor, angle: Tensor) -> Tensor:
    """Points (*, 3) rotated about a line by a right-handed angle (*), radian (Rodrigues' formula).

    The line runs through ``origin`` (*, 3) along ``axis`` (*, 3), of any length but zero.
    """
    axis = torch.nn.functional.normalize(axis, dim=-1)
    sine, cosine = torch.sin(angle)[..., None], torch.cos(angle)[..., None]
    arm = points - origin
    along = (arm * axis).sum(-1, keepdim=True) * axis
    return origin + along + (arm - along) * cosine + torch.linalg.cross(*torch.broadcast_tensors(axis, arm)) * sine


def _images(delta: Tensor, sigma: Tensor, period: float | Tensor) -> tuple[Tensor, Tensor]:
    """Distances to the periodic images, in units of sigma, and their log weights; both (*, 7)."""
    delta, period = wrap(delta, period), torch.as_tensor(period, dtype=delta.dtype, device=delta.device)
    multiples = torch.arange(-_IMAGES, _IMAGES + 1, dtype=delta.dtype, device=delta.device)
    scaled = (delta[..., None] + multiples * period[..., None]) / sigma[..., None]
    return scaled, -0.5 * scaled.square()


def wrapped_normal_log_density(delta: Tensor, sigma: Tensor, period: float | Tensor = TWO_PI) -> Tensor:
    """Log density of the wrapped normal, per radian (Mardia and Jupp, Directional Statistics, 2000, section 3.5.7).

    ``delta`` (*) is the displacement from the mean, sigma the width of the unwrapped normal; both, and the period, are
    in radian and broadcast. Seven images are summed; the lost weight is 3e-12 at sigma = period / 2 and 5e-4 at sigma =
    period.
    """
    sigma = torch.as_tensor(sigma, dtype=delta.dtype, device=delta.device)
    _, log_weights = _images(delta, sigma, period)
    return torch.logsumexp(log_weights, dim=-1) - torch.log(sigma) - 0.5 * math.log(TWO_PI)


def wrapped_normal_score(delta: Tensor, sigma: Tensor, period: float | Tensor = TWO_PI) -> Tensor:
    """Derivative of :func:`wrapped_normal_log_density` with respect to ``delta``; same arguments, per radian."""
    sigma = torch.as_tensor(sigma, dtype=delta.dtype, device=delta.device)
    scaled, log_weights = _images(delta, sigma, period)
    return -(torch.softmax(log_weights, dim=-1) * scaled).sum(-1) / sigma
