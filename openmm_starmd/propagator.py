"""One learned step: from the history of past conformations to the next conformation. Free of OpenMM."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch

from openmm_starmd.context_window import ContextWindow
from openmm_starmd.diffusion.denoising_state import State, StepCoefficients
from openmm_starmd.diffusion.execution import Execution
from openmm_starmd.diffusion.replay import map_tensors
from openmm_starmd.diffusion.sampler import SAMPLERS
from openmm_starmd.interface import JumpPropagator
from openmm_starmd.model import StarMDModel
from openmm_starmd.network.attention import KVCache
from openmm_starmd.network.embedding import Conditions, StaticInputs, TimeConditioning
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.history import History
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.units import wholeNumber


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
        If system, stride, temperature or number of past frames lie outside the model's domain.
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
        frames = model.config.context_frames if context_frames is None else context_frames
        steps = model.config.denoising_steps if denoising_steps is None else denoising_steps
        self.context_frames, steps = wholeNumber("context_frames", frames, 1), wholeNumber("denoising_steps", steps, 1)
        model.check_domain(tokens, stride, temperature, strict, self.context_frames)
        self.name, self.device = model.name, model.device
        self.model, self.tokens, self.stride, self.temperature = model, tokens, float(stride), float(temperature)
        self.sampler = SAMPLERS[model.config.sampler](model.process, steps)
        self._around_last = model.config.network.parameterization == "previous"
        self._precomputed = tuple(None if x is None else x.to(model.device)[None] for x in (single, pair))
        self._features = tokens.features.to(model.device)
        self.forget()

    def forget(self, **execution) -> None:
        """Begin as if no history had been seen, by settings of `Execution` other than its defaults."""
        settings = self.model, self._static_inputs, self.stride, self.context_frames
        self._window, self._window_of_repairs = (  # two, so that batches of repairs do not drive those of steps out
            ContextWindow(*settings, Execution(self.device, **execution)) for _ in range(2)
        )

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
        return self._sampled(self._window, history, generator)

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
        conformation, held = conformation.map(self.here), ~residues.to(self.device)
        known = conformation.shifted(-history.last.centroid()), held
        return conformation.where(held, self._sampled(self._window_of_repairs, history, generator, known))

    def _sampled(self, window: ContextWindow, history: History, generator, known=None) -> Conformation:
        """Next conformation; ``known``, as of `Sampler.sample`, is about the centroid of the last one."""
        last, features = history.last.centred(), self._features.expand(len(history.reference.angles))
        coefficients, state = self.sampler.begin(self._origin(last), self._spread, features, generator, known)
        cache, conditions = window.encode(history), window.conditions(history, self._times)
        state = window.repeated(self._denoised, cache, conditions, coefficients, state, len(coefficients.numbers))
        return state.end().shifted(history.last.centroid())

    def _denoised(
        self, conditions: Conditions, coefficients: StepCoefficients, state: State, cache: KVCache, mask
    ) -> State:
        """The state after one denoising step."""
        noisy = self.sampler.seen(coefficients, state).map(lambda x: x[:, None])
        delta = self.model.denoiser.denoise(conditions.at(state.k), noisy, cache, mask)
        return self.sampler.step(coefficients, state, map_tensors(lambda x: x[:, 0], delta))

    def extend(self, history: History, conformation: Conformation, generator, time: float | None = None) -> History:
        """History with the context copy of ``conformation`` (B, N) appended, a stride or ``time`` (ps) later."""
        longer = super().extend(history, conformation, generator, time)
        self._window.extended(history, longer)
        return longer

    @torch.inference_mode()
    def context_copy(self, conformation: Conformation, generator) -> Conformation:
        """The slightly noised copy of a conformation (B, N) that the history keeps (paper, section 3.3)."""
        features = self._features.expand(len(conformation.angles))
        copy = self.model.process.context_copy(conformation.centred(), features, generator)
        return copy.shifted(conformation.centroid())

    def _origin(self, last: Conformation) -> Conformation:
        """Centre of the first noise of the reverse process: the last conformation, centred, or the fixed prior."""
        return last if self._around_last else self.model.process.origin(last)

    def _static_inputs(self, reference: Conformation) -> StaticInputs:
        """Static inputs of replicas with reference structures (B, N); what these do not enter is computed once."""
        batch = len(reference.angles)
        if not self.model.config.network.reference_structure:
            return self._molecule.expand(batch)
        return self.model.denoiser.static_inputs(self._features.expand(batch), reference, *self._precomputed)

    @cached_property
    def _molecule(self) -> StaticInputs:
        """Static inputs of one replica."""
        return self.model.denoiser.static_inputs(self._features.expand(1), None, *self._precomputed)

    @cached_property
    def _times(self) -> TimeConditioning:
        """Conditioning of all denoising steps; equal in every jump."""
        process, times = self.model.process, self.here(self.sampler.times())[None]
        levels = times, process.alpha(times), process.sigma(times), torch.full_like(times, self.stride)
        return self.model.denoiser.time_conditioning(*levels)

    @cached_property
    def _spread(self) -> torch.Tensor:
        """Spread (4,) of the noise that the reverse process starts from; about the last frame steps are part of it."""
        one = torch.ones((), device=self.model.device)
        step = self.model.denoiser.step_size(self.stride * one)
        step = torch.stack([step[0], step[1], step[2:8].mean(), step[8]])
        return (self.model.process.sigma(one) ** 2 + self._around_last * step**2).sqrt()
