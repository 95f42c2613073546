"""What surrounds the recording of training steps, with a stand-in for CUDA that repeats the function in its buffers."""

from contextlib import contextmanager

import pytest
import torch

from openmm_starmd.training import graphed


class Graph:
    def __init__(self, known):
        self._known = known

    def register_generator_state(self, generator):
        self._generator = generator

    def replay(self):
        _, place, value = next(entry for entry in self._known().values() if entry[0] is self)
        value.copy_(noisy_sum(place, self._generator))


class Stream:
    def wait_stream(self, other):
        pass


def noisy_sum(batch, generator):
    return batch["x"].sum() + torch.rand((), generator=generator)


def expected(batch, seed):
    return noisy_sum(batch, torch.Generator().manual_seed(seed))


@contextmanager
def nothing(*arguments, **settings):
    yield


@pytest.fixture
def step(monkeypatch):
    cuda = {"Stream": lambda device: Stream(), "current_stream": Stream, "graph_pool_handle": lambda: None}
    cuda |= {"stream": nothing, "graph": nothing, "CUDAGraph": lambda: Graph(lambda: made._graphs)}
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: x)
    made = graphed.GraphedStep(noisy_sum, torch.device("cpu"))
    return made


class Batch(dict):
    def to(self, device):
        return Batch({name: x.clone() for name, x in self.items()})


def batches(count=14):
    """Of two shapes in turn."""
    return [Batch(x=torch.full((2 + k % 2,), float(k))) for k in range(count)]


def test_every_call_has_its_own_batch_and_random_numbers(step):
    values = [step(batch, 100 + k) for k, batch in enumerate(batches())]
    assert len(step._graphs) == 2  # one for each shape
    for k, batch in enumerate(batches()):
        assert torch.equal(values[k], expected(batch, 100 + k))


def test_where_recording_fails_the_same_numbers_come_without(step, monkeypatch):
    """Also if the recording has drawn from the generator before it failed."""

    @contextmanager
    def refused(*arguments, **settings):
        yield
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refused)
    with pytest.warns(UserWarning, match="It could not be recorded") as told:
        values = [step(batch, 100 + k) for k, batch in enumerate(batches())]
    assert len(told) == 1 and not step._graphs
    for k, batch in enumerate(batches()):
        assert torch.equal(values[k], expected(batch, 100 + k))
