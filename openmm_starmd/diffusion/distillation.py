"""Distillation: a student whose few calls sample what many calls of its teacher do.

The estimate of a denoiser is a mean over all conformations that a noisy one may have come from; few calls of it blur.
The student learns to answer with one of them instead. Its answers, taken by the sampler's own step to any level
before its next call, must look to a denoiser like data do: what the teacher, a denoiser of data, makes of them is
compared with what the follower makes of them, a denoiser of the student's answers that is trained beside it by the loss
that the teacher was trained by, and the difference pulls the student. This is moment matching in its alternating form
(Salimans et al., arXiv:2406.04103, section 3.2) on R3 x SO(3) x torus, given context copies as the denoiser is.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn

from openmm_starmd.diffusion.loss import LossWeights, context_inputs, rotamer_term, score_terms, structure_terms
from openmm_starmd.diffusion.replay import map_tensors
from openmm_starmd.diffusion.sampler import Ancestral
from openmm_starmd.geometry.constants import constant
from openmm_starmd.geometry.rigid import exponential, full_precision, logarithm
from openmm_starmd.network.denoiser import Denoiser
from openmm_starmd.network.embedding import FrameInputs
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.displacement import Displacement, grown, per_replica, uniform
from openmm_starmd.protein.tokens import ResidueFeatures


class Distillation(nn.Module):
    """Student and follower, both copies of a denoiser to begin with."""

    def __init__(self, denoiser: Denoiser):
        super().__init__()
        self.student, self.follower = deepcopy(denoiser), deepcopy(denoiser)
        self.student.classifier_gradient = True


def distillation_loss(
    both: Distillation,
    teacher: Denoiser,
    sampler: Ancestral,
    features: ResidueFeatures,
    window: Conformation,
    strides: Tensor,
    generator,
    weights: LossWeights = LossWeights(),  # noqa: B008 - frozen
    single: Tensor | None = None,
    pair: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses of student and follower, whose gradients do not mix, for frames 1 .. L - 1 of a window.

    Each frame is noised to the time of one of the sampler's calls. The last call of a run adds no noise; there the
    student is trained as a denoiser is.

    Parameters
    ----------
    both : Distillation
    teacher : Denoiser
    sampler : Ancestral
        In its calls, two at least, the student is to sample.
    features, window, strides, generator, weights, single, pair
        As for `denoising_loss`.

    Returns
    -------
    loss : Tensor
        Mean over the windows.
    terms : dict of Tensor
        Each term, unweighted and detached. The student's are squares of how far teacher and follower disagree, or, at
        the last call, of the error; they need not fall for it to learn.
    """
    process = sampler.process
    copies, clean = process.context_copy(window[:, :-1], features, generator), window[:, 1:]
    now, then, generates = _times(sampler, strides[:, 1:], generator)
    index = torch.arange(1, window.shape[1], device=strides.device)
    context = context_inputs(copies, strides[:, :-1], process)

    def ask(denoiser: Denoiser, noisy: Conformation, time: Tensor):
        inputs = FrameInputs(noisy, copies, time, process.alpha(time), process.sigma(time), strides[:, 1:], index)
        return denoiser(denoiser.static_inputs(features, window[:, 0], single, pair), context, inputs)

    def score(noisy: Conformation, clean: Conformation, time: Tensor) -> Displacement:
        return process.score_displacement(noisy, clean, process.alpha(time), process.sigma(time), features)

    noisy = process.perturb(clean, process.alpha(now), process.sigma(now), features, generator)
    delta, unit, _ = ask(both.student, noisy, now)
    with torch.no_grad():
        answer, further = _move(sampler, noisy, delta, now, then, features, generator)
        taught, _, _ = ask(teacher, further, then)
    followed, unit_then, log_odds = ask(both.follower, further, then)
    with torch.no_grad():
        axes = answer.frames.rotations.transpose(-1, -2) @ further.frames.rotations
        pull = map_tensors(torch.sub, taught, followed)
        pull = Displacement(
            pull.translation * (process.alpha(now) / process.alpha(then))[..., None, None],
            (axes @ pull.rotation[..., None])[..., 0],
            pull.torsion,
            pull.angle,
        )
        aim = _where(generates, delta + pull, score(noisy, clean, now))
        own = _where(generates, score(further, answer, then), followed)
        scale = map_tensors(lambda a, b: (a * b).sqrt(), unit, unit_then)
    left = map_tensors(torch.sub, aim, delta)
    turn = _turn_left(delta.rotation, pull.rotation)
    left = replace(left, rotation=torch.where(generates[..., None, None], turn, left.rotation))
    nothing = map_tensors(torch.zeros_like, left)
    terms = {f"student {name}": value for name, value in score_terms(left, nothing, scale, features, False).items()}
    last = structure_terms(delta, noisy, clean, process.alpha(now), unit, ~generates)
    terms |= {f"student {name}": value for name, value in last.items()}
    terms |= score_terms(followed, own, unit_then, features, False)
    terms |= structure_terms(followed, further, answer, process.alpha(then), unit_then, generates)
    if log_odds is not None:
        terms["rotamers"] = rotamer_term(log_odds, copies, answer, features, generates)
    return weights.total(terms), {name: value.detach() for name, value in terms.items()}


def _times(sampler: Ancestral, like: Tensor, generator) -> tuple[Tensor, Tensor, Tensor]:
    """Times of calls, times up to which their answers are noised again, and which of the calls are not the last."""
    times = constant(tuple(sampler.times().tolist()), like.dtype, like.device)
    for_call, for_time = per_replica(uniform, like[..., None].expand(*like.shape, 2), generator).unbind(-1)
    last = len(times) - 1
    call = (for_call * (last + 1)).long().clamp(max=last)
    now = times[call]
    return now, torch.lerp(now, times[(call + 1).clamp(max=last)], for_time), call < last


def _move(
    sampler: Ancestral, noisy: Conformation, delta: Displacement, now: Tensor, then: Tensor, features, generator
) -> tuple[Conformation, Conformation]:
    """The denoised conformation, and where the sampler's step from time ``now`` to ``then`` leads."""
    answer = grown(delta.apply(noisy), 1 / sampler.process.alpha(now)[..., None, None])
    growth, fraction, level = sampler.coefficients(now, then)
    moved = grown(delta.scaled(fraction).apply(noisy), growth[..., None, None])
    return answer, sampler.process.noise(noisy.angles, level, features, generator).apply(moved)


@full_precision
def _turn_left(delta: Tensor, pull: Tensor) -> Tensor:
    """The pull, as a function of the displacement that it pulls: rotation vectors do not add up."""
    reached = exponential(delta)
    return logarithm(reached.transpose(-1, -2) @ reached.detach() @ exponential(pull))


def _where(chosen: Tensor, a: Displacement, b: Displacement) -> Displacement:
    """Displacement ``a`` of frames (B, T) that are chosen, ``b`` of the others."""
    return map_tensors(lambda x, y: torch.where(chosen[(..., *[None] * (x.ndim - chosen.ndim))], x, y), a, b)
