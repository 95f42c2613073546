"""StarMDReporter tells what happened; `resume` leaves the files of the run that was never interrupted."""

import io
import struct
from pathlib import Path

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit

from openmm_starmd import (
    HistoryError,
    HybridSchedule,
    Relaxation,
    StarMDError,
    StarMDIntegrator,
    StarMDReporter,
    resume,
)

REFERENCE = openmm.Platform.getPlatform("Reference")
EVERY, CHECKPOINT, TOTAL = 5, 10, 40


@pytest.fixture(scope="module")
def jumping(build_peptide):
    """Function (**settings of the integrator) -> Simulation of a tripeptide in vacuum, with the embedded model."""
    topology, positions = build_peptide("ASG")
    system = app.ForceField("amber14/protein.ff14SB.xml").createSystem(topology, constraints=app.HBonds)

    def create(**settings):
        quick = Relaxation(minimizationSteps=20, dynamicsSteps=10)
        settings = {"relaxation": quick, "denoisingSteps": 4, "randomSeed": 3, "device": "cpu"} | settings
        simulation = app.Simulation(topology, system, StarMDIntegrator(topology, 300, 100, **settings), REFERENCE)
        simulation.context.setPositions(positions)
        return simulation

    return create


def rows_of(text):
    """Lines of a CSV file as lists of str, without the header."""
    return [line.split(",") for line in text.splitlines()[1:]]


def test_lines_tell_what_happened_since_the_last(jumping):
    simulation, text, log = jumping(relaxation=None, maxRetries=20), io.StringIO(), io.StringIO()
    propagator, samples = simulation.integrator._propagator, []
    propagate = propagator.step

    def spoil_some(history, generator):
        conformation = propagate(history, generator)
        samples.append(simulation.currentStep)
        if len(samples) in (2, 3, 7):
            with torch.inference_mode():
                conformation.frames.translations[:, 0] += 1.0
        return conformation

    propagator.step = spoil_some
    simulation.reporters += [
        StarMDReporter(text, 2),
        app.StateDataReporter(log, 2, step=True, time=True, potentialEnergy=True),
    ]
    simulation.step(3)
    simulation.step(3)

    rows, states = rows_of(text.getvalue()), rows_of(log.getvalue())
    assert [row[:2] for row in rows] == [row[:2] for row in states]
    for row, state in zip(rows, states, strict=True):
        sampled = sum(int(row[0]) - 2 <= step < int(row[0]) for step in samples)
        assert int(row[2]) == sampled - 2
        assert float(row[4]) == pytest.approx(2 / sampled)
        assert float(row[5]) == float(row[6]) == pytest.approx(float(state[2]), rel=1e-6)
        assert row[8:] == ["2", "0"]  # nothing of three residues is left to hold
    assert sum(int(row[2]) for row in rows) >= 3
    failed = [dict(pair.split(":") for pair in row[3].split()) for row in rows]
    told = {kind: sum(int(kinds.get(kind, 0)) for kinds in failed) for kind in set().union(*failed)}
    statistics = simulation.integrator.getStatistics()
    assert told == statistics["failed"] and told["peptide_breaks"] >= 3
    assert 2 * sum(float(row[7]) for row in rows) == pytest.approx(sum(statistics["seconds"].values()))


def test_a_reporter_counts_from_when_it_is_there(jumping):
    simulation, text = jumping(), io.StringIO()
    simulation.step(2)
    simulation.reporters.append(StarMDReporter(text, 3))
    before = sum(simulation.integrator.getStatistics()["seconds"].values())
    simulation.step(1)
    after = sum(simulation.integrator.getStatistics()["seconds"].values())
    (row,) = rows_of(text.getvalue())
    assert row[0] == "3" and float(row[7]) == pytest.approx(after - before)


def test_physical_segments_have_no_jumps_to_tell_of(jumping):
    simulation, text = jumping(schedule=HybridSchedule(1, 3)), io.StringIO()
    simulation.reporters.append(StarMDReporter(text, 1))
    simulation.step(5)
    empty = [not any(row[4:8]) and row[2:4] + row[8:] == ["0", "", "0", "0"] for row in rows_of(text.getvalue())]
    assert empty == [False, True, True, True, False]
    numbers = np.genfromtxt(io.StringIO(text.getvalue()), delimiter=",", skip_header=1)
    assert np.isfinite(numbers[[0, 4]][:, [0, 1, 2, 4, 5, 6, 7, 8, 9]]).all() and np.isnan(numbers[1:4, 4:8]).all()
    pandas = pytest.importorskip("pandas")
    table = pandas.read_csv(io.StringIO(text.getvalue()))
    assert list(table['#"Step"']) == [1, 2, 3, 4, 5] and table["Validity"].isna().tolist() == empty


def test_every_line_is_on_disk_at_once_and_the_header_there_once(jumping, tmp_path):
    simulation, path = jumping(), tmp_path / "starmd.csv"
    for append in (False, True):
        simulation.reporters[:] = [StarMDReporter(str(path), 1, append=append)]
        for _ in range(2):
            simulation.step(1)
            lines = path.read_text().splitlines()
            assert len(lines) == 1 + simulation.currentStep
    assert [line.startswith('#"Step","Time (ps)"') for line in lines] == [True, False, False, False, False]


def test_another_integrator_is_refused_before_a_step(tmp_path):
    simulation = chain(12)
    reporter = StarMDReporter(str(tmp_path / "starmd.csv"), 1)
    simulation.reporters.append(reporter)
    for call in (lambda: simulation.step(1), lambda: reporter.report(simulation, simulation.context.getState())):
        with pytest.raises(StarMDError, match="VerletIntegrator"):
            call()
    assert simulation.currentStep == 0


@pytest.mark.parametrize("interval", [0, -1, 1.5, None, "5"])
def test_an_interval_that_is_none_is_refused_and_the_file_stays(tmp_path, interval):
    (tmp_path / "starmd.csv").write_text("kept")
    with pytest.raises(ValueError, match="reportInterval must be an integer of at least 1, not "):
        StarMDReporter(str(tmp_path / "starmd.csv"), interval)
    assert (tmp_path / "starmd.csv").read_text() == "kept"


def test_a_report_before_the_first_step_tells_of_no_jump(jumping):
    simulation, text = jumping(), io.StringIO()
    reporter = StarMDReporter(text, 1)
    reporter.report(simulation, simulation.context.getState())
    simulation.step(1)
    reporter.report(simulation, simulation.context.getState())
    rows = rows_of(text.getvalue())
    assert [(row[0], row[8]) for row in rows] == [("0", "0"), ("1", "1")]


def chain(atoms, platform=REFERENCE, dt=0.002):
    """Simulation of a chain of particles on springs by an integrator of OpenMM; `resume` serves that, too."""
    topology, system, springs = app.Topology(), openmm.System(), openmm.HarmonicBondForce()
    residue = topology.addResidue("X", topology.addChain())
    for index in range(atoms):
        topology.addAtom("C", app.element.carbon, residue)
        system.addParticle(12.0)
        if index:
            springs.addBond(index - 1, index, 0.12, 1000.0)
    system.addForce(springs)
    simulation = app.Simulation(topology, system, openmm.VerletIntegrator(dt), platform)
    simulation.context.setPositions(np.stack([0.15 * np.arange(atoms), np.zeros(atoms), np.zeros(atoms)], 1))
    return simulation


def run(simulation, folder, until, done=0, every=EVERY, checkpoint=CHECKPOINT):
    """What a user's script does; returns the names of the files."""
    files = [str(folder / name) for name in ("out.xtc", "out.dcd", "out.csv")]
    xtc, dcd, csv = files
    log = {"progress": True, "totalSteps": TOTAL, "step": True, "potentialEnergy": True}
    simulation.reporters[:] = [
        app.XTCReporter(xtc, every, append=done > 0),
        app.DCDReporter(dcd, every, append=done > 0),
        app.StateDataReporter(csv, every, append=done > 0, **log),
        app.CheckpointReporter(str(folder / "run.chk"), checkpoint),
    ]
    simulation.step(until - simulation.currentStep)
    simulation.reporters.clear()
    return files


def contents(files):
    """Bytes of the files; of a DCD without the date that it was created at."""
    return [Path(f).read_bytes() for f in files if f[-3:] != "dcd"] + [
        Path(f).read_bytes()[:180] + Path(f).read_bytes()[260:] for f in files if f[-3:] == "dcd"
    ]


@pytest.mark.parametrize("atoms", [2, 9, 10, 31])
@pytest.mark.parametrize("stop", [10, 12, 18, 39])
def test_a_resumed_run_has_the_files_of_a_whole_one(tmp_path, atoms, stop):
    """Up to nine atoms, an XTC file is not compressed."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    whole.mkdir()
    part.mkdir()
    expected = contents(run(chain(atoms), whole, TOTAL))
    files = run(chain(atoms), part, stop)
    simulation = chain(atoms)
    done = resume(simulation, str(part / "run.chk"), *files)
    assert done == simulation.currentStep == stop // CHECKPOINT * CHECKPOINT
    run(simulation, part, TOTAL, done)
    assert contents(files) == expected


@pytest.mark.parametrize("atoms", [2, 9, 10])
def test_torn_ends_are_cut_wherever_they_are_torn(tmp_path, atoms):
    files = run(chain(atoms), tmp_path, 10)
    kept = [Path(file).read_bytes() for file in files]
    checkpoint = (tmp_path / "run.chk").read_bytes()
    simulation = chain(atoms)  # goes on, since a new DCD file would tell another time of its creation
    run(simulation, tmp_path, 20, resume(simulation, str(tmp_path / "run.chk"), *files))
    later = [Path(file).read_bytes() for file in files]
    (tmp_path / "run.chk").write_bytes(checkpoint)
    simulation = chain(atoms)
    for file, early, late in zip(files, kept, later, strict=True):
        for end in range(len(early), len(late)):
            Path(file).write_bytes(late[:end])
            assert resume(simulation, str(tmp_path / "run.chk"), file) == 10
            assert Path(file).read_bytes() == early


@pytest.mark.parametrize("stop", [2, 3, 4, 5, 6, 9])
def test_before_the_first_checkpoint_or_frame_the_run_starts_anew(tmp_path, stop):
    """Checkpoints every 3 steps, frames every 5: OpenMM could not append to a file without a frame."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    whole.mkdir()
    part.mkdir()
    expected = contents(run(chain(12), whole, TOTAL))
    files = run(chain(12), part, stop, checkpoint=3)
    written = {Path(file): Path(file).read_bytes() for file in [str(part / "run.chk"), *files] if Path(file).exists()}
    simulation = chain(12)
    if any(written.values()) and stop < 6:
        with pytest.warns(UserWarning, match="starts anew"):
            done = resume(simulation, str(part / "run.chk"), *files)
        aside = {path.with_name(path.name + ".1"): data for path, data in written.items() if data}
        assert {path: path.read_bytes() for path in part.glob("*.1")} == aside
    else:
        done = resume(simulation, str(part / "run.chk"), *files)
    assert done == simulation.currentStep == (stop // 3 * 3 if stop >= 6 else 0)
    run(simulation, part, TOTAL, done)
    assert contents(files) == expected


@pytest.mark.parametrize("separator", ["\t", "; ", " "])
def test_a_log_is_read_by_its_separator(tmp_path, separator):
    def log(folder, until, done=0):
        simulation = chain(12)
        file, checkpoint = str(folder / "out.tsv"), str(folder / "run.chk")
        if done:
            assert resume(simulation, checkpoint, file) == done
        simulation.reporters += [
            app.StateDataReporter(file, EVERY, time=True, step=True, separator=separator, append=done > 0),
            app.CheckpointReporter(checkpoint, CHECKPOINT),
        ]
        simulation.step(until - simulation.currentStep)
        return Path(file).read_bytes()

    part = tmp_path / "part"
    part.mkdir()
    log(part, 18)
    assert log(part, TOTAL, done=10) == log(tmp_path, TOTAL)


def test_a_log_of_steps_alone_is_cut(tmp_path):
    simulation, file = chain(12), str(tmp_path / "out.csv")
    simulation.reporters += [
        app.StateDataReporter(file, 5, step=True),
        app.CheckpointReporter(str(tmp_path / "run.chk"), 10),
    ]
    simulation.step(15)
    resume(chain(12), str(tmp_path / "run.chk"), file)
    assert Path(file).read_text() == '#"Step"\n5\n10\n'


@pytest.mark.parametrize("subset", [[0, 3, 7], list(range(2, 14))])
def test_files_of_some_atoms_go_on(tmp_path, subset):
    def write(folder, until, done=0):
        simulation = chain(31)
        files = [str(folder / "some.xtc"), str(folder / "some.dcd")]
        if done:
            assert resume(simulation, str(folder / "run.chk"), *files) == done
        simulation.reporters += [
            app.XTCReporter(files[0], EVERY, append=done > 0, atomSubset=subset),
            app.DCDReporter(files[1], EVERY, append=done > 0, atomSubset=subset),
            app.CheckpointReporter(str(folder / "run.chk"), CHECKPOINT),
        ]
        simulation.step(until - simulation.currentStep)
        simulation.reporters.clear()
        return contents(files)

    part = tmp_path / "part"
    part.mkdir()
    write(part, 18)
    assert write(part, TOTAL, done=10) == write(tmp_path, TOTAL)


@pytest.mark.parametrize("name", ["out.xtc", "out.dcd"])
def test_a_trajectory_of_more_atoms_is_of_another_run(tmp_path, name):
    run(chain(12), tmp_path, 20)
    other = tmp_path / "other"
    other.mkdir()
    run(chain(13), other, 20)
    before = (other / name).read_bytes()
    with pytest.raises(StarMDError, match="13 atoms, but the Simulation 12"):
        resume(chain(12), str(tmp_path / "run.chk"), str(other / name))
    assert (other / name).read_bytes() == before


@pytest.mark.parametrize(
    "name, told", [("out.xtc", "2,147,483,647"), ("out.dcd", "2,147,483,647"), ("out.csv", "every 5")]
)
@pytest.mark.parametrize("step", [2**31 - 3, 2**31 + 2, 10**15])
def test_steps_beyond_what_a_format_holds_are_told_of_beforehand(tmp_path, name, told, step):
    files = run(chain(12), tmp_path, 20)
    simulation = chain(12)
    simulation.currentStep = step
    simulation.saveCheckpoint(str(tmp_path / "run.chk"))
    before = contents(files)
    with pytest.raises(StarMDError, match=told):
        resume(chain(12), str(tmp_path / "run.chk"), str(tmp_path / name))
    assert contents(files) == before


def test_a_log_goes_on_beyond_32_bits(tmp_path):
    every, path = 10**9, tmp_path / "log.csv"
    lines = ['#"Step"\n', *(f"{every * k}\n" for k in range(1, 6))]
    path.write_text("".join(lines))
    simulation = chain(12)
    simulation.currentStep = 4 * every + 7
    simulation.saveCheckpoint(str(tmp_path / "run.chk"))
    assert resume(chain(12), str(tmp_path / "run.chk"), str(path)) == 4 * every + 7
    assert path.read_text() == "".join(lines[:5])


def append_to(simulation, folder):
    """Reporters that go on with all files that `write_some` leaves."""
    simulation.reporters[:] = [
        app.XTCReporter(str(folder / "out.xtc"), 2, append=True),
        app.DCDReporter(str(folder / "out.dcd"), 2, append=True),
        app.StateDataReporter(str(folder / "out.csv"), 2, step=True, append=True),
        app.StateDataReporter(str(folder / "time.csv"), 2, time=True, append=True),
        StarMDReporter(str(folder / "starmd.csv"), 2, append=True),
    ]


@pytest.mark.parametrize("checkpoint, told", [(2, "doubled"), (6, "missing"), (4, None), (5, None)])
def test_appending_where_a_file_does_not_end_is_warned_of(jumping, tmp_path, recwarn, checkpoint, told):
    simulation = jumping(relaxation=None)
    simulation.reporters += [
        app.XTCReporter(str(tmp_path / "out.xtc"), 2),
        app.DCDReporter(str(tmp_path / "out.dcd"), 2),
        app.StateDataReporter(str(tmp_path / "out.csv"), 2, step=True),
        app.StateDataReporter(str(tmp_path / "time.csv"), 2, time=True),
        StarMDReporter(str(tmp_path / "starmd.csv"), 2),
    ]
    simulation.step(4)
    simulation.currentStep = checkpoint
    append_to(simulation, tmp_path)
    for _ in range(2):
        simulation.step(1)
    warned = [str(w.message) for w in recwarn if "the Simulation is at step" in str(w.message)]
    assert len(warned) == (4 if told else 0)
    for name, line in zip(["out.xtc", "out.dcd", "out.csv", "starmd.csv"], warned, strict=bool(told)):
        assert f"{name} ends at step 4, but the Simulation is at step {checkpoint}" in line and told in line


def test_what_was_put_aside_is_never_overwritten(tmp_path):
    for number in (1, 2):
        (tmp_path / "log.csv").write_text(f'#"Step"\n{number}\n')
        with pytest.warns(UserWarning, match=f"log.csv.{number}"):
            resume(chain(12), str(tmp_path / "run.chk"), str(tmp_path / "log.csv"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv.1", "log.csv.2"]
    assert (tmp_path / "log.csv.1").read_text().endswith("1\n")


def test_a_new_run_counts_from_zero(tmp_path):
    simulation = chain(12)
    simulation.step(3)
    (tmp_path / "log.csv").write_text('#"Step"\n5\n')
    with pytest.raises(StarMDError, match="currentStep = 0"):
        resume(simulation, str(tmp_path / "run.chk"), str(tmp_path / "log.csv"))
    assert (tmp_path / "log.csv").exists()


SPOILED = {
    "another kind": ("out.csv", lambda data: b"ATOM      1  N", "no XTC"),
    "no step": ("out.csv", lambda data: data.replace(b'"Step"', b'"Stride"'), "Step"),
    "no number": ("out.csv", lambda data: data.replace(b",10,", b",ten,"), "damaged"),
    "an empty line": ("out.csv", lambda data: data + b"\n", "damaged"),
    "a frame lost": ("out.csv", lambda data: b"".join(x for x in data.splitlines(True) if b",15," not in x), "every 5"),
    "the last frame lost": ("out.xtc", lambda data: data[:-30], "every 5"),
    "doubled": ("out.dcd", lambda data: data[:12] + struct.pack("<2i", 10, 5) + data[20:], "every 10"),
    "no frame there": ("out.xtc", lambda data: b"\0\0\x07\xcb" + data, "no frame begins"),
    "a frame of no length": ("out.xtc", lambda data: data[:88] + struct.pack(">i", -92) + data[92:], "no frame begins"),
    "missing": ("out.dcd", None, "but not .*out.dcd"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_files_that_do_not_fit_are_refused_and_nothing_is_cut(tmp_path, case):
    name, spoil, told = SPOILED[case]
    files = run(chain(12), tmp_path, 20)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    if spoil:
        assert spoil(data) != data
        (tmp_path / name).write_bytes(spoil(data))
    simulation = chain(12)
    before, on_disk = simulation.context.createCheckpoint(), {p: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(StarMDError, match=told):
        resume(simulation, str(tmp_path / "run.chk"), *files)
    assert simulation.context.createCheckpoint() == before
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == on_disk


def _other_platform(folder):
    simulation = chain(12, openmm.Platform.getPlatform("CPU"))
    simulation.step(10)
    return simulation.context.createCheckpoint()


DAMAGED = {
    "truncated": lambda data, folder: data[: len(data) // 2],
    "a byte short": lambda data, folder: data[:-1],
    "a byte long": lambda data, folder: data + b"\0",
    "empty": lambda data, folder: b"",
    "garbage": lambda data, folder: bytes(range(256)) * 20,
    "another platform": lambda data, folder: _other_platform(folder),
    "another system": lambda data, folder: chain(13).context.createCheckpoint(),
    "a trajectory": lambda data, folder: (folder / "out.xtc").read_bytes(),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_checkpoint_that_does_not_fit_is_refused_and_nothing_is_cut(tmp_path, case):
    files = run(chain(12), tmp_path, 25)
    path = tmp_path / "run.chk"
    path.write_bytes(DAMAGED[case](path.read_bytes(), tmp_path))
    simulation = chain(12)
    simulation.step(1)
    before, on_disk = simulation.context.createCheckpoint(), {p: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(HistoryError, match="run.chk cannot be loaded"):
        resume(simulation, str(path), *files)
    assert simulation.context.createCheckpoint() == before
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == on_disk
    assert simulation.context.getTime() == 0.002 * unit.picoseconds
