"""One learned step for B replicas: reproducible, equivariant, resumable."""

import pytest
import torch

from openmm_starmd.geometry.rigid import Rigid, exponential
from openmm_starmd.model import StarMDModel
from openmm_starmd.network.config import ModelConfig, NetworkConfig, ProcessConfig
from openmm_starmd.propagator import Propagator
from openmm_starmd.protein.conformation import Conformation, from_positions
from openmm_starmd.protein.errors import HistoryError
from openmm_starmd.protein.history import History
from openmm_starmd.protein.tokens import ResidueTokens

SMALL = dict(blocks=2, width=32, pair_width=12, heads=2, query_points=2, value_points=2)
CONFIGS = {
    "peptide": ModelConfig(NetworkConfig(**SMALL), denoising_steps=4),
    "paper": ModelConfig(
        NetworkConfig(**SMALL, parameterization="plain", reference_structure=True),
        ProcessConfig(schedule="paper"),
        context_frames=3,
        denoising_steps=6,
        sampler="euler-maruyama",
    ),
}


@pytest.fixture(params=CONFIGS)
def setting(request, build_peptide):
    topology, positions = build_peptide("AKLF")
    tokens = ResidueTokens.from_topology(topology)
    model = StarMDModel.create(CONFIGS[request.param], seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.denoiser.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
        model.denoiser.step_scales.fill_(0.1)
    start = from_positions(torch.as_tensor(positions, dtype=torch.float32), tokens)
    return model, tokens, start


def propagator_of(model, tokens, **kwargs):
    return Propagator(model, tokens, 100.0, 300.0, **kwargs)


def run(propagator, history, steps, seed=0, first=0):
    """Steps with a generator keyed by (seed, step), as the integrator keys them."""
    out = []
    for k in range(first, first + steps):
        generator = torch.Generator().manual_seed(1000 * seed + k)
        new = propagator.step(history, generator)
        history = propagator.extend(history, new, generator)
        out.append(new)
    return Conformation.stack(out), history


def batch_of(start, n):
    return start.map(lambda x: x.expand(n, *x.shape))


def equal(a, b):
    return all(
        torch.equal(x, y)
        for x, y in (
            (a.frames.rotations, b.frames.rotations),
            (a.frames.translations, b.frames.translations),
            (a.torsions, b.torsions),
            (a.angles, b.angles),
        )
    )


def test_seed_decides(setting):
    model, tokens, start = setting
    p = propagator_of(model, tokens)
    first, _ = run(p, p.start(batch_of(start, 1)), 3)
    again, _ = run(propagator_of(model, tokens), p.start(batch_of(start, 1)), 3)
    other, _ = run(p, p.start(batch_of(start, 1)), 3, seed=1)
    assert equal(first, again) and not equal(first, other)


def test_rotations_stay_rotations_and_the_centroid_stays(setting):
    model, tokens, start = setting
    p = propagator_of(model, tokens)
    frames, _ = run(p, p.start(batch_of(start, 1)), 8)
    r = frames.frames.rotations
    torch.testing.assert_close(r @ r.transpose(-1, -2), torch.eye(3).expand_as(r), atol=1e-4, rtol=0)
    centroid = frames.frames.translations.mean(-2)
    torch.testing.assert_close(centroid, start.frames.translations.mean(-2).expand_as(centroid), atol=1e-4, rtol=0)


@pytest.mark.parametrize("cut", [1, 2, 6])
def test_resumed_equals_uninterrupted_bit_for_bit(setting, cut):
    """Cut while the window grows and after frames have left it; the new propagator knows the packed history only."""
    model, tokens, start = setting
    p = propagator_of(model, tokens)
    whole, _ = run(p, p.start(batch_of(start, 1)), 8)
    q = propagator_of(model, tokens)
    _, history = run(q, q.start(batch_of(start, 1)), cut)
    mask = tokens.features.torsion_mask
    restored = History.unpack(history.pack(mask), mask, history.times, history.dropped)
    rest, _ = run(propagator_of(model, tokens), restored, 8 - cut, first=cut)
    assert equal(whole[cut:], rest)


def test_batched_equals_single(setting):
    model, tokens, start = setting
    p = propagator_of(model, tokens)

    def generators(which):
        return [torch.Generator().manual_seed(k) for k in which]

    together = p.step(p.start(batch_of(start, 3)), generators((0, 1, 2)))
    alone = p.step(p.start(batch_of(start, 1)), generators((1,)))
    torch.testing.assert_close(together.frames.rotations[1:2], alone.frames.rotations, atol=1e-4, rtol=0)
    torch.testing.assert_close(together.frames.translations[1:2], alone.frames.translations, atol=1e-4, rtol=0)


def test_a_rotated_start_gives_the_rotated_step(setting):
    """The noise is given in the frames' own axes except for the translations, so only those are turned by hand."""
    model, tokens, start = setting
    if model.config.network.parameterization == "plain":
        pytest.skip("the prior of the paper is fixed in space; the law is tested on the denoiser")
    turn = exponential(torch.tensor([0.3, 1.0, -0.4]))
    turned = Conformation(
        Rigid(turn @ start.frames.rotations, start.frames.translations @ turn.T), start.torsions, start.angles
    )
    p = propagator_of(model, tokens)
    n = 400
    a = p.step(p.start(batch_of(start, n)), torch.Generator().manual_seed(0)).frames
    b = p.step(p.start(batch_of(turned, n)), torch.Generator().manual_seed(1)).frames
    mean_a, mean_b = a.translations.mean(0) @ turn.T, b.translations.mean(0)
    error = (a.translations.std(0).norm() + b.translations.std(0).norm()) / n**0.5
    assert (mean_a - mean_b).abs().max() < 4 * error


def test_window_is_bounded(setting):
    model, tokens, start = setting
    p = propagator_of(model, tokens, context_frames=2)
    _, history = run(p, p.start(batch_of(start, 1)), 5)
    assert history.n_frames == 2 and history.dropped == 4
    assert history.times.tolist() == [400.0, 500.0]


def test_a_window_changes_nothing_until_it_is_full(setting):
    model, tokens, start = setting
    bounded, endless = (propagator_of(model, tokens, context_frames=frames) for frames in (3, 20))
    few, _ = run(bounded, bounded.start(batch_of(start, 1)), 4)
    many, _ = run(endless, endless.start(batch_of(start, 1)), 4)
    assert equal(few[:3], many[:3]) and not equal(few[3:], many[3:])


def test_a_foreign_history_is_refused(setting):
    model, tokens, start = setting
    p = propagator_of(model, tokens)
    _, history = run(p, p.start(batch_of(start, 1)), 2)
    mask = tokens.features.torsion_mask
    with pytest.raises(HistoryError, match="checkpoint of the same system"):
        History.unpack(history.pack(mask), mask[1:], history.times, history.dropped)


def test_a_packed_history_is_small_and_loses_nothing(setting):
    """Frames, reference and times come back to the last bit, in little more than ten numbers a residue and frame."""
    model, tokens, start = setting
    p, mask = propagator_of(model, tokens), tokens.features.torsion_mask
    _, history = run(p, p.start(batch_of(start, 1)), 3)
    vector = history.pack(mask)
    frames = history.n_frames + 1
    assert vector.numel() == History.packed_length(history.n_frames, mask)
    assert vector.numel() == frames * (7 * tokens.n_residues + int(mask.sum()))
    restored = History.unpack(vector, mask, history.times, history.dropped)
    for a, b in ((history.conformations, restored.conformations), (history.reference, restored.reference)):
        assert equal(a, b)
    assert torch.equal(restored.pack(mask), vector)
