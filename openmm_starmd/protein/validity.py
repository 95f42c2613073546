"""Geometric checks of atom positions: does a conformation still look like a protein?

The limits are those of BioEmu's filter of unphysical samples (Lewis et al., Science 389, eadv9817, 2025), and for CA
pairs those of ConfDiff (Wang et al., ICML 2024, arXiv:2403.14088).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from openmm_starmd.protein.bond_graph import BONDED
from openmm_starmd.protein.tokens import ResidueTokens

MAX_ADJACENT_CA = 0.45  # nm
MIN_CA = 0.30
MAX_PEPTIDE_BOND = 0.20
MIN_HEAVY = 0.10

_CHUNK = 2**22  # distances held at a time


@dataclass(frozen=True)
class Validity:
    """What is wrong with each of many atom positions; all fields are Tensors of bool, shape (*).

    Parameters
    ----------
    not_finite : Tensor
        A protein atom has a coordinate that is NaN or infinite; no other check fails for that reason.
    ca_breaks : Tensor
        CA of bonded residues farther than 0.45 nm from each other.
    peptide_breaks : Tensor
        A peptide bond C-N longer than 0.20 nm.
    clashes : Tensor
        Two heavy atoms of the protein closer than 0.10 nm, shorter than any bond. Neighbours count, too: they are where
        side chains of peptides clash.
    ca_clashes : Tensor
        Two CA closer than 0.30 nm. Told only: a cis peptide bond comes close to it, so `valid` ignores it.
    """

    not_finite: Tensor
    ca_breaks: Tensor
    peptide_breaks: Tensor
    clashes: Tensor
    ca_clashes: Tensor

    _DECISIVE: ClassVar[tuple[str, ...]] = ("not_finite", "ca_breaks", "peptide_breaks", "clashes")

    @property
    def valid(self) -> Tensor:
        """True where no decisive check fails, shape (*)."""
        return ~torch.stack([getattr(self, name) for name in self._DECISIVE]).any(0)

    def failures(self, index) -> list[str]:
        """Names of the decisive checks that one set of positions, at ``index`` of the leading axes, fails."""
        return [name for name in self._DECISIVE if getattr(self, name)[index]]


def check_positions(positions: Tensor, tokens: ResidueTokens) -> Validity:
    """Check atom positions.

    Parameters
    ----------
    positions : Tensor, shape (*, A, 3)
        All atoms of the Topology, nm; molecules whole.
    tokens : ResidueTokens

    Returns
    -------
    Validity, shape (*)
    """
    n, ca, c = positions[..., tokens.backbone, :].unbind(-2)
    after = torch.nonzero(tokens.features.n_end == BONDED)[:, 0]
    adjacent_ca = torch.linalg.vector_norm(ca[..., after, :] - ca[..., after - 1, :], dim=-1)
    peptide_bonds = torch.linalg.vector_norm(n[..., after, :] - c[..., after - 1, :], dim=-1)
    return Validity(
        not_finite=~positions[..., tokens.protein_atoms, :].isfinite().flatten(-2).all(-1),
        ca_breaks=(adjacent_ca > MAX_ADJACENT_CA).any(-1),
        peptide_breaks=(peptide_bonds > MAX_PEPTIDE_BOND).any(-1),
        clashes=_any_closer(positions[..., tokens.heavy_atoms, :], MIN_HEAVY),
        ca_clashes=_any_closer(ca, MIN_CA),
    )


def _any_closer(points: Tensor, limit: float) -> Tensor:
    """Whether any two of M points (*, M, 3) are closer than ``limit``, shape (*)."""
    lead, m = points.shape[:-2], points.shape[-2]
    points = points.reshape(-1, m, 3)
    found = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    rows = min(m, max(1, _CHUNK // m))
    frames = max(1, _CHUNK // (rows * m))
    for frame in range(0, len(points), frames):
        block = points[frame : frame + frames]
        for row in range(0, m, rows):
            # without matrix multiplication, whose cancellation error is as large as the limit squared in float32
            distances = torch.cdist(block[:, row : row + rows], block, compute_mode="donot_use_mm_for_euclid_dist")
            found[frame : frame + frames] |= (distances < limit).triu(row + 1).flatten(1).any(1)
    return found.reshape(lead)
