"""Trajectories that the tests of training read."""

import mdtraj
import numpy as np
import pytest
from openmm import unit
from openmm.app import PDBFile

from openmm_starmd.systems import build_peptide


@pytest.fixture(scope="session")
def write_jittering():
    """Function that writes a short trajectory of a peptide to a folder, and its topology."""

    def write_jittering(path, sequence, seed, *caps):
        topology, positions = build_peptide(sequence, *caps, seed=seed)
        with open(path / f"{sequence}.pdb", "w") as file:
            PDBFile.writeFile(topology, positions, file)
        x = np.array(positions.value_in_unit(unit.nanometer))
        frames = x + np.random.default_rng(seed).normal(0, 0.01, (30, *x.shape))
        with mdtraj.formats.XTCTrajectoryFile(str(path / f"{sequence}.xtc"), "w") as file:
            file.write(frames.astype(np.float32), time=10 * np.arange(30, dtype=np.float32))

    return write_jittering


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_jittering):
    """Short trajectories of jittering peptides of two lengths."""
    path = tmp_path_factory.mktemp("data")
    for seed, sequence in enumerate(("AKF", "GPSD", "SVE")):
        write_jittering(path, sequence, seed)
    return path
