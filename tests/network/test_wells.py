"""Wells: Bayes' rule against drawn steps, and ways back that lead to the last frame."""

import math

import torch

from openmm_starmd.network import wells
from openmm_starmd.protein.displacement import Displacement


def displacement(torsion=0.0, rotation=0.0, n=1):
    """Way of n residues whose torsions and (about x) rotations are these."""
    zero = torch.zeros(n, dtype=torch.float64)
    turn = torch.zeros(n, 3, dtype=torch.float64)
    turn[:, 0] = rotation
    return Displacement(turn * 0, turn, zero[:, None].expand(n, 6) + torsion, zero)


def level(rotation, torsion):
    return torch.tensor([[0.1, rotation, torsion, 0.1]], dtype=torch.float64)


PERIOD = torch.full((1, 6), 2 * math.pi, dtype=torch.float64)


def test_torsions_stay_as_often_as_drawn_ones_do():
    generator = torch.Generator().manual_seed(0)
    n, sigma = 400_000, 0.7
    for k, share in enumerate(wells.HOP_SHARES):
        hopped = torch.rand(n, generator=generator, dtype=torch.float64) < share
        well = wells.TORSION_WELL * torch.randn(n, generator=generator, dtype=torch.float64)
        step = torch.where(hopped, 2 * math.pi * torch.rand(n, generator=generator, dtype=torch.float64), well)
        noisy = step + sigma * torch.randn(n, generator=generator, dtype=torch.float64)
        noisy = torch.remainder(noisy + math.pi, 2 * math.pi) - math.pi
        for at in (0.2, 1.5, 2.0):
            here = (noisy.abs() - at).abs() < 0.05
            expected = (~hopped[here]).double().mean()
            told = wells.staying(displacement(torsion=at), level(0.5, sigma), PERIOD)[0, 0, k]
            error = (expected * (1 - expected) / here.sum()).sqrt()
            assert (told - expected).abs() < 5 * error + 0.02, (share, at)


def test_what_is_near_stays_and_what_is_far_has_hopped():
    near = wells.staying(displacement(0.1, 0.1), level(0.1, 0.1), PERIOD)
    far = wells.staying(displacement(2.5, 2.5), level(0.1, 0.1), PERIOD)
    assert near.shape == (1, 7, 3)
    assert (near > 0.8).all() and (far < 1e-3).all()
    between = wells.staying(displacement(1.2, 1.2), level(0.5, 0.5), PERIOD)[0]
    assert (between.diff(dim=-1) > 0).all()  # the rarer hops are, the likelier it has stayed


def test_full_trust_leads_back_into_the_well():
    way, sigma = displacement(1.0, 0.8), level(1.5, 2.0)
    stays = torch.ones(1, 7, 3, dtype=torch.float64)
    trust = torch.full((1, 21), 1 / 3, dtype=torch.float64)
    back = wells.drawn_back(displacement(), trust, stays, way, sigma)
    rest = wells.TORSION_WELL**2 / (wells.TORSION_WELL**2 + 2.0**2)
    assert torch.allclose(way.torsion + back.torsion, rest * way.torsion)
    rest = wells.ROTATION_WELL**2 / (wells.ROTATION_WELL**2 + 1.5**2)
    assert torch.allclose(way.rotation + back.rotation, rest * way.rotation)
    gone = wells.drawn_back(way, trust, 0 * stays, way, sigma)
    assert torch.equal(gone.torsion, way.torsion) and torch.equal(gone.rotation, way.rotation)
