"""Torsions, their divergences and hops against definitions and numerical integrals."""

import mdtraj
import numpy as np
import pytest
from scipy.stats import vonmises

from openmm_starmd.evaluation.metrics import dihedrals


@pytest.fixture
def rng():
    return np.random.default_rng(4)


@pytest.fixture
def trajectory_of(build_peptide):
    """Function (sequence, ...) -> trajectory of one frame."""

    def make(*args, **options):
        topology, positions = build_peptide(*args, **options)
        return mdtraj.Trajectory(positions[None], mdtraj.Topology.from_openmm(topology))

    return make


def jsd(a, b, periods=2 * np.pi):
    return dihedrals.torsion_jsd(*(dihedrals.torsion_counts(x, periods) for x in (a, b)))


def test_torsion_jsd_of_von_mises_across_the_seam_is_the_integral(rng):
    x = np.linspace(-np.pi, np.pi, 100_001)[:-1]
    p, q = vonmises.pdf(x, 4, np.pi), vonmises.pdf(x, 4, 2.3)
    expected = sum((d * np.log2(2 * d / (p + q))).sum() for d in (p, q)) * (x[1] - x[0]) / 2
    a = rng.vonmises(np.pi, 4, (400_000, 1)) + 2 * np.pi
    b = rng.vonmises(2.3, 4, (400_000, 1))
    assert jsd(a, b)[0] == pytest.approx(expected, abs=0.003)


def test_a_half_turn_does_not_matter_to_a_torsion_of_half_the_period(rng):
    a = rng.normal(0.3, 0.2, (100_000, 1))
    b = a + np.pi
    assert jsd(a, b, np.pi)[0] < 1e-12
    assert jsd(a, b)[0] > 0.99
    assert np.allclose(dihedrals.torsion_features(a, np.pi), dihedrals.torsion_features(b, np.pi))


def test_counts_of_torsions_add_up_and_refuse_what_is_no_number(rng):
    angles = rng.uniform(-9, 9, (70, 3))
    counts = dihedrals.torsion_counts(angles, np.array([1.0, 2.0, 3.0]), 20)
    assert (counts.sum(1) == 70).all()
    parts = (dihedrals.torsion_counts(x, np.array([1.0, 2.0, 3.0]), 20) for x in (angles[:9], angles[9:]))
    assert (sum(parts) == counts).all()
    with pytest.raises(ValueError, match="finite torsions"):
        dihedrals.torsion_counts(np.where(angles > 0.5, np.nan, angles))


def test_torsions_are_labelled_counted_and_turn_with_the_atoms(trajectory_of):
    trajectory = trajectory_of("AFDK", n_cap=True, c_cap=True)
    torsions = dihedrals.measure_torsions(trajectory)
    assert torsions.backbone.sum() == 8
    assert sum(name.startswith("chi") for name in torsions.names) == 2 + 2 + 4
    half = {n for n, p in zip(torsions.names, torsions.periods, strict=True) if p < 4}
    assert half == {"chi2 PHE3", "chi2 ASP4"} or half == {"chi2 PHE2", "chi2 ASP3"}
    ring = trajectory.topology.select("resname PHE and name CD1 CD2 CE1 CE2")
    swapped = mdtraj.Trajectory(trajectory.xyz.copy(), trajectory.topology)
    swapped.xyz[:, ring] = trajectory.xyz[:, ring[[1, 0, 3, 2]]]
    difference = dihedrals.wrap(dihedrals.measure_torsions(swapped).angles - torsions.angles, torsions.periods)
    assert np.abs(difference).max() < 0.05  # the ring is flat to within a few degrees


def test_a_single_glycine_has_no_torsions(trajectory_of):
    capped = trajectory_of("GA")
    torsions = dihedrals.measure_torsions(capped.atom_slice(capped.topology.select("resname GLY")))
    assert torsions.angles.shape == (1, 0) and torsions.names == () and torsions.backbone.dtype == bool
    assert jsd(torsions.angles, torsions.angles, torsions.periods).shape == (0,)


def test_hops_of_a_known_chain(rng):
    hops = rng.random((100_000, 2)) < [0.1, 0.4]
    angles = np.cumsum(np.where(hops, 2 * np.pi / 3, rng.normal(0, 0.1, hops.shape)), 0)
    wrapped = dihedrals.wrap(angles)
    found = dihedrals.hop_counts(wrapped[:-1], wrapped[1:])
    assert (found == [hops[1:].sum(0), [99_999] * 2]).all()
    flips = np.cumsum(np.full((100, 1), np.pi), 0)
    assert dihedrals.hop_counts(flips[:-1], flips[1:], np.pi)[0] == 0
    assert dihedrals.hop_counts(flips[:-1], flips[1:])[0] == 99
    assert dihedrals.hop_counts(flips[:-2], flips[2:])[0] == 0
