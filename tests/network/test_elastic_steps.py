"""Laws of steps whose residues move together as an elastic network has them."""

from types import SimpleNamespace

import pytest
import torch

from openmm_starmd.geometry.rigid import Rigid, exponential
from openmm_starmd.model import StarMDModel
from openmm_starmd.network.config import ModelConfig, NetworkConfig
from openmm_starmd.network.elastic_steps import noise_in, sizes, step_covariance
from openmm_starmd.network.fluctuations import covariances
from openmm_starmd.propagator import Propagator
from openmm_starmd.protein.conformation import Conformation, from_positions
from openmm_starmd.protein.displacement import superposed
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.training.step_sizes import elastic_scales

SMALL = dict(blocks=1, width=16, pair_width=8, heads=2, query_points=2, value_points=2)


def chain(n, seed=0, batch=1):
    """CA (B, 1, N, 3) of a chain, 0.38 nm apart, double precision."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(batch, 1, n, 3, generator=generator, dtype=torch.float64)
    return (0.38 * steps / steps.norm(dim=-1, keepdim=True)).cumsum(-2)


def test_the_covariance_turns_with_the_molecule():
    ca = chain(9)
    turn = exponential(torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64))
    here, there = step_covariance(ca), step_covariance(ca @ turn.T + 1.0)
    big = torch.block_diag(*9 * [turn])
    torch.testing.assert_close(there, big @ here @ big.T, rtol=1e-6, atol=1e-6)
    assert (torch.linalg.eigvalsh(here) > 0).all()


def test_residues_move_together_and_a_fifth_by_themselves():
    ca = chain(8)
    covariance, (together, _) = step_covariance(ca)[0, 0], covariances(ca[0], torch.ones(1, 8, dtype=torch.float64))
    between = together[0].transpose(1, 2).reshape(24, 24)
    for i in range(8):
        for j in range(8):
            block, whole = (x[3 * i : 3 * i + 3, 3 * j : 3 * j + 3] for x in (covariance, between))
            own = whole.diagonal().mean() * torch.eye(3, dtype=torch.float64)
            torch.testing.assert_close(block, 0.8 * whole + 0.2 * own * (i == j))


def test_padding_moves_by_itself():
    ca, nonsense = chain(6), chain(9, seed=1)
    longer = torch.cat([ca, nonsense[:, :, 6:]], 2)
    covariance = step_covariance(longer, torch.arange(9)[None, None] < 6)
    torch.testing.assert_close(covariance[..., :18, :18], step_covariance(ca))
    assert (covariance[..., 18:, :18] == 0).all() and (covariance[..., :18, 18:] == 0).all()
    assert (sizes(covariance) > 0).all()


def test_noise_is_told_from_steps_as_well_as_can_be():
    """The error of the estimate is that of the posterior of normal steps: smaller than for independent residues."""
    generator = torch.Generator().manual_seed(0)
    covariance, noise = 1e-4 * step_covariance(chain(10)), torch.full((1, 1, 1), 0.05, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(covariance[0, 0])
    drawn, white = torch.randn(2, 4000, 30, generator=generator, dtype=torch.float64)
    step, blur = (drawn * values.sqrt()) @ vectors.T, 0.05 * white
    seen = (step + blur).view(4000, 1, 10, 3)
    found = noise_in(seen, covariance.expand(4000, -1, -1, -1), noise.expand(4000, 1, 1)).view(4000, 30)
    error = (found - blur).square().sum(-1).mean()
    assert error == pytest.approx(float((values * 0.05**2 / (values + 0.05**2)).sum()), rel=0.03)
    own = sizes(covariance)[0, 0].square().repeat_interleave(3)
    independent = 0.05**2 / (own + 0.05**2) * seen.view(4000, 30)
    assert error < 0.8 * (independent - blur).square().sum(-1).mean()


@pytest.fixture
def untrained(build_peptide):
    """An untrained model of elastic steps, tokens and conformation of a peptide."""
    topology, positions = build_peptide("GASVLITKEA")
    tokens = ResidueTokens.from_topology(topology)
    model = StarMDModel.create(ModelConfig(NetworkConfig(**SMALL, elastic_steps=True), denoising_steps=10), seed=1)
    model.denoiser.elastic_scales.fill_(0.008)
    model.denoiser.step_scales.fill_(0.05)
    return model, tokens, from_positions(torch.as_tensor(positions, dtype=torch.float32), tokens)


def test_steps_of_an_untrained_model_are_those_of_the_elastic_network(untrained):
    """Its softest motions are as large as those of the elastic network, which independent residues do not reach."""
    model, tokens, start = untrained
    batch = 400
    propagator = Propagator(model, tokens, 100.0, 300.0, strict=False)
    history = propagator.start(start.map(lambda x: x.expand(batch, *x.shape)))
    after = propagator.step(history, [torch.Generator().manual_seed(k) for k in range(batch)])
    before = history.last.centred()
    moved = superposed(after.centred().map(lambda x: x[:, None]), before.map(lambda x: x[:, None]))[:, 0]
    steps = (moved.frames.translations - before.frames.translations).flatten(1).double()
    covariance = 0.008**2 * step_covariance(before.frames.translations[:1, None].double())[0, 0]
    values, vectors = torch.linalg.eigh(covariance)
    softest = float((steps @ vectors[:, -3:]).square().sum(-1).mean())
    assert softest == pytest.approx(float(values[-3:].sum()), rel=0.25)


def test_scales_of_steps_are_found_in_data():
    """Displacements drawn from the elastic network, three hundredths of its size, are told to be so large."""
    n, frames = 12, 200
    ca = chain(n)[0]
    values, vectors = torch.linalg.eigh(step_covariance(ca[None])[0, 0])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(frames, 3 * n, generator=generator, dtype=torch.float64) * values.clamp_min(0).sqrt()
    x = ca + 0.003 * (drawn @ vectors.T).view(frames, n, 3)
    still = Rigid(torch.eye(3).expand(frames, n, 3, 3), x.float())
    moves = Conformation(still, torch.zeros(frames, n, 6), torch.full((frames, n), 1.95))
    trajectory = SimpleNamespace(
        name="x", interval=10.0, n_frames=frames, n_residues=n, features=None, conformations=moves
    )
    table = elastic_scales(SimpleNamespace(trajectories=[trajectory]), n_windows=100)
    assert table.shape == (8, 1)
    assert float(table[0]) == pytest.approx(0.003 * 2**0.5, rel=0.15)  # each of two frames is displaced


def test_elastic_steps_are_about_the_previous_frame():
    with pytest.raises(ValueError, match="elastic_steps are of the previous frame"):
        NetworkConfig(**SMALL, parameterization="plain", elastic_steps=True)
