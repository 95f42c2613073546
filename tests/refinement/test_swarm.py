"""Swarms of MD: exact resumption in every way to run them, the right ensemble, and starts that fail."""

from dataclasses import replace

import mdtraj
import numpy as np
import pytest
from openmm import CustomExternalForce, System, XmlSerializer
from openmm.app import Topology
from openmm.app.element import argon

from openmm_starmd import HistoryError, StarMDError
from openmm_starmd.refinement.swarm import BLOCK, Swarm, run_swarm

STIFFNESS, TEMPERATURE = 500.0, 300.0


def argon_topology():
    topology = Topology()
    topology.addAtom("Ar", argon, topology.addResidue("AR", topology.addChain()))
    return topology


@pytest.fixture
def swarm(tmp_path):
    """One atom in a harmonic well, from three places."""
    system = System()
    system.addParticle(40.0)
    force = CustomExternalForce(f"{STIFFNESS / 2}*(x^2+y^2+z^2)")
    force.addParticle(0)
    system.addForce(force)
    starts = np.array([[[0.3, 0.0, 0.0]], [[0.0, 0.3, 0.0]], [[0.0, 0.0, 0.0]]])
    settings = (TEMPERATURE, 0.5, 5.0, 0.01, 7, "Reference")
    return Swarm(tmp_path / "whole", argon_topology(), XmlSerializer.serialize(system), starts, None, *settings)


def files(swarm):
    return {path.name: path.read_bytes() for path in swarm.folder.glob("*.xtc")}


def positions(swarm, number):
    return mdtraj.load(str(swarm.path(number)), top=mdtraj.Topology.from_openmm(swarm.topology)).xyz[:, 0]


class Stop(Exception):
    """What ends a run at once."""


def test_a_stopped_swarm_goes_on_and_gives_the_same_files(swarm, tmp_path):
    run_swarm(swarm, 2 * BLOCK + 10)
    stopped, calls = replace(swarm, folder=tmp_path / "stopped"), []

    def stop(frames):
        calls.append(frames)
        if len(calls) == 3:
            raise Stop

    with pytest.raises(Stop):
        run_swarm(stopped, 2 * BLOCK + 10, progress=stop)
    assert stopped.frames(0) == 2 * BLOCK and not stopped.path(1).exists()
    with open(stopped.path(0), "ab") as file:
        file.write(b"half a frame")
    run_swarm(stopped, 2 * BLOCK + 10, progress=calls.append)
    assert sum(calls[3:]) == 3 * (2 * BLOCK + 10)
    assert files(stopped) == files(swarm) and len(files(swarm)) == 3


@pytest.mark.slow
def test_processes_and_dask_give_the_same_files(swarm, tmp_path):
    distributed = pytest.importorskip("distributed")
    swarm = replace(swarm, platform="CPU")  # contexts of the Reference platform share random numbers between threads
    run_swarm(swarm, 60)
    several = replace(swarm, folder=tmp_path / "processes")
    assert run_swarm(several, 60, processes=2) == [0, 1, 2]
    assert files(several) == files(swarm)
    shared, options = replace(swarm, folder=tmp_path / "dask"), {"n_workers": 2, "dashboard_address": None}
    with distributed.LocalCluster(processes=False, **options) as cluster, distributed.Client(cluster) as client:
        assert run_swarm(shared, 60, client=client) == [0, 1, 2]
        with pytest.raises(ValueError, match=r"must be a distributed.Client; found a str"):
            run_swarm(shared, 70, client="node1:8786")
    assert files(shared) == files(swarm)


def test_more_frames_go_on(swarm):
    run_swarm(swarm, BLOCK)
    before = files(swarm)
    run_swarm(swarm, 3 * BLOCK)
    after = files(swarm)
    assert all(after[name].startswith(before[name]) and len(positions(swarm, 0)) == 3 * BLOCK for name in before)
    times = mdtraj.load(str(swarm.path(0)), top=mdtraj.Topology.from_openmm(swarm.topology)).time
    assert np.allclose(times, 0.5 * np.arange(1, 3 * BLOCK + 1))


@pytest.mark.slow
def test_the_ensemble_is_that_of_the_force(swarm):
    """Equipartition: each coordinate has a mean square of kT / k; starts 0.3 nm out have forgotten them."""
    run_swarm(swarm, 2000)
    found = np.concatenate([positions(swarm, k)[200:] for k in range(3)])
    expected = 8.314462618e-3 * TEMPERATURE / STIFFNESS
    assert np.allclose((found**2).mean(0), expected, rtol=0.25)
    assert np.abs(found.mean(0)).max() < 0.02


def test_trajectories_differ(swarm):
    run_swarm(swarm, 30)
    assert len({positions(swarm, k).tobytes() for k in range(3)}) == 3


def test_other_settings_do_not_go_on(swarm):
    run_swarm(swarm, 10)
    with pytest.raises(HistoryError, match="belongs to another"):
        run_swarm(replace(swarm, temperature=310.0), 20)
    swarm.path(0).write_bytes(b"")
    with pytest.raises(HistoryError, match="lacks frames"):
        run_swarm(swarm, 20)


def test_a_start_that_breaks_is_given_up_and_the_others_go_on(swarm):
    starts = swarm.starts.copy()
    starts[1] = 1e200
    broken = replace(swarm, starts=starts)
    assert run_swarm(broken, 20) == [0, 2]
    assert not broken.path(1).exists() and broken.failure(1)
    assert run_swarm(broken, 40) == [0, 2]


def test_when_all_starts_break_it_says_so(swarm):
    with pytest.raises(StarMDError, match="All 3 starts were given up"):
        run_swarm(replace(swarm, starts=np.full_like(swarm.starts, 1e200)), 20)
