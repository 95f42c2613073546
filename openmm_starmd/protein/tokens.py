"""Residue tokens: what the model and the backmapping know of a Topology."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import product

import numpy as np
import torch
from openmm.app import Topology
from scipy.sparse import coo_matrix, identity, triu
from torch import Tensor

from openmm_starmd.errors import UnsupportedTopologyError
from openmm_starmd.protein.bond_graph import (
    BONDED,
    CAPPED,
    ProteinBondGraph,
    how_to_build,
    label,
    short_label,
    symbol_of,
)
from openmm_starmd.protein.residues import (
    CARBON_HYDROGENS,
    HEAVY_ATOMS,
    ONE_LETTER,
    RESIDUE_TYPES,
    TORSIONS,
    atom_names,
    canonical_name,
)

LEVELS = ("angle",), ("phi", "psi", "chi1"), ("chi2",), ("chi3",), ("chi4",)
"""What turns at a time: N and what hangs on it about the z axis of the frame, then torsions that do not move the bonds
of each other."""


@dataclass(frozen=True)
class ResidueFeatures:
    """Features of a protein that the network sees besides its conformation.

    Parameters
    ----------
    residue_type : Tensor of int64, shape (*, N)
        Index into `RESIDUE_TYPES`.
    residue_index : Tensor of int64, shape (*, N)
        Running number; it jumps by at least 2 at a chain break and between chains.
    chain_index : Tensor of int64, shape (*, N)
        Number of the molecule; two of them in one chain of the Topology are told apart by their ends.
    n_end, c_end : Tensor of int64, shape (*, N)
        0 bonded to the neighbouring token, 1 free or broken, 2 capped.
    torsion_mask : Tensor of bool, shape (*, N, 6)
        Degrees of freedom: phi only behind an N-terminal cap (elsewhere it follows from the frames), psi always, chi as
        the residue type has them.
    torsion_period : Tensor of float64, shape (*, N, 6)
        Radian; pi for symmetric groups, else 2 pi.
    present : Tensor of bool, shape (*, N), optional
        False for the padding of a batch of proteins of different lengths; None where there is none.
    variant : Tensor of int64, shape (*, N), optional
        Index into `VARIANTS`: protonation, disulfide, unusual end; 0 everywhere by default, the free amino acids at
        pH 7.
    """

    residue_type: Tensor
    residue_index: Tensor
    chain_index: Tensor
    n_end: Tensor
    c_end: Tensor
    torsion_mask: Tensor
    torsion_period: Tensor
    present: Tensor | None = None
    variant: Tensor | None = None

    def __post_init__(self):
        if self.variant is None:
            object.__setattr__(self, "variant", torch.zeros_like(self.residue_type))

    def _map(self, function) -> ResidueFeatures:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return ResidueFeatures(**{name: None if x is None else function(x) for name, x in values.items()})

    def to(self, device) -> ResidueFeatures:
        """Features on another device."""
        return self._map(lambda x: x.to(device))

    def __getitem__(self, index) -> ResidueFeatures:
        return self._map(lambda x: x[index])

    def expand(self, *shape: int) -> ResidueFeatures:
        """Equal features for leading axes ``shape``; shape (*shape, N) afterwards."""
        return self._map(lambda x: x.expand(*shape, *x.shape))

    @classmethod
    def stack(cls, features: Sequence[ResidueFeatures]) -> ResidueFeatures:
        """Features of several proteins, along a new first axis; shorter ones are padded, see ``present``."""
        longest = max(x.residue_type.shape[-1] for x in features)
        if any(x.residue_type.shape[-1] < longest for x in features):
            features = [x.padded(longest) for x in features]
        columns = {f.name: [getattr(x, f.name) for x in features] for f in fields(cls)}
        return cls(**{name: None if column[0] is None else torch.stack(column) for name, column in columns.items()})

    def padded(self, n: int) -> ResidueFeatures:
        """Features of ``n`` residues; the residues behind the own ones are not ``present``."""
        lead, own = self.residue_type.shape[:-1], self.residue_type.shape[-1]
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        columns["present"] = torch.ones_like(self.residue_type, dtype=torch.bool)
        for name, x in columns.items():
            fill = 2 * torch.pi if name == "torsion_period" else 0
            columns[name] = torch.cat([x, x.new_full((*lead, n - own, *x.shape[len(lead) + 1 :]), fill)], len(lead))
        return ResidueFeatures(**columns)

    def present_in(self, template: Tensor) -> Tensor | None:
        """``present``, made to broadcast against frames of the shape (*, ..., N) of ``template``."""
        return None if self.present is None else self.per_frame("present", template)

    def per_frame(self, name: str, template: Tensor) -> Tensor:
        """A feature (*, N) or (*, N, 6) made to broadcast against frames of the shape (*, ..., N) of a template.

        The axes between * and N are new; a floating feature takes the dtype of the template.
        """
        feature, lead = getattr(self, name), self.residue_type.dim() - 1
        new_axes = template.dim() - self.residue_type.dim()
        feature = feature.reshape(*feature.shape[:lead], *[1] * new_axes, *feature.shape[lead:])
        return feature.to(template.dtype) if feature.is_floating_point() else feature


@dataclass(frozen=True)
class RotatableGroup:
    """Atoms of all tokens that turn together in one step of the backmapping."""

    moved: Tensor  # (K,) of int: atoms
    owner: Tensor  # (K,) of int: the token of each
    torsion: Tensor  # (K,) of int: with which of its `TORSIONS` it turns; -1 for the angle
    axis: Tensor  # (K, 2) of int: atoms from the resting to the turning side of the bond; CA, N for the angle


class ResidueTokens:
    """Residue tokens of every protein chain of a Topology; made by `from_topology`.

    Attributes
    ----------
    features : ResidueFeatures, shape (N)
    n_residues, n_atoms : int
        Tokens; atoms of the whole Topology.
    sequence : str
        One-letter codes.
    residue_labels : list of str
        Such as ``"A:ALA 12"``, for messages.
    backbone : Tensor of int64, shape (N, 3)
        Atom indices of N, CA and C.
    oxygen : Tensor of int64, shape (N,)
    torsion_atoms : Tensor of int64, shape (N, 6, 4)
        Atom indices of each torsion, -1 where it is absent; phi wherever a token or a cap precedes.
    protein_atoms, owner : Tensor of int64, shape (P,)
        Every atom of protein residues and caps, ascending, and its token.
    heavy_atoms : Tensor of int64
        The protein atoms that are neither hydrogen nor virtual sites.
    levels : tuple of RotatableGroup
        In the order in which the backmapping turns them: `LEVELS`.
    disulfides : list of (int, int)
        Pairs of tokens.
    gaps : list of int
        Tokens before which residues are missing.
    numbering_gaps : list of int
        Tokens that are bonded to the one before although residue numbers between the two are left out.
    inner_bonds, peptide_bonds, disulfide_bonds : Tensor of int64, shape (K, 2)
        Bonds between heavy atoms: inside tokens (caps and proline's ring included), C-N and SG-SG between them.
    adjacent_ca : Tensor of int64, shape (K, 2)
        CA on both sides of each of the peptide bonds.
    close_kin : Tensor of int64, shape (K, 2)
        Heavy atoms that are at most three bonds from each other, as their places in ``heavy_atoms``, ascending.
    rings : Tensor of int64, shape (R, 6)
        Atoms of each ring in their order around it; rings of five name their last atom twice.
    chiral_centres : Tensor of int64, shape (K, 4)
        Atoms N, C, CB about CA of residues other than GLY; CA, CG1 or OG1, CG2 about CB of ILE and THR. Centre first.
    peptide_planes : Tensor of int64, shape (K, 4)
        Atoms CA, C, N, CA of omega, caps included.
    """

    def __init__(self, graph: ProteinBondGraph):
        n = len(graph.residues)
        self.n_residues, self.n_atoms = n, len(graph.atoms)
        self.sequence = "".join(ONE_LETTER[name] for name in graph.types)
        self.residue_labels = [short_label(residue) for residue in graph.residues]
        self.backbone = torch.tensor([[atoms[name] for name in ("N", "CA", "C")] for atoms in graph.named])
        self.oxygen = torch.tensor([atoms["O"] for atoms in graph.named])
        self.torsion_atoms = torch.tensor([graph.torsion_atoms(i) for i in range(n)])
        owned = sorted(graph.owner)
        self.protein_atoms = torch.tensor(owned)
        self.owner = torch.tensor([graph.owner[atom] for atom in owned])
        self.heavy_atoms = torch.tensor([atom for atom in owned if graph.is_heavy(atom)])
        self.levels = tuple(_rotatable_group(graph, names) for names in LEVELS)
        self.disulfides, self.gaps = graph.disulfides, graph.gaps()
        self.numbering_gaps = graph.numbering_gaps()
        self.features = _features(graph)
        self.inner_bonds = _atom_table([bond for bond in graph.bonds if len({graph.owner[a] for a in bond}) == 1], 2)
        after = torch.nonzero(self.features.n_end == BONDED)[:, 0]
        self.peptide_bonds = torch.stack([self.backbone[after - 1, 2], self.backbone[after, 0]], -1)
        self.adjacent_ca = torch.stack([self.backbone[after - 1, 1], self.backbone[after, 1]], -1)
        self.disulfide_bonds = _atom_table([[graph.named[i]["SG"] for i in pair] for pair in graph.disulfides], 2)
        self.close_kin = _close_kin(self.heavy_atoms, _atom_table(graph.bonds, 2))
        self.rings = _atom_table([(ring + ring[-1:])[:6] for ring in graph.rings()], 6)
        self.chiral_centres = _atom_table(graph.chiral_centres(), 4)
        self.peptide_planes = _atom_table(graph.peptide_planes(), 4)

    @classmethod
    def from_topology(cls, topology: Topology) -> ResidueTokens:
        """Find the protein in a Topology with bonds.

        Residues that are neither protein nor bonded to it (water, ions, ligands) are passed over. The
        UnsupportedTopologyError names the residue, its chain and number: no protein; a residue other than the 20 bonded
        into a chain; missing atoms or bonds; crosslinks other than disulfides.
        """
        return cls(ProteinBondGraph(topology))


def refuse_missing_atoms(topology: Topology) -> None:
    """Refuse a Topology with amino acids that lack heavy atoms, or hydrogens on carbon, which no protonation removes.

    The UnsupportedTopologyError names the first residue, and what to do.
    """
    proteins = [residue for residue in topology.residues() if canonical_name(residue.name)]
    for residue in proteins:
        present, residue_type = {atom.name for atom in residue.atoms()}, canonical_name(residue.name)
        known = sorted(HEAVY_ATOMS[residue_type])
        if missing := [name for name in known if present.isdisjoint(atom_names(residue_type, name))]:
            raise UnsupportedTopologyError(
                f"the atoms {', '.join(missing)} of {label(residue)} are missing; {how_to_build(missing)}."
            )
    bonds, hydrogens = Counter(), Counter()
    for a, b in topology.bonds():
        bonds[a.residue] += 1
        hydrogens[a.residue] += {symbol_of(a), symbol_of(b)} in ({"C", "H"}, {"C", "D"})
    bare = [r for r in proteins if bonds[r] and hydrogens[r] < CARBON_HYDROGENS[canonical_name(r.name)]]
    if bare:
        raise UnsupportedTopologyError(
            f"hydrogens are missing in {label(bare[0])}{f' and {len(bare) - 1} more' if bare[1:] else ''}: the models "
            "know all-atom structures only. `starmd prepare FILE` adds hydrogens and all else that is missing."
        )


def _atom_table(rows: Sequence[Sequence[int]], columns: int) -> Tensor:
    """Atom indices (K, columns), also where there are none."""
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, columns)


def _close_kin(heavy_atoms: Tensor, bonds: Tensor) -> Tensor:
    """Pairs (K, 2) of the M heavy atoms that are at most three bonds from each other."""
    ends = tuple(torch.searchsorted(heavy_atoms, bonds).T.numpy())
    bonded = coo_matrix((np.ones(len(bonds), dtype=bool), ends), shape=2 * (len(heavy_atoms),)).tocsr()
    near = bonded + bonded.T + identity(len(heavy_atoms), dtype=bool)
    return torch.tensor(np.stack(triu(near @ near @ near, 1).nonzero(), -1), dtype=torch.int64)


def _rotatable_group(graph: ProteinBondGraph, names: Sequence[str]) -> RotatableGroup:
    """The group of all tokens for the angle or some torsions."""
    moved, owner, torsion, axes = [], [], [], []
    for i, name in product(range(len(graph.residues)), names):
        axis, atoms = graph.turning(i, name)
        moved += atoms
        owner += [i] * len(atoms)
        torsion += [TORSIONS.index(name) if name in TORSIONS else -1] * len(atoms)
        axes += [axis] * len(atoms)
    indices = (torch.tensor(x, dtype=torch.int64) for x in (moved, owner, torsion))
    return RotatableGroup(*indices, _atom_table(axes, 2))


def _features(graph: ProteinBondGraph) -> ResidueFeatures:
    ends = [graph.ends(i) for i in range(len(graph.residues))]
    mask = torch.tensor([[row[0] >= 0 for row in graph.torsion_atoms(i)] for i in range(len(ends))])
    n_end = torch.tensor([n for n, _ in ends])
    mask[:, TORSIONS.index("phi")] = n_end == CAPPED
    return ResidueFeatures(
        residue_type=torch.tensor([RESIDUE_TYPES.index(name) for name in graph.types]),
        residue_index=torch.tensor(graph.residue_indices()),
        chain_index=torch.tensor(graph.molecules()),
        n_end=n_end,
        c_end=torch.tensor([c for _, c in ends]),
        torsion_mask=mask,
        torsion_period=torch.tensor([graph.periods(i) for i in range(len(ends))], dtype=torch.float64),
        variant=torch.tensor([graph.variant(i) for i in range(len(ends))]),
    )
