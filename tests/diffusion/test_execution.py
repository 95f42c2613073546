"""Where functions of tensors are recorded, and how much room a recording leaves."""

import torch

from openmm_starmd.diffusion.execution import Execution
from openmm_starmd.diffusion.replay import Eager, Replayed
from openmm_starmd.geometry.rigid import Rigid
from openmm_starmd.protein.conformation import Conformation

CPU = torch.device("cpu")
FRAMES = Conformation(Rigid.identity((1, 4)), torch.zeros(1, 4, 6), torch.zeros(1, 4))


def unchanged(given, state):
    return state


def test_another_variant_is_recorded_anew():
    execution = Execution(CPU)

    def runner(use, variant):
        return execution.runner(use, variant, unchanged, FRAMES)

    first = runner("use", 1)
    assert isinstance(first, Replayed) and runner("use", 1) is first
    assert runner("other use", 1) is not first
    assert runner("use", 2) is not first
    assert runner("use", 1) is not first
    last = runner("use", 1)
    execution.clear()
    assert runner("use", 1) is not last


def test_without_recording_functions_run_as_they_are():
    assert isinstance(Execution(CPU, records=False).runner("use", 1, unchanged, FRAMES), Eager)


def test_only_a_gpu_that_records_leaves_room():
    assert Execution(CPU).room(5, 100) == 5
    assert Execution(torch.device("cuda"), records=False).room(5, 100) == 5
    assert [Execution(CPU, roomy=True).room(needed, 100) for needed in (5, 64, 65)] == [64, 64, 100]
    assert Execution(CPU, roomy=True).room(65, 200) == 128
