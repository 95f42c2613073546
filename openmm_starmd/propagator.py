"""One learned step: from the history of past conformations to the next conformation. Free of OpenMM."""

from __future__ import annotations

from dataclasses import replace

import torch

from openmm_starmd.diffusion.loss import context_inputs
from openmm_starmd.diffusion.sampler import SAMPLERS
from openmm_starmd.geometry.rigid import Rigid
from openmm_starmd.model import StarMDModel
from openmm_starmd.network.attention import KVCache
from openmm_starmd.network.denoiser import Statics
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.displacement import Displacement
from openmm_starmd.protein.history import History
from openmm_starmd.protein.tokens import ResidueTokens


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
        Length of the window of past conformations and number of denoising steps; the model's own by default.
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
        self.model, self.tokens, self.stride, self.temperature = model, tokens, float(stride), float(temperature)
        self.context_frames = context_frames or model.config.context_frames
        steps = denoising_steps or model.config.denoising_steps
        self.sampler = SAMPLERS[model.config.sampler](model.process, steps)
        self._precomputed = tuple(None if x is None else x.to(model.device)[None] for x in (single, pair))
        self._reference: Conformation | None = None
        self._statics: Statics | None = None
        self._cached: tuple[History, KVCache] | None = None

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
        cache = self._context_cache(history)
        statics, last = self._statics, _centred(history.last)
        times = self.sampler.times().to(last.angles)[None]
        index = torch.tensor([history.n_frames], device=times.device)
        levels = times, process.alpha(times), process.sigma(times), torch.full_like(times, self.stride)
        conditions = denoiser.conditions(statics, last.map(lambda x: x[:, None]), *levels, index)

        def denoise(noisy: Conformation, k: int) -> Displacement:
            way = denoiser.denoise(conditions.at(k), noisy.map(lambda x: x[:, None]), cache)
            return Displacement(way.translation[:, 0], way.rotation[:, 0], way.torsion[:, 0], way.angle[:, 0])

        noise = self._prior(last, generator)
        conformation = self.sampler.sample(noise, denoise, statics.features, generator)
        return _shifted(conformation, history.last.frames.translations.mean(-2, keepdim=True))

    def extend(self, history: History, conformation: Conformation, generator, time: float | None = None) -> History:
        """History with the context copy of ``conformation`` (B, N) appended, a stride or ``time`` (ps) later."""
        copy = self._context_copy(conformation, generator)
        time = self.stride if time is None else time
        return history.append(copy, float(history.times[-1]) + time, self.context_frames)

    def replace(self, history: History, conformation: Conformation, time: float, generator) -> History:
        """History whose last conformation has moved on to ``conformation`` (B, N) in ``time`` (ps)."""
        now, copy = float(history.times[-1]) + time, self._context_copy(conformation, generator)
        if history.n_frames == 1:
            return replace(history.append(copy, now, 1), dropped=history.dropped)
        return history.without_last().append(copy, now, self.context_frames)

    @torch.inference_mode()
    def _context_copy(self, conformation: Conformation, generator) -> Conformation:
        conformation = conformation.to(device=self.model.device, dtype=torch.float32)
        copy = self.model.process.context_copy(
            _centred(conformation), self._features(len(conformation.angles)), generator
        )
        return _shifted(copy, conformation.frames.translations.mean(-2, keepdim=True))

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
        every operation. Once frames have left it, the window is encoded as a whole: older frames must not be
        remembered through deeper layers.
        """
        window = _centred(history.conformations)
        batch, frames = window.shape[:2]
        if self._reference is not history.reference:
            self._statics = self.model.denoiser.statics(self._features(batch), history.reference, *self._precomputed)
            self._reference, self._cached = history.reference, None
        gaps = torch.diff(history.times, prepend=history.times[:1] - self.stride)
        strides = gaps.to(window.angles).expand(batch, frames)
        inputs = context_inputs(window, strides, self.model.process)
        cache, known = self._known_part(history)
        if history.dropped:
            cache = self.model.denoiser.encode(self._statics, inputs, cache)
        else:
            for k in range(known, frames):
                cache = self.model.denoiser.encode(self._statics, inputs.frame(k), cache)
        self._cached = (history, cache)
        return cache

    def _known_part(self, history: History) -> tuple[KVCache, int]:
        """The last cache, if it belongs to the beginning of this history, else it emptied; the number of its frames."""
        if self._cached is None:
            batch, _, residues = history.conformations.shape
            capacity = max(self.context_frames, history.n_frames) + 1
            return self.model.denoiser.cache(batch, residues, capacity), 0
        known, cache = self._cached
        n = known.n_frames
        beginning = history.conformations.frames.rotations[:, :n]
        if not (known.dropped or history.dropped) and torch.equal(known.conformations.frames.rotations, beginning):
            return cache, n
        return replace(cache, n_frames=0), 0


def _shifted(conformation: Conformation, shift: torch.Tensor) -> Conformation:
    frames = conformation.frames
    moved = Rigid(frames.rotations, frames.translations + shift)
    return Conformation(moved, conformation.torsions, conformation.angles)


def _centred(conformation: Conformation) -> Conformation:
    return _shifted(conformation, -conformation.frames.translations.mean(-2, keepdim=True))
