"""Recorded functions of tensors: the same as without, whatever they are given; and what makes a GPU wait."""

import pytest
import torch

from openmm_starmd.diffusion.replay import Eager, Replayed, map_tensors
from openmm_starmd.geometry.rigid import Rigid


@pytest.mark.parametrize(
    "waiting",
    [
        lambda x: x.sum().item(),
        lambda x: float(x[0]),
        lambda x: x[x > 0],
        lambda x: x + torch.tensor([1.0, 2.0, 3.0]),
        lambda x: x.new_tensor([1.0]),
        lambda x: bool((x > 0).any()),
    ],
)
def test_waiting_is_noticed(waiting, no_waiting):
    with no_waiting(), pytest.raises(AssertionError):
        waiting(torch.ones(3))


def decayed(given, state):
    """Of the given rates and targets; counts, too."""
    (rate, target), (k, x) = given, state
    return k + 1, x + rate.index_select(0, k)[0] * (target - x)


def test_repeated_equals_eager(device):
    """Other inputs, other numbers of repetitions; what was returned before stays."""
    replayed, eager = Replayed(decayed, torch.device(device)), Eager(decayed)
    generator, results = torch.Generator().manual_seed(0), []
    with torch.inference_mode():
        for times in (1, 4, 2, 4):
            given = torch.rand(4, generator=generator).to(device), torch.randn(3, generator=generator).to(device)
            start = torch.zeros(1, dtype=torch.int64, device=device), torch.zeros(3, device=device)
            results.append((replayed.run(given, start, times), eager.run(given, start, times)))
    for (count, found), (expected_count, expected) in results:
        assert torch.equal(count, expected_count)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert (replayed.pool is not None) == (device == "cuda")


def test_structures_keep_their_kind():
    one = Rigid.identity((2,)), (None, torch.ones(2)), ()
    rigid, (nothing, two), empty = map_tensors(torch.add, one, one)
    assert isinstance(rigid, Rigid) and rigid.rotations.diagonal(dim1=1, dim2=2).unique().tolist() == [2.0]
    assert nothing is None and two.tolist() == [2.0, 2.0] and empty == ()


def test_a_tape_is_recorded_in_the_second_run():
    calls = []

    def function(given, state):
        calls.append(1)
        return state + given

    recording = Replayed(function, torch.device("cpu"))
    for k, times in enumerate((3, 3, 3)):
        assert recording.run(torch.ones(2), torch.full((2,), 1.0 * k), times).tolist() == 2 * [k + 3.0]
        assert len(calls) == min(3 + k, 4)


def test_what_is_no_graph_goes_on_as_it_stands(monkeypatch):
    def refused(*arguments, **settings):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", refused)
    recording = Replayed(lambda given, state: state + given, torch.device("cpu"))
    recording.run(torch.ones(2), torch.zeros(2))
    with pytest.warns(UserWarning, match="not be recorded.*not permitted when stream is capturing\\)"):
        recording._record(recording._graph)
    assert recording.run(torch.ones(2), torch.zeros(2), 3).tolist() == [3.0, 3.0]


def test_an_error_behind_the_recording_is_none_of_the_function(monkeypatch):
    """It must not be repeated: the state has moved on."""

    def broken(operations):
        raise RuntimeError("no memory")

    monkeypatch.setattr("openmm_starmd.diffusion.tape._buffers", broken)
    recording = Replayed(lambda given, state: state + given, torch.device("cpu"))
    recording.run(torch.ones(2), torch.zeros(2), 3)
    with pytest.raises(RuntimeError, match="no memory"):
        recording.run(torch.ones(2), torch.zeros(2), 3)


def test_what_is_no_tape_goes_on_as_it_stands():
    recording = Replayed(lambda given, state: state + given * state.sum().item(), torch.device("cpu"))
    given = torch.ones(2), torch.tensor([1.0, 2.0])
    expected = Eager(recording._function).run(*given, 3)
    recording.run(*given, 3)
    with pytest.warns(UserWarning, match="not be recorded.*_local_scalar_dense cannot be repeated"):
        assert torch.equal(recording.run(*given, 3), expected)
    assert torch.equal(recording.run(*given, 3), expected)
