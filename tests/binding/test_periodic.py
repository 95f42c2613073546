"""Molecules in a periodic box are made whole by their bonds and put back in their image."""

import numpy as np
import pytest
from openmm import unit
from openmm.app import Modeller

from openmm_starmd.binding.periodic import MoleculeImages

BOXES = {
    "cube": np.diag([2.0, 2.0, 2.0]),
    "triclinic": np.array([[3.0, 0, 0], [1.0, 2.8, 0], [-0.9, 0.7, 2.6]]),
}


@pytest.fixture(params=BOXES)
def box(request):
    return BOXES[request.param]


@pytest.fixture
def chain(build_peptide):
    topology, positions = build_peptide("ASGVK")
    return topology, positions, MoleculeImages(topology, range(topology.getNumAtoms()))


def test_whole_molecules_stay(chain, box):
    _, positions, images = chain
    assert not images.shifts(positions, box).any()
    assert not images.shifts(positions, None).any()


def test_scattered_atoms_come_together(chain, box):
    """Every atom in an image of its own; the first atom of the molecule stays where it is."""
    _, positions, images = chain
    turns = np.random.default_rng(0).integers(-3, 4, size=positions.shape)
    scattered = positions + turns @ box
    whole = scattered + images.shifts(scattered, box)
    np.testing.assert_allclose(whole - whole[0], positions - positions[0], atol=1e-12)
    np.testing.assert_array_equal(whole[0], scattered[0])


def test_shifts_are_sums_of_box_vectors(chain, box):
    _, positions, images = chain
    wrapped = positions + np.floor(-positions @ np.linalg.inv(box)) @ box
    turns = images.shifts(wrapped, box) @ np.linalg.inv(box)
    np.testing.assert_allclose(turns, np.round(turns), atol=1e-9)


@pytest.fixture
def two_chains(build_peptide):
    """Topology, positions, and which atoms are the second chain's."""
    (first, x), (second, y) = build_peptide("ASG"), build_peptide("VK")
    modeller = Modeller(first, x * unit.nanometer)
    modeller.add(second, (y + [0.0, 0.0, 1.0]) * unit.nanometer)
    positions = np.array(modeller.positions.value_in_unit(unit.nanometer))
    return modeller.topology, positions, np.arange(len(positions)) >= len(x)


def test_chains_lie_side_by_side(two_chains, box):
    topology, positions, second = two_chains
    images = MoleculeImages(topology, range(len(positions)))
    assert not images.shifts(positions, 100 * box).any()
    apart = positions.copy()
    apart[second] += np.array([2, -1, 1]) @ (100 * box)
    np.testing.assert_allclose(apart + images.shifts(apart, 100 * box), positions, atol=1e-9)


def test_other_molecules_are_left_alone(two_chains, box):
    topology, positions, second = two_chains
    scattered = positions + np.random.default_rng(1).integers(-2, 3, size=positions.shape) @ box
    shifts = MoleculeImages(topology, np.flatnonzero(~second).tolist()).shifts(scattered, box)
    assert not shifts[second].any() and shifts[~second].any()
