"""Rollouts over several processes: each replica once, whatever becomes of the workers."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import mdtraj
import numpy as np
import pytest

from openmm_starmd import JumpRejectedError, StarMDError
from openmm_starmd.rollout.replica import Replica

distributed = pytest.importorskip("distributed")
OPTIONS = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}


@pytest.fixture(scope="module")
def client():
    """Client of two workers that are threads of this process."""
    with distributed.LocalCluster(processes=False, **OPTIONS) as cluster, distributed.Client(cluster) as client:
        yield client


def trajectories(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.xtc")}


def deadly(mark, calls):
    """Function that lets a worker kill itself in the given sample, if it is the first worker that comes there."""

    def install():
        import os
        import signal

        from openmm_starmd import Propagator

        sample, sizes = Propagator.step, []

        def step(self, history, generators):
            sizes.append(len(generators))
            if len(sizes) == calls and not os.path.exists(mark):
                with open(mark, "x") as file:
                    file.write(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            return sample(self, history, generators)

        Propagator.step = step

    return install


@pytest.mark.slow
def test_a_killed_worker_loses_and_doubles_nothing(run, tmp_path):
    run("local", 15, 4, batch_size=2)
    mark, progress = tmp_path / "killed", []
    with distributed.LocalCluster(processes=True, **OPTIONS) as cluster, distributed.Client(cluster) as client:
        client.run(deadly(str(mark), 8))  # two frames after a state
        run("cluster", 15, 4, batch_size=2, client=client, checkpoint_steps=5, progress=progress.append)
        assert int(mark.read_text()) not in client.run(os.getpid).values()
    assert trajectories(tmp_path / "cluster") == trajectories(tmp_path / "local")
    assert sum(progress) == 60 and min(progress) > 0


@pytest.mark.slow
def test_tasks_for_the_same_replicas_wait_for_each_other(run, tmp_path, client):
    """As when a worker that is believed dead goes on."""
    whole = run("one", 8, 4)
    run("two", 1, 4)
    with ThreadPoolExecutor() as threads:
        options = {"client": client, "checkpoint_steps": 1}
        both = [threads.submit(run, "two", 8, 4, batch_size=size, **options) for size in (2, 3)]
    for frames in both:
        np.testing.assert_allclose(frames.result(), whole, atol=2e-3)
    for path in tmp_path.glob("two/*.xtc"):
        assert mdtraj.load(str(path), top=str(tmp_path / "two" / "topology.pdb")).time.tolist() == [
            100.0 * k for k in range(1, 9)
        ]


@pytest.mark.slow
def test_a_run_goes_on_with_or_without_a_cluster(run, client):
    whole = run("whole", 9, 2)
    run("a", 3, 1)
    there = []
    np.testing.assert_allclose(run("a", 6, 2, client=client, progress=there.append), whole[:, :6], atol=2e-3)
    assert there[0] == 3 and sum(there) == 12
    np.testing.assert_allclose(run("a", 9, 2), whole, atol=2e-3)


@pytest.mark.slow
def test_a_rejected_replica_stops_alone(run, samples, client):
    sizes = samples(spoilt=(3, 4))
    with pytest.raises(JumpRejectedError, match="1 of 3 .*\nReplica 2, step 4: "):
        run("a", 6, 3, client=client, max_retries=1)
    assert sizes == [3, 3, 3, 3, 3, 2, 2]


@pytest.mark.slow
def test_when_a_batch_fails_the_others_go_on(run, tmp_path, client, monkeypatch):
    whole, accept = run("whole", 6, 4, batch_size=2), Replica.accept

    def broken(self, *accepted):
        if self.number == 2 and self.step == 2:
            raise OSError("no more")
        accept(self, *accepted)

    with monkeypatch.context() as patch:
        patch.setattr(Replica, "accept", broken)
        with pytest.raises(OSError, match="no more"):
            run("a", 6, 4, batch_size=2, client=client)
    lengths = {name: len(data) for name, data in trajectories(tmp_path / "whole").items()}
    complete = {name for name, data in trajectories(tmp_path / "a").items() if len(data) == lengths[name]}
    assert complete == {"replica0000.xtc", "replica0001.xtc"}
    assert np.array_equal(run("a", 6, 4, batch_size=2, client=client), whole)


@pytest.mark.slow
def test_a_folder_that_workers_do_not_see(run, tmp_path, client):
    def vanish(frames):
        shutil.rmtree(tmp_path / "a" / ".locks")

    with pytest.raises(StarMDError, match="sees no .*a; name a folder that all machines share"):
        run("a", 6, client=client, progress=vanish)


@pytest.mark.slow
def test_what_is_no_client_is_refused(run):
    with pytest.raises(ValueError, match="must be a distributed.Client; found a str"):
        run("a", 2, client="tcp://localhost:8786")


@pytest.mark.slow
def test_a_scheduler_that_asks_for_certificates(run, tmp_path):
    """TLS as in `dask scheduler --tls-ca-file ...`: connected with the files, refused without them."""
    pytest.importorskip("cryptography")
    from openmm_starmd.rollout.cluster import connect

    temporary = distributed.Security.temporary()
    files = {name: tmp_path / f"{name}.pem" for name in ("tls_ca_file", "tls_client_cert", "tls_client_key")}
    for name, path in files.items():
        path.write_text(getattr(temporary, name))
    with pytest.raises(StarMDError, match="no file .*away.pem"):
        connect("tls://localhost:1", tmp_path / "away.pem")
    with distributed.LocalCluster(processes=False, security=temporary, **OPTIONS) as cluster:
        assert cluster.scheduler_address.startswith("tls://")
        with pytest.raises(StarMDError, match="asks for TLS"):
            connect(cluster.scheduler_address)
        with connect(cluster.scheduler_address, *files.values()) as client:
            assert run("spread", 2, 1, client=client).shape[:2] == (1, 2)
