"""Laws of the denoiser: cached = block-causal, equivariance, causality, memory."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from openmm_starmd.diffusion.loss import context_inputs
from openmm_starmd.diffusion.process import Process
from openmm_starmd.geometry.rigid import Rigid, exponential
from openmm_starmd.geometry.torsions import measure_angle, measure_dihedral, wrap
from openmm_starmd.network import attention
from openmm_starmd.network.config import ModelConfig, NetworkConfig, paper, peptide
from openmm_starmd.network.denoiser import Denoiser
from openmm_starmd.network.embedding import FrameInputs
from openmm_starmd.network.invariants import BETA_CARBON, SIDE_CHAIN_ANGLE, SIDE_CHAIN_BOND, contact_points
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.tokens import ResidueFeatures

SMALL = dict(blocks=2, width=32, pair_width=12, heads=2, query_points=2, value_points=2)
CONFIGS = {
    "previous": NetworkConfig(**SMALL),
    "plain": NetworkConfig(**SMALL, parameterization="plain", reference_structure=True, attention_layers=2),
    "separable": NetworkConfig(**SMALL, joint_attention=False, attention_layers=2),
    "regression": NetworkConfig(**SMALL, parameterization="plain", torsions="regression"),
    "pulls": NetworkConfig(**SMALL, pulls=True),
}


def features(batch, n, generator):
    mask = torch.rand(batch, n, 6, generator=generator) < 0.7
    mask[..., 0] = False
    end = torch.zeros(batch, n, dtype=torch.long)
    n_end, c_end = end.clone(), end.clone()
    n_end[:, 0], c_end[:, -1] = 1, 1
    period = torch.full((batch, n, 6), 2 * torch.pi)
    types = torch.randint(20, (batch, n), generator=generator)
    return ResidueFeatures(types, torch.arange(n).expand(batch, n), end, n_end, c_end, mask, period)


def conformation(shape, generator, dtype=torch.float32):
    """Chains whose residues lie 0.38 nm apart, with random orientations."""
    rotations = exponential(torch.randn(*shape, 3, generator=generator, dtype=dtype))
    steps = 0.38 * torch.nn.functional.normalize(torch.randn(*shape, 3, generator=generator, dtype=dtype), dim=-1)
    translations = steps.cumsum(-2)
    translations = translations - translations.mean(-2, keepdim=True)
    torsions = torch.pi * (2 * torch.rand(*shape, 6, generator=generator, dtype=dtype) - 1)
    angles = 1.96 + 0.05 * torch.randn(*shape, generator=generator, dtype=dtype)
    return Conformation(Rigid(rotations, translations), torsions, angles)


def denoiser_of(name, seed=0, dtype=torch.float32):
    """Random weights everywhere, also where training starts from zero."""
    generator = torch.Generator().manual_seed(seed)
    denoiser = Denoiser(CONFIGS[name]).to(dtype)
    with torch.no_grad():
        for p in denoiser.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
        denoiser.step_scales.copy_(0.05 + torch.rand(8, 9, generator=generator))
    return denoiser.eval()


def process_of(name):
    return Process((paper() if CONFIGS[name].parameterization == "plain" else peptide()).process)


def noisy_inputs(process, copies, strides, features, generator, frames):
    time = torch.rand(strides[:, frames].shape, generator=generator).to(strides) * 0.9 + 0.05
    alpha, sigma = process.alpha(time), process.sigma(time)
    noisy = process.perturb(copies[:, frames], alpha, sigma, features, generator)
    previous = copies[:, [f - 1 for f in frames]]
    return FrameInputs(noisy, previous, time, alpha, sigma, strides[:, frames], torch.tensor(frames))


def setting(name, dtype=torch.float32, batch=2, length=4, n=5):
    generator = torch.Generator().manual_seed(1)
    process, feats = process_of(name), features(batch, n, generator)
    copies = conformation((batch, length, n), generator, dtype)
    copies = replace(copies, torsions=copies.torsions * feats.torsion_mask[:, None])
    strides = torch.tensor([[50.0, 10.0, 100.0, 400.0]], dtype=dtype).expand(batch, length)
    noisy = noisy_inputs(process, copies, strides, feats, generator, [1, 2, 3])
    return process, feats, copies, strides, noisy


def difference(a, b):
    return max((getattr(a, k) - getattr(b, k)).abs().max() for k in ("translation", "rotation", "torsion", "angle"))


def denoised(denoiser, static, noisy, cache):
    """One noisy frame (B, 1, N) behind its context."""
    conditioning = denoiser.time_conditioning(noisy.time, noisy.alpha, noisy.sigma, noisy.stride)
    conditions = denoiser.conditions(static, noisy.previous, conditioning, noisy.index)
    return denoiser.denoise(conditions, noisy.conformation, cache)


@pytest.mark.parametrize("name", CONFIGS)
def test_cached_rollout_equals_block_causal_pass(name):
    process, feats, copies, strides, noisy = setting(name)
    denoiser = denoiser_of(name)
    static = denoiser.static_inputs(feats, copies[:, 0])
    context = context_inputs(copies, strides, process)
    whole, *_ = denoiser(static, context, noisy)
    cache = denoiser.cache(2, 5, 4)
    for k in range(3):
        cache = denoiser.encode(static, context.frame(k), cache)
        single = denoised(denoiser, static, noisy.frame(k), cache)
        for part in ("translation", "rotation", "torsion", "angle"):
            expected, found = getattr(whole, part)[:, k], getattr(single, part)[:, 0]
            scale = expected.abs().max().clamp_min(1)
            assert (expected - found).abs().max() < 1e-5 * scale
    first = context_inputs(copies[:, :3], strides[:, :3], process)
    at_once = denoiser.encode(static, first, denoiser.cache(2, 5, 3))
    for a, b in ((at_once.keys, cache.keys), (at_once.values, cache.values)):
        torch.testing.assert_close(a, b[:, :, :, : a.shape[3]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-4), (torch.float64, 1e-11)])
def test_equivariance(name, dtype, tolerance):
    process, feats, copies, strides, noisy = setting(name, dtype)
    denoiser = denoiser_of(name, dtype=dtype)
    turn = exponential(torch.tensor([0.7, -1.1, 0.4], dtype=dtype))

    def turned(c):
        return replace(c, frames=Rigid(turn @ c.frames.rotations, c.frames.translations @ turn.T))

    def run(copies, noisy):
        static = denoiser.static_inputs(feats, copies[:, 0])
        return denoiser(static, context_inputs(copies, strides, process), noisy)[0]

    plain = run(copies, noisy)
    moved = replace(noisy, conformation=turned(noisy.conformation), previous=turned(noisy.previous))
    other = run(turned(copies), moved)
    expected = replace(plain, translation=plain.translation @ turn.T)
    size = max(1.0, float(plain.rotation.detach().abs().max()), float(plain.translation.detach().abs().max()))
    assert difference(expected, other) < tolerance * size


def test_translation_of_all_frames_changes_nothing():
    """The process and the propagator centre every frame; what the network itself sees is relative too."""
    process, feats, copies, strides, noisy = setting("previous", torch.float64)
    denoiser = denoiser_of("previous", dtype=torch.float64)
    shift = torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64)

    def shifted(c):
        return replace(c, frames=Rigid(c.frames.rotations, c.frames.translations + shift))

    def run(copies, noisy):
        return denoiser(denoiser.static_inputs(feats), context_inputs(copies, strides, process), noisy)[0]

    moved = replace(noisy, conformation=shifted(noisy.conformation), previous=shifted(noisy.previous))
    assert difference(run(copies, noisy), run(shifted(copies), moved)) < 1e-10


def test_no_frame_sees_the_future():
    process, feats, copies, strides, noisy = setting("previous")
    denoiser = denoiser_of("previous")
    static = denoiser.static_inputs(feats)
    before, *_ = denoiser(static, context_inputs(copies, strides, process), noisy)
    changed = copies.map(lambda x: torch.cat([x[:, :2], x[:, 2:].flip(1)], 1))
    after, *_ = denoiser(static, context_inputs(changed, strides, process), noisy)
    assert difference_at(before, after, 0) == difference_at(before, after, 1) == 0
    assert difference_at(before, after, 2) > 1e-3


def difference_at(a, b, k):
    return float((a.torsion[:, k] - b.torsion[:, k]).abs().max())


def test_stride_and_noise_level_matter():
    process, feats, copies, strides, noisy = setting("previous")
    denoiser = denoiser_of("previous")
    static, context = denoiser.static_inputs(feats), context_inputs(copies, strides, process)
    base, *_ = denoiser(static, context, noisy)
    other, *_ = denoiser(static, context, replace(noisy, stride=2 * noisy.stride))
    assert difference(base, other) > 1e-3


def test_untrained_previous_denoiser_returns_its_baseline():
    """With zero heads the estimate is the posterior mean between noisy and previous frame."""
    process, feats, copies, strides, noisy = setting("previous")
    denoiser = Denoiser(CONFIGS["previous"])
    denoiser.step_scales.fill_(1e-6)
    delta, *_ = denoiser(denoiser.static_inputs(feats), context_inputs(copies, strides, process), noisy)
    expected = noisy.previous.frames.translations - noisy.conformation.frames.translations
    torch.testing.assert_close(delta.translation, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_conditions_of_all_times_are_those_of_each(name):
    """One frame denoised at three times: what is computed for all of them beforehand serves each."""
    process, feats, copies, strides, noisy = setting(name)
    denoiser, frame = denoiser_of(name), noisy.frame(0)
    static = denoiser.static_inputs(feats, copies[:, 0])
    cache = denoiser.encode(static, context_inputs(copies, strides, process).frame(0), denoiser.cache(2, 5, 2))
    times = torch.tensor([[0.9, 0.5, 0.1]])
    levels = times, process.alpha(times), process.sigma(times), torch.full_like(times, 50.0)
    together = denoiser.conditions(static, frame.previous, denoiser.time_conditioning(*levels), frame.index)
    for k in range(3):
        of_time = dict(zip(("time", "alpha", "sigma", "stride"), (x[:, k : k + 1] for x in levels), strict=True))
        single = replace(frame, **of_time)
        expected = denoised(denoiser, static, single, cache)
        assert difference(expected, denoiser.denoise(together.at(torch.tensor([k])), frame.conformation, cache)) < 1e-5


def test_cache_memory():
    config = NetworkConfig(**SMALL, attention_layers=2)
    denoiser, generator = Denoiser(config), torch.Generator().manual_seed(0)
    feats, copies = features(3, 7, generator), conformation((3, 6, 7), generator)
    inputs = context_inputs(copies, torch.full((3, 6), 100.0), Process(peptide().process))
    cache = denoiser.encode(denoiser.static_inputs(feats), inputs, denoiser.cache(3, 7, 6))
    layers = config.blocks * config.attention_layers
    assert cache.nbytes == 2 * layers * 3 * 7 * 6 * config.width * 4
    with pytest.raises(ValueError, match="room for 6 frames, but 7 are needed"):
        denoiser.encode(denoiser.static_inputs(feats), inputs.frame(0), cache)


def test_long_contexts_are_kept_in_half_precision():
    """Of one replica and of many alike; 1000 residues and 800 frames at paper size take at most 6.6 GB."""
    denoiser = Denoiser(paper().network).to("meta")
    assert 6.5e9 < denoiser.cache(1, 1000, 800).nbytes < 6.6e9
    for batch in (1, 64):
        assert denoiser.cache(batch, 39, 9).keys.dtype == torch.float32
        assert denoiser.cache(batch, 300, 64).keys.dtype == torch.bfloat16


def test_half_precision_of_keys_and_values_changes_little(monkeypatch):
    """Paper size: cached = uncached within 0.5 % of the output, and 3 % of what other context frames would change."""
    n, length, config = 24, 6, paper()
    denoiser, process, generator = Denoiser(config.network).eval(), Process(config.process), torch.Generator()
    with torch.no_grad():
        for name, p in denoiser.named_parameters():  # residues move by little, or the network is chaotic
            step = 0.1 if "update" in name else 1.0
            p.copy_(step * torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5)
    feats = features(1, n, generator)
    copies, others = (conformation((1, length, n), generator) for _ in range(2))
    strides = torch.full((1, length), 100.0)
    noisy = noisy_inputs(process, copies, strides, feats, generator, [length - 1])
    static = denoiser.static_inputs(feats, copies[:, 0])
    uncached, changed = (denoiser(static, context_inputs(c, strides, process), noisy)[0] for c in (copies, others))
    monkeypatch.setattr(attention, "HALF_ABOVE", 0)
    cache = denoiser.cache(1, n, length)
    for k in range(length - 1):
        cache = denoiser.encode(static, context_inputs(copies, strides, process).frame(k), cache)
    cached = denoised(denoiser, static, noisy, cache)
    for part in ("translation", "rotation", "torsion", "angle"):
        found, expected, other = (getattr(x, part) for x in (cached, uncached, changed))
        error = (found - expected).norm()
        assert error < 0.005 * expected.norm() and error < 0.03 * (other - expected).norm(), part


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_contact_points_keep_bond_lengths_angles_and_dihedrals(dtype):
    c = conformation((3, 4), torch.Generator().manual_seed(4), dtype)
    points = contact_points(c)
    torch.testing.assert_close(points[..., :3, :], c.backbone())
    offset = points.new_tensor(BETA_CARBON)
    torch.testing.assert_close(points[..., 3, :], c.frames.apply(offset.expand(3, 4, 3)))
    chain = [points[..., k, :] for k in (0, 1, 3, 4, 5, 6, 7)]
    for k in range(4):
        a, b, x, y = chain[k : k + 4]
        torch.testing.assert_close((y - x).norm(dim=-1), torch.full((3, 4), SIDE_CHAIN_BOND, dtype=dtype))
        torch.testing.assert_close(measure_angle(b, x, y), torch.full((3, 4), SIDE_CHAIN_ANGLE, dtype=dtype))
        off = wrap(measure_dihedral(a, b, x, y) - c.torsions[..., 2 + k])
        assert off.abs().max() < (1e-4 if dtype == torch.float32 else 1e-10)


def test_configurations_validate_themselves():
    with pytest.raises(ValueError, match="multiple of 4"):
        NetworkConfig(width=100, heads=8)
    with pytest.raises(ValueError, match="geometric schedule"):
        ModelConfig(process=paper().process)
    for config in (peptide(), paper()):
        assert ModelConfig.from_dict(config.to_dict()) == config


@pytest.mark.slow
def test_paper_size_runs_within_four_gib():
    """N = 300, L = 64 on a CPU: one context frame is encoded and one denoised behind 63 cached; peak memory."""
    pytest.importorskip("resource")
    code = """
import sys, resource, torch
sys.path[:0] = sys.argv[1].split(":")
from test_denoiser import features, conformation
from openmm_starmd.diffusion.loss import context_inputs
from openmm_starmd.diffusion.process import Process
from dataclasses import replace
from openmm_starmd.network.config import paper
from openmm_starmd.network.denoiser import Denoiser
config = paper()
denoiser, process = Denoiser(config.network), Process(config.process)
g = torch.Generator().manual_seed(0)
n, length = 300, 64
feats = features(1, n, g)
with torch.inference_mode():
    one = conformation((1, 1, n), g)
    static = denoiser.static_inputs(feats, one[:, 0])
    cache = denoiser.cache(1, n, length)
    for x in (cache.keys, cache.values):
        x.normal_(generator=g)
    cache = replace(cache, n_frames=length - 2)
    stride = torch.full((1, 1), 100.0)
    inputs = replace(context_inputs(one, stride, process), index=torch.tensor([length - 2]))
    cache = denoiser.encode(static, inputs, cache)
    time = torch.full((1, 1), 0.5)
    levels = time, process.alpha(time), process.sigma(time), stride
    conditions = denoiser.conditions(static, one, denoiser.time_conditioning(*levels), torch.tensor([length - 1]))
    delta = denoiser.denoise(conditions, one, cache)
layers = config.network.blocks * config.network.attention_layers
assert cache.nbytes == 2 * layers * n * length * config.network.width * 2
assert torch.isfinite(delta.rotation).all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    path = ":".join([str(Path(__file__).parent), *filter(None, sys.path)])
    env = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 4 * 2**30


def test_untrained_pulls_change_nothing():
    process, feats, copies, strides, noisy = setting("previous")
    without, with_pulls = denoiser_of("previous"), Denoiser(CONFIGS["pulls"])
    with_pulls.load_state_dict(with_pulls.state_dict() | without.state_dict())
    context = context_inputs(copies, strides, process)
    results = [d(d.static_inputs(feats, copies[:, 0]), context, noisy)[0] for d in (without, with_pulls)]
    assert difference(*results) < 1e-7
