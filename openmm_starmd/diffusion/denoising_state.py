"""Tensors of the reverse process: the conformation between two denoising steps, and what all steps are given.

They are dataclasses of tensors alone, so that a denoising step is a function of tensors that can be recorded (see
`replay`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from openmm_starmd.geometry.rigid import Rigid, exponential, logarithm
from openmm_starmd.geometry.torsions import wrap
from openmm_starmd.protein.conformation import Conformation

FLAT, TURN = slice(0, 10), slice(10, 13)  # of the 13 numbers of a displacement


@dataclass(frozen=True)
class PackedConformation:
    """A conformation in two tensors: a denoising step does the same to everything that is flat.

    Parameters
    ----------
    rotations : Tensor, shape (*, N, 3, 3)
    flat : Tensor, shape (*, N, 10)
        Translation, torsions, which need not be wrapped, and angle.
    """

    rotations: Tensor
    flat: Tensor

    @classmethod
    def of(cls, x: Conformation) -> PackedConformation:
        """Pack a conformation (*, N)."""
        return cls(x.frames.rotations, torch.cat([x.frames.translations, x.torsions, x.angles[..., None]], -1))

    def conformation(self) -> Conformation:
        """Conformation that shares the memory."""
        translations, torsions, angles = self.flat.split([3, 6, 1], -1)
        return Conformation(Rigid(self.rotations, translations), torsions, angles[..., 0])

    @classmethod
    def reached(cls, delta: Tensor) -> PackedConformation:
        """The conformation that residues at rest get to by a displacement (*, N, 13)."""
        return cls(exponential(delta[..., TURN]), delta[..., FLAT])

    def delta_to(self, rotations: Tensor, flat: Tensor, period: Tensor) -> Tensor:
        """Displacement (*, N, 13) that leads to another conformation, the shorter one round ``period`` (*, N, 10)."""
        delta = flat - self.flat
        delta = torch.addcmul(delta, period, (delta / period).round(), value=-1)
        return torch.cat([delta, logarithm(self.rotations.transpose(-1, -2) @ rotations)], -1)

    def displaced(self, by: PackedConformation, growth: Tensor | float = 1.0) -> PackedConformation:
        """The conformation, its flat part times ``growth``, then displaced as residues at rest that get to ``by``."""
        return PackedConformation(self.rotations @ by.rotations, by.flat + growth * self.flat)

    def map(self, function: Callable[[Tensor], Tensor]) -> PackedConformation:
        """Apply ``function`` to both tensors; it may touch leading axes only."""
        return PackedConformation(function(self.rotations), function(self.flat))


@dataclass(frozen=True)
class FixedResidues:
    """Known residues of a conformation, of which the others are sampled.

    Parameters
    ----------
    mask : Tensor of bool, shape (B, N, 1)
        True for residues that are known.
    known : PackedConformation, shape (B, N)
    scale : Tensor, shape (S, 10)
        Signal level of what is flat at each of the S times.
    """

    mask: Tensor
    known: PackedConformation
    scale: Tensor

    def corrected(self, delta: Tensor, x: PackedConformation, k: Tensor, period: Tensor) -> Tensor:
        """Displacement (B, N, 13) from ``x`` at the k-th time (1,) to the denoised conformation, given what is known.

        The denoised conformation is shifted onto the known residues, which it then gets from there.
        """
        known = x.delta_to(self.known.rotations, self.scale.index_select(0, k) * self.known.flat, period)
        lag = torch.where(self.mask, (known - delta)[..., :3], 0.0)
        lag = lag.sum(-2, keepdim=True) / self.mask.sum(-2, keepdim=True)
        return torch.where(self.mask, known, delta + functional.pad(lag, (0, 10)))

    def put_into(self, origin: PackedConformation) -> PackedConformation:
        """``origin`` (B, N) of the noise, for known residues the mean of the forward kernel."""
        rotations = torch.where(self.mask[..., None], self.known.rotations, origin.rotations)
        return PackedConformation(rotations, torch.where(self.mask, self.scale[0] * self.known.flat, origin.flat))


@dataclass(frozen=True)
class StepCoefficients:
    """Coefficients and noise of all S denoising steps; the last goes to the denoised conformation, without noise.

    Parameters
    ----------
    numbers : Tensor, shape (S, 46)
        Growth in the step and in the one before it (10 each), and what the step takes of the displacement and of the
        displacement to the last denoised conformation (13 each).
    increments : PackedConformation, shape (B, S, N)
        Noise, as the conformation that residues at rest get to.
    period : Tensor, shape (B, N, 10)
        Of what is flat.
    fixed : FixedResidues, optional
        Known residues; none by default.
    """

    numbers: Tensor
    increments: PackedConformation
    period: Tensor
    fixed: FixedResidues | None = None


@dataclass(frozen=True)
class State:
    """State between two denoising steps.

    Parameters
    ----------
    k : Tensor of int64, shape (1,)
        Number of steps that were made. A tensor, so that a recorded step can count for itself.
    x, denoised : PackedConformation, shape (B, N)
        Noisy conformation, and the last denoised one.
    """

    k: Tensor
    x: PackedConformation
    denoised: PackedConformation

    def end(self) -> Conformation:
        """The conformation (B, N) after the last step."""
        x = self.x.conformation()
        return Conformation(x.frames, wrap(x.torsions), x.angles)
