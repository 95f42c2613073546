"""Training objective: denoising score matching over a window, block-causally (STAR-MD paper, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from openmm_starmd.diffusion.process import Process
from openmm_starmd.geometry.rigid import full_precision
from openmm_starmd.geometry.torsions import wrap
from openmm_starmd.network import rotamers
from openmm_starmd.network.denoiser import Denoiser
from openmm_starmd.network.embedding import FrameInputs
from openmm_starmd.network.invariants import distances
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.displacement import Displacement, grown, per_replica, uniform
from openmm_starmd.protein.tokens import ResidueFeatures

NEAR = 0.6  # nm: pairs of backbone atoms in the distance-map term
DISTANCE_FLOOR = 0.002  # nm: errors below this are thermal bond vibrations
FAPE_CLAMP = 1.0  # nm


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms; the paper's are 1, 0.5, 0.5 for the scores, 0.5 for FAPE and 0.25 for the distance map.

    ``rotamers`` is the weight of the cross-entropy of the rotamer stay-or-hop classifier, where the network has one.
    """

    translation: float = 1.0
    rotation: float = 1.0
    torsion: float = 1.0
    angle: float = 0.3
    distance_map: float = 0.3
    fape: float = 0.0
    rotamers: float = 0.5

    @classmethod
    def paper(cls) -> LossWeights:
        """Weights of STAR-MD, table 10."""
        return cls(translation=1.0, rotation=0.5, torsion=0.5, angle=0.5, distance_map=0.25, fape=0.5)

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """Weighted sum of terms; the last word of each name says which it is. Those of no weight do not enter it."""
        weights = {name: getattr(self, name.split()[-1]) for name in terms}
        return sum(weight * terms[name] for name, weight in weights.items() if weight)


def context_inputs(
    copies: Conformation,
    strides: Tensor,
    process: Process,
    reference: Conformation | None = None,
) -> FrameInputs:
    """Context copies (B, L, N) as network inputs; the first has itself as predecessor.

    ``reference`` (B, L, N) is the reference structure superposed on each of them.
    """
    previous = _shifted(copies)
    ones = torch.ones_like(strides)
    sigma = process.context_sigma(strides).expand(*strides.shape, 4)
    index = torch.arange(strides.shape[1], device=strides.device)
    return FrameInputs(copies, previous, -ones, ones, sigma, strides, index, reference and _shifted(reference))


def _shifted(frames: Conformation) -> Conformation:
    """The predecessors of frames (B, L, N); the first has itself."""
    return Conformation.cat([frames[:, :1], frames[:, :-1]], 1)


def denoising_loss(
    denoiser: Denoiser,
    process: Process,
    features: ResidueFeatures,
    window: Conformation,
    strides: Tensor,
    generator,
    weights: LossWeights = LossWeights(),  # noqa: B008 - frozen
    first: int = 1,
    single: Tensor | None = None,
    pair: Tensor | None = None,
    hidden_types: float = 0.0,
    reference: Conformation | None = None,
    hidden_references: float = 0.0,
    noise_draws: int = 1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of frames ``first`` .. L - 1 of a window, each given the context copies before it.

    Parameters
    ----------
    features : ResidueFeatures, shape (B, N)
    window : Conformation, shape (B, L, N)
        Clean frames, centred, each superposed on its predecessor.
    strides : Tensor, shape (B, L)
        Time since the predecessor, ps.
    generator : torch.Generator or one for each window
    weights : LossWeights
    first : int
        The first frame that is to be denoised, at least 1.
    single, pair : Tensor, shapes (B, N, C) and (B, N, N, C), optional
        Precomputed features, where the denoiser takes them.
    hidden_types : float
        Share of residues whose type the denoiser does not get to know.
    reference : Conformation, shape (B, L, N), optional
        Reference structure, superposed on each frame; the first frame of the window by default.
    hidden_references : float
        Share of windows whose reference structure the denoiser does not get to know.
    noise_draws : int
        Noisy copies of each of those frames, each at a noise level of its own, behind the same context.

    Returns
    -------
    loss : Tensor
        Mean over the windows, so that shares of a batch may be computed apart.
    terms : dict of Tensor
        Each term, unweighted and detached.
    """
    copies = process.context_copy(window[:, :-1], features, generator)  # nothing comes after the last
    clean, previous = (Conformation.cat(noise_draws * [x], 1) for x in (window[:, first:], copies[:, first - 1 :]))
    gaps = strides[:, first:].repeat(1, noise_draws)
    span = 1 - process.min_time
    time = process.min_time + span * per_replica(uniform, gaps, generator)
    alpha, sigma = process.alpha(time), process.sigma(time)
    noisy = process.perturb(clean, alpha, sigma, features, generator)
    index = torch.arange(first, window.shape[1], device=strides.device).repeat(noise_draws)
    behind = None if reference is None else Conformation.cat(noise_draws * [reference[:, first - 1 : -1]], 1)
    inputs = FrameInputs(noisy, previous, time, alpha, sigma, gaps, index, behind)
    hidden = known = None
    if hidden_types:
        hidden = per_replica(uniform, window.angles[:, 0], generator) < hidden_types
    if hidden_references:
        known = per_replica(uniform, window.angles[:, 0, 0], generator) >= hidden_references
    start = (window if reference is None else reference)[:, 0]
    static = denoiser.static_inputs(features, start, single, pair, hidden, known)
    context = context_inputs(copies, strides[:, :-1], process, None if reference is None else reference[:, :-1])
    estimate, unit, log_odds = denoiser(static, context, inputs)
    target = process.score_displacement(noisy, clean, alpha, sigma, features)
    terms = score_terms(estimate, target, unit, features, denoiser.config.torsions == "regression")
    present = features.present_in(clean.angles)
    terms |= structure_terms(estimate, noisy, clean, alpha, unit, present=present, fape=weights.fape > 0)
    if log_odds is not None:
        terms["rotamers"] = rotamer_term(log_odds, inputs.previous, clean, features)
    return weights.total(terms), {name: value.detach() for name, value in terms.items()}


def _mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over windows of the mean of each window's values (B, ...) under its mask."""
    values, mask = (values * mask).flatten(1), mask.flatten(1)
    return (values.sum(1) / mask.sum(1).clamp_min(1)).mean()


def score_terms(
    estimate: Displacement, target: Displacement, unit: Displacement, features: ResidueFeatures, regression: bool
) -> dict[str, Tensor]:
    """Mean squared errors of the four parts of the score, each in its unit; torsions as 1 - cos under regression."""
    mask = features.per_frame("torsion_mask", target.angle).to(target.torsion.dtype).expand_as(target.torsion)
    if regression:
        torsion, angle = 1 - (estimate.torsion - target.torsion).cos(), ((estimate.angle - target.angle) / 0.1).square()
    else:
        torsion = ((estimate.torsion - target.torsion) / unit.torsion).square()
        angle = ((estimate.angle - target.angle) / unit.angle).square()
    translation = ((estimate.translation - target.translation) / unit.translation).square()
    rotation = ((estimate.rotation - target.rotation) / unit.rotation).square()
    present = features.present_in(angle)
    if present is None:
        means = {"translation": translation.mean(), "rotation": rotation.mean(), "angle": angle.mean()}
    else:
        parts = {"translation": translation.mean(-1), "rotation": rotation.mean(-1), "angle": angle}
        means = {name: _mean_where(x, present.expand_as(x)) for name, x in parts.items()}
    return {"torsion": _mean_where(torsion, mask)} | means


def rotamer_term(
    log_odds: Tensor,
    previous: Conformation,
    clean: Conformation,
    features: ResidueFeatures,
    counts: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of the log odds (B, M, N, 4) that chi1 to chi4 stay in the rotamers of the frames before.

    ``counts`` (B, M) says which frames count.
    """
    parts = (features.per_frame(f"torsion_{name}", clean.angles) for name in ("period", "mask"))
    period, mask = (x[..., rotamers.CHI] for x in parts)
    stayed = rotamers.stayed(wrap((clean.torsions - previous.torsions)[..., rotamers.CHI], period))
    errors = functional.binary_cross_entropy_with_logits(log_odds, stayed.to(log_odds.dtype), reduction="none")
    mask = mask if counts is None else mask & counts[..., None, None]
    return _mean_where(errors, mask.expand_as(errors))


@full_precision
def structure_terms(
    estimate: Displacement,
    noisy: Conformation,
    clean: Conformation,
    alpha: Tensor,
    unit: Displacement,
    counts: Tensor | None = None,
    present: Tensor | None = None,
    fape: bool = True,
) -> dict[str, Tensor]:
    """Errors of the denoised backbone: distances between near atoms, and FAPE (AlphaFold 2, algorithm 28) if wanted.

    ``counts`` (B, M) says which frames count, ``present`` (B, 1, N) which residues.
    """
    denoised = grown(estimate.apply(noisy), 1 / alpha[..., None, None], present)
    a, b = denoised.backbone().flatten(-3, -2), clean.backbone().flatten(-3, -2)
    da, db = distances(a, a), distances(b, b)
    counts = torch.ones_like(alpha) if counts is None else counts.to(alpha.dtype)
    near = (db < NEAR).to(db.dtype) * counts[..., None, None]
    if present is not None:
        there = present.repeat_interleave(3, -1)
        near = near * (there[..., None] & there[..., None, :])
    level = unit.translation[..., 0].square().expand(a[..., ::3, 0].shape).repeat_interleave(3, -1)
    level = 0.5 * (level[..., None] + level[..., None, :]) + DISTANCE_FLOOR**2
    errors = ((da - db).square() / level).clamp(max=50)
    terms = {"distance_map": _mean_where(errors, near)}
    if not fape:
        return terms
    apart = _seen_from(denoised, a) - _seen_from(clean, b)
    errors = (apart.square().sum(-1) + 1e-8).sqrt().clamp(max=FAPE_CLAMP) / FAPE_CLAMP
    counts = counts[..., None, None].expand_as(errors)
    if present is not None:
        counts = counts * (present[..., None] & there[..., None, :])
    return terms | {"fape": _mean_where(errors, counts)}


def _seen_from(conformation: Conformation, points: Tensor) -> Tensor:
    """Points (*, P, 3) in every residue frame, (*, N, P, 3)."""
    frames = conformation.frames
    return (points[..., None, :, :] - frames.translations[..., :, None, :]) @ frames.rotations
