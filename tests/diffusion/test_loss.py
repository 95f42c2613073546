"""What the term of side-chain contacts sees, and what it does not."""

import math

import pytest
import torch

from openmm_starmd.diffusion.loss import contact_term
from openmm_starmd.geometry.rigid import Rigid, exponential
from openmm_starmd.network.invariants import contact_points
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.displacement import Displacement, Share, per_replica
from openmm_starmd.protein.residues import RESIDUE_TYPES
from openmm_starmd.protein.tokens import ResidueFeatures

CHI1, CHI4 = 2, 5


def lysines(n, apart):
    """Features and an extended chain (1, 1, N) of lysines with CA atoms ``apart`` nm from each other."""
    zero = torch.zeros(1, n, dtype=torch.long)
    mask = torch.ones(1, n, 6, dtype=torch.bool)
    lysine = torch.full((1, n), RESIDUE_TYPES.index("LYS"))
    features = ResidueFeatures(
        lysine, torch.arange(n)[None], zero, zero, zero, mask, torch.full((1, n, 6), 2 * math.pi)
    )
    x = torch.zeros(1, 1, n, 3, dtype=torch.float64)
    x[..., 0] = apart * torch.arange(n)
    torsions = torch.linspace(-3, 3, 6 * n, dtype=torch.float64).view(1, 1, n, 6)
    frames = Rigid(torch.eye(3, dtype=torch.float64).expand(1, 1, n, 3, 3), x - x.mean(-2, keepdim=True))
    return features, Conformation(frames, torsions, torch.full((1, 1, n), 1.96, dtype=torch.float64))


def unit(n, level=0.1):
    one = torch.full((1, 1, 1, 1), level, dtype=torch.float64)
    return Displacement(one, one, one.expand(1, 1, 1, 6), one[..., 0])


def turned(conformation, residue, torsion, by):
    torsions = conformation.torsions.clone()
    torsions[..., residue, torsion] += by
    return Conformation(conformation.frames, torsions, conformation.angles)


def test_the_same_contacts_cost_nothing_wherever_the_molecule_is():
    features, clean = lysines(3, 0.38)
    assert contact_term(clean, clean, clean, unit(3), features) == 0
    motion = Rigid(exponential(torch.tensor([[[0.3, -1.0, 0.5]]]).double()), torch.tensor([[[1.0, 2.0, 3.0]]]).double())
    denoised = turned(clean, 1, CHI1, 0.2)
    there = contact_term(denoised.moved(motion), clean, clean, unit(3), features)
    torch.testing.assert_close(contact_term(denoised, clean, clean, unit(3), features), there)
    assert there > 0


def test_side_chains_that_do_not_touch_do_not_count():
    features, clean = lysines(3, 5.0)
    assert contact_term(turned(clean, 1, CHI1, 1.0), clean, clean, unit(3), features) < 1e-6


def test_of_neighbours_only_the_side_chains_count():
    """psi moves nothing that is compared; a chi moves the side chain, unless the other residue has none."""
    features, clean = lysines(2, 0.45)
    assert contact_term(turned(clean, 0, 1, 1.0), clean, clean, unit(2), features) == 0
    assert contact_term(turned(clean, 0, CHI1, 0.2), clean, clean, unit(2), features) > 0
    features.torsion_mask[:, 1, CHI1:] = False
    assert contact_term(turned(clean, 0, CHI1, 0.2), clean, clean, unit(2), features) == 0
    features, clean = lysines(3, 0.3)
    features.torsion_mask[:, 1:, CHI1:] = False
    assert (
        contact_term(turned(clean, 0, CHI1, 0.2), clean, clean, unit(3), features) > 0
    )  # with the backbone of the third


def test_one_distance_is_weighed_as_the_docstring_says():
    """Two residues with a single point behind CB each, at a distance that is set by their frames."""
    features, clean = lysines(2, 0.4)
    features.torsion_mask[..., CHI1 + 1 :] = False
    denoised = Conformation(
        Rigid(clean.frames.rotations, 1.1 * clean.frames.translations), clean.torsions, clean.angles
    )
    d, e = (
        torch.linalg.vector_norm(p[..., 0, 4, :] - p[..., 1, 4, :], dim=-1)
        for p in map(contact_points, (clean, denoised))
    )
    weight = 2 * math.exp(-((d.item() / 0.5) ** 4))  # each pair from both ends
    level = 0.1**2 + (0.15 * 0.1) ** 2 + 0.002**2
    expected = weight * (d - e).item() ** 2 / level / (weight + 4)
    assert contact_term(denoised, clean, clean, unit(2), features).item() == pytest.approx(expected, rel=1e-5)


def test_what_touches_is_what_the_noisy_frame_shows():
    features, near = lysines(3, 0.38)
    _, far = lysines(3, 5.0)
    assert contact_term(turned(near, 1, CHI1, 0.2), far, near, unit(3), features) < 1e-6
    assert contact_term(near, near, far, unit(3), features) > 1


def test_its_gradient_turns_the_side_chain_back():
    features, clean = lysines(3, 0.38)
    denoised = turned(clean, 0, CHI4, 0.1)
    torsions = denoised.torsions.requires_grad_()
    contact_term(Conformation(denoised.frames, torsions, denoised.angles), clean, clean, unit(3), features).backward()
    assert torsions.grad[0, 0, 0, CHI4] > 0


def test_shares_of_a_batch_have_the_numbers_of_the_whole():
    def draw(rows, g):
        return torch.randn(*rows.shape, 2, generator=g)

    def numbers(rows, generator):
        return per_replica(draw, torch.zeros(len(range(6)[rows]), 3), generator)

    whole = numbers(slice(None), torch.Generator().manual_seed(1))
    for rows in (slice(0, None, 2), slice(1, None, 2)):
        assert torch.equal(numbers(rows, Share(torch.Generator().manual_seed(1), 6, rows)), whole[rows])
