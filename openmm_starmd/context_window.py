"""The window of past conformations as the denoiser sees it: static inputs, keys and values, kept from step to step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from openmm_starmd.diffusion.execution import PAIRS_AT_ONCE, Execution
from openmm_starmd.diffusion.loss import context_inputs
from openmm_starmd.interface import float32_on
from openmm_starmd.model import StarMDModel
from openmm_starmd.network.attention import KVCache
from openmm_starmd.network.embedding import Conditions, FrameInputs, StaticInputs, TimeConditioning
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.displacement import superposed
from openmm_starmd.protein.history import History


class ContextWindow:
    """Past conformations of B replicas of one molecule, encoded.

    While a history grows, its frames are encoded one by one, also after a restart, so that a resumed run repeats every
    operation. Once frames have left the window, all that stay are encoded anew in every step: the deeper layers of
    their keys and values remember the frames that have left.

    ``static_inputs`` makes the `StaticInputs` of replicas of their reference structures (B, N); ``static`` are those of
    the last history that was encoded. The first frame of a window is taken to come a ``stride`` (ps) after itself. A
    history keeps ``capacity`` frames.
    """

    static: StaticInputs

    def __init__(
        self,
        model: StarMDModel,
        static_inputs: Callable[[Conformation], StaticInputs],
        stride: float,
        capacity: int,
        execution: Execution,
    ):
        self._model, self._static_inputs, self.execution = model, static_inputs, execution
        self._denoiser, self._stride, self._capacity = model.denoiser, stride, capacity
        self._reference: Conformation | None = None
        self._memory: KVCache | None = None
        self._encoded: tuple[History, KVCache] | None = None
        self._extended: tuple[History, History] | None = None

    def extended(self, history: History, longer: History) -> None:
        """Note that ``longer`` is ``history`` and one frame more, so that nobody compares their frames."""
        self._extended = history, longer

    def encode(self, history: History) -> KVCache:
        """Keys and values of all frames of a history."""
        batch, frames, residues = history.conformations.shape
        self._prepare(history.reference)
        inputs, growing = self.frame_inputs(history), frames * (history.dropped == 0)
        cache = self._known_part(history, growing)
        for k in range(cache.n_frames, growing):
            cache = self._appended(cache, inputs.frame(k))
        self._encoded = history, cache
        at_once = max(1, PAIRS_AT_ONCE // (batch * residues**2))
        for k in range(growing, frames, at_once):
            cache = self._appended(cache, inputs.frames(k, k + at_once))
        return cache

    def conditions(self, history: History, times: TimeConditioning) -> Conditions:
        """Conditions of the frame that follows an encoded history, at the diffusion times of a conditioning."""
        last = history.last.centred()
        frame, index = last.map(lambda x: x[:, None]), torch.full((1,), history.n_frames, device=last.device)
        return self._denoiser.conditions(self.static, frame, times, index, self._reference_on(frame))

    def repeated(self, step: Callable, cache: KVCache, conditions: Conditions, given, state, times: int):
        """The state after ``times`` denoising steps of the frame that follows those of a cache.

        ``step(conditions, given, state, cache, mask)`` gives the next state and may be recorded. What is ``given``,
        like the state a dataclass or tuple of tensors, is the same in every step.
        """
        room, begin, mask = self._behind(cache)
        static = self.static  # constant and large, so no input of what is recorded

        def once(inputs, state):
            conditions, given, mask = inputs
            return step(replace(conditions, static=static), given, state, begin, mask)

        runner = self.execution.runner("denoise", (room, mask is None), once, conditions.previous)
        return runner.run((replace(conditions, static=None), given, mask), state, times)

    def frame_inputs(self, history: History) -> FrameInputs:
        """Frames of a history as inputs of the denoiser; the first is taken to come a stride after itself."""
        copies = history.conformations.centred()
        strides = torch.diff(history.times, prepend=history.times[:1] - self._stride)
        strides = float32_on(copies.device, strides).expand(copies.shape[:2])
        return context_inputs(copies, strides, self._model.process, self._reference_on(copies))

    def _prepare(self, reference: Conformation) -> None:
        """Static inputs of replicas with a reference structure (B, N); what is known of others is forgotten."""
        if _equal(self._reference, reference):
            return
        replicas = None if self._reference is None else len(self._reference.angles)
        self._reference, self._encoded = reference, None
        if replicas != len(reference.angles) or self._model.config.network.reference_structure:
            self.static, self._memory = self._static_inputs(reference), None

    def _known_part(self, history: History, growing: int) -> KVCache:
        """The last cache as far as it belongs to the first ``growing`` frames of this history."""
        if self._encoded is None:
            return self._empty(history)
        known, cache = self._encoded
        n = min(cache.n_frames, growing)
        if self._extended and self._extended[0] is known and self._extended[1] is history:
            return replace(cache, n_frames=n)
        then, now = (x.conformations.frames.rotations[:, :n] for x in (known, history))
        alike = (then == now).transpose(0, 1).flatten(1).all(1).cpu() & (known.times[:n] == history.times[:n])
        return replace(cache, n_frames=int(alike.cumprod(0).sum()))

    def _empty(self, history: History) -> KVCache:
        """Memory for the frames of a history, those that it may grow by and the one that is denoised."""
        batch, _, residues = history.conformations.shape
        capacity = max(self._capacity, history.n_frames) + 1
        if self._memory is None or self._memory.keys.shape[3] < capacity * residues:
            self._memory = self._denoiser.cache(batch, residues, capacity)
            self.execution.clear()
        return self._memory

    def _appended(self, cache: KVCache, inputs: FrameInputs) -> KVCache:
        """Cache with frames encoded behind its own; a single one at the end of its room, as the noisy one will be."""
        frames = len(inputs.index)
        room, begin, mask = self._behind(cache) if frames == 1 else (cache.n_frames + frames, cache, None)
        static = self.static

        def encode(given, state):
            self._denoiser.encode(static, given[0], begin, given[1])
            return state

        use, residues = "encode" if frames == 1 else (begin.n_frames, frames), inputs.conformation.shape[-1]
        new = slice(begin.n_frames * residues, room * residues)
        written = cache.keys[:, :, :, new], cache.values[:, :, :, new]
        runner = self.execution.runner(use, (room, mask is None), encode, inputs.conformation, written)
        runner.run((inputs, mask), ())
        return cache.moved(begin.n_frames, frames, residues)

    def _behind(self, cache: KVCache):
        """Room for a frame behind a cache, the cache up to the end of that room, and which frames the new one sees."""
        residues = self._reference.shape[-1]
        room = self.execution.room(cache.n_frames + 1, cache.keys.shape[3] // residues)
        return room, replace(cache, n_frames=room - 1), self._denoiser.mask_behind(cache, room, residues)

    def _reference_on(self, frames: Conformation) -> Conformation | None:
        """The reference structure superposed on frames (B, T, N), for networks that are drawn back to it."""
        if not self._model.config.network.reversion:
            return None
        return superposed(self._reference.map(lambda x: x[:, None]), frames)


def _equal(a: Conformation | None, b: Conformation) -> bool:
    return a is b or (a is not None and all(map(torch.equal, a.tensors, b.tensors)))
