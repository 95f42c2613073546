"""Rotamer classifier: Bayes' rule against drawn steps, and estimates that are exact where the odds are known."""

import math
from dataclasses import replace

import pytest
import torch

from openmm_starmd.diffusion.loss import context_inputs, denoising_loss, rotamer_term
from openmm_starmd.diffusion.process import Process
from openmm_starmd.geometry.rigid import Rigid
from openmm_starmd.geometry.torsions import wrap
from openmm_starmd.network import rotamers
from openmm_starmd.network.config import NetworkConfig, ProcessConfig
from openmm_starmd.network.denoiser import Denoiser
from openmm_starmd.network.embedding import FrameInputs
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.displacement import Displacement
from openmm_starmd.protein.tokens import ResidueFeatures


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
    for k, share in enumerate(rotamers.HOP_SHARES):
        hopped = torch.rand(n, generator=generator, dtype=torch.float64) < share
        well = rotamers.TORSION_WIDTH * torch.randn(n, generator=generator, dtype=torch.float64)
        step = torch.where(hopped, 2 * math.pi * torch.rand(n, generator=generator, dtype=torch.float64), well)
        noisy = step + sigma * torch.randn(n, generator=generator, dtype=torch.float64)
        noisy = torch.remainder(noisy + math.pi, 2 * math.pi) - math.pi
        for at in (0.2, 1.5, 2.0):
            here = (noisy.abs() - at).abs() < 0.05
            expected = (~hopped[here]).double().mean()
            told = rotamers.bayes_log_odds(displacement(torsion=at), level(0.5, sigma), PERIOD)[0, 0, k].sigmoid()
            error = (expected * (1 - expected) / here.sum()).sqrt()
            assert (told - expected).abs() < 5 * error + 0.02, (share, at)


def test_what_is_near_stays_and_what_is_far_has_hopped():
    near = rotamers.bayes_log_odds(displacement(0.1, 0.1), level(0.1, 0.1), PERIOD).sigmoid()
    far = rotamers.bayes_log_odds(displacement(2.5, 2.5), level(0.1, 0.1), PERIOD).sigmoid()
    assert near.shape == (1, 7, 3)
    assert (near > 0.8).all() and (far < 1e-3).all()
    between = rotamers.bayes_log_odds(displacement(1.2, 1.2), level(0.5, 0.5), PERIOD)[0]
    assert (between.diff(dim=-1) > 0).all()  # the rarer hops are, the likelier it has stayed


def test_known_odds_make_the_best_estimate():
    """Steps from a known mixture: with its odds no estimate has a smaller error."""
    generator = torch.Generator().manual_seed(0)
    n, sigma, far, share = 200_000, 0.8, 2.0, 0.2

    def normal():
        return torch.randn(n, 1, generator=generator, dtype=torch.float64)

    hopped = torch.rand(n, 1, generator=generator, dtype=torch.float64) < share
    step = torch.where(hopped, far, rotamers.TORSION_WIDTH * normal())
    delta = step + sigma * normal()
    spread = (rotamers.TORSION_WIDTH**2 + sigma**2) ** 0.5
    near = -0.5 * (delta / spread) ** 2 - math.log(spread)
    log_odds = math.log((1 - share) / share) + near + 0.5 * ((delta - far) / sigma) ** 2 + math.log(sigma)

    def error(log_odds):
        back = rotamers.blended(-delta * (sigma / spread) ** 2, far - delta, log_odds, delta)
        return (delta + back - step).square().mean()

    best = error(log_odds)
    assert all(best < error(log_odds + shift) for shift in (-1.0, -0.3, 0.3, 1.0))
    assert best < min(error(torch.full_like(log_odds, 20.0)), error(torch.full_like(log_odds, -20.0)))


def test_what_stays_gets_no_further_than_the_edge_of_its_well():
    delta, estimate = displacement(2.5).torsion, displacement(-0.5).torsion
    sure = torch.full_like(delta, 50.0)
    edge = torch.full_like(delta, rotamers.HOP)
    assert torch.allclose(delta + rotamers.blended(estimate, estimate, sure, delta), edge)
    assert torch.allclose(rotamers.blended(estimate, estimate, -sure, delta), estimate)
    inside = displacement(-2.0).torsion
    assert torch.allclose(rotamers.blended(inside, estimate, sure, delta), inside)


def test_who_turns_further_than_sixty_degrees_has_hopped():
    turns = torch.tensor([59.0, -59.0, 61.0, -179.0]).deg2rad()
    assert rotamers.stayed(turns).tolist() == [True, True, False, False]


def windows(count, share, generator):
    """Features, windows of two frames of two residues, strides, and which torsions hop: this share of them."""
    shape = (count, 2)
    end, index = torch.zeros(shape, dtype=torch.long), torch.arange(2).expand(shape)
    mask = torch.ones(*shape, 6, dtype=torch.bool)
    mask[:, 1, 3:] = False
    features = ResidueFeatures(end, index, end, end, end, mask, torch.full((*shape, 6), 2 * math.pi))
    first = 2 * math.pi * torch.rand(count, 1, 2, 6, generator=generator)
    hops = torch.rand(first.shape, generator=generator) < share
    turn = torch.where(hops, 2.1, 0.2 * torch.randn(first.shape, generator=generator))
    torsions = wrap(torch.cat([first, first + turn], 1)) * mask[:, None]
    place = torch.tensor([[-0.19, 0, 0], [0.19, 0, 0]]).expand(count, 2, 2, 3)
    still = Rigid(torch.eye(3).expand(count, 2, 2, 3, 3), place)
    return features, Conformation(still, torsions, torch.full((count, 2, 2), 1.96)), torch.full((count, 2), 100.0), hops


def last_frame_of(windows):
    """A fresh denoiser's inputs but for the static ones: the last frames of windows, noisy, and those before them."""
    features, window, strides = windows
    process, time = Process(ProcessConfig()), torch.full((len(strides), 1), 0.7)
    levels = time, process.alpha(time), process.sigma(time)
    noisy = process.perturb(window[:, 1:], *levels[1:], features, torch.Generator().manual_seed(1))
    inputs = FrameInputs(noisy, window[:, :1], *levels, strides[:, 1:], torch.tensor([1]))
    return context_inputs(window[:, :1], strides[:, :1], process), inputs


def small_denoiser():
    torch.manual_seed(0)
    return Denoiser(NetworkConfig(blocks=1, width=16, pair_width=8, heads=2, query_points=1, value_points=1))


def test_a_turn_by_a_period_is_none():
    """Half a turn of an aromatic ring leaves it where it is; so does a small turn more."""
    features, window, _, _ = windows(20, 0.0, torch.Generator().manual_seed(0))
    log_odds = torch.full((20, 1, 2, 4), 5.0).masked_fill(~features.torsion_mask[:, None, :, 2:], 50.0)
    half = torch.full_like(features.torsion_period, math.pi)
    turned = window[:, 1:]
    turned = Conformation(
        turned.frames, wrap(turned.torsions + math.pi * features.torsion_mask[:, None]), turned.angles
    )
    staying = rotamer_term(log_odds, window[:, :1], window[:, 1:], features)
    alike = replace(features, torsion_period=half)
    torch.testing.assert_close(rotamer_term(log_odds, window[:, :1], turned, alike), staying)
    assert rotamer_term(log_odds, window[:, :1], turned, features) > 10 * staying


def test_the_loss_of_odds_is_least_where_they_are_those_of_the_data():
    features, window, _, hops = windows(500, 0.1, torch.Generator().manual_seed(0))
    share = hops[..., 2:][features.torsion_mask[:, None, :, 2:]].float().mean()

    def loss(log_odds):
        log_odds = torch.full((500, 1, 2, 4), float(log_odds)).masked_fill(~features.torsion_mask[:, None, :, 2:], 50.0)
        return rotamer_term(log_odds, window[:, :1], window[:, 1:], features)

    best = torch.log((1 - share) / share)
    entropy = -share * share.log() - (1 - share) * (1 - share).log()
    torch.testing.assert_close(loss(best), entropy, rtol=0.02, atol=0)
    assert loss(best) < min(loss(best + 0.5), loss(best - 0.5))


@pytest.mark.slow
def test_training_teaches_the_share_of_hops():
    generator = torch.Generator().manual_seed(0)
    denoiser = small_denoiser()
    denoiser.step_scales.fill_(0.3)
    optimizer = torch.optim.Adam(denoiser.parameters(), 0.02)
    for _ in range(120):
        *batch, _ = windows(64, 0.1, generator)
        optimizer.zero_grad()
        denoising_loss(denoiser, Process(ProcessConfig()), *batch, generator)[0].backward()
        optimizer.step()
    features, window, strides, _ = windows(256, 0.1, generator)
    log_odds = denoiser(denoiser.static_inputs(features, window[:, 0]), *last_frame_of((features, window, strides)))[2]
    stays = log_odds.sigmoid()[features.torsion_mask[:, None, :, 2:]].mean().item()
    assert 0.85 < stays < 0.95


def test_odds_move_side_chains_only():
    denoiser = small_denoiser()
    features, window, strides, _ = windows(3, 0.5, torch.Generator().manual_seed(0))

    def estimate():
        return denoiser(denoiser.static_inputs(features, window[:, 0]), *last_frame_of((features, window, strides)))[0]

    before = estimate()
    torch.nn.init.normal_(denoiser.wells.bias)
    after, there = estimate(), features.torsion_mask[:, None, :, 2:]
    assert torch.equal(before.torsion[..., :2], after.torsion[..., :2])
    assert torch.equal(before.rotation, after.rotation) and torch.equal(before.translation, after.translation)
    assert (before.torsion != after.torsion)[..., 2:][there].float().mean() > 0.9
    assert not after.torsion[..., 2:][~there].any()
