"""Whatever goes wrong, the Context is in its last good state, the files are whole, and the run can go on."""

import itertools
import multiprocessing
import os
import runpy
import signal
from contextlib import contextmanager

import numpy as np
import openmm
import pytest
import torch
from openmm import app

from openmm_starmd import HistoryError, JumpRejectedError, Propagator, Relaxation, StarMDModel, StarMDReporter, resume
from openmm_starmd.binding.history_tracker import HistoryTracker
from openmm_starmd.binding.store import HistoryStore

KILLS = 20
SCRIPT = """
import os, warnings
import torch
from openmm import Platform, XmlSerializer
from openmm.app import CheckpointReporter, PDBFile, Simulation, StateDataReporter, XTCReporter
from openmm_starmd import Relaxation, StarMDIntegrator, StarMDReporter, resume

os.chdir(os.path.dirname(__file__))
warnings.simplefilter("ignore")
torch.set_num_threads(1)
pdb = PDBFile("../peptide.pdb")
with open("../system.xml") as file:
    system = XmlSerializer.deserialize(file.read())
quick = Relaxation(minimizationSteps=8, dynamicsSteps=10)
integrator = StarMDIntegrator(pdb.topology, 300, 100, "../tiny.safetensors", relaxation=quick, randomSeed=7)
simulation = Simulation(pdb.topology, system, integrator, Platform.getPlatform("Reference"))
simulation.context.setPositions(pdb.positions)
done = resume(simulation, "run.chk", "out.xtc", "log.csv", "starmd.csv")
simulation.reporters += [
    XTCReporter("out.xtc", 1, append=done > 0),
    StateDataReporter("log.csv", 1, step=True, time=True, totalEnergy=True, speed=True, append=done > 0),
    StarMDReporter("starmd.csv", 2, append=done > 0),
    CheckpointReporter("run.chk", 2),
]
simulation.step(40 - simulation.currentStep)
"""


@pytest.fixture
def start(peptide, tiny_model, tmp_path):
    """Function (name of a folder) -> process that starts, or goes on with, a run there, and the folder."""
    topology, positions, system = peptide
    with open(tmp_path / "peptide.pdb", "w") as file:
        app.PDBFile.writeFile(topology, positions, file)
    (tmp_path / "system.xml").write_text(openmm.XmlSerializer.serialize(system))
    tiny_model.save(tmp_path / "tiny.safetensors")
    processes = multiprocessing.get_context("forkserver")  # the libraries are imported once
    processes.set_forkserver_preload(["openmm_starmd"])

    def create(name):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "script.py").write_text(SCRIPT)
        process = processes.Process(target=runpy.run_path, args=(str(folder / "script.py"),))
        process.start()
        return process, folder

    return create


def written(folder):
    """Bytes that the run in a folder has written by now."""
    paths = [folder / name for name in ("out.xtc", "log.csv", "starmd.csv")]
    return sum(path.stat().st_size for path in paths if path.exists())


def outcome(folder):
    """What a run leaves, without the columns of clock time: the last of one table, the last but two of the other."""
    rows = [line.rsplit(",", 1)[0] for line in (folder / "log.csv").open()]
    for *known, _, jumps, repaired in (line.split(",") for line in (folder / "starmd.csv").open()):
        rows.append((*known, jumps, repaired))
    return rows, (folder / "out.xtc").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_run_that_is_killed_at_any_moment_ends_as_one_that_never_was(start):
    process, folder = start("whole")
    process.join()
    assert process.exitcode == 0
    expected, perStep = outcome(folder), written(folder) / 40
    rng, kills = np.random.default_rng(1), 0
    for name in map(str, itertools.count()):
        exitcode = None
        while exitcode != 0:
            process, folder = start(name)
            goal = written(folder) + rng.uniform(0, 3) * perStep
            while written(folder) < goal and process.is_alive():
                process.join(0.001)
            process.join(rng.uniform(0, 0.05))  # not only where something has just been written
            process.kill()
            process.join()
            exitcode = process.exitcode
            assert exitcode in (0, -signal.SIGKILL)
            kills += exitcode != 0
        assert outcome(folder) == expected
        if kills >= KILLS:
            return


def everything(simulation, snapshot):
    """All that a fault must leave as it was: what a user can see, and what OpenMM saves."""
    return snapshot(simulation), simulation.context.createCheckpoint()


@pytest.mark.parametrize("part", ["rotations", "translations", "torsions"])
def test_nan_from_the_network_is_sampled_again_or_rejected(new_simulation, snapshot, part):
    simulation = new_simulation(maxRetries=1)
    simulation.step(1)
    propagator, calls = simulation.integrator._propagator, itertools.count()
    propagate, bad = propagator.step, {0, 2, 3}

    def step(history, generator):
        conformation = propagate(history, generator)
        if next(calls) in bad:
            with torch.inference_mode():
                (conformation.torsions if part == "torsions" else getattr(conformation.frames, part))[:, 1] = np.nan
        return conformation

    propagator.step = step
    simulation.step(1)
    assert simulation.integrator.getStatistics()["last"]["failed"] == {"not_finite": 1}
    before = snapshot(simulation)
    with pytest.raises(JumpRejectedError, match="not_finite"):
        simulation.step(1)
    assert snapshot(simulation) == before
    simulation.step(1)
    assert simulation.currentStep == 3


def test_a_force_of_the_user_that_fails_in_relaxation(new_simulation, peptide, snapshot):
    faults, calls = [], itertools.count()

    def force(state):
        if next(calls) in faults:
            raise RuntimeError("the user's own fault")
        return 0.0, np.zeros((system.getNumParticles(), 3))

    system = openmm.XmlSerializer.clone(peptide[2])
    system.addForce(openmm.PythonForce(force))
    simulation, sound = new_simulation(system=system), new_simulation(system=system)
    simulation.step(1)
    before = everything(simulation, snapshot)
    faults.append(next(calls) + 12)
    with pytest.raises(openmm.OpenMMException, match="the user's own fault"):
        simulation.step(1)
    assert everything(simulation, snapshot) == before
    faults.clear()
    simulation.step(2)
    sound.step(3)
    assert everything(simulation, snapshot) == everything(sound, snapshot)


MOMENTS = {
    "network": (Propagator, "step"),
    "minimisation": (Relaxation, "_hold"),
    "dynamics": (Relaxation, "_dynamics"),
    "velocities": (openmm.Context, "setVelocities"),
    "clock": (openmm.Context, "setTime"),
    "history": (HistoryTracker, "add"),
    "store": (HistoryStore, "setPerDofVariable"),
}


@pytest.fixture
def ctrl_c():
    """Python's own answer to Ctrl-C, also where a shell has started the tests in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("moment", MOMENTS)
def test_after_ctrl_c_the_run_goes_on_as_if_nothing_had_been(new_simulation, snapshot, monkeypatch, moment):
    simulation, sound = new_simulation(), new_simulation()
    simulation.step(1)
    before = everything(simulation, snapshot)
    where, name = MOMENTS[moment]
    original = getattr(where, name)

    def interrupted(*args, **kwargs):
        original(*args, **kwargs)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(where, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            simulation.step(1)
    assert everything(simulation, snapshot) == before
    simulation.step(2)
    sound.step(3)
    assert everything(simulation, snapshot) == everything(sound, snapshot)


class Faulty:
    """A reporter that fails at one step."""

    def __init__(self, at):
        self._at = at

    def describeNextReport(self, simulation):
        return {"steps": 1, "periodic": None, "include": ["positions"]}

    def report(self, simulation, state):
        if simulation.currentStep == self._at:
            raise RuntimeError("the reporter's own fault")


FAILING = {
    "exception": (lambda: Faulty(2), RuntimeError, "own fault"),
    "StarMDReporter": (lambda: StarMDReporter("/dev/full", 2), OSError, "No space left"),
    "StateDataReporter": (lambda: app.StateDataReporter("/dev/full", 2, step=True), OSError, "No space left"),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a full disk at the end, once more
@pytest.mark.parametrize("kind", FAILING)
def test_after_a_reporter_has_failed_the_run_goes_on(new_simulation, snapshot, kind):
    create, error, told = FAILING[kind]
    if "Reporter" in kind and not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    simulation, sound = new_simulation(), new_simulation()
    simulation.reporters.append(create())
    with pytest.raises(error, match=told):
        simulation.step(4)
    sound.step(2)
    assert everything(simulation, snapshot) == everything(sound, snapshot)
    simulation.reporters.clear()
    simulation.step(2)
    sound.step(2)
    assert everything(simulation, snapshot) == everything(sound, snapshot)


@contextmanager
def largest_file(size):
    """No file of this process may grow beyond ``size`` bytes, as on a disk that is full."""
    resource = pytest.importorskip("resource")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_full_disk_costs_no_line_and_no_checkpoint(new_simulation, snapshot, tmp_path):
    """The line that found no space comes later; a checkpoint that found none leaves the last one, and a torn file."""
    names = [str(tmp_path / name) for name in ("run.chk", "starmd.csv")]
    checkpoint, lines = names
    simulation, sound = new_simulation(), new_simulation()
    simulation.reporters += [StarMDReporter(lines, 1), app.CheckpointReporter(checkpoint, 1)]
    simulation.step(1)
    saved = (tmp_path / "run.chk").read_bytes()
    for size in (os.path.getsize(lines) + 5, len(saved) // 2):  # too small for the line; for the checkpoint
        with largest_file(size), pytest.raises(OSError):
            simulation.step(1)
        assert (tmp_path / "run.chk").read_bytes() == saved
        again = new_simulation()
        assert resume(again, checkpoint) == 1
        again.step(2)
    assert simulation.currentStep == 3
    simulation.step(1)
    rows = [line.split(",") for line in (tmp_path / "starmd.csv").open()][1:]
    assert [row[0] for row in rows] == ["1", "2", "3", "4"]
    seconds = sum(simulation.integrator.getStatistics()["seconds"].values())
    assert sum(float(row[-3]) for row in rows) == pytest.approx(seconds)  # no jump is told of twice
    sound.step(4)
    assert everything(simulation, snapshot) == everything(sound, snapshot)
    assert resume(new_simulation(), *names) == 4


@pytest.mark.parametrize("other", ["weights", "window", "relaxation"])
def test_a_checkpoint_of_another_model_is_refused_at_once(new_simulation, tiny_model, snapshot, tmp_path, other):
    checkpoint, log = str(tmp_path / "run.chk"), str(tmp_path / "starmd.csv")
    simulation = new_simulation()
    simulation.reporters += [StarMDReporter(log, 1), app.CheckpointReporter(checkpoint, 2)]
    simulation.step(3)
    kept = (tmp_path / "starmd.csv").read_bytes()
    if other == "weights":
        stranger = StarMDModel.create(tiny_model.config, tiny_model.domain, seed=2)
        stranger.denoiser.step_scales[:] = tiny_model.denoiser.step_scales
    settings = {
        "weights": lambda: {"model": stranger},
        "window": lambda: {"contextFrames": 2},
        "relaxation": lambda: {"relaxation": None},
    }[other]()
    changed = new_simulation(**settings)
    before = everything(changed, snapshot)
    with pytest.raises(HistoryError, match="run.chk"):
        resume(changed, checkpoint, log)
    assert everything(changed, snapshot) == before
    assert (tmp_path / "starmd.csv").read_bytes() == kept
    changed.step(1)
    assert changed.currentStep == 1
