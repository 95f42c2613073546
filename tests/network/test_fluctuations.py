"""Laws of the fluctuations of the reference structure that the network is told."""

import pytest
import torch

from openmm_starmd.geometry.rigid import Rigid, exponential
from openmm_starmd.network import fluctuations as module
from openmm_starmd.network.config import NetworkConfig
from openmm_starmd.network.denoiser import Denoiser
from openmm_starmd.network.fluctuations import fluctuations
from openmm_starmd.protein.conformation import from_positions
from openmm_starmd.protein.tokens import ResidueTokens


def frames_of(*shape, seed=0):
    """Frames of chains of CA 0.38 nm apart, double precision."""
    generator = torch.Generator().manual_seed(seed)
    steps, turns = (torch.randn(*shape, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    return Rigid(exponential(turns), (0.38 * steps / steps.norm(dim=-1, keepdim=True)).cumsum(-2))


def energy_covariance(ca):
    """Covariance (N, 3, N, 3) at kT = 1 from second derivatives of the energy of the springs."""
    first, second = torch.triu_indices(len(ca), len(ca), 1)
    rest = (ca[first] - ca[second]).norm(dim=-1)
    stiffness = (module.LENGTH / rest.clamp_min(module.CLOSEST)) ** module.POWER

    def energy(x):
        x = x.view(-1, 3)
        stretch = (0.5 * stiffness * ((x[first] - x[second]).norm(dim=-1) - rest) ** 2).sum()
        return stretch + 0.5 * module.TETHER * (x - ca).square().sum()

    values, vectors = torch.linalg.eigh(torch.autograd.functional.hessian(energy, ca.flatten()))
    inner = vectors[:, values > 1.001 * module.TETHER]  # the six motions as a whole have the tether alone
    return ((inner / values[values > 1.001 * module.TETHER]) @ inner.T).view(len(ca), 3, len(ca), 3)


def test_fluctuations_are_those_of_the_springs_energy():
    frames = frames_of(1, 7)
    residues, pairs = fluctuations(frames)
    covariance = energy_covariance(frames.translations[0])
    square = torch.einsum("iaia->i", covariance)
    size = square.log() / 2
    torch.testing.assert_close(residues[0, :, 0], (size - module.MEAN_LOG[0]) / module.SPREAD_LOG, rtol=0, atol=2e-2)
    ca, r = frames.translations[0], frames.rotations[0]
    u = (ca[2] - ca[5]) / (ca[2] - ca[5]).norm()
    apart = covariance[2, :, 2] + covariance[5, :, 5] - covariance[2, :, 5] - covariance[5, :, 2]
    stretch = (u @ apart @ u).log() / 2
    assert float(pairs[0, 2, 5, 0]) == pytest.approx(
        float((stretch - module.MEAN_LOG[1]) / module.SPREAD_LOG), abs=2e-2
    )
    cross = r[2].T @ covariance[2, :, 5] @ r[5] / (square[2] * square[5]).sqrt() / module.SPREAD
    torch.testing.assert_close(pairs[0, 2, 5, 1:].view(3, 3), cross, rtol=0, atol=2e-2)


def test_fluctuations_do_not_depend_on_place_and_orientation():
    frames = frames_of(2, 9)
    motion = Rigid(exponential(torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)), torch.ones(3, dtype=torch.float64))
    for here, there in zip(fluctuations(frames), fluctuations(motion @ frames), strict=True):
        torch.testing.assert_close(here, there, rtol=0, atol=1e-8)


def test_absent_residues_take_no_part_and_are_told_nothing():
    frames, more = frames_of(1, 6), frames_of(1, 9, seed=1)
    both = Rigid(
        torch.cat([frames.rotations, more.rotations[:, 6:]], 1),
        torch.cat([frames.translations, more.translations[:, 6:]], 1),
    )
    present = torch.arange(9)[None] < 6
    residues, pairs = fluctuations(both, present)
    alone = fluctuations(frames)
    torch.testing.assert_close(residues[:, :6], alone[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(pairs[:, :6, :6], alone[1], rtol=0, atol=1e-9)
    assert not residues[:, 6:].any() and not pairs[:, 6:].any() and not pairs[:, :, 6:].any()


def test_loose_ends_of_a_helix_fluctuate_most():
    angle = torch.deg2rad(torch.tensor(100.0)) * torch.arange(16, dtype=torch.float64)
    ca = torch.stack([0.23 * angle.cos(), 0.23 * angle.sin(), 0.15 * torch.arange(16)], -1)
    size = fluctuations(Rigid(torch.eye(3, dtype=ca.dtype).expand(1, 16, 3, 3), ca[None]))[0][0, :, 0]
    assert min(size[0], size[-1]) > size[1:-1].max() + 0.5


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_residues_have_finite_fluctuations(n):
    assert all(torch.isfinite(x).all() for x in fluctuations(frames_of(1, n)))


def test_a_network_that_learns_of_fluctuations_begins_as_it_was(build_peptide):
    """So that it may start from the weights of one that knows nothing of them."""
    topology, positions = build_peptide("AKFGV")
    tokens = ResidueTokens.from_topology(topology)
    reference = from_positions(torch.as_tensor(positions)[None], tokens).to(dtype=torch.float32)
    small = {"blocks": 1, "width": 32, "pair_width": 8, "heads": 2, "query_points": 1, "value_points": 1}
    with torch.no_grad():
        plain, told = (
            Denoiser(NetworkConfig(**small, reference_structure=True, reversion=True, fluctuations=known))
            for known in (False, True)
        )
        told.load_state_dict(plain.state_dict(), strict=False)
        first, second = (network.static_inputs(tokens.features[None], reference) for network in (plain, told))
    assert torch.equal(first.residues, second.residues) and torch.equal(first.pairs, second.pairs)


def test_two_residues_fluctuate_the_more_the_farther_apart_they_are():
    near = frames_of(1, 2)
    far = Rigid(near.rotations, 1.5 * near.translations)
    (own, mutual), (own_far, mutual_far) = fluctuations(near), fluctuations(far)
    assert (own_far[..., 0] > own[..., 0] + 1).all() and mutual_far[0, 0, 1, 0] > mutual[0, 0, 1, 0] + 1
