"""Tables of the StarMDReporter are read back as they were written, and add what they know to a report."""

import mdtraj
import numpy as np
import pytest
from openmm import Platform
from openmm.app import Simulation

from openmm_starmd import HybridSchedule, StarMDIntegrator, StarMDReporter
from openmm_starmd.errors import TrajectoryError
from openmm_starmd.evaluation import evaluate, read_jumps
from openmm_starmd.reporters import HEADERS


@pytest.fixture
def table(peptide, tiny_model, tmp_path):
    """Path of a table of 3 jumps with physical steps between them, and the statistics of the run."""
    topology, positions, system = peptide
    integrator = StarMDIntegrator(
        topology, 300, 100, tiny_model, randomSeed=3, device="cpu", schedule=HybridSchedule(1, 2)
    )
    simulation = Simulation(topology, system, integrator, Platform.getPlatform("Reference"))
    simulation.context.setPositions(positions)
    simulation.reporters.append(StarMDReporter(str(tmp_path / "jumps.csv"), 1))
    simulation.step(7)
    return tmp_path / "jumps.csv", integrator.getStatistics()


def test_what_was_written_is_read(table):
    path, statistics = table
    jumps = read_jumps(path)
    assert jumps.steps.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert jumps.counts.tolist() == [1, 0, 0, 1, 0, 0, 1]
    assert jumps.retries.sum() == statistics["resampled"] and dict(jumps.failed) == statistics["failed"]
    assert jumps.seconds.sum() == pytest.approx(sum(statistics["seconds"].values()))
    assert np.isnan(jumps.energies_after).tolist() == [count == 0 for count in jumps.counts]
    assert jumps.energies_after[-1] == statistics["last"]["energyAfter"]
    assert jumps.accepted == pytest.approx(3 / (3 + statistics["resampled"]))
    twice = read_jumps([path, path])
    assert twice.counts.sum() == 6 and len(twice.times) == 14


def test_failed_checks_of_several_lines_add_up(table):
    path, _ = table
    lines = path.read_text().splitlines()
    lines[1:] = ["10,1000.0,2,clashes:2 ca_breaks:1,0.8,1.0,2.0,0.5,8", "20,2000.0,1,clashes:1,0.9,1.0,2.0,0.25,9"]
    path.write_text("\n".join(lines) + "\n")
    jumps = read_jumps(path)
    assert jumps.failed == {"clashes": 3, "ca_breaks": 1}
    assert jumps.accepted == pytest.approx(17 / 20) and jumps.seconds.tolist() == [4.0, 2.25]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: "", "cannot be read"),
        (lambda text: text.splitlines()[0] + "\n", "no table"),
        (lambda text: text.replace("Retries", "Tries"), "no table"),
        (lambda text: text + "8,80", "Line 9 of .* torn"),
    ],
)
def test_other_files_are_refused(table, change, told):
    path, _ = table
    path.write_text(change(path.read_text()))
    with pytest.raises(TrajectoryError, match=told):
        read_jumps(path)
    with pytest.raises(TrajectoryError, match="nowhere"):
        read_jumps("nowhere.csv")


def test_a_report_tells_what_the_table_knows(table, peptide):
    noise = np.random.default_rng(0).normal(0, 0.01, (60, *np.shape(peptide[1]._value)))
    topology = mdtraj.Topology.from_openmm(peptide[0])
    trajectory = mdtraj.Trajectory(peptide[1]._value + noise, topology, 100.0 * np.arange(1, 61))
    evaluation = evaluate(trajectory[:40], trajectory[20:], jumps=table[0])
    seconds = read_jumps(table[0]).seconds.sum()
    samples = evaluation["independent samples of tICA-0"].value
    assert evaluation["independent samples of tICA-0 an hour"].value == pytest.approx(samples * 3600 / seconds)
    assert evaluation["accepted conformations"].value == pytest.approx(read_jumps(table[0]).accepted)
    assert evaluation.settings["milliseconds a jump"] > 0 and "accepted conformations" in evaluation.table()
    energies = read_jumps(table[0]).energies_after
    for word, value in (("median", np.nanmedian(energies)), ("mean", np.nanmean(energies))):
        told = evaluation.settings[f"{word} energy after relaxation (kJ/mol)"]
        assert told == pytest.approx(value, abs=0.051)


def test_a_table_with_tabs_or_with_a_second_header_is_read(tmp_path):
    lines = [
        '#"' + '","'.join(HEADERS) + '"',
        "10,1000.0,1,clashes:1,0.9,5.0,-3.0,0.5,10",
        "20,2000.0,0,,1.0,7.0,-4.0,0.5,10",
    ]
    (tmp_path / "commas.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "tabs.csv").write_text("\n".join(line.replace(",", "\t") for line in lines) + "\n")
    (tmp_path / "twice.csv").write_text("\n".join([*lines[:2], lines[0], *lines[2:]]) + "\n")
    for name in ("commas", "tabs", "twice"):
        jumps = read_jumps(tmp_path / f"{name}.csv")
        assert jumps.steps.tolist() == [10, 20] and jumps.counts.sum() == 20 and jumps.failed == {"clashes": 1}
