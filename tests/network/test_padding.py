"""Laws of batches of different lengths, of sparse pair features and of the way back to the reference structure."""

from dataclasses import replace

import pytest
import torch

from openmm_starmd.diffusion.loss import context_inputs, denoising_loss, score_terms, structure_terms
from openmm_starmd.diffusion.process import Process
from openmm_starmd.geometry.rigid import Rigid, exponential
from openmm_starmd.network.config import NetworkConfig, ProcessConfig
from openmm_starmd.network.denoiser import Denoiser
from openmm_starmd.network.embedding import FrameInputs
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.displacement import Displacement, superposed
from openmm_starmd.protein.tokens import ResidueFeatures

SMALL = dict(blocks=2, width=32, pair_width=12, heads=2, query_points=2, value_points=2)
CONFIGS = {
    "all": NetworkConfig(**SMALL, pulls=True),
    "neighbours": NetworkConfig(
        **SMALL, pulls=True, neighbours=4, reference_structure=True, reversion=True, fluctuations=True, burial=True
    ),
    "elastic steps": NetworkConfig(**SMALL, reference_structure=True, reversion=True, burial=True, elastic_steps=True),
    "separable": NetworkConfig(**SMALL, joint_attention=False, attention_layers=2),
    "plain": NetworkConfig(**SMALL, parameterization="plain", reference_structure=True),
}
PROCESS = Process(ProcessConfig())


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def denoiser_of(config, seed=0):
    denoiser = Denoiser(config)
    with torch.no_grad():
        for p in denoiser.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=generator(seed)))
        denoiser.step_scales.copy_(0.05 + torch.rand(8, 9, generator=generator(seed)))
        if config.burial:
            denoiser.burial_scales.copy_(0.05 + torch.rand(8, 8, 9, generator=generator(seed)))
        if config.elastic_steps:
            denoiser.elastic_scales.fill_(0.02)
    return denoiser.double().eval()


def window(n, length=3, seed=1):
    """Features (1, N) and frames (1, L, N), double precision, that stay near each other."""
    g = generator(seed)
    end = torch.zeros(1, n, dtype=torch.long)
    mask = torch.rand(1, n, 6, generator=g) < 0.7
    period = torch.full((1, n, 6), 2 * torch.pi, dtype=torch.float64)
    types = torch.randint(20, (1, n), generator=g)
    features = ResidueFeatures(types, torch.arange(n)[None], end, end, end, mask, period)

    def drawn(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    x = (0.3 * drawn(1, 1, n, 3)).cumsum(2) + 0.05 * drawn(1, length, n, 3)
    rotations = exponential(drawn(1, 1, n, 3)) @ exponential(0.3 * drawn(1, length, n, 3))
    torsions = drawn(1, length, n, 6) * mask[:, None]
    angles = 1.96 + 0.05 * drawn(1, length, n)
    return features, Conformation(Rigid(rotations, x - x.mean(-2, keepdim=True)), torsions, angles)


def padded(x, n):
    """A tensor (B, L, N, ...) with rows of nonsense behind."""
    nonsense = 0.7 * torch.randn(*x.shape[:2], n - x.shape[2], *x.shape[3:], generator=generator(9), dtype=x.dtype)
    return torch.cat([x, nonsense], 2)


def padded_frames(frames, n):
    turns = exponential(padded(torch.zeros_like(frames.frames.translations), n))
    rotations = torch.cat([frames.frames.rotations, turns[:, :, frames.shape[2] :]], 2)
    translations = padded(frames.frames.translations, n)
    return Conformation(Rigid(rotations, translations), padded(frames.torsions, n), padded(frames.angles, n))


def terms_of(denoiser, features, frames, noisy, reference):
    strides = torch.full(frames.shape[:2], 80.0, dtype=torch.float64)
    time = torch.tensor([[0.3, 0.7]], dtype=torch.float64)
    alpha, sigma = PROCESS.alpha(time), PROCESS.sigma(time)
    context = context_inputs(frames[:, :-1], strides[:, :-1], PROCESS, reference[:, :-1])
    index = torch.tensor([1, 2])
    inputs = FrameInputs(noisy, frames[:, :-1], time, alpha, sigma, strides[:, 1:], index, reference[:, :-1])
    static = denoiser.static_inputs(features, reference[:, 0])
    estimate, unit, log_odds = denoiser(static, context, inputs)
    target = PROCESS.score_displacement(noisy, frames[:, 1:], alpha, sigma, features)
    terms = score_terms(estimate, target, unit, features, False)
    present = features.present_in(noisy.angles)
    return estimate, terms | structure_terms(estimate, noisy, frames[:, 1:], alpha, unit, present=present)


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_changes_nothing(name):
    """Estimates, loss terms and gradients of a molecule in a padded batch are those of the molecule alone."""
    denoiser = denoiser_of(CONFIGS[name])
    features, frames = window(6)
    reference = superposed(window(6, 1, seed=2)[1], frames)
    noisy = frames[:, 1:].map(lambda x: x.flip(1))
    alone, terms = terms_of(denoiser, features, frames, noisy, reference)
    sum(terms.values()).backward()
    gradients = {k: p.grad.clone() for k, p in denoiser.named_parameters() if p.grad is not None}
    denoiser.zero_grad()
    more = [padded_frames(x, 9) for x in (frames, noisy, reference)]
    beside, terms_beside = terms_of(denoiser, features.padded(9), *more)
    sum(terms_beside.values()).backward()
    for part in vars(alone):
        torch.testing.assert_close(getattr(beside, part)[:, :, :6], getattr(alone, part), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(terms_beside, terms)
    for key, p in denoiser.named_parameters():
        if key in gradients:
            torch.testing.assert_close(p.grad, gradients[key], rtol=1e-7, atol=1e-9)


class Listening:
    """A denoiser that remembers what it was given and what it answered."""

    def __init__(self, denoiser):
        self.denoiser, self.config, self.static_inputs = denoiser, denoiser.config, denoiser.static_inputs

    def __call__(self, static, context, noisy):
        self.given, self.answer = (static, context, noisy), self.denoiser(static, context, noisy)
        return self.answer


@pytest.mark.parametrize("name", CONFIGS)
def test_noisy_copies_behind_one_context_do_not_see_each_other(name):
    """Each of several copies of a frame is denoised as if it were alone, and has a noise level of its own."""
    heard = Listening(denoiser_of(CONFIGS[name]))
    features, frames = window(6)
    strides = torch.full((1, 3), 80.0, dtype=torch.float64)
    told = {"reference": frames if heard.config.reversion else None, "noise_draws": 3}
    _, terms = denoising_loss(heard, PROCESS, features, frames, strides, generator(), first=2, **told)
    static, context, noisy = heard.given
    assert len(set(noisy.time[0].tolist())) == 3 and torch.isfinite(torch.stack([*terms.values()])).all()
    for k in range(3):
        alone, _, _ = heard.denoiser(static, context, noisy.frame(k))
        for part, value in vars(alone).items():
            torch.testing.assert_close(getattr(heard.answer[0], part)[:, k : k + 1], value, rtol=1e-9, atol=1e-11)


def test_noise_of_a_padded_batch_is_centred_on_what_is_there():
    features, frames = window(6)
    clean = padded_frames(frames, 9)
    noise = PROCESS.noise(clean.angles, torch.full((1, 3, 4), 0.3), features.padded(9), generator())
    assert noise.translation[:, :, :6].sum(2).abs().max() < 1e-6 < noise.translation.sum(2).abs().max()


def test_superposition_finds_the_turn_and_passes_over_padding():
    features, frames = window(6)
    turn = exponential(torch.randn(1, 3, 1, 3, generator=generator(4), dtype=torch.float64))
    turned = Rigid(turn @ frames.frames.rotations, (turn @ frames.frames.translations[..., None])[..., 0])
    moved = Conformation(turned, frames.torsions, frames.angles)
    found = superposed(moved, frames)
    torch.testing.assert_close(found.frames.translations, frames.frames.translations)
    present = features.padded(9).present[:, None]
    found = superposed(padded_frames(moved, 9), padded_frames(frames, 9), present)
    torch.testing.assert_close(found.frames.rotations[:, :, :6], frames.frames.rotations)


def test_neighbours_of_all_residues_are_all_pairs():
    """Sparse pair features of as many neighbours as there are residues give what dense ones give."""
    dense, sparse = (denoiser_of(replace(CONFIGS["neighbours"], neighbours=n)) for n in (0, 5))
    features, frames = window(6)
    reference = superposed(window(6, 1, seed=2)[1], frames)
    given = features, frames, frames[:, 1:].map(lambda x: x.flip(1)), reference
    whole, nearest = (terms_of(d, *given)[0] for d in (dense, sparse))
    assert (whole.translation - nearest.translation).abs().max() > 1e-6
    sparse.config = replace(sparse.config, neighbours=6)
    atoms = frames.backbone()
    assert sparse._neighbours(atoms, None) is None  # so few are dense
    nearest = atoms[..., 1, :].new_zeros(1, 3, 6, 6).argsort(-1)
    monkey = lambda atoms, present: nearest[:, :1].expand(*atoms.shape[:3], 6)  # noqa: E731
    sparse._neighbours = monkey
    for part, value in vars(terms_of(sparse, *given)[0]).items():
        torch.testing.assert_close(value, getattr(whole, part), rtol=1e-8, atol=1e-10)


def test_an_untrained_way_back_changes_nothing():
    torch.manual_seed(0)
    config = NetworkConfig(**SMALL)
    plain, told = Denoiser(config), Denoiser(replace(config, reference_structure=True, reversion=True))
    told.load_state_dict(plain.state_dict(), strict=False)
    features, frames = window(6)
    given = features, frames, frames[:, 1:].map(lambda x: x.flip(1)), superposed(window(6, 1, seed=2)[1], frames)
    results = [terms_of(d.double(), *given)[0] for d in (plain, told)]
    for part, value in vars(results[0]).items():
        torch.testing.assert_close(value, getattr(results[1], part), rtol=1e-12, atol=1e-15)


def test_a_known_share_of_reversion_makes_the_best_estimate():
    """The posterior mean of a step that is normal about a point on the way back."""
    features, frames = window(5, 1)
    torch.manual_seed(0)
    denoiser = Denoiser(NetworkConfig(**SMALL, reference_structure=True, reversion=True)).double().eval()
    denoiser.step_scales.fill_(0.05)
    share, time = 0.4, torch.tensor([[0.2]], dtype=torch.float64)
    with torch.no_grad():
        denoiser.reversion.bias.fill_(share)
    delta = 0.02 * torch.randn(1, 1, 5, 3, generator=generator(3), dtype=torch.float64)
    delta = delta - delta.mean(-2, keepdim=True)
    start = frames.frames
    reference = replace(frames, frames=Rigid(start.rotations, start.translations + delta))
    sigma, one = PROCESS.sigma(time), torch.ones_like(time)
    conditioning = denoiser.time_conditioning(time, one, sigma, 80 * one)
    static = denoiser.static_inputs(features, reference[:, 0])
    conditions = denoiser.conditions(static, frames, conditioning, torch.tensor([1]), reference)
    found = denoiser.denoise(conditions, frames, denoiser.cache(1, 5, 1))
    noise = sigma[0, 0, 0] ** 2 / (sigma[0, 0, 0] ** 2 + 0.05**2)
    torch.testing.assert_close(found.translation, noise * share * delta, rtol=0.02, atol=1e-6)


def test_a_hidden_reference_is_not_known():
    """Without its reference structure a window has the loss of one that has another."""
    denoiser = denoiser_of(CONFIGS["neighbours"])
    features, frames = window(6)
    strides = torch.full((1, 3), 80.0, dtype=torch.float64)
    references = [superposed(window(6, 1, seed=s)[1], frames) for s in (2, 3)]

    def loss(reference, hidden):
        options = {"reference": reference, "hidden_references": hidden}
        return denoising_loss(denoiser, PROCESS, features, frames, strides, generator(5), **options)[0]

    assert torch.equal(loss(references[0], 1.0), loss(references[1], 1.0))
    assert not torch.isclose(loss(references[0], 0.0), loss(references[1], 0.0), rtol=1e-6)


def test_displacements_of_padded_residues_stay_finite():
    denoiser = denoiser_of(CONFIGS["neighbours"]).float()
    features = ResidueFeatures.stack([window(n)[0][0] for n in (6, 3)])
    one = Conformation(Rigid.identity((2, 3, 6)), torch.zeros(2, 3, 6, 6), torch.full((2, 3, 6), 2.0))
    loss, _ = denoising_loss(denoiser, PROCESS, features, one, torch.full((2, 3), 80.0), generator(), reference=one)
    loss.backward()
    gradients = [p.grad for p in denoiser.parameters() if p.grad is not None]
    assert torch.isfinite(loss) and all(torch.isfinite(g).all() for g in gradients)
    assert isinstance(PROCESS.noise(one.angles, torch.ones(2, 3, 4), features, generator()), Displacement)
