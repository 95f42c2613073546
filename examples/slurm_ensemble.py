"""64 trajectories of 1 us on eight jobs of a SLURM cluster; stopped at any time, the same command goes on.

Run it where jobs may be submitted from, in a folder that all nodes share, with ``start.pdb`` in it:

    pip install "openmm-starmd[cluster]" && python slurm_ensemble.py
"""

from dask_jobqueue import SLURMCluster
from distributed import Client
from openmm.app import PDBFile

from openmm_starmd import rollout
from openmm_starmd.systems import peptide_system

if __name__ == "__main__":
    pdb = PDBFile("start.pdb")
    job = {"cores": 1, "job_cpu": 8, "memory": "8GB", "walltime": "04:00:00"}  # one task a job, with eight CPU cores
    leave = ["--lifetime", "225m", "--lifetime-stagger", "10m"]  # before the wall time ends
    with SLURMCluster(**job, worker_extra_args=leave) as cluster, Client(cluster) as client:
        cluster.adapt(minimum_jobs=8, maximum_jobs=8)  # jobs that end are followed by others
        options = {"n_replicas": 64, "batch_size": 8, "workers": 8, "system": peptide_system(pdb.topology)}
        options |= {"stride": 100, "n_steps": 10_000, "output": "ensemble", "resume": True}
        rollout("starmd-peptide", pdb.topology, pdb.positions, client=client, **options)
