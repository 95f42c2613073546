"""Embedding of pairs of residues: separation along the chain, geometry of the frames, contacts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from openmm_starmd.network.config import NetworkConfig
from openmm_starmd.network.embedding import StaticInputs
from openmm_starmd.network.fluctuations import PAIR_WIDTH
from openmm_starmd.network.invariants import (
    BIN_EDGES,
    CONTACT_POINTS,
    LOCAL_PAIR_WIDTH,
    beta_carbon,
    contact_points,
    contacts,
    distance_bins,
    distances,
    local_neighbours,
    local_pairs,
    neighbour_contacts,
)
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.tokens import ResidueFeatures


class PairEmbedding(nn.Module):
    """Pair features (B, T, N, N, C): sequence separation and geometry of this frame, its predecessor, the reference.

    The columns of ``geometry`` around the previous frame are: residues of the frame as they see each other, those of
    the previous frame, those of the previous as the frame sees them, contacts.
    """

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config = config
        self.relative = nn.Embedding(2 * config.max_relative_position + 2, config.pair_width)
        self.around_previous = config.parameterization == "previous"
        self.columns = [*3 * [LOCAL_PAIR_WIDTH], CONTACT_POINTS**2] if self.around_previous else [BIN_EDGES[2]]
        self.geometry = nn.Linear(sum(self.columns), config.pair_width)
        self.mix = nn.Sequential(nn.GELU(), nn.Linear(config.pair_width, config.pair_width))
        if config.reference_structure:
            self.reference = nn.Linear(LOCAL_PAIR_WIDTH + BIN_EDGES[2], config.pair_width)
        if config.fluctuations:
            self.fluctuations = nn.Linear(PAIR_WIDTH, config.pair_width)
        if config.pair_features:
            self.pair = nn.Sequential(
                nn.LayerNorm(config.pair_features), nn.Linear(config.pair_features, config.pair_width)
            )

    def static(
        self,
        features: ResidueFeatures,
        reference: Conformation | None,
        pair: Tensor | None,
        has_reference: Tensor | None = None,
    ) -> Tensor:
        """The part that does not depend on time, (B, N, N, C); computed once a rollout."""
        limit = self.config.max_relative_position
        apart = features.residue_index[..., None, :] - features.residue_index[..., :, None]
        same = features.chain_index[..., None, :] == features.chain_index[..., :, None]
        z = self.relative(torch.where(same, apart.clamp(-limit, limit) + limit, 2 * limit + 1)) + self.geometry.bias
        if self.config.reference_structure and reference is not None:
            cb = beta_carbon(reference, features.residue_type)
            seen = 2 * (reference.frames.rotations, reference.backbone())
            told = self.reference(torch.cat([local_pairs(*seen), distance_bins(distances(cb, cb))], -1))
            z = z + (told if has_reference is None else told * has_reference)
        if self.config.pair_features and pair is not None:
            z = z + self.pair(pair)
        return z

    def from_previous(
        self, static: Tensor, previous: Conformation, previous_atoms: Tensor, neighbours: Tensor | None
    ) -> Tensor:
        """The part that the previous frames know, (B, T, N, N, C); computed once where they are denoised repeatedly."""
        if not self.around_previous:
            return static[:, None]
        weight = self.geometry.weight.split(self.columns, 1)[1]
        seen = 2 * (previous.frames.rotations, previous_atoms)
        if neighbours is not None:
            batch, n = static.shape[:2]
            first = torch.arange(batch * n, device=static.device).view(batch, 1, n, 1) * n
            known = static.flatten(0, 2).index_select(0, (first + neighbours).flatten())
            return known.view(*neighbours.shape, -1) + functional.linear(local_neighbours(*seen, neighbours), weight)
        return static[:, None] + functional.linear(local_pairs(*seen), weight)

    def forward(
        self,
        cached: Tensor,
        now: Conformation,
        previous: Conformation,
        previous_atoms: Tensor,
        neighbours: Tensor | None,
        static: StaticInputs,
    ) -> Tensor:
        """``previous_atoms`` (B, T, N, 3, 3): backbone of the previous frames."""
        if not self.around_previous:
            cb = beta_carbon(now, static.features.residue_type[:, None])
            return self.mix(cached + functional.linear(distance_bins(distances(cb, cb)), self.geometry.weight))
        of_now, _, between, near = self.geometry.weight.split(self.columns, 1)
        points, rotations = contact_points(now), now.frames.rotations
        if neighbours is not None:
            own = local_neighbours(rotations, points, rotations, points, neighbours)
            past = local_neighbours(rotations, points, previous.frames.rotations, previous_atoms, neighbours)
            seen = torch.cat([own, past, neighbour_contacts(points, static.contact_mask, neighbours)], -1)
            return self.mix(cached + functional.linear(seen, torch.cat([of_now, between, near], 1)))
        others = torch.stack([rotations, previous.frames.rotations])
        atoms = torch.stack([points[..., :3, :], previous_atoms])
        pairs = local_pairs(rotations, points, others, atoms)
        z = cached + functional.linear(pairs[0], of_now) + functional.linear(pairs[1], between)
        return self.mix(z + functional.linear(contacts(points, static.contact_mask), near))
