"""Shapes with known modes, fluctuations and free energies."""

import mdtraj
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from openmm_starmd.evaluation.metrics import shapes as ensemble


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture
def shape(rng):
    return rng.normal(size=(12, 3))


def tumble(positions, rng):
    """Each frame turned and moved at random."""
    turned = np.einsum("tij,tnj->tni", Rotation.random(len(positions), rng=rng).as_matrix(), positions)
    return turned + rng.normal(size=(len(positions), 1, 3))


def test_superposition_undoes_any_rigid_motion(shape, rng):
    moved = tumble(np.repeat(shape[None], 5, 0), rng)
    assert np.abs(ensemble.superpose(moved, shape) - shape).max() < 1e-4
    before = moved.copy()
    ensemble.superpose(moved, shape)
    assert (moved == before).all()
    with pytest.raises(ValueError, match="3 atoms"):
        ensemble.superpose(moved[:, :2], shape[:2])
    with pytest.raises(ValueError, match="finite positions"):
        ensemble.superpose(np.where(moved > 0, np.nan, moved), shape)


def test_smallest_rmsd_agrees_with_mdtraj_and_knows_a_mirror_image(shape, rng):
    first, second = rng.normal(size=(2, 20, 12, 3))
    expected = [
        mdtraj.rmsd(mdtraj.Trajectory(a[None], None), mdtraj.Trajectory(b[None], None))[0]
        for a, b in zip(first, second, strict=True)
    ]
    assert ensemble.paired_rmsd(first, second) == pytest.approx(expected, abs=1e-4)
    assert ensemble.paired_rmsd(shape[None], tumble(shape[None], rng))[0] < 1e-7
    assert ensemble.paired_rmsd(shape[None], shape[None] * [1, 1, -1])[0] > 0.1


def test_the_mean_structure_is_free_of_the_noise_of_single_frames(shape, rng):
    mean = ensemble.mean_structure(tumble(shape + rng.normal(0, 0.1, (2_000, 12, 3)), rng))
    assert ensemble.paired_rmsd(mean[None], shape[None])[0] < 0.02


def modes(shape, rng, amplitudes):
    """Tumbling shape that moves along as many random directions as there are amplitudes (T, M)."""
    directions = np.linalg.qr(rng.normal(size=(shape.size, amplitudes.shape[1])))[0]
    return tumble(shape + (amplitudes @ directions.T).reshape(-1, *shape.shape), rng)


def test_principal_components_are_the_planted_modes(shape, rng):
    amplitudes = rng.normal(size=(4_000, 3)) * [0.3, 0.15, 0.01]
    positions = modes(shape, rng, amplitudes)
    plane = ensemble.fit_pca(positions).transform(positions)
    # superposing takes a part of a random direction away, and mixes directions a little
    assert abs(np.corrcoef(plane[:, 0], amplitudes[:, 0])[0, 1]) > 0.97
    assert abs(np.corrcoef(plane[:, 1], amplitudes[:, 1])[0, 1]) > 0.9


def test_divergence_and_recall_on_the_principal_plane(shape, rng):
    space = ensemble.fit_pca(modes(shape, rng, rng.uniform(-0.2, 0.2, (500, 2))))
    (x0, x1), (y0, y1) = ((e[0], e[-1]) for e in space.edges)
    grid = np.array([[x, y] for x in (np.arange(10) + 0.5) / 10 for y in (np.arange(10) + 0.5) / 10])
    points = grid * [x1 - x0, y1 - y0] + [x0, y0]
    assert ensemble.pca_jsd(space, points, points) == 0
    assert ensemble.pca_jsd(space, points[:50], points[50:]) == pytest.approx(1)
    assert ensemble.recall(space, points, points[:30]) == pytest.approx(0.3)
    assert ensemble.recall(space, points[:30], points) == 1
    away = points + 100.0
    assert ensemble.recall(space, points, away) == 0
    assert ensemble.pca_jsd(space, points, away) == pytest.approx(1)
    half = np.concatenate([points, away])
    assert ensemble.pca_jsd(space, points, half) == pytest.approx(ensemble.jensen_shannon([1, 0], [1, 1]))


def test_a_reference_that_stands_still_and_one_too_short(shape):
    still = np.repeat(shape[None], 10, 0)
    space = ensemble.fit_pca(still)
    plane = space.transform(still)
    assert ensemble.pca_jsd(space, plane, plane) == 0
    with pytest.raises(ValueError, match="3 frames"):
        ensemble.fit_pca(still[:2])
    assert ensemble.rmsf(still) == pytest.approx(0, abs=1e-3)
    with pytest.raises(ValueError, match="at least 1 frame"):
        ensemble.rmsf(still[:0])
    with pytest.raises(ValueError, match="points with features"):
        ensemble.free_energy(np.ones((0, 2)), 300.0)


def test_rmsd_against_lag_of_a_growing_shape(shape, rng):
    shape = shape - shape.mean(0)
    gyration = np.sqrt((shape**2).sum(1).mean())
    positions = tumble(shape * (1 + 0.01 * np.arange(50))[:, None, None], rng)
    curve = ensemble.rmsd_against_lag([positions, positions[:20]], [1, 7, 30, 60])
    assert curve[:3] == pytest.approx(np.array([0.01, 0.07, 0.30]) * gyration, rel=1e-6)
    assert np.isnan(curve[3])
    assert ensemble.mean_absolute_difference(curve, curve + [1, -2, 3, 0]) == pytest.approx(2)
    assert np.isnan(ensemble.mean_absolute_difference([np.nan], [1.0]))


def test_fluctuations_of_independent_atoms(rng):
    shape, sigma = rng.normal(size=(200, 3)), np.linspace(0.01, 0.03, 200)
    positions = tumble(shape + rng.normal(size=(3_000, 200, 3)) * sigma[:, None], rng)
    assert ensemble.rmsf(positions) == pytest.approx(np.sqrt(3) * sigma, rel=0.05)


def test_correlation_is_pearsons_and_zero_for_a_flat_profile(rng):
    x = rng.normal(size=30)
    assert ensemble.correlation(x, 3 * x + 1) == pytest.approx(1)
    assert ensemble.correlation(x, -x) == pytest.approx(-1)
    assert ensemble.correlation(x, np.ones(30)) == 0
    assert ensemble.correlation(x[:1], x[:1]) == 0


def test_ca_distances_are_those_of_far_pairs(shape):
    distances = ensemble.ca_distances(shape[None])
    assert distances.shape == (1, 9 * 10 // 2)
    assert distances[0, 0] == pytest.approx(np.linalg.norm(shape[0] - shape[3]), rel=1e-5)
    assert ensemble.ca_distances(shape[None], max_pairs=7).shape == (1, 7)
    with pytest.raises(ValueError, match="use torsions"):
        ensemble.ca_distances(shape[None, :3])


def test_free_energy_of_a_double_well(rng):
    thermal = ensemble.GAS_CONSTANT * 300.0
    assert thermal == pytest.approx(2.494, abs=0.001)

    def potential(x):
        return thermal * (4 * (x**2 - 1) ** 2 + 0.5 * x)

    x = rng.uniform(-2, 2, 2_000_000)
    x = x[rng.random(len(x)) < np.exp(-potential(x) / thermal - 0.6)][:, None]
    surface = ensemble.free_energy(x, 300.0, 100, [(-2, 2)])
    fine = (np.arange(100_000) + 0.5) / 25_000 - 2
    weight = np.exp(-potential(fine) / thermal)
    share = weight.reshape(100, -1).sum(1) / weight.sum()
    low = surface.energy < 4 * thermal
    assert surface.energy.min() == 0 and np.isinf(surface.energy[0])
    assert surface.energy[low] == pytest.approx(-thermal * np.log(share / share.max())[low], abs=0.2)
    left, right = surface.probability[:50].sum(), surface.probability[50:].sum()
    expected = thermal * np.log(weight[fine < 0].sum() / weight[fine > 0].sum())
    assert thermal * np.log(left / right) == pytest.approx(expected, abs=0.03)


def test_difference_of_free_energies_of_known_populations():
    def surface(*counts):
        return ensemble.free_energy(np.repeat([[0.5], [1.5], [2.5]], counts, 0), 300.0, 3, [(0, 3)])

    thermal = ensemble.GAS_CONSTANT * 300.0
    even, skewed = surface(100, 100, 0), surface(150, 50, 0)
    expected = thermal * np.sqrt((np.log(1.5) ** 2 + np.log(0.5) ** 2) / 2)
    assert ensemble.free_energy_difference(even, skewed) == pytest.approx(expected)
    assert ensemble.free_energy_difference(even, even) == 0
    never = thermal * np.sqrt((np.log(0.5) ** 2 + np.log(0.5 / (0.5 / 200)) ** 2) / 2)
    assert ensemble.free_energy_difference(even, surface(200, 0, 0)) == pytest.approx(never)
    rare = surface(10_000, 10, 0)  # 6.9 kT above: left out
    assert ensemble.free_energy_difference(rare, surface(10_000, 0, 10)) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="one grid"):
        ensemble.free_energy_difference(even, ensemble.free_energy(np.ones((3, 1)), 300.0, 3, [(0, 2)]))
    with pytest.raises(ValueError, match="found none"):
        ensemble.free_energy(np.ones((3, 1)), 300.0, 3, [(2, 3)])


def test_flat_shapes_are_superposed_without_a_word(capfd):
    rng = np.random.default_rng(3)
    flat = np.zeros((40, 5, 3))
    flat[..., :2] = rng.normal(size=(1, 5, 2)) + 0.01 * rng.normal(size=(40, 5, 2))
    angle = rng.uniform(0, 6, 40)
    turn = np.zeros((40, 3, 3))
    turn[:, 0, 0], turn[:, 0, 1], turn[:, 1, 0], turn[:, 1, 1] = (
        np.cos(angle),
        -np.sin(angle),
        np.sin(angle),
        np.cos(angle),
    )
    turn[:, 2, 2] = 1
    moved = ensemble.superpose(flat @ turn.transpose(0, 2, 1) + 3.0, flat[0])
    assert np.abs(moved - flat).max() < 0.06
    assert capfd.readouterr() == ("", "")
