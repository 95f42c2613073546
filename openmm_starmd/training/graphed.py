"""Training steps without gaps on a GPU: batches drawn ahead by threads, steps replayed as CUDA graphs.

A step of a small network is thousands of kernels of a few microseconds, which Python launches more slowly than the
device runs them. Recorded once for each shape of a batch, a replay launches all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Generator, Tensor

from openmm_starmd.diffusion.replay import map_tensors, warn_of_recording
from openmm_starmd.errors import first_line

WARM_UP = 3  # calls of a shape before it is recorded, so that tables, libraries and the optimiser are ready
_THREADS, _AHEAD = 4, 12


class Prefetcher:
    """Batches that threads make of their numbers before they are asked for; none is made from number ``last`` on."""

    def __init__(self, make: Callable, last: int):
        self._make, self._last = make, last
        self._pool = ThreadPoolExecutor(_THREADS, "batches")
        self._coming: dict[int, Future] = {}

    def __call__(self, number: int):
        """Batch of a number; threads begin the batches that follow."""
        for coming in range(number, max(number + 1, min(number + _AHEAD, self._last))):
            if coming not in self._coming:
                self._coming[coming] = self._pool.submit(self._make, coming)
        return self._coming.pop(number).result()

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(cancel_futures=True)


class GraphedStep:
    """A function of a batch and a generator of random numbers as CUDA graphs, one for each shape of the batch.

    The function never waits for the device, and what else it changes has a fixed place in memory.
    """

    def __init__(self, function: Callable, device: torch.device):
        self._function = function
        self._generator = Generator(device)
        self._stream, self._pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
        self._calls: dict[tuple, int] = {}
        self._graphs: dict[tuple, tuple] = {}
        self._fails = False

    def __call__(self, batch, seed: int) -> Tensor:
        """Value of the function for a batch (on the CPU) and the random numbers of a seed."""
        self._generator.manual_seed(seed)
        shapes: list[torch.Size] = []
        map_tensors(lambda x: shapes.append(x.shape) or x, batch)
        shape = tuple(shapes)
        if shape not in self._graphs:
            self._calls[shape] = self._calls.get(shape, 0) + 1
            if self._calls[shape] <= WARM_UP or self._fails:
                return self._eagerly(batch)
            try:
                self._graphs[shape] = self._record(batch)
            except RuntimeError as error:
                warn_of_recording(first_line(error))
                self._fails = True
            self._generator.manual_seed(seed)  # the recording may have drawn from it
            if self._fails:
                return self._eagerly(batch)
        graph, place, value = self._graphs[shape]
        map_tensors(lambda to, new: to.copy_(new.pin_memory(), non_blocking=True), place, batch)
        graph.replay()
        return value.clone()

    def _eagerly(self, batch) -> Tensor:
        batch = batch.to(self._generator.device)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            value = self._function(batch, self._generator)
        torch.cuda.current_stream().wait_stream(self._stream)
        return value

    def _record(self, batch) -> tuple:
        """Graph, memory of its batch and memory of its value."""
        graph, place = torch.cuda.CUDAGraph(), batch.to(self._generator.device)
        graph.register_generator_state(self._generator)
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            value = self._function(place, self._generator)
        return graph, place, value
