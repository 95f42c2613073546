"""Side chains that touch, against distances of single atoms."""

import mdtraj
import numpy as np
import pytest

from openmm_starmd.evaluation.metrics import contacts


@pytest.fixture
def touching(build_peptide):
    """Trajectory of SGGV, whose two side chains meet in every second frame, and the least distance of their atoms."""
    (topology, x), rng = build_peptide("SGGV"), np.random.default_rng(0)
    frames = x + rng.normal(scale=0.1, size=(50, *x.shape))
    of = {r.index: [a.index for a in r.atoms() if a.name in ("CB", "OG", "CG1", "CG2")] for r in topology.residues()}
    middle = 0.5 * (x[of[0]].mean(0) + x[of[3]].mean(0))
    frames[::2, of[3]] += middle - x[of[3]].mean(0)
    frames[::2, of[0]] += middle - x[of[0]].mean(0)
    trajectory = mdtraj.Trajectory(frames.astype(np.float32), mdtraj.Topology.from_openmm(topology))
    return trajectory, np.linalg.norm(frames[:, of[0], None] - frames[:, None, of[3]], axis=-1).min((1, 2))


@pytest.mark.filterwarnings("error")  # glycines, which are in no pair, are nothing to warn of
@pytest.mark.parametrize("piece", [2**24, 20])
def test_side_chains_touch_where_their_nearest_atoms_do(touching, monkeypatch, piece):
    """Of four residues with two glycines only the first and the last have side chains; whole or in small pieces."""
    monkeypatch.setattr(contacts, "_PIECE", piece)
    trajectory, least = touching
    pairs = contacts.side_chain_pairs(trajectory)
    assert pairs.tolist() == [[0, 3]]
    found = contacts.side_chain_contacts(trajectory, pairs)
    np.testing.assert_array_equal(found[:, 0], least < 0.45)
    assert 0.5 <= found.mean() < 1


def test_side_chains_that_are_always_far_apart_are_no_pair(touching):
    trajectory, _ = touching
    far = trajectory.xyz.copy()
    far[:, [a.index for a in trajectory.topology.atoms if a.residue.index == 3]] += 3.0
    apart = mdtraj.Trajectory(far, trajectory.topology)
    assert not len(contacts.side_chain_pairs(apart))
    assert contacts.side_chain_contacts(apart, contacts.side_chain_pairs(apart)).shape == (50, 0)


def test_neighbours_along_a_chain_are_no_pair(build_peptide):
    topology, x = build_peptide("AVK")
    trajectory = mdtraj.Trajectory(x[None].astype(np.float32), mdtraj.Topology.from_openmm(topology))
    assert contacts.side_chain_pairs(trajectory).tolist() == [[0, 2]]
