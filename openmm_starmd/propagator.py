"""One learned step: from the history of past conformations to the next conformation. Free of OpenMM."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import torch

from openmm_starmd.diffusion.loss import context_inputs
from openmm_starmd.diffusion.sampler import SAMPLERS
from openmm_starmd.geometry.rigid import Rigid
from openmm_starmd.model import StarMDModel
from openmm_starmd.network.attention import KVCache
from openmm_starmd.network.embedding import FrameInputs, Statics
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.displacement import Displacement
from openmm_starmd.protein.history import History
from openmm_starmd.protein.tokens import ResidueTokens

PAIRS_AT_ONCE = 2**14  # of residues, in frames that are encoded together; see benchmarks/PERFORMANCE.md


class Propagator:
    """Samples the conformation one stride ahead, for B replicas of one system at a time.

    Parameters
    ----------
    model : StarMDModel
    tokens : ResidueTokens
    stride : float
        Physical time of one step, ps.
    temperature : float
        K.
    context_frames, denoising_steps : int, optional
        Length of the window of past conformations and number of denoising steps; the model's own by default. Of the
        window, as many frames as the model's ``sink_frames`` are the first of the run.
    strict : bool
        Whether leaving the model's domain is an error; otherwise a warning.
    single, pair : Tensor, optional
        Precomputed features (N, C) and (N, N, C), where the model takes them.

    Raises
    ------
    ModelDomainError
        If system, stride or temperature lie outside the model's domain.
    """

    def __init__(
        self,
        model: StarMDModel,
        tokens: ResidueTokens,
        stride: float,
        temperature: float,
        *,
        context_frames: int | None = None,
        denoising_steps: int | None = None,
        strict: bool = True,
        single: torch.Tensor | None = None,
        pair: torch.Tensor | None = None,
    ):
        model.check_domain(tokens, stride, temperature, strict)
        for name, value in (("context_frames", context_frames), ("denoising_steps", denoising_steps)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}.")
        self._sinks = model.config.sink_frames
        if context_frames is not None and context_frames <= self._sinks:
            raise ValueError(
                f"context_frames must be at least {self._sinks + 1}, not {context_frames}: the model keeps the first "
                f"{self._sinks} of a run, and the last one is needed."
            )
        self.model, self.tokens, self.stride, self.temperature = model, tokens, float(stride), float(temperature)
        self.context_frames = context_frames or model.config.context_frames
        steps = denoising_steps or model.config.denoising_steps
        self.sampler = SAMPLERS[model.config.sampler](model.process, steps)
        self._precomputed = tuple(None if x is None else x.to(model.device)[None] for x in (single, pair))
        self._reference: Conformation | None = None
        self._statics: Statics | None = None
        self._cached: tuple[History, KVCache] | None = None
        self._compiled: tuple[int, Callable] | None = None

    def start(self, conformation: Conformation, time: float = 0.0) -> History:
        """History of one conformation (B, N), at ``time`` ps; it is the reference structure of the run."""
        conformation = conformation.to(device=self.model.device, dtype=torch.float32)
        return History.start(conformation, time)

    @torch.inference_mode()
    def step(self, history: History, generator) -> Conformation:
        """Sample the next conformation (B, N); its C-alpha centroid is that of the last one.

        Parameters
        ----------
        history : History
        generator : torch.Generator or one for each replica
        """
        denoiser, process = self.model.denoiser, self.model.process
        cache, call = self._context_cache(history), self._call(history)
        statics, last = self._statics, _centred(history.last)
        times = self.sampler.times().to(last.angles)[None]
        index = torch.tensor([history.n_frames], device=times.device)
        levels = times, process.alpha(times), process.sigma(times), torch.full_like(times, self.stride)
        with self._precision():
            conditions = denoiser.conditions(statics, last.map(lambda x: x[:, None]), *levels, index)

        def denoise(noisy: Conformation, k: int) -> Displacement:
            with self._precision():
                way = call(conditions.at(k), noisy.map(lambda x: x[:, None]), cache)
            return Displacement(way.translation[:, 0], way.rotation[:, 0], way.torsion[:, 0], way.angle[:, 0])

        noise = self._prior(last, generator)
        conformation = self.sampler.sample(noise, denoise, statics.features, generator)
        return _shifted(conformation, history.last.frames.translations.mean(-2, keepdim=True))

    def extend(self, history: History, conformation: Conformation, generator, time: float | None = None) -> History:
        """History with the context copy of ``conformation`` (B, N) appended, a stride or ``time`` (ps) later."""
        copy = self._context_copy(conformation, generator)
        time = self.stride if time is None else time
        return history.append(copy, float(history.times[-1]) + time, self.context_frames, self._sinks)

    def replace(self, history: History, conformation: Conformation, time: float, generator) -> History:
        """History whose last conformation has moved on to ``conformation`` (B, N) in ``time`` (ps)."""
        now, copy = float(history.times[-1]) + time, self._context_copy(conformation, generator)
        return history.without_last().append(copy, now, self.context_frames, self._sinks)

    @torch.inference_mode()
    def _context_copy(self, conformation: Conformation, generator) -> Conformation:
        conformation = conformation.to(device=self.model.device, dtype=torch.float32)
        copy = self.model.process.context_copy(
            _centred(conformation), self._features(len(conformation.angles)), generator
        )
        return _shifted(copy, conformation.frames.translations.mean(-2, keepdim=True))

    def _call(self, history: History) -> Callable:
        """The denoiser's call; compiled, if the model is, for full windows of the first batch that has one."""
        batch, frames, _ = history.conformations.shape
        eager = self.model.denoiser.denoise
        if not self.model.is_compiled or frames < self.context_frames:
            return eager
        if self._compiled is None:
            self._compiled = batch, torch.compile(eager, dynamic=False)
        return self._compiled[1] if batch == self._compiled[0] else eager

    def _precision(self):
        """Context in which the network computes."""
        if self.model.config.precision == "32-true":
            return nullcontext()
        return torch.autocast(self.model.device.type, torch.bfloat16)

    def _features(self, batch: int):
        return self.tokens.features.to(self.model.device).expand(batch)

    def _prior(self, last: Conformation, generator) -> Conformation:
        """Noise that the reverse process starts from: about the last conformation, or the process's own prior."""
        process, features = self.model.process, self._statics.features
        if self.model.config.network.parameterization == "plain":
            return process.prior(last, features, generator)
        ones = torch.ones_like(last.angles[:, 0])
        step = self.model.denoiser.step_size(self.stride * ones)
        step = torch.stack([step[:, 0], step[:, 1], step[:, 2:8].mean(-1), step[:, 8]], -1)
        return process.perturb(last, ones, (process.sigma(ones) ** 2 + step**2).sqrt(), features, generator)

    def _context_cache(self, history: History) -> KVCache:
        """Keys and values of the window.

        While the window grows they are extended frame by frame, also after a restart, so that a resumed run repeats
        every operation. Once frames have left it, only those of the first ones, the sinks, last; all later frames are
        encoded anew in every step: those that have left must not be remembered through deeper layers.
        """
        batch, frames, n = history.conformations.shape
        if self._reference is not history.reference:
            with self._precision():
                statics = self.model.denoiser.statics(self._features(batch), history.reference, *self._precomputed)
            self._statics = statics
            self._reference, self._cached = history.reference, None
        inputs, lasting = self._context_inputs(history), self._sinks if history.dropped else frames
        cache = self._known_part(history, lasting)
        for k in range(cache.n_frames, lasting):
            cache = self._encoded(inputs.frame(k), cache)
        self._cached = history, cache
        at_once = max(1, PAIRS_AT_ONCE // (batch * n**2))
        for k in range(lasting, frames, at_once):
            cache = self._encoded(inputs.frames(k, k + at_once), cache)
        return cache

    def _encoded(self, inputs: FrameInputs, cache: KVCache) -> KVCache:
        with self._precision():
            return self.model.denoiser.encode(self._statics, inputs, cache)

    def _context_inputs(self, history: History) -> FrameInputs:
        """The window as the network gets it; behind the sinks it begins anew if frames have left from there."""
        window, first = _centred(history.conformations), self._sinks if history.dropped else 0

        def piece(start: int, stop: int | None) -> FrameInputs:
            times, copies = history.times[start:stop], window[:, start:stop]
            strides = torch.diff(times, prepend=times[:1] - self.stride).to(copies.angles)
            return context_inputs(copies, strides.expand(copies.shape[:2]), self.model.process, start)

        return FrameInputs.cat(piece(0, first), piece(first, None)) if first else piece(0, None)

    def _known_part(self, history: History, lasting: int) -> KVCache:
        """The last cache as far as it belongs to the first ``lasting`` frames of this history."""
        if self._cached is None:
            batch, _, residues = history.conformations.shape
            capacity = max(self.context_frames, history.n_frames) + 1
            return self.model.denoiser.cache(batch, residues, capacity)
        known, cache = self._cached
        n = min(cache.n_frames, lasting)
        then, now = (x.conformations.frames.rotations[:, :n] for x in (known, history))
        alike = (then == now).transpose(0, 1).flatten(1).all(1).cpu() & (known.times[:n] == history.times[:n])
        return replace(cache, n_frames=int(alike.cumprod(0).sum()))


def _shifted(conformation: Conformation, shift: torch.Tensor) -> Conformation:
    frames = conformation.frames
    moved = Rigid(frames.rotations, frames.translations + shift)
    return Conformation(moved, conformation.torsions, conformation.angles)


def _centred(conformation: Conformation) -> Conformation:
    return _shifted(conformation, -conformation.frames.translations.mean(-2, keepdim=True))
