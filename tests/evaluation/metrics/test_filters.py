"""Published filters against structures with one defect each."""

import mdtraj
import numpy as np
import pytest

from openmm_starmd.evaluation.metrics import filters


@pytest.fixture
def octapeptide(build_peptide):
    topology, positions = build_peptide("ACDEFGHI", c_cap=True)
    return mdtraj.Trajectory(positions[None], mdtraj.Topology.from_openmm(topology))


def frames(trajectory, *positions):
    return mdtraj.Trajectory(np.stack(positions).astype(np.float32), trajectory.topology)


def line_of_ca(n_chains, n_residues, distance):
    """Straight chains of CA beside each other, 0.38 nm apart along each."""
    topology = mdtraj.Topology()
    for _ in range(n_chains):
        chain = topology.add_chain()
        for _ in range(n_residues):
            topology.add_atom("CA", mdtraj.element.carbon, topology.add_residue("ALA", chain))
    along, across = np.meshgrid(0.38 * np.arange(n_residues), distance * np.arange(n_chains))
    return mdtraj.Trajectory(np.stack([along.ravel(), across.ravel(), 0 * along.ravel()], -1)[None], topology)


def test_the_filters_pass_a_peptide_and_catch_each_defect(octapeptide):
    topology = octapeptide.topology
    named = {(a.residue.index, a.name): a.index for a in topology.atoms}
    good, broken, clash, far, hydrogen = (octapeptide.xyz[0].copy() for _ in range(5))
    c, n = named[3, "C"], named[4, "N"]
    broken[n] += 0.08 * (good[n] - good[c]) / np.linalg.norm(good[n] - good[c])
    clash[named[0, "CB"]] = clash[named[6, "CG"]] + 0.05
    far[named[4, "CA"]] += [0.0, 0.0, 0.3]
    light = next(a.index for a in topology.atoms if a.element.symbol == "H")
    hydrogen[light] = hydrogen[named[6, "CG"]] + 0.02  # hydrogens do not count
    found = filters.bioemu_valid(frames(octapeptide, good, broken, clash, far, hydrogen))
    assert found.tolist() == [True, False, False, False, True]
    near = good.copy()
    near[named[0, "CA"]] = near[named[5, "CA"]] + 0.1
    assert filters.ca_valid(frames(octapeptide, good, near, 1.2 * good)).tolist() == [True, False, False]


def test_frames_with_a_coordinate_that_is_no_number_do_not_pass(octapeptide):
    lost = octapeptide.xyz[0].copy()
    lost[filters.ca_atoms(octapeptide.topology)[0][2]] = np.nan
    both = frames(octapeptide, lost, octapeptide.xyz[0])
    assert filters.bioemu_valid(both).tolist() == filters.ca_valid(both).tolist() == [False, True]


def test_the_filters_do_not_join_chains_and_take_any_number_of_residues():
    two = line_of_ca(2, 6, 2.0)
    assert filters.ca_valid(two)[0] and filters.bioemu_valid(two)[0]
    joined = line_of_ca(1, 12, 2.0)
    joined.xyz = two.xyz  # one chain that jumps by 2 nm
    assert not filters.ca_valid(joined)[0] and not filters.bioemu_valid(joined)[0]
    assert filters.ca_valid(line_of_ca(1, 1, 2.0))[0] and filters.ca_valid(two[:0]).shape == (0,)
    assert not filters.ca_valid(line_of_ca(2, 6, 0.2))[0]  # two chains on top of each other


def test_the_filter_of_many_frames_equals_distances_of_all_pairs(monkeypatch):
    points = np.random.default_rng(0).uniform(0, 0.9, (50, 9, 3))
    many = line_of_ca(9, 1, 1.0)
    monkeypatch.setattr(filters, "_CHUNK", 60)  # six frames at a time
    distances = np.linalg.norm(points[:, :, None] - points[:, None], axis=-1) + np.eye(9)
    expected = distances.min((1, 2)) > 0.1
    assert filters.bioemu_valid(frames(many, *points)).tolist() == expected.tolist()
    assert 0 < expected.sum() < 50


def test_chains_and_ca_of_a_topology(build_peptide):
    one, two = (mdtraj.Topology.from_openmm(build_peptide(*x)[0]) for x in (("AGC",), ("FA", True)))
    ca, chains = filters.ca_atoms(one.join(two))
    assert chains.tolist() == [0, 0, 0, 1, 1]
    assert [one.join(two).atom(i).residue.name for i in ca] == ["ALA", "GLY", "CYS", "PHE", "ALA"]
