"""Replay of functions of tensors: on a GPU as CUDA graphs, whose kernels are started at once, on a CPU as tapes.

A denoising step is a thousand small operations, whose start takes longer than they do. A recording reads and writes the
same memory in every replay, so inputs are copied into buffers first, and whatever is different from call to call must
be a tensor. Nothing that is recorded may wait for the GPU or draw random numbers. The first replay of every recording
is held to what the function itself gives.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass

import torch
from torch import Tensor

from openmm_starmd.diffusion.tape import Tape
from openmm_starmd.errors import StarMDError, first_line

VARIABLE = "STARMD_RECORDING"
TOLERANCE = 1e-4  # of numbers on a GPU, where a graph may add in another order; on a CPU every bit is the same


def recording_wanted(device: torch.device) -> bool:
    """Tell if functions are recorded on a device.

    On a CPU they are unless the environment variable STARMD_RECORDING is 0, on a GPU only if it is 1.

    Raises
    ------
    StarMDError
        If the variable has another value.
    """
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "0", "1"):
        raise StarMDError(
            f"The environment variable {VARIABLE} must be 0 (nothing is recorded) or 1 (recording on GPUs, too), but "
            f"it is {value!r}; change it, or unset it for recording on CPUs alone."
        )
    return value == "1" or (value == "" and device.type == "cpu")


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


def warn_of_recording(reason: str) -> None:
    """Warn that something cannot be recorded, for a reason, and runs operation by operation."""
    warnings.warn(
        f"It could not be recorded ({reason}): the same goes on without, slower. {VARIABLE}=0 in the environment "
        "turns recording, and this warning, off.",
        stacklevel=3,
    )


class Replayed:
    """Repeats ``state = function(given, state)`` in buffers, and records it.

    On a GPU it is recorded at the second repetition. On a CPU, where recording takes as long as fifteen repetitions, it
    is in the second run: what is run once is not worth it. The repetition after that is made by the function and by the
    recording; if they differ, or if recording fails, a warning says so and the function does all further ones.

    Parameters
    ----------
    function : callable
        Beside its arguments it may read, and write to, tensors that are always the same.
    device : torch.device
    pool
        Memory pool of another one that is never replayed at the same time, optional; of a GPU.
    written : sequence of Tensor
        What the function writes to beside its result; compared, too.

    Attributes
    ----------
    failed : bool
        Whether recording has failed.
    """

    def __init__(self, function: Callable, device: torch.device, pool=None, written: Sequence[Tensor] = ()):
        self._function, self._device, self._wanted_pool, self._written = function, device, pool, tuple(written)
        self._given = self._state = self._recording = None
        self._warm = self._checked = self.failed = False

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
        if self.failed:
            self._advance()
        elif self._recording:
            self._recording.replay() if self._checked else self._check()
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
            self._fail(first_line(error))
            self._advance()

    def _check(self) -> None:
        """One repetition by the function, to which that of the recording is held."""
        changed = self._state, self._written
        before = map_tensors(torch.clone, self._state)
        self._advance()
        expected = map_tensors(torch.clone, changed)
        map_tensors(_copied, self._state, before)
        map_tensors(torch.zero_, self._written)
        try:
            self._recording.replay()
            reason = None if _alike(changed, expected) else "a replay gave other numbers than the operations themselves"
        except Exception as error:  # whatever a broken recording does, the function's own result is at hand
            reason = first_line(error)
        self._checked = True
        if reason:
            map_tensors(_copied, changed, expected)
            self._fail(reason)

    def _fail(self, reason: str) -> None:
        self.failed, self._recording = True, None
        warn_of_recording(reason)

    def _graph(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._wanted_pool, capture_error_mode="thread_local"):
            self._advance()
        graph.replay()
        return graph

    def _tape(self) -> Tape:
        return Tape(self._advance)


def _alike(found, expected) -> bool:
    """Compare values of one structure: bit by bit on a CPU, within the tolerance on a GPU."""
    alike: list[bool] = []

    def compare(a: Tensor, b: Tensor) -> Tensor:
        size = TOLERANCE if a.device.type == "cuda" else 0.0
        alike.append(torch.allclose(a, b, rtol=size, atol=size, equal_nan=True))
        return a

    map_tensors(compare, found, expected)
    return all(alike)


class Eager:
    """Runner like `Replayed` that records nothing and needs no buffers."""

    def __init__(self, function: Callable):
        self._function = function

    def run(self, given, state, times: int = 1):
        """The state after ``times`` repetitions."""
        for _ in range(times):
            state = self._function(given, state)
        return state
