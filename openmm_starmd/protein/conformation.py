"""Conformation: residue frames, torsions and N-CA-C angles at one time, and its two-way map to atoms.

Atoms are *moved*, never rebuilt from tables: each keeps the local geometry it has, so that atom order, hydrogens,
protonation, disulfides and unusual side chains of the user's own Topology survive a jump.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openmm_starmd.geometry.constants import constant
from openmm_starmd.geometry.rigid import Rigid, full_precision
from openmm_starmd.geometry.torsions import measure_angle, measure_dihedral, rotate_about, wrap
from openmm_starmd.protein.tokens import ResidueTokens, RotatableGroup

N_CA, CA_C = 0.1470, 0.1548  # nm, means over ff14SB dynamics of tetrapeptides


@dataclass(frozen=True)
class Conformation:
    """Internal state of a protein at one time, or an array of them.

    Parameters
    ----------
    frames : Rigid, shape (*, N)
        Residue frames (N, CA, C), nm.
    torsions : Tensor, shape (*, N, 6)
        phi (a degree of freedom behind an N-terminal cap only), psi (N-CA-C-O), chi1 to chi4, radian; 0 where absent.
    angles : Tensor, shape (*, N)
        N-CA-C, radian.
    """

    frames: Rigid
    torsions: Tensor
    angles: Tensor

    @property
    def shape(self) -> torch.Size:
        """Shape (*, N) of replicas, frames and residues."""
        return self.angles.shape

    @property
    def device(self) -> torch.device:
        """Device of the numbers."""
        return self.angles.device

    def local_backbone(self) -> Tensor:
        """Positions of N, CA, C in the residue frames, with the mean bond lengths of ff14SB, shape (*, N, 3, 3), nm."""
        n_xy = N_CA * torch.stack([self.angles.cos(), self.angles.sin()], -1)
        ca_and_c = constant((0.0, 0.0, 0.0, 0.0, CA_C, 0.0, 0.0), self.angles.dtype, self.device)
        return torch.cat([n_xy, ca_and_c.expand(*self.shape, 7)], -1).unflatten(-1, (3, 3))

    @full_precision
    def backbone(self) -> Tensor:
        """Positions of N, CA, C with the mean bond lengths of ff14SB, shape (*, N, 3, 3), nm."""
        return self.local_backbone() @ self.frames.rotations.transpose(-1, -2) + self.frames.translations[..., None, :]

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rotations, translations, torsions and angles."""
        return self.frames.rotations, self.frames.translations, self.torsions, self.angles

    @classmethod
    def of(cls, rotations: Tensor, translations: Tensor, torsions: Tensor, angles: Tensor) -> Conformation:
        """Conformation of its `tensors`."""
        return cls(Rigid(rotations, translations), torsions, angles)

    def map(self, function: Callable[[Tensor], Tensor]) -> Conformation:
        """Apply ``function`` to each of the `tensors`; it may touch leading axes only."""
        return Conformation.of(*map(function, self.tensors))

    def __getitem__(self, index) -> Conformation:
        return self.map(lambda x: x[index])

    def moved(self, motion: Rigid) -> Conformation:
        """The conformation after a rigid motion, shape (*)."""
        return Conformation(motion[..., None] @ self.frames, self.torsions, self.angles)

    def centroid(self) -> Tensor:
        """Mean position of the residues' CA, shape (*, 1, 3), nm."""
        return self.frames.translations.mean(-2, keepdim=True)

    def shifted(self, by: Tensor) -> Conformation:
        """The conformation with its residues shifted ``by`` (*, 1, 3), nm."""
        return Conformation(Rigid(self.frames.rotations, self.frames.translations + by), self.torsions, self.angles)

    def centred(self) -> Conformation:
        """The conformation with its centroid at the origin."""
        return self.shifted(-self.centroid())

    def to(self, *args, **kwargs) -> Conformation:
        """Convert dtype or device, as ``Tensor.to``."""
        return self.map(lambda x: x.to(*args, **kwargs))

    def where(self, mask: Tensor, other: Conformation) -> Conformation:
        """Keep residues where ``mask`` (*, N), take those of ``other`` (*, N) elsewhere."""
        masks = mask[..., None, None], mask[..., None], mask[..., None], mask
        return Conformation.of(*map(torch.where, masks, self.tensors, other.tensors))

    @classmethod
    def stack(cls, conformations: Sequence[Conformation], dim: int = 0) -> Conformation:
        """Stack along a new leading axis ``dim``."""
        return cls.of(*(torch.stack(x, dim) for x in zip(*(c.tensors for c in conformations), strict=True)))

    @classmethod
    def cat(cls, conformations: Sequence[Conformation], dim: int = 0) -> Conformation:
        """Concatenate along the leading axis ``dim``."""
        return cls.of(*(torch.cat(x, dim) for x in zip(*(c.tensors for c in conformations), strict=True)))


def _measure_torsions(positions: Tensor, tokens: ResidueTokens) -> Tensor:
    """Dihedrals (*, N, 6) of positions (*, A, 3); what absent torsions get has no meaning."""
    return measure_dihedral(*positions[..., tokens.torsion_atoms.clamp_min(0), :].unbind(-2))


def from_positions(positions: Tensor, tokens: ResidueTokens) -> Conformation:
    """Measure the conformation (*, N) of positions (*, A, 3), nm, of all atoms of the Topology; molecules whole.

    Torsions are wrapped to their period; 0 where they are no degree of freedom. All is measured in float64 and returned
    in the dtype of the positions.
    """
    atoms = positions.to(torch.float64)
    n, ca, c = atoms[..., tokens.backbone, :].unbind(-2)
    torsions = wrap(_measure_torsions(atoms, tokens), tokens.features.torsion_period.to(atoms.device))
    torsions = torsions.masked_fill(~tokens.features.torsion_mask.to(atoms.device), 0.0)
    return Conformation(Rigid.from_three_points(n, ca, c), torsions, measure_angle(n, ca, c)).to(positions.dtype)


def to_positions(conformation: Conformation, positions: Tensor, tokens: ResidueTokens) -> Tensor:
    """Move the atoms that are there into a conformation (*, N) (backmapping); positions (*, A, 3) or (A, 3), nm.

    Every atom is carried by the frame of its token; then the N-CA-C angle is set by turning N and what hangs on it, and
    each torsion by turning what lies beyond its bond. Amide hydrogens and caps turn with phi. Bond lengths inside a
    token stay as they are (but proline's N-CD, which closes the ring); between tokens they follow from the frames.

    The positions are those of the whole Topology, molecules whole; atoms outside `ResidueTokens.protein_atoms` stay.
    All is computed in float64 and returned in the dtype of the positions.
    """
    new = conformation.to(torch.float64)
    old_atoms = positions.to(torch.float64)
    n, ca, c = old_atoms[..., tokens.backbone, :].unbind(-2)
    carry = new.frames @ Rigid.from_three_points(n, ca, c).inverse()
    atoms = old_atoms.expand(*carry.shape[:-1], -1, -1).clone()
    own, owner = tokens.protein_atoms.to(atoms.device), tokens.owner.to(atoms.device)
    atoms.index_copy_(-2, own, carry[..., owner].apply(atoms[..., own, :]))

    angle_group, *torsion_groups = tokens.levels
    turn = (new.angles - measure_angle(n, ca, c))[..., angle_group.owner]
    z_axis = new.frames.rotations[..., angle_group.owner, :, 2]
    _turn_group(atoms, angle_group, z_axis, turn)

    turns = _torsion_turns(new.torsions, old_atoms, atoms, tokens)
    for group in torsion_groups:
        if len(group.moved):
            rest, end = atoms[..., group.axis, :].unbind(-2)
            _turn_group(atoms, group, end - rest, turns[..., group.owner, group.torsion])
    return atoms.to(positions.dtype)


def _turn_group(atoms: Tensor, group: RotatableGroup, axis: Tensor, angle: Tensor) -> None:
    """Turn a group of ``atoms`` (*, A, 3) in place about ``axis`` (*, K, 3) through the resting ends of its bonds."""
    turned = rotate_about(atoms[..., group.moved, :], atoms[..., group.axis[:, 0], :], axis, angle)
    atoms.index_copy_(-2, group.moved.to(atoms.device), turned)


def _torsion_turns(target: Tensor, old_atoms: Tensor, atoms: Tensor, tokens: ResidueTokens) -> Tensor:
    """By how much each torsion has to be turned, (*, N, 6).

    One measurement serves all torsions, since none of these turns changes another torsion of the same residue. Where
    phi follows from the frames, it tells how far the preceding carbonyl has moved: the amide hydrogen has to follow.
    """
    mask = tokens.features.torsion_mask.to(atoms.device)
    measured, before = _measure_torsions(torch.stack([atoms, old_atoms.expand_as(atoms)]), tokens)
    needed = torch.where(mask, target - measured, measured - before)
    return wrap(needed, tokens.features.torsion_period.to(atoms.device))
