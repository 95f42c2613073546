"""Divergences against numerical integrals, torsions against their definition, filters against made-up structures."""

from types import SimpleNamespace

import mdtraj
import numpy as np
import pytest
from scipy.stats import norm, vonmises

from openmm_starmd.evaluation.metrics import arrays as metrics
from openmm_starmd.systems.build import build_peptide


def integral_jsd(p, q, width):
    """Jensen-Shannon divergence in bits of two densities on a fine grid, straight from the definition."""
    m = (p + q) / 2
    entropy = [np.where(d > 0, d * np.log2(np.where(d > 0, d, 1) / m), 0).sum() * width for d in (p, q)]
    return sum(entropy) / 2


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(4)


def test_jsd_of_two_shifted_gaussians_is_the_integral(rng):
    x = np.linspace(-8, 9, 200_001)
    expected = integral_jsd(norm.pdf(x), norm.pdf(x, 1.2), x[1] - x[0])
    a, b = rng.normal(0, 1, (400_000, 1)), rng.normal(1.2, 1, (400_000, 1))
    assert metrics.histogram_jsd(a, b, 100) == pytest.approx(expected, abs=0.003)
    assert 0.2 < expected < 0.3


def test_torsion_jsd_of_von_mises_across_the_seam_is_the_integral(rng):
    x = np.linspace(-np.pi, np.pi, 100_001)[:-1]
    expected = integral_jsd(vonmises.pdf(x, 4, np.pi), vonmises.pdf(x, 4, 2.3), x[1] - x[0])
    a = rng.vonmises(np.pi, 4, (400_000, 1)) + 2 * np.pi
    b = rng.vonmises(2.3, 4, (400_000, 1))
    assert metrics.torsion_jsd(a, b)[0] == pytest.approx(expected, abs=0.003)


def test_a_half_turn_does_not_matter_to_a_torsion_of_half_the_period(rng):
    a = rng.normal(0.3, 0.2, (100_000, 1))
    b = a + np.pi
    assert metrics.torsion_jsd(a, b, np.pi)[0] < 1e-12
    assert metrics.torsion_jsd(a, b)[0] > 0.99
    assert np.allclose(metrics.torsion_features(a, np.pi), metrics.torsion_features(b, np.pi))


def test_divergence_is_zero_for_equal_one_for_disjoint_and_symmetric(rng):
    p, q = rng.random((7, 5)), rng.random((7, 5))
    assert metrics.jensen_shannon(p, 3 * p) == pytest.approx(0, abs=1e-12)
    assert metrics.jensen_shannon([1, 0], [0, 1]) == pytest.approx(1)
    assert metrics.jensen_shannon(p, q) == pytest.approx(metrics.jensen_shannon(q, p))
    with pytest.raises(ValueError, match="something in them"):
        metrics.jensen_shannon(p, np.zeros((7, 5)))
    with pytest.raises(ValueError, match="finite torsions"):
        metrics.torsion_jsd(p, np.where(p > 0.5, np.nan, p))


def test_tica_finds_the_slow_direction_and_tells_distributions_apart(rng):
    slow = np.repeat(rng.integers(0, 2, 400), 50) * 2.0 - 1
    mixing = np.array([[1.0, 0.4, -0.3], [0.2, 1.0, 0.5], [0.1, -0.6, 1.0]])
    features = np.stack([slow, *rng.normal(size=(2, len(slow)))], 1) @ mixing
    projection = metrics.fit_tica(features, 5).transform(features)
    assert abs(np.corrcoef(projection[:, 0], slow)[0, 1]) > 0.98
    one, two = metrics.tica_jsd(projection, projection)
    assert one == pytest.approx(0, abs=1e-12) and two == pytest.approx(0, abs=1e-12)
    one, _ = metrics.tica_jsd(projection, projection[slow > 0])
    assert one == pytest.approx(integral_jsd(np.array([0.5, 0.5]), np.array([1.0, 0.0]), 1), abs=0.05)


def trajectory_of(sequence, n_cap=False, c_cap=False):
    topology, positions = build_peptide(sequence, n_cap, c_cap, seed=2)
    return mdtraj.Trajectory(np.array(positions._value)[None], mdtraj.Topology.from_openmm(topology))


def test_torsions_are_labelled_counted_and_turn_with_the_atoms():
    trajectory = trajectory_of("AFDK", n_cap=True, c_cap=True)
    torsions = metrics.measure_torsions(trajectory)
    assert torsions.backbone.sum() == 8
    assert sum(name.startswith("chi") for name in torsions.names) == 2 + 2 + 4
    half = {n for n, p in zip(torsions.names, torsions.periods, strict=True) if p < 4}
    assert half == {"chi2 PHE3", "chi2 ASP4"} or half == {"chi2 PHE2", "chi2 ASP3"}
    ring = trajectory.topology.select("resname PHE and name CD1 CD2 CE1 CE2")
    swapped = mdtraj.Trajectory(trajectory.xyz.copy(), trajectory.topology)
    swapped.xyz[:, ring] = trajectory.xyz[:, ring[[1, 0, 3, 2]]]
    difference = metrics.wrap(metrics.measure_torsions(swapped).angles - torsions.angles, torsions.periods)
    assert np.abs(difference).max() < 0.05  # the ring is flat to within a few degrees


def test_the_filters_pass_a_peptide_and_catch_each_defect():
    trajectory = trajectory_of("ACDEFGHI", c_cap=True)
    positions, ca, bonds = metrics.heavy_atom_arrays(trajectory)
    assert len(ca) == 8 and len(bonds) == 8
    names = [a.name for a in trajectory.topology.atoms if a.element.symbol != "H"]
    assert all((names[c], names[n]) == ("C", "N") for c, n in bonds)
    good, broken, clash, far = (positions[0].copy() for _ in range(4))
    c, n = bonds[3]
    broken[n] += 0.08 * (good[n] - good[c]) / np.linalg.norm(good[n] - good[c])
    clash[5] = clash[40] + 0.05
    far[ca[4]] += [0.0, 0.0, 0.3]
    frames = np.stack([good, broken, clash, far])
    assert metrics.bioemu_valid(frames, ca, bonds).tolist() == [True, False, False, False]
    near = positions[0, ca].copy()
    near[0] = near[5] + 0.1
    stretched = positions[0, ca] * 1.2
    assert metrics.ca_valid(np.stack([positions[0, ca], near, stretched])).tolist() == [True, False, False]


def test_the_filters_do_not_join_chains_and_take_any_number_of_residues():
    line = np.arange(6)[:, None] * [0.38, 0.0, 0.0]
    two = np.concatenate([line, line + [0.0, 2.0, 0.0]])[None]
    chains = np.repeat([0, 1], 6)
    assert not metrics.ca_valid(two)[0] and metrics.ca_valid(two, chains)[0]
    bonds = np.zeros((0, 2), dtype=int)
    assert not metrics.bioemu_valid(two, np.arange(12), bonds)[0]
    assert metrics.bioemu_valid(two, np.arange(12), bonds, chains)[0]
    assert metrics.ca_valid(two[:, :1])[0] and metrics.ca_valid(two[:0]).shape == (0,)
    near = two.copy()
    near[0, 6:, 1] = 0.2  # two chains on top of each other
    assert not metrics.ca_valid(near, chains)[0]


def test_the_filter_of_many_frames_equals_that_of_each(rng, monkeypatch):
    points = rng.uniform(0, 1.2, (50, 9, 3))
    bonds = np.zeros((0, 2), dtype=int)
    expected = [metrics.bioemu_valid(p[None], np.arange(1), bonds)[0] for p in points]
    monkeypatch.setattr(metrics, "_CHUNK", 250)  # six frames at a time
    assert metrics.bioemu_valid(points, np.arange(1), bonds).tolist() == expected
    assert 0 < sum(expected) < 50


def test_chains_and_ca_of_a_topology():
    one, two = trajectory_of("AGC").topology, trajectory_of("FA", n_cap=True).topology
    ca, chains = metrics.ca_atoms(one.join(two))
    assert chains.tolist() == [0, 0, 0, 1, 1]
    assert [one.join(two).atom(i).residue.name for i in ca] == ["ALA", "GLY", "CYS", "PHE", "ALA"]


def test_a_single_glycine_has_no_torsions():
    capped = trajectory_of("GA")
    torsions = metrics.measure_torsions(capped.atom_slice(capped.topology.select("resname GLY")))
    assert torsions.angles.shape == (1, 0) and torsions.names == ()
    assert metrics.torsion_jsd(torsions.angles, torsions.angles, torsions.periods).shape == (0,)


def test_tica_says_what_it_lacks_and_passes_over_short_trajectories(rng):
    with pytest.raises(ValueError, match="does not move"):
        metrics.fit_tica(np.ones((50, 3)), 2)
    with pytest.raises(ValueError, match="longer than the lag of 50"):
        metrics.fit_tica(rng.normal(size=(50, 3)), 50)
    with pytest.raises(ValueError, match="finite features"):
        metrics.fit_tica(np.full((50, 3), np.nan), 2)
    x = np.cumsum(rng.normal(size=(25_000, 2)), 0)
    whole, parts = metrics.fit_tica(x, 3), metrics.fit_tica([x, x[:2]], 3)
    assert np.allclose(whole.transform(x[:10]), parts.transform(x[:10]))
    assert np.allclose(metrics.project(whole, x[:10], chunk=3), whole.transform(x[:10]))


def test_pairs_a_lag_apart_in_pieces_are_those_of_the_whole(rng):
    x = rng.normal(size=(37, 2))
    first, second = (np.concatenate(part) for part in zip(*metrics.lagged_pairs([x, x[:4]], 4, chunk=10), strict=True))
    assert (first == x[:-4]).all() and (second == x[4:]).all()


def test_radius_of_gyration_of_a_cube():
    corners = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), dtype=float).reshape(3, -1).T
    assert metrics.radius_of_gyration(np.stack([corners, 2 * corners + 7])) == pytest.approx([3**0.5, 2 * 3**0.5])


def test_ramachandran_map_puts_phi_on_x():
    plots = pytest.importorskip("openmm_starmd.evaluation.report.plots")
    figure = plots.plt.figure()
    ax = plots.plot_ramachandran(np.radians([-60.0] * 9), np.radians([140.0] * 9), title="beta")
    density = ax.collections[0].get_array().reshape(60, 60)
    row, column = np.argwhere(~np.ma.getmaskarray(density))[0]
    assert SimpleNamespace(psi=row, phi=column) == SimpleNamespace(psi=53, phi=20)
    plots.plt.close(figure)
