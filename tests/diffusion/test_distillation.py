"""Distillation with stand-ins for the three denoisers, whose answers are known in closed form, and with real ones."""

import math

import pytest
import torch
from torch import nn

from openmm_starmd.diffusion.distillation import Distillation, distillation_loss
from openmm_starmd.diffusion.loss import LossWeights, denoising_loss
from openmm_starmd.diffusion.process import Process
from openmm_starmd.diffusion.sampler import Ancestral
from openmm_starmd.geometry.rigid import Rigid, exponential, logarithm
from openmm_starmd.network.config import NetworkConfig, ProcessConfig, paper
from openmm_starmd.network.denoiser import Denoiser
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.displacement import Displacement
from openmm_starmd.protein.tokens import ResidueFeatures

N = 2


def residues(batch):
    zero = torch.zeros(batch, N, dtype=torch.long)
    mask = torch.ones(batch, N, 6, dtype=torch.bool)
    return ResidueFeatures(zero, zero, zero, zero, zero, mask, torch.full((batch, N, 6), 2 * math.pi))


def windows(conformation, batch):
    """Features, windows of two equal frames and strides."""
    window = conformation.map(lambda x: x.expand(batch, 2, *x.shape))
    return residues(batch), window, torch.full((batch, 2), 100.0)


def point(seed):
    """A conformation of two residues, centred."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.1 * torch.randn(N, 3, generator=generator)
    rotations = exponential(0.6 * torch.randn(N, 3, generator=generator))
    angles = 1.96 + 0.05 * torch.randn(N, generator=generator)
    return Conformation(Rigid(rotations, x - x.mean(0)), 0.6 * torch.randn(N, 6, generator=generator), angles)


def units(like):
    """The noise levels as a displacement, such as `Denoiser` returns."""
    s = like.sigma[..., None, :]
    return Displacement(s[..., :1], s[..., 1:2], s[..., 2:3], s[..., 3])


class Constant(nn.Module):
    """Answers with one conformation, whatever it is asked."""

    def __init__(self, answer, process):
        super().__init__()
        self.x, self.torsions, self.angles = map(
            nn.Parameter, (answer.frames.translations, answer.torsions, answer.angles)
        )
        self.turn, self.process = nn.Parameter(logarithm(answer.frames.rotations)), process

    def answer(self):
        x = self.x - self.x.mean(0)
        return Conformation(Rigid(exponential(self.turn), x), self.torsions, self.angles)

    def static_inputs(self, *_):
        return None

    def forward(self, static, context, noisy):
        answer = self.answer().map(lambda x: x.expand(*noisy.conformation.angles.shape[:2], *x.shape))
        delta = Displacement.between(noisy.conformation, answer, torch.tensor(2 * math.pi))
        shrunk = noisy.alpha[..., None, None] * answer.frames.translations - noisy.conformation.frames.translations
        return Displacement(shrunk, delta.rotation, delta.torsion, delta.angle), units(noisy), None


def both_of(student, follower):
    both = Distillation.__new__(Distillation)
    nn.Module.__init__(both)
    both.student, both.follower = student, follower
    return both


def apart(a, b):
    """How far two conformations are from each other, part by part."""
    delta = Displacement.between(a, b, torch.tensor(2 * math.pi))
    return [float(x.detach().abs().max()) for x in (delta.translation, delta.rotation, delta.torsion, delta.angle)]


@pytest.mark.parametrize("process", [ProcessConfig(), paper().process], ids=["geometric", "paper"])
@pytest.mark.slow
def test_who_answers_with_one_conformation_comes_to_that_of_the_teacher(process):
    """Student and follower start from another one, far away on all four parts."""
    process, goal = Process(process), point(1)
    teacher, both = Constant(goal, process), both_of(Constant(point(2), process), Constant(point(2), process))
    assert min(apart(both.student.answer(), goal)) > 0.02
    optimizer = torch.optim.Adam(both.parameters(), 0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    sampler, data, generator = Ancestral(process, 3), windows(goal, 16), torch.Generator().manual_seed(0)
    for _ in range(200):
        optimizer.zero_grad()
        distillation_loss(both, teacher, sampler, *data, generator)[0].backward()
        optimizer.step()
        schedule.step()
    assert max(apart(both.student.answer(), goal)) < 0.02 and max(apart(both.follower.answer(), goal)) < 0.02


class Linear(nn.Module):
    """Of the N-CA-C angle alone: its distance from 1.96 times a polynomial of diffusion time."""

    def __init__(self, rows):
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows))

    def static_inputs(self, *_):
        return None

    def forward(self, static, context, noisy):
        powers = torch.stack([noisy.time**k for k in range(len(self.rows))], -1)
        angle = (powers @ self.rows)[..., None] * (noisy.conformation.angles - 1.96)
        zero = noisy.conformation.frames.translations * 0
        return Displacement(zero, zero, torch.zeros_like(noisy.conformation.torsions), angle), units(noisy), None


class Exact(Linear):
    """Of a normal distribution of that angle with this variance."""

    def __init__(self, process, variance):
        super().__init__([0.0])
        self.process, self.variance = process, variance

    def forward(self, static, context, noisy):
        level = self.process.sigma(noisy.time)[..., 3].square()
        angle = (-level / (level + self.variance))[..., None] * (noisy.conformation.angles - 1.96)
        delta, unit, log_odds = super().forward(static, context, noisy)
        return Displacement(delta.translation, delta.rotation, delta.torsion, angle), unit, log_odds


def sampled_variance(denoiser, sampler, variance, batch=4_000):
    """Of the angle, where a sampler calls a denoiser, from the noise of a normal distribution of this variance."""
    process, generator = sampler.process, torch.Generator().manual_seed(3)
    like = point(0).map(lambda x: x.expand(batch, *x.shape))
    angles = 1.96 + variance**0.5 * torch.randn(like.angles.shape, generator=generator)
    start = Conformation(like.frames, like.torsions, angles)
    spread, times = process.sigma(torch.ones(())), sampler.times().float()

    def denoise(noisy, k):
        time = times[k].expand(batch, 1)
        asked = type("Asked", (), {})()
        asked.conformation, asked.time = noisy.map(lambda x: x[:, None]), time
        asked.alpha, asked.sigma = process.alpha(time), process.sigma(time)
        delta = denoiser(None, None, asked)[0]
        return Displacement(delta.translation[:, 0], delta.rotation[:, 0], delta.torsion[:, 0], delta.angle[:, 0])

    return float(sampler.sample(start, spread, denoise, residues(batch), generator).angles.detach().var())


@pytest.mark.slow
def test_two_calls_of_a_student_have_the_spread_that_two_calls_of_its_teacher_have_not():
    """A normal distribution as wide as half of the noise; two calls of its exact denoiser make one too narrow."""
    process = Process(ProcessConfig(angle=(0.01, 0.12)))
    variance, sampler = 0.06**2, Ancestral(process, 2)
    teacher = Exact(process, variance)
    assert sampled_variance(teacher, Ancestral(process, 50), variance) == pytest.approx(variance, rel=0.1)
    assert sampled_variance(teacher, sampler, variance) < 0.5 * variance

    both = both_of(Linear([0.0, 0.0]), Linear([0.0, 0.0, 0.0, 0.0, 0.0]))
    optimizer = torch.optim.Adam(both.parameters(), 0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    generator = torch.Generator().manual_seed(0)
    features, window, strides = windows(point(1), 256)
    for _ in range(300):
        angles = 1.96 + variance**0.5 * torch.randn(window.angles.shape, generator=generator)
        data = features, Conformation(window.frames, window.torsions, angles), strides
        optimizer.zero_grad()
        only = LossWeights(translation=0.0, rotation=0.0, torsion=0.0, angle=1.0)
        distillation_loss(both, teacher, sampler, *data, generator, only)[0].backward()
        optimizer.step()
        schedule.step()
    assert sampled_variance(both.student, sampler, variance) == pytest.approx(variance, rel=0.1)


class Turned(nn.Module):
    """Answers with one rotation vector in the axes of every residue, and remembers what it was asked."""

    def __init__(self, rotation):
        super().__init__()
        self.rotation = nn.Parameter(rotation)

    def static_inputs(self, *_):
        return None

    def forward(self, static, context, noisy):
        self.asked, x = noisy, noisy.conformation
        zero = torch.zeros_like(x.frames.translations)
        return Displacement(zero, zero + self.rotation, 0 * x.torsions, 0 * x.angles), units(noisy), None


def test_a_residue_turns_in_space_as_the_teacher_would_turn_it_after_more_noise():
    """The answer and what it is noised to have other axes."""
    batch, turn = 16, torch.tensor([0.1, -0.3, 0.2])
    student, teacher = Turned(torch.zeros(batch, 1, N, 3)), Turned(turn)
    both, sampler = both_of(student, Turned(torch.zeros(3))), Ancestral(Process(ProcessConfig()), 2)
    distillation_loss(both, teacher, sampler, *windows(point(1), batch), torch.Generator().manual_seed(0))[0].backward()
    first = student.asked.time[:, 0] == 1
    assert 3 < first.sum() < 13
    before, after = (x.asked.conformation.frames.rotations[first, 0] for x in (student, teacher))
    turns = torch.stack([before @ -student.rotation.grad[first, 0][..., None], after @ turn[:, None]])[..., 0]
    torch.testing.assert_close(*torch.nn.functional.normalize(turns, dim=-1), atol=1e-4, rtol=0)


def test_a_student_turns_down_the_steepest_slope_however_far_it_has_to_turn():
    """The slope of the squared angles that are left; one wide turn's axes are not those of the residue."""
    batch, turn, step = 16, torch.tensor([0.1, -0.3, 0.2]), 1e-4
    delta = torch.randn(batch, 1, N, 3, generator=torch.Generator().manual_seed(1))
    delta = torch.nn.functional.normalize(delta, dim=-1)
    student, teacher = Turned(2.5 * delta), Turned(turn)
    both, sampler = both_of(student, Turned(torch.zeros(3))), Ancestral(Process(ProcessConfig()), 2)
    only = LossWeights(translation=0.0, torsion=0.0, angle=0.0, distance_map=0.0)
    given = *windows(point(1), batch), torch.Generator().manual_seed(0)
    distillation_loss(both, teacher, sampler, *given, only)[0].backward()
    first = student.asked.time[:, 0] == 1
    before, after = (x.asked.conformation.frames.rotations[first, 0].double() for x in (student, teacher))
    delta, gradient = (x[first, 0].double() for x in (student.rotation.detach(), student.rotation.grad))
    levels = [x.asked.sigma[first, 0, 1].double() for x in (student, teacher)]
    answer = before @ exponential(delta)
    pull = answer.transpose(-1, -2) @ after @ turn.double()
    goal = answer @ exponential(pull)

    def left(delta):
        angles = logarithm((before @ exponential(delta)).transpose(-1, -2) @ goal).square().sum((-1, -2))
        return (angles / (levels[0] * levels[1])).sum() / (batch * N * 3)

    slope = (left(delta + step * gradient) - left(delta - step * gradient)) / (2 * step)
    assert float(slope) == pytest.approx(float(gradient.square().sum()), rel=1e-3)


CONFIG = NetworkConfig(blocks=1, width=32, pair_width=8, heads=2, query_points=1, value_points=1)


def denoiser_of(seed):
    generator, denoiser = torch.Generator().manual_seed(seed), Denoiser(CONFIG)
    with torch.no_grad():
        for p in denoiser.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=generator))
        denoiser.step_scales.fill_(0.2)
    return denoiser


def gradients(module):
    return [p.grad for p in module.parameters() if p.grad is not None and p.grad.abs().sum() > 0]


def test_student_and_follower_learn_from_their_own_terms_and_the_teacher_from_none():
    teacher, both = denoiser_of(1).requires_grad_(False), Distillation(denoiser_of(2))
    given = teacher, Ancestral(Process(ProcessConfig()), 3), *windows(point(1), 8)
    terms = dict.fromkeys(("translation", "rotation", "torsion", "angle", "distance_map", "rotamers"), 0.0)
    loss, parts = distillation_loss(
        both, *given, torch.Generator().manual_seed(0), LossWeights(**terms | {"rotamers": 1.0})
    )
    loss.backward()
    assert gradients(both.follower) and not gradients(both.student) and not gradients(teacher)
    assert loss.item() == pytest.approx(float(parts["rotamers"]))

    weights = LossWeights(**terms | {"torsion": 1.0})
    loss, parts = distillation_loss(both, *given, torch.Generator().manual_seed(0), weights)
    assert loss.item() == pytest.approx(float(parts["torsion"] + parts["student torsion"]))
    loss.backward()
    assert gradients(both.student) and not gradients(teacher)


@pytest.mark.slow
def test_where_teacher_and_follower_agree_nothing_pulls_but_the_last_call_which_teaches_the_follower_nothing():
    denoiser = denoiser_of(1)
    both, sampler = Distillation(denoiser), Ancestral(Process(ProcessConfig()), 2)
    data, last = windows(point(1), 64), 0
    for k in range(64):
        one = data[0][k : k + 1], data[1][k : k + 1], data[2][k : k + 1]
        _, parts = distillation_loss(both, denoiser, sampler, *one, torch.Generator().manual_seed(k))
        student = {name for name, value in parts.items() if name.startswith("student") and value > 1e-10}
        follower = {name for name, value in parts.items() if not name.startswith("student") and value > 0}
        everything = {"translation", "rotation", "torsion", "angle", "distance_map", "fape"}
        if student:
            last += 1
            assert student == {f"student {name}" for name in everything} and not follower
        else:
            assert follower == everything | {"rotamers"}
    assert 20 < last < 44


@pytest.mark.parametrize("classifier_gradient", [True, False])
def test_only_a_student_learns_from_its_estimate_whether_torsions_stay(classifier_gradient):
    denoiser = denoiser_of(1)
    denoiser.classifier_gradient = classifier_gradient
    terms = dict.fromkeys(("translation", "rotation", "angle", "distance_map", "rotamers"), 0.0)
    generator = torch.Generator().manual_seed(0)
    process = Process(ProcessConfig())
    denoising_loss(denoiser, process, *windows(point(1), 8), generator, LossWeights(**terms))[0].backward()
    log_odds, further = denoiser.wells.weight.grad.chunk(2)
    assert bool(log_odds.abs().sum() > 0) is classifier_gradient and further.abs().sum() > 0
