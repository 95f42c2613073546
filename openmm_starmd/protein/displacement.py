"""Displacements of conformations: the tangent space in which noise, scores and updates live.

A displacement has four parts: translation (global axes, nm), rotation vector (local axes, rad, composed on the right),
torsions (rad) and N-CA-C angle (rad). Arrays of noise levels carry the same four in their last axis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from openmm_starmd.geometry.rigid import Rigid, exponential, full_precision, logarithm, superpose
from openmm_starmd.geometry.torsions import wrap
from openmm_starmd.protein.conformation import Conformation, to_positions
from openmm_starmd.protein.tokens import ResidueTokens

TRANSLATION, ROTATION, TORSION, ANGLE = range(4)


def centred(translations: Tensor, present: Tensor | None = None) -> Tensor:
    """Translations (*, N, 3) with the mean over residues, those ``present`` (*, N), removed."""
    if present is None:
        return translations - translations.mean(-2, keepdim=True)
    weight = present[..., None].to(translations.dtype)
    return translations - (translations * weight).sum(-2, keepdim=True) / weight.sum(-2, keepdim=True)


def grown(x: Conformation, growth: Tensor | float, present: Tensor | None = None) -> Conformation:
    """Translations centred and times ``growth``, which is broadcastable to them."""
    translations = centred(x.frames.translations, present) * growth
    return Conformation(Rigid(x.frames.rotations, translations), x.torsions, x.angles)


def superposed(moving: Conformation, target: Conformation, present: Tensor | None = None) -> Conformation:
    """``moving`` turned onto ``target`` (*, N) with the least RMSD of N, CA and C, its CA centroid at the origin.

    Leading axes broadcast. Where a mask ``present`` (*, N) is given, only these residues count.
    """
    moving = moving.map(lambda x: x.expand(*target.shape, *x.shape[len(moving.shape) :]))
    points, onto = (x.backbone().flatten(-3, -2) for x in (moving, target))
    weights = None
    if present is not None:
        weights = present.expand(target.shape).repeat_interleave(3, -1).to(points.dtype)
    turn = superpose(points, onto, weights).rotations[..., None, :, :]
    translations = (turn @ centred(moving.frames.translations, present)[..., None])[..., 0]
    return Conformation(Rigid(turn @ moving.frames.rotations, translations), moving.torsions, moving.angles)


@dataclass(frozen=True)
class Displacement:
    """Displacement of each residue."""

    translation: Tensor  # (*, N, 3): nm
    rotation: Tensor  # (*, N, 3): rad
    torsion: Tensor  # (*, N, 6): rad
    angle: Tensor  # (*, N): rad

    @classmethod
    @full_precision
    def between(cls, start: Conformation, end: Conformation, period: Tensor) -> Displacement:
        """Displacement that carries ``start`` to ``end``; torsions go the shorter way round ``period`` (*, N, 6)."""
        return cls(
            end.frames.translations - start.frames.translations,
            logarithm(start.frames.rotations.transpose(-1, -2) @ end.frames.rotations),
            wrap(end.torsions - start.torsions, period),
            end.angles - start.angles,
        )

    def apply(self, conformation: Conformation) -> Conformation:
        """Displaced conformation; torsions are wrapped to (-pi, pi]."""
        frames = Rigid(
            conformation.frames.rotations @ exponential(self.rotation),
            conformation.frames.translations + self.translation,
        )
        return Conformation(frames, wrap(conformation.torsions + self.torsion), conformation.angles + self.angle)

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Translation, rotation, torsion and angle."""
        return self.translation, self.rotation, self.torsion, self.angle

    def __getitem__(self, index) -> Displacement:
        return Displacement(*(x[index] for x in self.parts))

    def scaled(self, factors: Tensor) -> Displacement:
        """Each part times its factor; ``factors`` has a shape broadcastable to (*, 4)."""
        translation, rotation, torsion, angle = factors[..., None, :, None].unbind(-2)
        return Displacement(*map(torch.mul, self.parts, (translation, rotation, torsion, angle[..., 0])))

    def __add__(self, other: Displacement) -> Displacement:
        return Displacement(*map(torch.add, self.parts, other.parts))


def path_between(
    old: Conformation, new: Conformation, positions: Tensor, tokens: ResidueTokens
) -> Callable[[float], Tensor]:
    """The path of all atoms from one conformation (N) to another: every frame, torsion and angle on its shortest path.

    ``positions`` (A, 3), nm, are atoms in the old conformation; molecules whole. The path takes a fraction, 0 to 1, and
    gives positions (A, 3), nm; exactly those of ``new`` at 1.
    """
    displacement = Displacement.between(old, new, tokens.features.torsion_period)
    end = to_positions(new, positions, tokens)

    def at(fraction: float) -> Tensor:
        if fraction == 1:
            return end
        factors = new.angles.new_full((4,), fraction)
        return to_positions(displacement.scaled(factors).apply(old), positions, tokens)

    return at


def tangent_noise(template: Tensor, mask: Tensor, generator, present: Tensor | None = None) -> Displacement:
    """Standard normal displacement: centred translations, torsions only where ``mask``.

    The mask broadcasts to (B, *, N, 6). A template (B, *, N) gives shape, dtype and device. The generators are those of
    `per_replica`. Only residues that are ``present`` (B, *, N) count in the centre.
    """

    def draw(rows: Tensor, g: torch.Generator) -> Tensor:
        return torch.randn(*rows.shape, 13, generator=g, dtype=rows.dtype, device=g.device)

    translation, rotation, torsion, angle = per_replica(draw, template, generator).split([3, 3, 6, 1], -1)
    return Displacement(centred(translation, present), rotation, torsion * mask, angle[..., 0])


@dataclass(frozen=True)
class Share:
    """The one generator of a batch of which only some replicas are here: they get the numbers of the whole batch."""

    generator: torch.Generator
    size: int  # replicas of the whole batch
    rows: slice  # those that are here


def uniform(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform random numbers of the shape of ``rows``; for `per_replica`."""
    return torch.rand(rows.shape, generator=generator, dtype=rows.dtype, device=generator.device)


def per_replica(draw: Callable[[Tensor, torch.Generator], Tensor], rows: Tensor, generator) -> Tensor:
    """Random numbers of B replicas, the ``rows``, from one generator or `Share`, or from one generator each.

    ``draw(rows, generator)`` gives a tensor with as many rows. With a generator for each replica its numbers do not
    depend on the company it is in. They are drawn on the generators' device, which ``draw`` must do, and brought to
    that of the rows.
    """
    if isinstance(generator, torch.Generator):
        return draw(rows, generator).to(rows.device)
    if isinstance(generator, Share):
        whole = rows.new_empty(generator.size, *rows.shape[1:])
        return draw(whole, generator.generator)[generator.rows].to(rows.device)
    if len(generator) != len(rows):
        raise ValueError(f"{len(rows)} replicas need as many generators, but {len(generator)} were given.")
    return torch.cat([draw(row[None], g) for row, g in zip(rows, generator, strict=True)]).to(rows.device)
