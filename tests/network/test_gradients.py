"""How gradients are computed changes nothing: shares of a batch, checkpointed blocks; and what bf16 may not round."""

from dataclasses import replace

import pytest
import torch

from openmm_starmd.diffusion.loss import denoising_loss
from openmm_starmd.diffusion.process import Process
from openmm_starmd.geometry import igso3, rigid
from openmm_starmd.geometry.rigid import Rigid, exponential
from openmm_starmd.network import denoiser as module
from openmm_starmd.network import invariants
from openmm_starmd.network.config import NetworkConfig, ProcessConfig
from openmm_starmd.network.denoiser import Denoiser
from openmm_starmd.network.ipa import InvariantPointAttention
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.residues import RESIDUE_TYPES
from openmm_starmd.protein.tokens import ResidueFeatures

CONFIG = NetworkConfig(blocks=2, width=32, pair_width=12, heads=2, query_points=2, value_points=2, attention_layers=2)


@pytest.fixture
def window():
    """Features, window and strides of six windows of three frames and five residues, with different torsions."""
    generator = torch.Generator().manual_seed(0)
    batch, frames, n = 6, 3, 5
    end = torch.zeros(batch, n, dtype=torch.long)
    mask = torch.rand(batch, n, 6, generator=generator) < torch.linspace(0.2, 0.9, batch)[:, None, None]
    types = torch.randint(20, (batch, n), generator=generator)
    index = torch.arange(n).expand(batch, n)
    features = ResidueFeatures(types, index, end, end, end, mask, torch.full((batch, n, 6), 2 * torch.pi))
    rotations = exponential(torch.randn(batch, frames, n, 3, generator=generator))
    steps = 0.38 * torch.nn.functional.normalize(torch.randn(batch, frames, n, 3, generator=generator), dim=-1)
    x = steps.cumsum(-2)
    torsions = torch.randn(batch, frames, n, 6, generator=generator) * mask[:, None]
    angles = 1.96 + 0.05 * torch.randn(batch, frames, n, generator=generator)
    conformations = Conformation(Rigid(rotations, x - x.mean(-2, keepdim=True)), torsions, angles)
    return features, conformations, torch.full((batch, frames), 50.0)


def generators(count, start=0):
    return [torch.Generator().manual_seed(start + k) for k in range(count)]


def of_windows(window, rows):
    features, conformations, strides = window
    return features[rows], conformations[rows], strides[rows]


def denoiser_of(config=CONFIG):
    generator = torch.Generator().manual_seed(1)
    denoiser = Denoiser(config)
    with torch.no_grad():
        for p in denoiser.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=generator))
        denoiser.step_scales.fill_(0.2)
    return denoiser


def loss_and_gradients(denoiser, window, generators, **options):
    denoiser.zero_grad()
    loss, _ = denoising_loss(denoiser, Process(ProcessConfig()), *window, generators, **options)
    loss.backward()
    return loss.detach(), {k: p.grad.clone() for k, p in denoiser.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("hidden", [0.0, 0.5])
def test_the_loss_of_a_batch_is_the_mean_of_its_shares(window, hidden):
    denoiser = denoiser_of()

    def of(rows):
        return loss_and_gradients(denoiser, of_windows(window, rows), generators(6)[rows], hidden_types=hidden)

    whole, whole_gradients = of(slice(None))
    shares = [of(slice(k, None, 2)) for k in (0, 1)]
    torch.testing.assert_close(sum(loss for loss, _ in shares) / 2, whole, rtol=1e-5, atol=0)
    for name, gradient in whole_gradients.items():
        halves = sum(gradients[name] for _, gradients in shares) / 2
        torch.testing.assert_close(halves, gradient, rtol=1e-3, atol=1e-5 * gradient.abs().max().item() + 1e-7)


def test_hidden_types_are_not_known_and_all_else_is_as_before(window):
    """Other types in place of the hidden ones change nothing; half hidden is neither all nor none."""
    denoiser, (features, *rest) = denoiser_of(), window
    types = (features.residue_type + 1) % 20
    glycine = RESIDUE_TYPES.index("GLY")  # has no C-beta: geometry, not type
    types = torch.where((features.residue_type == glycine) | (types == glycine), features.residue_type, types)
    other = replace(features, residue_type=types), *rest
    assert (types != features.residue_type).any(-1).all()
    losses = {}
    for share in (0.0, 0.5, 1.0):
        losses[share], gradients = loss_and_gradients(denoiser, window, generators(6), hidden_types=share)
        assert bool(gradients["residues.residue_type.weight"].any()) == (share < 1)
        same = torch.equal(losses[share], loss_and_gradients(denoiser, other, generators(6), hidden_types=share)[0])
        assert same == (share == 1)
    assert len({loss.item() for loss in losses.values()}) == 3
    assert torch.equal(losses[0.0], loss_and_gradients(denoiser, window, generators(6))[0])


@pytest.mark.parametrize("joint", [True, False])
def test_checkpointed_blocks_give_equal_gradients(window, joint, monkeypatch):
    denoiser = denoiser_of(NetworkConfig(**(vars(CONFIG) | {"joint_attention": joint})))
    loss, expected = loss_and_gradients(denoiser, window, generators(6))
    calls, checkpoint = [], module.checkpoint
    monkeypatch.setattr(module, "checkpoint", lambda *a, **k: calls.append(a) or checkpoint(*a, **k))
    denoiser.checkpointing = True
    again, found = loss_and_gradients(denoiser, window, generators(6))
    assert len(calls) == CONFIG.blocks
    assert torch.equal(loss, again)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name
    with torch.no_grad():
        denoising_loss(denoiser, Process(ProcessConfig()), *window, generators(6))
    assert len(calls) == CONFIG.blocks


def test_attention_to_points_is_not_rounded_under_autocast():
    """Two residues 5 nm from the centre; the distances between them decide, not those to the centre."""
    generator = torch.Generator().manual_seed(0)
    attention = InvariantPointAttention(32, 12, 2, 4, 4)
    s, z = torch.randn(1, 1, 8, 32, generator=generator), torch.randn(1, 1, 8, 8, 12, generator=generator)
    x = 0.4 * torch.randn(1, 1, 8, 3, generator=generator)
    x[..., :4, 0] += 5
    x[..., 4:, 0] -= 5
    frames = Rigid(exponential(torch.randn(1, 1, 8, 3, generator=generator)), x)
    exact = attention(s, z, frames)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention(s, z, frames), exact)


def test_noise_is_not_rounded_under_autocast(window):
    features, conformations, strides = window
    process = Process(ProcessConfig())

    def noisy():
        time = torch.full_like(strides, 0.1)
        return process.perturb(conformations, process.alpha(time), process.sigma(time), features, generators(6))

    exact = noisy()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(noisy().frames.rotations, exact.frames.rotations)


@pytest.mark.parametrize("parameterization", ["previous", "plain"])
def test_a_model_that_has_sampled_can_be_trained(window, parameterization):
    for table in (
        rigid._products,
        igso3._images,
        igso3._radial_table,
        invariants._side_chain_tables,
        invariants._pair_tables,
    ):
        table.cache_clear()
    denoiser = denoiser_of(replace(CONFIG, parameterization=parameterization))
    with torch.inference_mode():
        denoising_loss(denoiser, Process(ProcessConfig()), *window, generators(6))
    loss_and_gradients(denoiser, window, generators(6))
    assert all(torch.isfinite(p.grad).all() for p in denoiser.parameters() if p.grad is not None)
