"""A protein as a user runs it: villin, which comes with OpenMM, by the embedded model with one changed line."""

from pathlib import Path

import mdtraj
import numpy as np
import openmm.app
import pytest
from openmm import Platform
from openmm.app import Simulation

from openmm_starmd import StarMDIntegrator
from openmm_starmd.systems import peptide_system, prepare

JUMPS = 6


def start(topology, positions):
    """Simulation of a seed, minimised."""
    integrator = StarMDIntegrator(topology, 300, 100, randomSeed=1)
    platform = Platform.getPlatform("CPU"), {"Threads": "1"}  # more threads add forces in any order
    simulation = Simulation(topology, peptide_system(topology), integrator, *platform)
    simulation.context.setPositions(positions)
    simulation.minimizeEnergy(maxIterations=100)
    return simulation


def where(simulation):
    """Positions (A, 3), nm."""
    return simulation.context.getState(positions=True).getPositions(asNumpy=True)._value.copy()


@pytest.mark.slow
def test_villin_moves_keeps_its_fold_and_goes_on_from_a_checkpoint(tmp_path):
    """CA move by more than a frozen frame and less than an unfolding; a restart in mid-run is exact to the last bit."""
    topology, positions, _ = prepare(Path(openmm.app.__path__[0]) / "data" / "test.pdb")
    simulation = start(topology, positions)
    frames = [where(simulation)]
    for jump in range(JUMPS):
        if jump == JUMPS - 2:
            simulation.saveCheckpoint(str(tmp_path / "villin.chk"))
        simulation.step(1)
        frames.append(where(simulation))
    run = mdtraj.Trajectory(np.stack(frames), mdtraj.Topology.from_openmm(topology))
    rmsd = mdtraj.rmsd(run, run, 0, atom_indices=run.topology.select("name CA"))
    assert simulation.integrator._propagator.name == "starmd-protein"
    assert 0.02 < rmsd[1:].min() and rmsd.max() < 0.35  # nm; MD of the validation set: 0.21 +- 0.07
    assert simulation.integrator.getStatistics()["acceptance"]["firstTry"] > 0.6
    other = start(topology, positions)
    other.loadCheckpoint(str(tmp_path / "villin.chk"))
    other.step(2)
    np.testing.assert_array_equal(where(other), frames[-1])
