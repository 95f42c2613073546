"""Geometric checks of atom positions, which tell whether a conformation still looks like a protein.

Four checks are BioEmu's filter of unphysical samples (Lewis et al., Science 389, eadv9817, 2025), see
`Validity.passes_bioemu`. Others find what no relaxation mends, because bonds stand in the way: a centre of the wrong
hand, a turned peptide bond, a bond through a ring. The remaining limits stand outside of what ff14SB dynamics of
peptides reaches; those of `STRAINED` stand where relaxation still led back to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from openmm_starmd.protein.bond_graph import BONDED
from openmm_starmd.protein.residues import RESIDUE_TYPES
from openmm_starmd.protein.tokens import ResidueTokens

MAX_ADJACENT_CA = 0.45  # nm
MIN_CA = 0.30
MAX_PEPTIDE_BOND = 0.20
MIN_HEAVY = 0.10
MIN_HAND = 0.0012  # nm^3; 46,000 residues of structure files have 0.00145 and more, 19,000 of MD at 300 K 0.0016


@dataclass(frozen=True)
class Limits:
    """Limits that differ before and after relaxation, nm."""

    bond: float  # largest length of a bond between heavy atoms of one token
    disulfide: float  # largest length of a disulfide
    contact: float  # smallest distance of heavy atoms that are more than three bonds from each other


RELAXED = Limits(bond=0.25, disulfide=0.25, contact=0.20)  # dynamics comes to 0.198, 0.216, 0.241
STRAINED = Limits(bond=0.40, disulfide=0.60, contact=0.0)  # relaxation mended 0.38 (of proline), 0.60, 0.006

_REACH = 0.30  # from the middle of a ring to that of a bond through it: ring of radius 0.2, bond of 0.2 nm
_APART = 1.0  # beyond all limits

Offenders = tuple[np.ndarray, np.ndarray]  # frames (M,) that fail a check, and the atoms (M, K) where they do


@dataclass(frozen=True)
class Validity:
    """Failures of each of many atom positions; the checks are Tensors of bool, shape (*)."""

    not_finite: Tensor  # a protein atom has a coordinate that is NaN or infinite; no other check fails then
    ca_breaks: Tensor  # CA of bonded residues farther than 0.45 nm from each other
    peptide_breaks: Tensor  # a peptide bond C-N longer than 0.20 nm
    bond_breaks: Tensor  # a longer bond between heavy atoms of one token than the `Limits` say
    disulfide_breaks: Tensor  # a longer disulfide than the `Limits` say
    # two heavy atoms of the protein closer than 0.10 nm, shorter than any bond. Neighbours count, too: they are where
    # side chains of peptides clash
    clashes: Tensor
    close_contacts: Tensor  # two heavy atoms more than three bonds from each other closer than the `Limits` say
    ca_clashes: Tensor  # CA of residues that are not bonded closer than 0.30 nm
    inversions: Tensor  # CA, or CB of ILE and THR, of the other hand
    omega_flips: Tensor  # a peptide bond turned from trans to cis or back
    ring_piercings: Tensor  # a bond between heavy atoms that passes through a ring of PRO, HIS, PHE, TYR or TRP
    offenders: dict[str, Offenders]

    @property
    def valid(self) -> Tensor:
        """True where no check fails, shape (*)."""
        return ~torch.stack([getattr(self, name) for name in self.offenders]).any(0)

    @property
    def passes_bioemu(self) -> Tensor:
        """True where BioEmu's filter lets the positions pass, shape (*)."""
        return ~(self.not_finite | self.ca_breaks | self.peptide_breaks | self.clashes)

    def failures(self, index) -> list[str]:
        """Names of the checks that one set of positions, at ``index`` of the leading axes, fails."""
        return [name for name in self.offenders if getattr(self, name)[index]]

    def culprits(self, index) -> dict[str, list[list[int]]]:
        """For each check that the positions at ``index`` fail, the atoms of every place where they do."""
        number = np.arange(self.not_finite.numel()).reshape(self.not_finite.shape)[index]
        found = {}
        for name in self.failures(index):
            numbers, atoms = self.offenders[name]
            found[name] = atoms[numbers == number].tolist()
        return found


def check_positions(
    positions: Tensor, tokens: ResidueTokens, before: Tensor | None = None, limits: Limits = RELAXED
) -> Validity:
    """Check positions (*, A, 3), nm, of all atoms of the Topology; molecules whole. The result has the shape (*).

    Against positions ``before`` (A, 3) or (*, A, 3) that a jump started from, the hand of each centre and the turn of
    each peptide bond have to be as they were. Without them residues have to be L, and peptide bonds trans; but those
    before PRO may be either. The limits are `RELAXED`, or `STRAINED` for positions that are to be relaxed yet.
    """
    atoms = _as_array(positions).reshape(-1, *positions.shape[-2:])
    lost, place = np.nonzero(~np.isfinite(atoms[:, tokens.protein_atoms.numpy()]).all(-1))
    finite = np.setdiff1d(np.arange(len(atoms)), lost)
    atoms, centres, planes = atoms[finite], tokens.chiral_centres.numpy(), tokens.peptide_planes.numpy()
    hands, cis = left_handed(atoms, centres), cis_planes(atoms, planes)
    if before is None:
        old_hands, old_cis = False, cis & _before_proline(tokens)
    else:
        old = np.broadcast_to(_as_array(before), positions.shape).reshape(-1, *positions.shape[-2:])[finite]
        old_hands, old_cis = left_handed(old, centres), cis_planes(old, planes)
    found = {
        "ca_breaks": longer_pairs(atoms, tokens.adjacent_ca.numpy(), MAX_ADJACENT_CA),
        "peptide_breaks": longer_pairs(atoms, tokens.peptide_bonds.numpy(), MAX_PEPTIDE_BOND),
        "bond_breaks": longer_pairs(atoms, tokens.inner_bonds.numpy(), limits.bond),
        "disulfide_breaks": longer_pairs(atoms, tokens.disulfide_bonds.numpy(), limits.disulfide),
        **_heavy_atoms_too_close(atoms, tokens, limits),
        "ca_clashes": _ca_too_close(atoms, tokens),
        "inversions": _where(hands != old_hands, centres[:, :1]),
        "omega_flips": _where(cis != old_cis, planes[:, 1:3]),
        "ring_piercings": _rings_pierced(atoms, tokens),
    }
    offenders = {"not_finite": (lost, tokens.protein_atoms.numpy()[place, None])}
    offenders |= {name: (finite[frame], culprits) for name, (frame, culprits) in found.items()}
    shape = positions.shape[:-2]
    failed = {name: _marked(shape.numel(), frame).reshape(shape) for name, (frame, _) in offenders.items()}
    marks = {name: torch.as_tensor(mark, device=positions.device) for name, mark in failed.items()}
    return Validity(**marks, offenders=offenders)


def _as_array(positions: Tensor) -> np.ndarray:
    return positions.detach().to("cpu", torch.float64).numpy()


def _dot(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.einsum("...i,...i->...", first, second)


def _where(failed: np.ndarray, culprits: np.ndarray) -> Offenders:
    """Frames of ``failed`` (F, M), and the ``culprits`` (M, K) of each."""
    frame, place = np.nonzero(failed)
    return frame, culprits[place]


def longer_pairs(atoms: np.ndarray, pairs: np.ndarray, limit: float) -> Offenders:
    """Frame and atoms (M, 2) of the ``pairs`` (P, 2) of atoms (F, A, 3) that are farther apart than ``limit``."""
    first, second = pairs.T
    return _where(np.linalg.norm(atoms[:, first] - atoms[:, second], axis=-1) > limit, pairs)


def left_handed(atoms: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """True where one of the chiral centres (K, 4) of atoms (F, A, 3) is the mirror image of the natural one, (F, K)."""
    return _hand(atoms, centres) < 0


def _hand(atoms: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Triple product of the three bonds of each centre, nm^3; 0.0025 at a natural one."""
    centre, *others = np.moveaxis(atoms[:, centres], 2, 0)
    a, b, c = (other - centre for other in others)
    return _dot(np.cross(a, b), c)


def flat_centres(atoms: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """True where one of the chiral centres (K, 4) of atoms (F, A, 3) has neither hand, shape (F, K): a broken model."""
    return np.abs(_hand(atoms, centres)) < MIN_HAND


def cis_planes(atoms: np.ndarray, planes: np.ndarray) -> np.ndarray:
    """True where one of the peptide planes (K, 4) of atoms (F, A, 3) is nearer to cis than to trans, shape (F, K)."""
    bonds = np.diff(atoms[:, planes], axis=2)
    normals = np.cross(bonds[:, :, :-1], bonds[:, :, 1:])
    return _dot(normals[:, :, 0], normals[:, :, 1]) > 0


def _before_proline(tokens: ResidueTokens) -> np.ndarray:
    """Mask (K,) of the peptide planes that lead to a PRO."""
    proline = tokens.features.residue_type == RESIDUE_TYPES.index("PRO")
    return torch.isin(tokens.peptide_planes[:, 2], tokens.backbone[proline, 0]).numpy()


def _tree(points: np.ndarray) -> cKDTree:
    """Search tree of points (F, M, 3) of many frames, which lie apart along a fourth axis."""
    frame = np.broadcast_to(_APART * np.arange(len(points))[:, None, None], (*points.shape[:-1], 1))
    return cKDTree(np.concatenate([points, frame], -1).reshape(-1, 4), balanced_tree=False, compact_nodes=False)


def close_pairs(points: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frame and the two indices, the lower first, of every two of points (F, M, 3) closer than ``limit``."""
    first, second = _tree(points).query_pairs(limit, output_type="ndarray").T
    return first // points.shape[1], first % points.shape[1], second % points.shape[1]


def _strangers(first: np.ndarray, second: np.ndarray, tokens: ResidueTokens) -> np.ndarray:
    """Mask of the pairs of heavy atoms that are more than three bonds from each other."""
    weights = np.array([len(tokens.heavy_atoms), 1])  # one number for each pair
    return ~np.isin(np.stack([first, second], -1) @ weights, tokens.close_kin.numpy() @ weights)


def close_contacts(heavy: np.ndarray, tokens: ResidueTokens, limit: float) -> tuple[np.ndarray, ...]:
    """The `close_pairs` of heavy atoms (F, M, 3) without those that are at most three bonds from each other."""
    pairs = close_pairs(heavy, limit)
    strangers = _strangers(*pairs[1:], tokens)
    return tuple(x[strangers] for x in pairs)


def _marked(n: int, frames: np.ndarray) -> np.ndarray:
    """Array (n,) that is True at each of the ``frames``."""
    return np.bincount(frames, minlength=n) > 0


def _heavy_atoms_too_close(atoms: np.ndarray, tokens: ResidueTokens, limits: Limits) -> dict[str, Offenders]:
    """Clashes and close contacts of atoms (F, A, 3)."""
    heavy = atoms[:, tokens.heavy_atoms.numpy()]
    frame, first, second = close_pairs(heavy, max(MIN_HEAVY, limits.contact))
    distance = np.linalg.norm(heavy[frame, first] - heavy[frame, second], axis=-1)
    clash, contact = distance < MIN_HEAVY, distance < limits.contact
    contact[contact] = _strangers(first[contact], second[contact], tokens)
    pairs = tokens.heavy_atoms.numpy()[np.stack([first, second], -1)]
    return {"clashes": (frame[clash], pairs[clash]), "close_contacts": (frame[contact], pairs[contact])}


def _ca_too_close(atoms: np.ndarray, tokens: ResidueTokens) -> Offenders:
    """Two CA of atoms (F, A, 3) that are not bonded and too close."""
    ca = tokens.backbone[:, 1].numpy()
    frame, first, second = close_pairs(atoms[:, ca], MIN_CA)
    strangers = (second != first + 1) | (tokens.features.n_end.numpy()[second] != BONDED)
    return frame[strangers], ca[np.stack([first, second], -1)[strangers]]


def _rings_pierced(atoms: np.ndarray, tokens: ResidueTokens) -> Offenders:
    """Bonds of atoms (F, A, 3) that pass through a ring.

    It does where its ends lie on both sides of the ring's mean plane, and the point between them, seen along the
    normal, inside of all edges.
    """
    rings = tokens.rings.numpy()
    bonds = torch.cat([tokens.inner_bonds, tokens.peptide_bonds, tokens.disulfide_bonds]).numpy()
    if len(rings) == 0 or len(atoms) == 0:
        return np.zeros(0, dtype=int), bonds[:0]
    corners, ends = atoms[:, rings], atoms[:, bonds]
    near = _tree(corners.mean(2)).sparse_distance_matrix(_tree(ends.mean(2)), _REACH, output_type="ndarray")
    (frame, ring), bond = np.divmod(near["i"], len(rings)), near["j"] % len(bonds)
    strangers = (rings[ring][:, :, None] != bonds[bond][:, None]).all((1, 2))
    frame, ring, bond = frame[strangers], ring[strangers], bond[strangers]

    corners, ends = corners[frame, ring], ends[frame, bond]
    middle = corners.mean(1, keepdims=True)
    normal = _turns(corners - middle).sum(1, keepdims=True)
    start, end = _dot(ends - middle, normal).T
    crossing = start * end < 0
    frame, bond, corners, ends, normal, start, end = (
        x[crossing] for x in (frame, bond, corners, ends, normal, start, end)
    )
    point = ends[:, 0] + (start / (start - end))[:, None] * (ends[:, 1] - ends[:, 0])
    inside = (_dot(_turns(corners - point[:, None]), normal) >= 0).all(1)
    return frame[inside], bonds[bond[inside]]


def _turns(points: np.ndarray) -> np.ndarray:
    """Cross product of each of points (P, K, 3) with the next one round the ring."""
    return np.cross(points, np.roll(points, -1, axis=1))
