"""One learned step: from the history of past conformations to the next conformation. Free of OpenMM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from copy import copy
from dataclasses import replace
from functools import cached_property
from operator import attrgetter

import torch

from openmm_starmd.diffusion.loss import context_inputs
from openmm_starmd.diffusion.replay import Eager, Recordings, Replayed
from openmm_starmd.diffusion.sampler import SAMPLERS, State
from openmm_starmd.geometry.rigid import Rigid
from openmm_starmd.interface import JumpPropagator
from openmm_starmd.model import StarMDModel
from openmm_starmd.network.attention import KVCache
from openmm_starmd.network.embedding import FrameInputs, StaticInputs, TimeConditioning
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.displacement import Displacement, superposed
from openmm_starmd.protein.history import History
from openmm_starmd.protein.tokens import ResidueFeatures, ResidueTokens

PAIRS_AT_ONCE = 2**14  # of residues, in frames that are encoded together and in tapes; see benchmarks/PERFORMANCE.md
LEAST_ROOM = 64  # frames, on a GPU

_numbers = attrgetter("frames.rotations", "frames.translations", "torsions", "angles")


class Propagator(JumpPropagator):
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
        Length of the window of past conformations and number of denoising steps; the model's own by default.
    strict : bool or dict
        Whether leaving the model's domain is an error; otherwise a warning. ``{"length": False}`` warns of one reason.
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
        strict: bool | Mapping[str, bool] = True,
        single: torch.Tensor | None = None,
        pair: torch.Tensor | None = None,
    ):
        model.check_domain(tokens, stride, temperature, strict)
        for name, value in (("context_frames", context_frames), ("denoising_steps", denoising_steps)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}.")
        self.name, self.device = model.name, model.device
        self.model, self.tokens, self.stride, self.temperature = model, tokens, float(stride), float(temperature)
        self.context_frames = context_frames or model.config.context_frames
        steps = denoising_steps or model.config.denoising_steps
        self.sampler = SAMPLERS[model.config.sampler](model.process, steps)
        self._around_last = model.config.network.parameterization == "previous"
        self._precomputed = tuple(None if x is None else x.to(model.device)[None] for x in (single, pair))
        self._system = tokens.features.to(model.device)
        self._forget()

    def _forget(self) -> None:
        """Drop what is kept of the last histories."""
        self._twin: Propagator | None = None
        self._reference: Conformation | None = None
        self._static: StaticInputs | None = None
        self._conditioning: TimeConditioning | None = None
        self._spread: torch.Tensor | None = None
        self._memory: KVCache | None = None
        self._cached: tuple[History, KVCache] | None = None
        self._grown: tuple[History, History] | None = None
        self._recordings: Recordings | None = Recordings(self.device)
        self._roomy = self.device.type == "cuda"

    @cached_property
    def identity(self) -> bytes:
        """Hash of the model and of the sequence."""
        return self.model.identity(self.tokens)

    @torch.inference_mode()
    def step(self, history: History, generator) -> Conformation:
        """Sample the next conformation (B, N); its C-alpha centroid is that of the last one.

        Parameters
        ----------
        history : History
        generator : torch.Generator or one for each replica
        """
        return self._sampled(history, generator)

    @torch.inference_mode()
    def resample(self, history: History, conformation: Conformation, residues, generator) -> Conformation:
        """Sample some residues of a next conformation (B, N) again; the others stay as they are, to the last bit.

        Parameters
        ----------
        history : History
        conformation : Conformation, shape (B, N)
            What `step` has returned.
        residues : Tensor of bool, shape (B, N)
            Which residues to sample.
        generator : torch.Generator or one for each replica
        """
        if self._twin is None:  # whose batches do not drive the cache of `step` out
            self._twin = copy(self)
            self._twin._forget()
        conformation, residues = conformation.map(self.here), residues.to(self.device)
        known = _shifted(conformation, -history.last.frames.translations.mean(-2, keepdim=True)), ~residues
        return conformation.where(~residues, self._twin._sampled(history, generator, known))

    def _sampled(self, history: History, generator, known=None) -> Conformation:
        """The reverse process given a history; ``known`` as of `Sampler.sample`, about the centroid of the last."""
        cache, last = self._context_cache(history), _centred(history.last)
        features, residues = self._static.features, last.shape[-1]
        room = self._room(cache, residues)
        with self._precision():
            index = torch.full((1,), history.n_frames, device=last.device)
            frame = last.map(lambda x: x[:, None])
            given = frame, self._time_conditioning(), index, self._reference_on(frame)
            conditions = self.model.denoiser.conditions(self._static, *given)
            mask = self.model.denoiser.mask_behind(cache, room, residues)
        origin = last if self._around_last else self.model.process.origin(last)
        coefficients, state = self.sampler.begin(origin, self._spread_of_noise(), features, generator, known)
        # the static inputs, constant and large, are read where they are
        given = replace(conditions, static=None), coefficients, mask
        denoise = self._denoising(replace(cache, n_frames=room - 1))
        repeated = self._repeated("denoise", (room, mask is None), denoise, last)
        state = repeated.run(given, state, len(coefficients.numbers))
        return _shifted(state.end(), history.last.frames.translations.mean(-2, keepdim=True))

    def _denoising(self, cache: KVCache) -> Callable:
        """One denoising step, as a function of tensors."""
        static = self._static

        def step(given, state: State) -> State:
            conditions, coefficients, mask = given
            now = replace(conditions, static=static).at(state.k)
            with self._precision():
                noisy = self.sampler.seen(coefficients, state).map(lambda x: x[:, None])
                delta = self.model.denoiser.denoise(now, noisy, cache, mask)
            delta = Displacement(delta.translation[:, 0], delta.rotation[:, 0], delta.torsion[:, 0], delta.angle[:, 0])
            return self.sampler.step(coefficients, state, delta)

        return step

    def _repeated(self, use, variant, function: Callable, frames: Conformation) -> Replayed | Eager:
        """Runner of a function of tensors about some frames: a recording of it, on a CPU if they are small."""
        small = frames.angles.numel() * frames.shape[-1] <= PAIRS_AT_ONCE
        worth = self._recordings and (small or self._roomy)
        return self._recordings.of(use, variant, function) if worth else Eager(function)

    def _room(self, cache: KVCache, residues: int) -> int:
        """Frames of the cache that a new one is computed with, the last for itself.

        On a GPU one recording serves all contexts that fit: at least `LEAST_ROOM` or a power of two, as far as there is
        room. A CPU would have to compute what is masked.
        """
        needed = cache.n_frames + 1
        if not self._roomy:
            return needed
        return min(cache.keys.shape[3] // residues, max(LEAST_ROOM, 1 << cache.n_frames.bit_length()))

    def extend(self, history: History, conformation: Conformation, generator, time: float | None = None) -> History:
        """History with the context copy of ``conformation`` (B, N) appended, a stride or ``time`` (ps) later."""
        grown = super().extend(history, conformation, generator, time)
        self._grown = history, grown
        return grown

    @torch.inference_mode()
    def context_copy(self, conformation: Conformation, generator) -> Conformation:
        """The slightly noised copy of a conformation (B, N) that the history keeps (paper, section 3.3)."""
        copy = self.model.process.context_copy(
            _centred(conformation), self._features(len(conformation.angles)), generator
        )
        return _shifted(copy, conformation.frames.translations.mean(-2, keepdim=True))

    def _precision(self):
        """Context in which the network computes."""
        if self.model.config.precision == "32-true":
            return nullcontext()
        return torch.autocast(self.model.device.type, torch.bfloat16)

    def _features(self, batch: int) -> ResidueFeatures:
        return self._system.expand(batch)

    def _time_conditioning(self) -> TimeConditioning:
        """Conditioning of all denoising steps; equal in every jump."""
        if self._conditioning is None:
            process, times = self.model.process, self.here(self.sampler.times())[None]
            levels = times, process.alpha(times), process.sigma(times), torch.full_like(times, self.stride)
            self._conditioning = self.model.denoiser.time_conditioning(*levels)
        return self._conditioning

    def _spread_of_noise(self) -> torch.Tensor:
        """Spread (4,) of the noise that the reverse process starts from; about the last frame steps are part of it."""
        if self._spread is None:
            one = torch.ones((), device=self.model.device)
            step = self.model.denoiser.step_size(self.stride * one)
            step = torch.stack([step[0], step[1], step[2:8].mean(), step[8]])
            self._spread = (self.model.process.sigma(one) ** 2 + self._around_last * step**2).sqrt()
        return self._spread

    def _context_cache(self, history: History) -> KVCache:
        """Keys and values of the window.

        While the window grows they are extended frame by frame, also after a restart, so that a resumed run repeats
        every operation. Once frames have left it, all frames are encoded anew in every step: those that have left must
        not be remembered through deeper layers.
        """
        batch, frames, n = history.conformations.shape
        if not _equal(self._reference, history.reference):
            self._reference, self._cached = history.reference, None
            known = self._static and len(self._static.features.residue_type) == batch
            if not known or self.model.config.network.reference_structure:
                with self._precision():
                    inputs = self._features(batch), history.reference, *self._precomputed
                    self._static, self._memory = self.model.denoiser.static_inputs(*inputs), None
        inputs, lasting = self._context_inputs(history), 0 if history.dropped else frames
        cache = self._known_part(history, lasting)
        for k in range(cache.n_frames, lasting):
            cache = self._encoded(inputs.frame(k), cache)
        self._cached = history, cache
        at_once = max(1, PAIRS_AT_ONCE // (batch * n**2))
        for k in range(lasting, frames, at_once):
            cache = self._encoded(inputs.frames(k, k + at_once), cache)
        return cache

    def _encoded(self, inputs: FrameInputs, cache: KVCache) -> KVCache:
        """Cache extended by frames; a single one is computed at the end of the room, as the noisy one will be."""
        frames, residues = len(inputs.index), inputs.conformation.shape[-1]
        room = self._room(cache, residues) if frames == 1 else cache.n_frames + frames
        mask = self.model.denoiser.mask_behind(cache, room, residues) if frames == 1 else None
        begin = replace(cache, n_frames=room - frames)

        def encode(given, state):
            with self._precision():
                self.model.denoiser.encode(self._static, given[0], begin, given[1])
            return state

        use = "encode" if frames == 1 else (begin.n_frames, frames)
        self._repeated(use, (room, mask is None), encode, inputs.conformation).run((inputs, mask), ())
        return cache.moved(begin.n_frames, frames, residues)

    def _context_inputs(self, history: History) -> FrameInputs:
        """The window as the network gets it."""
        copies, times = _centred(history.conformations), history.times
        strides = self.here(torch.diff(times, prepend=times[:1] - self.stride)).expand(copies.shape[:2])
        return context_inputs(copies, strides, self.model.process, self._reference_on(copies))

    def _reference_on(self, frames: Conformation) -> Conformation | None:
        """The reference structure superposed on frames (B, T, N), for networks that are drawn back to it."""
        if not self.model.config.network.reversion:
            return None
        return superposed(self._reference.map(lambda x: x[:, None]), frames)

    def _known_part(self, history: History, lasting: int) -> KVCache:
        """The last cache as far as it belongs to the first ``lasting`` frames of this history."""
        if self._cached is None:
            batch, _, residues = history.conformations.shape
            capacity = max(self.context_frames, history.n_frames) + 1
            if self._memory is None or self._memory.keys.shape[3] < capacity * residues:
                half = self.model.config.precision != "32-true"
                self._memory = self.model.denoiser.cache(batch, residues, capacity, half)
                if self._recordings:
                    self._recordings.clear()
            return self._memory
        known, cache = self._cached
        n = min(cache.n_frames, lasting)
        if self._grown and self._grown[0] is known and self._grown[1] is history:
            return replace(cache, n_frames=n)
        then, now = (x.conformations.frames.rotations[:, :n] for x in (known, history))
        alike = (then == now).transpose(0, 1).flatten(1).all(1).cpu() & (known.times[:n] == history.times[:n])
        return replace(cache, n_frames=int(alike.cumprod(0).sum()))


def _equal(a: Conformation | None, b: Conformation) -> bool:
    return a is b or (a is not None and all(map(torch.equal, _numbers(a), _numbers(b))))


def _shifted(conformation: Conformation, shift: torch.Tensor) -> Conformation:
    frames = conformation.frames
    moved = Rigid(frames.rotations, frames.translations + shift)
    return Conformation(moved, conformation.torsions, conformation.angles)


def _centred(conformation: Conformation) -> Conformation:
    return _shifted(conformation, -conformation.frames.translations.mean(-2, keepdim=True))
