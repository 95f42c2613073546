"""Rigid transformations as a small typed value.

Rotations are kept as matrices: composing and applying them is what the network and the backmapping do all the time,
and matrices have no sign ambiguity. Rotation vectors appear only at the tangent space (noise, scores, updates).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps

import roma
import torch
from torch import Tensor

from openmm_starmd.geometry.constants import table

_TINY = 1e-12  # rad, in place of no angle at all: keeps gradients at the identity finite


def full_precision(function: Callable) -> Callable:
    """Decorator: under autocast, products of matrices keep the precision of their arguments.

    Half precision resolves rotations to 0.2 degrees only, and distances in a protein of some size to 0.1 nm.
    """

    @wraps(function)
    def wrapped(*args, **kwargs):
        for device in ("cuda", "cpu"):
            if torch.is_autocast_enabled(device):
                with torch.autocast(device, enabled=False):
                    return function(*args, **kwargs)
        return function(*args, **kwargs)

    return wrapped


@dataclass(frozen=True)
class Rigid:
    """Element of SE(3), or an array of them."""

    rotations: Tensor  # (*, 3, 3): local to global; the columns are the local axes in global coordinates
    translations: Tensor  # (*, 3): origin of the local frame, nm

    @classmethod
    def identity(cls, shape: tuple[int, ...], dtype=torch.float32, device=None) -> Rigid:
        """Identity transformations of batch shape ``shape``."""
        rotations = torch.eye(3, dtype=dtype, device=device).expand(*shape, 3, 3)
        return cls(rotations, torch.zeros(*shape, 3, dtype=dtype, device=device))

    @classmethod
    def from_three_points(cls, n: Tensor, ca: Tensor, c: Tensor) -> Rigid:
        """Residue frame by Gram-Schmidt: origin CA, x axis towards C, N in the xy plane with y > 0.

        The convention of AlphaFold 2, supplementary algorithm 21. All arguments have shape (*, 3), nm.
        """
        x = torch.nn.functional.normalize(c - ca, dim=-1)
        to_n = n - ca
        y = torch.nn.functional.normalize(to_n - (to_n * x).sum(-1, keepdim=True) * x, dim=-1)
        return cls(torch.stack([x, y, torch.linalg.cross(x, y)], dim=-1), ca)

    @property
    def shape(self) -> torch.Size:
        """Batch shape."""
        return self.translations.shape[:-1]

    def __matmul__(self, other: Rigid) -> Rigid:
        """``(a @ b).apply(x) == a.apply(b.apply(x))``."""
        return Rigid(self.rotations @ other.rotations, self.apply(other.translations))

    def __getitem__(self, index) -> Rigid:
        if not isinstance(index, tuple):
            index = (index,)
        if Ellipsis not in index:
            index = (*index, Ellipsis)
        return Rigid(self.rotations[(*index, slice(None), slice(None))], self.translations[(*index, slice(None))])

    def inverse(self) -> Rigid:
        """Inverse transformation."""
        transposed = self.rotations.transpose(-1, -2)
        return Rigid(transposed, -(transposed @ self.translations[..., None])[..., 0])

    def apply(self, points: Tensor) -> Tensor:
        """Local to global coordinates; ``points`` has shape (*, 3)."""
        return (self.rotations @ points[..., None])[..., 0] + self.translations

    def to(self, *args, **kwargs) -> Rigid:
        """Convert dtype or device, as ``Tensor.to``."""
        return Rigid(self.rotations.to(*args, **kwargs), self.translations.to(*args, **kwargs))


# A rotation matrix is linear in the products q_i q_j of its unit quaternion q = (x, y, z, w), and these in the matrix.
_OF_PRODUCTS = {
    (0, 0): {"xx": 1, "yy": -1, "zz": -1, "ww": 1},
    (1, 1): {"xx": -1, "yy": 1, "zz": -1, "ww": 1},
    (2, 2): {"xx": -1, "yy": -1, "zz": 1, "ww": 1},
    (0, 1): {"xy": 2, "zw": -2},
    (1, 0): {"xy": 2, "zw": 2},
    (0, 2): {"xz": 2, "yw": 2},
    (2, 0): {"xz": 2, "yw": -2},
    (1, 2): {"yz": 2, "xw": -2},
    (2, 1): {"yz": 2, "xw": 2},
}


@table
def _products(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Map from products (16) to rotation matrices (9); four times products are its transpose and the identity (16)."""
    to_matrix = torch.zeros(4, 4, 3, 3, dtype=torch.float64)
    for (row, column), terms in _OF_PRODUCTS.items():
        for (a, b), factor in terms.items():
            i, j = "xyzw".index(a), "xyzw".index(b)
            to_matrix[i, j, row, column] += factor / 2
            to_matrix[j, i, row, column] += factor / 2
    to_matrix = to_matrix.view(16, 9)
    maps = to_matrix, to_matrix.T.contiguous(), torch.eye(4, dtype=torch.float64).flatten()
    return tuple(x.to(device, dtype) for x in maps)


@full_precision
def exponential(rotvec: Tensor) -> Tensor:
    """Rotation matrix (*, 3, 3) of a rotation vector (*, 3) in radian."""
    angle = torch.linalg.vector_norm(rotvec, dim=-1, keepdim=True).clamp_min(_TINY)
    half = 0.5 * angle
    return _matrix(torch.cat([rotvec * (half.sin() / angle), half.cos()], -1))


def _matrix(q: Tensor) -> Tensor:
    """Rotation matrix (*, 3, 3) of a unit quaternion (*, 4), (x, y, z, w)."""
    products = (q.unsqueeze(-1) * q.unsqueeze(-2)).flatten(-2)
    return (products @ _products(q.dtype, q.device)[0]).unflatten(-1, (3, 3))


def _quaternion(rotation: Tensor) -> Tensor:
    """A multiple (*, 4), (x, y, z, w), of the unit quaternion of a rotation matrix (*, 3, 3); the host chooses nothing.

    It is the unit quaternion times four times its largest element.
    """
    _, from_matrix, identity = _products(rotation.dtype, rotation.device)
    products = torch.nn.functional.linear(rotation.flatten(-2), from_matrix.T, identity).unflatten(-1, (4, 4))
    largest = products.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None]
    return products.gather(-2, largest.expand(*largest.shape[:-1], 4))[..., 0, :]


@full_precision
def logarithm(rotation: Tensor) -> Tensor:
    """Rotation vector (*, 3), of norm at most pi, of a rotation matrix (*, 3, 3)."""
    vector, w = _quaternion(rotation).split([3, 1], -1)
    sine = torch.linalg.vector_norm(vector, dim=-1, keepdim=True).clamp_min(_TINY)
    return vector * (2 * torch.atan2(sine.copysign(w), w.abs()) / sine)


@full_precision
def to_rodrigues(rotation: Tensor) -> Tensor:
    """Modified Rodrigues parameters (*, 3), tan(angle / 4) along the axis and so of norm at most 1, of rotations.

    Unlike a rotation vector they need no trigonometry, and unlike a quaternion no fourth number.
    """
    q = torch.nn.functional.normalize(_quaternion(rotation), dim=-1)
    q = torch.where(q[..., 3:] < 0, -q, q)
    return q[..., :3] / (1 + q[..., 3:])


def from_rodrigues(parameters: Tensor) -> Tensor:
    """Rotation matrix (*, 3, 3) of modified Rodrigues parameters (*, 3)."""
    square = parameters.square().sum(-1, keepdim=True)
    return _matrix(torch.cat([2 * parameters, 1 - square], -1) / (1 + square))


def superpose(moving: Tensor, target: Tensor, weights: Tensor | None = None) -> Rigid:
    """Rigid motion (*) that brings points (*, M, 3), of weights (*, M), onto a target with the least RMSD.

    Kabsch, Acta Cryst. A32, 922, 1976.
    """
    rotation, translation = roma.rigid_points_registration(moving, target, weights)
    return Rigid(rotation, translation)
