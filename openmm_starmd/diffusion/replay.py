"""Functions of tensors that are recorded: as CUDA graphs, whose kernels are started at once, or on a CPU as tapes.

A denoising step is a thousand small operations, whose start takes longer than they do. A recording reads and writes the
same memory in every replay, so inputs are copied into buffers first, and whatever is different from call to call must
be a tensor. Nothing that is recorded may wait for the GPU or draw random numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from dataclasses import fields, is_dataclass

import torch
from torch import Tensor

from openmm_starmd.diffusion.tape import Tape


def map_tensors(function: Callable[..., Tensor], *values):
    """``function`` of the tensors in values of one structure: dataclasses, tuples, dicts; None stays."""
    first = values[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return function(*values)
    if is_dataclass(first):
        parts = {f.name: map_tensors(function, *(getattr(v, f.name) for v in values)) for f in fields(first)}
        return type(first)(**parts)
    if isinstance(first, dict):
        return {key: map_tensors(function, *(v[key] for v in values)) for key in first}
    parts = (map_tensors(function, *both) for both in zip(*values, strict=True))
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)


def _copied(buffer: Tensor, new: Tensor) -> Tensor:
    return buffer if new is buffer else buffer.copy_(new)


def warn_of_recording(error: RuntimeError) -> None:
    """Tell that something cannot be recorded and runs as it stands."""
    reason = str(error).strip().splitlines()[0]
    warnings.warn(f"It could not be recorded ({reason}): the same goes on without, slower.", stacklevel=3)


class Replayed:
    """Repeats ``state = function(given, state)`` in buffers, and records it.

    On a GPU it is recorded at the second repetition. On a CPU, where recording takes as long as fifteen repetitions, it
    is in the second run: what is run once is not worth it.

    Parameters
    ----------
    function : callable
        Beside its arguments it may read, and write to, tensors that are always the same.
    device : torch.device
    pool
        Memory pool of another one that is never replayed at the same time, optional; of a GPU.
    """

    def __init__(self, function: Callable, device: torch.device, pool=None):
        self._function, self._device, self._wanted_pool = function, device, pool
        self._given = self._state = self._recording = None
        self._warm = False

    @property
    def pool(self):
        """Memory pool of the recording; None without one."""
        return self._recording.pool() if isinstance(self._recording, torch.cuda.CUDAGraph) else None

    def run(self, given, state, times: int = 1):
        """The state after ``times`` repetitions."""
        if self._state is None:
            self._given, self._state = map_tensors(torch.clone, (given, state))
        else:
            map_tensors(_copied, (self._given, self._state), (given, state))
            self._warm = True
        for _ in range(times):
            self._repeat()
        return map_tensors(torch.clone, self._state)

    def _advance(self) -> None:
        map_tensors(_copied, self._state, self._function(self._given, self._state))

    def _repeat(self) -> None:
        if self._recording:
            self._recording.replay()
        elif self._device.type == "cuda":
            with torch.cuda.device(self._device):
                self._record(self._graph) if self._warm else self._warm_up()
        else:
            self._record(self._tape) if self._warm else self._advance()

    def _warm_up(self) -> None:
        """The first repetition, on a stream of its own: libraries and tables are made ready before the recording."""
        side, current = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            self._advance()
        current.wait_stream(side)
        self._warm = True

    def _record(self, recorded: Callable[[], torch.cuda.CUDAGraph | Tape]) -> None:
        """One repetition, recorded if that can be."""
        try:
            self._recording = recorded()
        except RuntimeError as error:
            warn_of_recording(error)
            self._repeat = self._advance
            self._advance()

    def _graph(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._wanted_pool, capture_error_mode="thread_local"):
            self._advance()
        graph.replay()
        return graph

    def _tape(self) -> Tape:
        return Tape(self._advance)


class Eager:
    """Runner like `Replayed` that records nothing and needs no buffers."""

    def __init__(self, function: Callable):
        self._function = function

    def run(self, given, state, times: int = 1):
        """The state after ``times`` repetitions."""
        for _ in range(times):
            state = self._function(given, state)
        return state


class Recordings:
    """The functions of one system that are recorded, one for each use; they share their memory.

    Parameters
    ----------
    device : torch.device
    """

    def __init__(self, device: torch.device):
        self._device, self._known = device, {}

    def clear(self) -> None:
        """Forget all recordings, since tensors that they read have been replaced."""
        self._known.clear()

    def of(self, use: Hashable, variant: Hashable, function: Callable) -> Replayed:
        """The recording for a use, made anew from ``function`` if it was of another variant."""
        known = self._known.get(use)
        if known is None or known[0] != variant:
            self._known.pop(use, None)
            pool = next((recording.pool for _, recording in self._known.values() if recording.pool), None)
            known = self._known[use] = variant, Replayed(function, self._device, pool)
        return known[1]
