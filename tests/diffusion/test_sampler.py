"""With the exact score of a known target both samplers reproduce it (6 sigma, 4,096 samples)."""

import math
from dataclasses import replace
from operator import attrgetter

import pytest
import torch

from openmm_starmd.diffusion.denoising_state import PackedConformation
from openmm_starmd.diffusion.process import Process
from openmm_starmd.diffusion.sampler import Ancestral, EulerMaruyama, Multistep
from openmm_starmd.geometry import igso3
from openmm_starmd.geometry.rigid import Rigid, exponential, logarithm
from openmm_starmd.geometry.torsions import wrap, wrapped_normal_score
from openmm_starmd.network.config import paper, peptide
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.displacement import Displacement
from openmm_starmd.protein.tokens import ResidueFeatures

SAMPLES, RESIDUES = 2048, 2
SPREAD = {"translation": 0.3, "rotation": 0.5, "torsion": 0.6, "angle": 0.1}


class Churned(Ancestral):
    churn, grid = 2.5, 1.5


class Deterministic(Multistep):
    churn, grid = 0.0, 0.7


SETTINGS = [
    (EulerMaruyama, paper(), 200),
    (EulerMaruyama, peptide(), 200),
    (Ancestral, peptide(), 200),
    (Multistep, peptide(), 20),
    (Multistep, paper(), 100),
    (Churned, peptide(), 200),
    (Deterministic, peptide(), 200),
]


def two_residues(batch):
    zero = torch.zeros(batch, RESIDUES, dtype=torch.long)
    mask = torch.ones(batch, RESIDUES, 6, dtype=torch.bool)
    return ResidueFeatures(zero, zero, zero, zero, zero, mask, torch.full((batch, RESIDUES, 6), 2 * math.pi))


class Target:
    """Independent normal translations (of two centred residues), IGSO(3) rotations and wrapped normal torsions."""

    def __init__(self, process):
        self.process = process
        generator = torch.Generator().manual_seed(5)
        half = torch.tensor([0.2, -0.1, 0.05], dtype=torch.float64)
        self.translation = torch.stack([half, -half])
        self.rotation = exponential(torch.randn(RESIDUES, 3, generator=generator, dtype=torch.float64))
        self.torsion, self.angle = torch.tensor([3.0, -2.0, 1.0, 0.0, 2.5, -1.0]).double(), 1.95

    def denoise(self, noisy, t):
        p, (st, sr, sx, sa) = self.process, self.process.sigma(t)
        alpha = p.alpha(t)
        vt, vr, vx, va = (SPREAD[k] ** 2 for k in ("translation", "rotation", "torsion", "angle"))
        rotvec = logarithm(self.rotation.transpose(-1, -2) @ noisy.frames.rotations)
        level = (sr**2 + vr).sqrt().expand(noisy.shape)
        spread = (sx**2 + vx).sqrt()
        return Displacement(
            (alpha * self.translation - noisy.frames.translations) * st**2 / (st**2 + alpha**2 * vt),
            -(sr**2) / level[..., None] ** 2 * igso3.tangent(rotvec, level),
            sx**2 * wrapped_normal_score(noisy.torsions - self.torsion, spread),
            (self.angle - noisy.angles) * sa**2 / (sa**2 + va),
        )


@pytest.mark.parametrize(("sampler", "config", "steps"), SETTINGS, ids=lambda x: getattr(x, "__name__", None))
@pytest.mark.slow
def test_exact_score_gives_the_target(sampler, config, steps):
    process = Process(config.process)
    target, features = Target(process), two_residues(SAMPLES)
    generator = torch.Generator().manual_seed(3)
    frames = Rigid.identity((SAMPLES, RESIDUES), dtype=torch.float64)
    start = Conformation(
        Rigid(target.rotation.expand(SAMPLES, -1, -1, -1), target.translation.expand(SAMPLES, -1, -1)),
        target.torsion.expand(SAMPLES, RESIDUES, 6),
        frames.translations[..., 0] + target.angle,
    )
    spread = process.sigma(torch.ones((), dtype=torch.float64))
    if config.process.schedule == "paper":
        start = process.origin(start)
        start = Conformation(
            Rigid(target.rotation @ start.frames.rotations, start.frames.translations), start.torsions, start.angles
        )
    else:
        known = torch.tensor([SPREAD[k] for k in ("translation", "rotation", "torsion", "angle")]).double()
        spread = (spread**2 + known**2).sqrt()
    sampler = sampler(process, steps)
    times = sampler.times()
    x = sampler.sample(start, spread, lambda noisy, k: target.denoise(noisy, times[k]), features, generator)

    # of two centred residues only the difference is free
    n = SAMPLES
    apart = (x.frames.translations[:, 0] - x.frames.translations[:, 1]) / math.sqrt(2)
    expected = (target.translation[0] - target.translation[1]) / math.sqrt(2)
    variance = SPREAD["translation"] ** 2
    assert ((apart.mean(0) - expected).abs() < 6 * math.sqrt(variance / n)).all()
    assert ((apart.var(0) / variance - 1).abs() < 6 * math.sqrt(2 / n)).all()

    rotvec = logarithm(target.rotation.transpose(-1, -2) @ x.frames.rotations).flatten(0, 1)
    normal = torch.randn(50_000, 3, generator=generator, dtype=torch.float64)
    exact = igso3.from_normal(torch.full((50_000,), SPREAD["rotation"], dtype=torch.float64), normal)
    assert (rotvec.mean(0).abs() < 6 * exact.std() / math.sqrt(2 * n)).all()
    second, reference = rotvec.square().sum(-1), exact.square().sum(-1)
    assert (second.mean() - reference.mean()).abs() < 6 * reference.std() / math.sqrt(2 * n)

    z = wrap(x.torsions - target.torsion).flatten(0, 1)
    resultant = math.exp(-(SPREAD["torsion"] ** 2) / 2)
    error = math.sqrt((1 + resultant**4 - 2 * resultant**2) / 2 / (2 * n))
    assert ((z.cos().mean(0) - resultant).abs() < 6 * error).all()
    assert (z.sin().mean(0).abs() < 6 * math.sqrt((1 - resultant**4) / 2 / (2 * n))).all()

    angles = x.angles.flatten()
    assert (angles.mean() - target.angle).abs() < 6 * SPREAD["angle"] / math.sqrt(2 * n)
    assert (angles.var() / SPREAD["angle"] ** 2 - 1).abs() < 6 * math.sqrt(1 / n)


@pytest.mark.parametrize("sampler", [EulerMaruyama, Multistep])
def test_a_known_residue_stays_and_the_other_is_distributed_about_it(sampler):
    """The known one lies 0.5 nm off: the other keeps its distribution, seen from there."""
    process, n = Process(paper().process), SAMPLES // 2
    target, features = Target(process), two_residues(n)
    off = torch.tensor([0.3, 0.2, -0.4], dtype=torch.float64)
    frames = Rigid(target.rotation.expand(n, -1, -1, -1), (target.translation + off).expand(n, -1, -1))
    angles = torch.full((n, RESIDUES), target.angle, dtype=torch.float64)
    known = Conformation(frames, target.torsion.expand(n, RESIDUES, 6), angles)
    origin = process.origin(known)
    origin = Conformation(
        Rigid(target.rotation @ origin.frames.rotations, origin.frames.translations), origin.torsions, angles
    )
    spread, sampler = process.sigma(torch.ones((), dtype=torch.float64)), sampler(process, 100)
    times, mask = sampler.times(), torch.tensor([True, False]).expand(n, -1)
    generator = torch.Generator().manual_seed(3)
    given = origin, spread, lambda noisy, k: target.denoise(noisy, times[k]), features, generator
    x = sampler.sample(*given, (known, mask))

    for part in ("frames.translations", "frames.rotations", "torsions", "angles"):
        reached, wanted = (attrgetter(part)(c)[:, 0] for c in (x, known))
        torch.testing.assert_close(reached, wanted, atol=1e-6, rtol=0)
    between = (x.frames.translations - known.frames.translations)[:, 1]  # as far as it should be, on the mean
    variance = 2 * SPREAD["translation"] ** 2
    assert (between.mean(0).abs() < 6 * math.sqrt(variance / n)).all()
    assert ((between.var(0) / variance - 1).abs() < 6 * math.sqrt(2 / n)).all()
    z, resultant = wrap(x.torsions - target.torsion)[:, 1], math.exp(-(SPREAD["torsion"] ** 2) / 2)
    error = math.sqrt((1 + resultant**4 - 2 * resultant**2) / 2 / n)
    assert ((z.cos().mean(0) - resultant).abs() < 6 * error).all()
    assert abs(x.angles[:, 1].mean() - target.angle) < 6 * SPREAD["angle"] / math.sqrt(n)


def test_calls_of_the_reference_sampler():
    process = Process(paper().process)
    times = EulerMaruyama(process, 200).times()
    assert len(times) == 199 and times[0] == 1 and times[-1] > 0.01


def begun(sampler, features):
    """Coefficients, and the state before the first, from noise about residues at rest."""
    batch = len(features.residue_type)
    frames = Rigid.identity((batch, RESIDUES), dtype=torch.float64)
    origin = Conformation(frames, torch.zeros(batch, RESIDUES, 6).double(), frames.translations[..., 0] + 1.95)
    spread = sampler.process.sigma(torch.ones((), dtype=torch.float64))
    return sampler.begin(origin, spread, features, torch.Generator().manual_seed(4))


class OneStep(Ancestral):
    churn, grid = Multistep.churn, Multistep.grid


@pytest.mark.parametrize("config", [paper(), peptide()], ids=["paper", "peptide"])
def test_where_the_answer_is_always_the_same_one_step_is_as_good_as_two(config):
    """The last answer, grown to the present level, is the present one: nothing to extrapolate."""
    process = Process(config.process)
    target, features = Target(process), two_residues(64)

    def places(sampler):
        times = sampler.times()

        def denoise(noisy, k):
            return Displacement(
                process.alpha(times[k]) * target.translation - noisy.frames.translations,
                logarithm(noisy.frames.rotations.transpose(-1, -2) @ target.rotation),
                wrap(target.torsion - noisy.torsions),
                target.angle - noisy.angles,
            )

        coefficients, state = begun(sampler, features)
        found = []
        for k in range(len(times)):
            state = sampler.step(coefficients, state, denoise(state.x.conformation(), k))
            found.append(state.x)
        return found

    for a, b in zip(places(OneStep(process, 6)), places(Multistep(process, 6)), strict=True):
        torch.testing.assert_close(a.rotations, b.rotations)
        torch.testing.assert_close(a.flat, b.flat)


def test_a_move_asks_neither_for_whole_turns_of_torsions_nor_for_a_shift_of_all():
    process, generator = Process(peptide().process), torch.Generator().manual_seed(5)
    sampler, features = Multistep(process, 6), two_residues(64)
    shape = 64, RESIDUES
    random = [torch.randn(*shape, n, generator=generator, dtype=torch.float64) for n in (3, 3, 6, 1)]
    delta = Displacement(*random[:3], random[3][..., 0])
    coefficients, state = begun(sampler, features)
    state = sampler.step(coefficients, state, delta)
    turned = state.denoised.flat.clone()
    turned[..., 3:9] += 2 * math.pi * torch.randint(-2, 3, (*shape, 6), generator=generator)
    one, other = (
        sampler.step(coefficients, replace(state, denoised=PackedConformation(state.denoised.rotations, flat)), delta)
        for flat in (state.denoised.flat, turned)
    )
    torch.testing.assert_close(one.x.flat, other.x.flat)
    translations = one.x.conformation().frames.translations
    torch.testing.assert_close(translations.mean(-2), torch.zeros_like(translations[:, 0]))


@pytest.mark.parametrize(
    "sampler", [EulerMaruyama(Process(paper().process), 2), Multistep(Process(peptide().process), 1)]
)
def test_a_single_call_leads_to_its_answer(sampler):
    features = two_residues(64)
    coefficients, state = begun(sampler, features)
    zero = torch.zeros(64, RESIDUES, 3, dtype=torch.float64)
    delta = Displacement(zero, zero, torch.full((64, RESIDUES, 6), 0.25).double(), zero[..., 0])
    assert len(coefficients.numbers) == 1
    x = sampler.step(coefficients, state, delta).x
    torch.testing.assert_close(x.flat[..., 3:9], state.x.flat[..., 3:9] + 0.25)
    torch.testing.assert_close(x.rotations, state.x.rotations)
