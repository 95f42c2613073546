"""Laws of the pulls: distances change by what is asked for, in the cheapest way; ends that are alike are one."""

import numpy as np
import pytest
import torch
from openmm.unit import nanometer

from openmm_starmd.network.config import NetworkConfig
from openmm_starmd.network.invariants import contact_points
from openmm_starmd.network.parameterization import in_parts
from openmm_starmd.network.pulls import FLUCTUATION, YIELDING, Pulls
from openmm_starmd.protein.conformation import from_positions
from openmm_starmd.protein.displacement import Displacement
from openmm_starmd.protein.tokens import ResidueFeatures, ResidueTokens
from openmm_starmd.systems import build_peptide

CONFIG = NetworkConfig(width=32, pair_width=12, heads=2, pulls=True)
LEVELS = 2e-3, 3e-3, 5e-3, 1e-3  # nm, rad
UNIT = in_parts(torch.tensor([*LEVELS[:2], *6 * [LEVELS[2]], LEVELS[3]], dtype=torch.float64))


def peptide(sequence):
    """Features (1, N) and conformation (1, 1, N), float64."""
    topology, positions = build_peptide(sequence, n_cap=False, c_cap=False, seed=1)
    tokens = ResidueTokens.from_topology(topology)
    one = from_positions(torch.tensor(np.asarray(positions.value_in_unit(nanometer))), tokens)
    return ResidueFeatures.stack([tokens.features]), one.map(lambda x: x[None, None])


def displacement(values, n):
    """Displacement (1, 1, n) of which all numbers of a part are the same."""
    t, r, torsion, angle = (torch.tensor(v, dtype=torch.float64) for v in values)
    shape = 1, 1, n
    return Displacement(t.expand(*shape, 3), r.expand(*shape, 3), torsion.expand(*shape, 6), angle.expand(shape))


def setting(features, asked=(), seed=None):
    """Pulls that ask for ``asked`` = {point: change} of its distance from all ends; with a seed, random ones."""
    pulls, generator = Pulls(CONFIG).double(), torch.Generator().manual_seed(seed or 0)
    with torch.no_grad():
        for parameter in pulls.parameters():
            parameter.zero_() if seed is None else parameter.normal_(0, 0.3, generator=generator)
        for point, change in dict(asked).items():
            pulls.out.bias.view(3, -1)[point, -1] += change
    n = features.residue_type.shape[-1]
    residues = torch.randn(1, n, CONFIG.width, generator=generator, dtype=torch.float64)
    pairs = torch.randn(1, n, n, CONFIG.pair_width, generator=generator, dtype=torch.float64)
    return pulls, pulls.static(features, residues, pairs)


def corrected(pulls, pull_inputs, now, previous=None):
    n = now.shape[-1]
    previous_distances = pulls.from_previous(pull_inputs, previous or now)
    with torch.no_grad():
        return pulls(pull_inputs, previous_distances, now, displacement((0, 0, 0, 0), n), UNIT)


@pytest.mark.parametrize("point", [0, 1, 2], ids=["N", "C", "end"])
@pytest.mark.parametrize("sequence", ["DR", "KE", "FG"])
def test_asked_for_changes_are_made_by_what_is_uncertain(sequence, point):
    features, now = peptide(sequence)
    pulls, pull_inputs = setting(features, {point: 0.1})
    found = corrected(pulls, pull_inputs, now)

    leaves = [x.clone().requires_grad_() for x in vars(displacement((0.0, 0, 0, 0), 2)).values()]
    there = pulls.points(contact_points(Displacement(*leaves).apply(now)), pull_inputs)[0, 0]
    variances = [share * level**2 for share, level in zip((*YIELDING, 1, 0), LEVELS, strict=True)]
    expected = [torch.zeros_like(x) for x in leaves]
    for residue in range(2):
        d = (there[residue, point] - there[1 - residue, 2]).norm()
        slopes = list(torch.autograd.grad(d, leaves, retain_graph=True))
        slopes[2] = slopes[2] * features.torsion_mask
        spread = (sum((v * g.square()).sum() for v, g in zip(variances, slopes, strict=True)) + FLUCTUATION**2).sqrt()
        expected = [x + v * g * 0.1 / spread for x, v, g in zip(expected, variances, slopes, strict=True)]
    for name, x in zip(vars(found), expected, strict=True):
        torch.testing.assert_close(getattr(found, name), x, atol=1e-12, rtol=1e-6)
    assert max(x.abs().max() for x in expected) > 1e-6


def test_a_changed_distance_is_drawn_back():
    features, now = peptide("DR")
    pulls, pull_inputs = setting(features)
    with torch.no_grad():
        pulls.out.bias.view(3, -1)[2, 1] = -0.25
    previous = displacement((0, 0, 0.02, 0), 2).apply(now)
    after = corrected(pulls, pull_inputs, now, previous).apply(now)
    kept, before, then = (pulls.from_previous(pull_inputs, x)[0, 0, 0, 2, 1] for x in (previous, now, after))
    assert abs(then - kept) < abs(before - kept)


def test_nothing_is_pulled_within_a_residue():
    features, now = peptide("RA")
    only = features[:, :1]
    moved = corrected(*setting(only, {0: 1.0, 1: 1.0, 2: 1.0}), now.map(lambda x: x[:, :, :1]))
    assert all(not x.any() for x in vars(moved).values())


def test_ends_that_are_alike_are_one():
    features, now = peptide("DRFE")
    pulls, pull_inputs = setting(features, seed=2)
    swapped = now.torsions.clone()
    half = features.torsion_period[:, None] < 4
    half[..., :2] = False
    assert half.sum() == 3
    swapped[half] += torch.pi
    other = type(now)(now.frames, swapped, now.angles)
    previous = displacement((0, 0, 0.1, 0), 4).apply(now)
    moved = corrected(pulls, pull_inputs, now, previous)
    assert moved.torsion.abs().max() > 1e-6
    for a, b in zip(vars(moved).values(), vars(corrected(pulls, pull_inputs, other, previous)).values(), strict=True):
        torch.testing.assert_close(a, b)
