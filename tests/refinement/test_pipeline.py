"""From trajectories of a wrong proposal to the populations of a potential that is known exactly."""

import mdtraj
import numpy as np
import pytest
from openmm import CustomExternalForce, System
from openmm.app import PDBFile, Topology
from openmm.app.element import argon

pytest.importorskip("deeptime")
pytest.importorskip("typer")

from openmm_starmd import HistoryError, StarMDError, cli  # noqa: E402
from openmm_starmd.refinement import refine  # noqa: E402
from openmm_starmd.refinement.starts import choose_starts  # noqa: E402

THERMAL = 8.314462618e-3 * 300
BARRIER, TILT, WIDTH = 2.5, 0.5, 0.2  # kT, kT, nm


@pytest.fixture(scope="module")
def topology():
    topology = Topology()
    topology.addAtom("Ar", argon, topology.addResidue("AR", topology.addChain("H"), "100", "A"))
    return topology


@pytest.fixture(scope="module")
def system():
    """An atom in a tilted double well."""
    system = System()
    system.addParticle(40.0)
    force = CustomExternalForce(f"{THERMAL}*({BARRIER}*((x/{WIDTH})^2-1)^2+{TILT}*x/{WIDTH}) + 500*(y^2+z^2)")
    force.addParticle(0)
    system.addForce(force)
    return system


def left_population():
    x = np.linspace(-3, 3, 6001)
    weight = np.exp(-(BARRIER * (x**2 - 1) ** 2 + TILT * x))
    return weight[x < 0].sum() / weight.sum()


def proposal(topology, low=-0.3, high=0.3, n=400):
    """Frames as often at every place between two, in an order without meaning."""
    xyz = np.zeros((n, 1, 3))
    xyz[:, 0, 0] = np.random.default_rng(0).uniform(low, high, n)
    return mdtraj.Trajectory(xyz, mdtraj.Topology.from_openmm(topology), time=100.0 * np.arange(1, n + 1))


def along_x(trajectory):
    return trajectory.xyz[:, 0, :1].astype(float)


SETTINGS = {"n_starts": 24, "frame_interval": 0.5, "equilibration": 0.5, "time_step": 0.02, "platform": "Reference"}


@pytest.fixture(scope="module")
def refined(topology, system, tmp_path_factory):
    folder = tmp_path_factory.mktemp("refined")
    settings = SETTINGS | {"features": along_x, "system": system, "n_states": 12, "output": folder}
    return refine(proposal(topology), topology, nanoseconds=0.15, **settings), settings


def test_a_wrong_proposal_comes_back_right(refined, topology):
    result, settings = refined
    assert result.judged
    x = [mdtraj.load(str(f), top=mdtraj.Topology.from_openmm(topology)).xyz[:, 0, 0] for f in swarm_files(settings)]
    _, low, high = result.expectation([(values < 0).astype(float) for values in x])
    assert low <= left_population() <= high and high - low < 0.2
    assert result["population of set 0"].learned < 0.6 < result["population of set 0"].value


def swarm_files(settings):
    return sorted((settings["output"] / "swarm").glob("*.xtc"))


def test_files_hold_result_and_conformations(refined, topology):
    result, settings = refined
    assert result.verdict in (settings["output"] / "refined.md").read_text()
    sets = mdtraj.load(str(settings["output"] / "sets.pdb"))
    assert len(sets) == 2 and sets.xyz[0, 0, 0] < -0.1 and sets.xyz[1, 0, 0] > 0.1
    (residue,) = PDBFile(str(settings["output"] / "sets.pdb")).topology.residues()
    assert (residue.chain.id, residue.id, residue.insertionCode) == ("H", "100", "A")


def test_again_gives_the_same_and_makes_nothing_anew(refined, topology):
    result, settings = refined
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in swarm_files(settings)]
    again = refine(proposal(topology), topology, nanoseconds=0.15, **settings)
    assert again.table() == result.table()
    assert [(file.read_bytes(), file.stat().st_mtime_ns) for file in swarm_files(settings)] == before


def test_another_proposal_in_the_same_folder_is_refused(refined, topology):
    with pytest.raises(HistoryError, match="belongs to another"):
        refine(proposal(topology, high=0.2), topology, nanoseconds=0.15, **refined[1])


def test_a_proposal_without_a_basin_cannot_be_judged(topology, tmp_path):
    """MD from the left well alone enters the right one, and so few return that nothing is known of it."""
    steep = System()
    steep.addParticle(40.0)
    force = CustomExternalForce(f"{THERMAL}*4.5*((x/{WIDTH})^2-1)^2 + 500*(y^2+z^2)")
    force.addParticle(0)
    steep.addForce(force)
    left = proposal(topology, -0.25, -0.05)
    settings = SETTINGS | {"features": along_x, "system": steep, "n_states": 12, "output": tmp_path}
    result = refine(left, topology, nanoseconds=0.05, **settings)
    assert any(along_x(mdtraj.load(str(f), top=left.topology)).max() > 0.1 for f in swarm_files(settings))
    assert not result.judged and result.more_nanoseconds > 0


def test_starts_are_spread_whatever_the_populations():
    """One frame in a hundred lies beyond the barrier, half of the starts do."""
    values = np.concatenate([np.random.default_rng(0).normal(-1, 0.1, 9900), np.linspace(-0.5, 1.0, 100)])
    chosen = choose_starts([values[:5000, None], values[5000:, None]], 40)
    found = np.array([values[5000 * trajectory + frame] for trajectory, frame in chosen])
    assert len(set(chosen)) == 40 and (found > -0.5).mean() > 0.5
    assert np.abs(np.diff(np.sort(found))).max() < 0.2


def test_few_frames_start_once_each():
    assert sorted(choose_starts([np.zeros((3, 2)), np.ones((2, 2))], 64)) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]


def test_what_does_not_fit_is_refused(topology, system, tmp_path):
    other = System()
    other.addParticle(1.0)
    other.addParticle(1.0)
    with pytest.raises(StarMDError, match="has 2 particles, the topology 1 atoms"):
        refine(proposal(topology), topology, nanoseconds=1, output=tmp_path, system=other, features=along_x)
    with pytest.raises(ValueError, match="five frame intervals"):
        refine(proposal(topology), topology, nanoseconds=0.004, output=tmp_path, system=system, features=along_x)
    with pytest.raises(StarMDError, match="no torsions"):
        refine(proposal(topology), topology, nanoseconds=1, output=tmp_path, system=system)


@pytest.mark.slow
def test_the_command_refines_a_rollout(build_peptide, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    topology, positions = build_peptide("AA")
    frames = positions + np.random.default_rng(0).normal(0, 0.002, (30, *positions.shape))
    learned = mdtraj.Trajectory(frames, mdtraj.Topology.from_openmm(topology), time=100.0 * np.arange(1, 31))
    (tmp_path / "run").mkdir()
    learned[0].save_pdb("run/topology.pdb")
    learned.save_xtc("run/replica0000.xtc")
    command = "refine run --nanoseconds 0.01 --starts 3 --frame-interval 0.1 -o refined".split()
    assert cli.main(command) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "force field" in out and "refined/refined.md" in out
    assert len(list((tmp_path / "refined" / "swarm").glob("*.xtc"))) == 3
