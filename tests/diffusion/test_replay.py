"""Recorded functions of tensors: the same as without, whatever they are given; and what makes a GPU wait."""

import itertools

import pytest
import torch

from openmm_starmd.diffusion.replay import VARIABLE, Eager, Replayed, map_tensors, recording_wanted
from openmm_starmd.diffusion.tape import Tape
from openmm_starmd.errors import StarMDError
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
        assert len(calls) == (3, 5, 5)[k]  # recorded by the fourth call, held to the fifth


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


@pytest.mark.filterwarnings("error")
def test_what_is_written_beside_the_result_is_compared_and_stays():
    memory = torch.zeros(2)

    def function(given, state):
        memory.copy_(given * 2)
        return state

    recording = Replayed(function, torch.device("cpu"), written=(memory,))
    for k in range(5):
        recording.run(torch.full((2,), 1.0 * k), ())
        assert memory.tolist() == [2.0 * k, 2.0 * k]
    assert isinstance(recording._recording, Tape)


def test_an_error_of_the_first_replay_is_told_and_the_function_goes_on(monkeypatch):
    def broken(operations):
        raise RuntimeError("no memory")

    monkeypatch.setattr("openmm_starmd.diffusion.tape._buffers", broken)
    recording = Replayed(lambda given, state: state + given, torch.device("cpu"))
    recording.run(torch.ones(2), torch.zeros(2), 3)
    with pytest.warns(UserWarning, match="no memory"):
        assert recording.run(torch.ones(2), torch.zeros(2), 3).tolist() == [3.0, 3.0]


def counting():
    """Function that adds how often it was called: a number of Python, which a recording takes to be always the same."""
    calls = itertools.count()
    return lambda given, state: state + given * next(calls)


@pytest.mark.parametrize("times", [1, 3])
def test_a_recording_that_does_something_else_is_found_out(times):
    recording, eager = Replayed(counting(), torch.device("cpu")), Eager(counting())
    with pytest.warns(UserWarning, match="other numbers than the operations themselves") as told:
        for k in range(5):
            given, state = torch.full((2,), 1.0 + k), torch.ones(2)
            assert torch.equal(recording.run(given, state, times), eager.run(given, state, times))
    assert len(told) == 1 and recording.failed


def test_a_recording_that_writes_nothing_is_found_out(monkeypatch):
    """The function's result is always the same; what it leaves in memory is not."""
    memory = torch.zeros(2)

    def function(given, state):
        memory.copy_(given)
        return state

    monkeypatch.setattr(Tape, "replay", lambda self: None)
    recording = Replayed(function, torch.device("cpu"), written=(memory,))
    with pytest.warns(UserWarning, match="other numbers") as told:
        for k in range(4):
            recording.run(torch.full((2,), 1.0 * k), ())
            assert memory.tolist() == [k, k]
    assert len(told) == 1


@pytest.mark.parametrize(
    "value, cpu, gpu", [(None, True, False), ("", True, False), ("0", False, False), ("1", True, True)]
)
def test_a_variable_of_the_environment_says_where_recordings_are_made(monkeypatch, value, cpu, gpu):
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    assert (recording_wanted(torch.device("cpu")), recording_wanted(torch.device("cuda"))) == (cpu, gpu)


def test_another_value_of_the_variable_is_refused(monkeypatch):
    monkeypatch.setenv(VARIABLE, "off")
    with pytest.raises(StarMDError, match="STARMD_RECORDING must be 0 .* or 1 .*'off'"):
        recording_wanted(torch.device("cpu"))


def test_what_is_no_tape_goes_on_as_it_stands():
    recording = Replayed(lambda given, state: state + given * state.sum().item(), torch.device("cpu"))
    given = torch.ones(2), torch.tensor([1.0, 2.0])
    expected = Eager(recording._function).run(*given, 3)
    recording.run(*given, 3)
    with pytest.warns(UserWarning, match="not be recorded.*_local_scalar_dense cannot be repeated"):
        assert torch.equal(recording.run(*given, 3), expected)
    assert torch.equal(recording.run(*given, 3), expected)
