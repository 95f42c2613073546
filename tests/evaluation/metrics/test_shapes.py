"""Shapes with known modes and fluctuations."""

import mdtraj
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from openmm_starmd.evaluation.metrics import shapes


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
    assert np.abs(shapes.superpose(moved, shape) - shape).max() < 1e-4
    before = moved.copy()
    shapes.superpose(moved, shape)
    assert (moved == before).all()
    with pytest.raises(ValueError, match="3 atoms"):
        shapes.superpose(moved[:, :2], shape[:2])
    with pytest.raises(ValueError, match="finite positions"):
        shapes.superpose(np.where(moved > 0, np.nan, moved), shape)


def test_smallest_rmsd_agrees_with_mdtraj_and_knows_a_mirror_image(shape, rng):
    first, second = rng.normal(size=(2, 20, 12, 3))
    expected = [
        mdtraj.rmsd(mdtraj.Trajectory(a[None], None), mdtraj.Trajectory(b[None], None))[0]
        for a, b in zip(first, second, strict=True)
    ]
    assert shapes.paired_rmsd(first, second) == pytest.approx(expected, abs=1e-4)
    assert shapes.paired_rmsd(shape[None], tumble(shape[None], rng))[0] < 1e-7
    assert shapes.paired_rmsd(shape[None], shape[None] * [1, 1, -1])[0] > 0.1


def test_the_mean_structure_is_free_of_the_noise_of_single_frames(shape, rng):
    mean = shapes.mean_structure(tumble(shape + rng.normal(0, 0.1, (2_000, 12, 3)), rng))
    assert shapes.paired_rmsd(mean[None], shape[None])[0] < 0.02


def modes(shape, rng, amplitudes):
    """Tumbling shape that moves along as many random directions as there are amplitudes (T, M)."""
    directions = np.linalg.qr(rng.normal(size=(shape.size, amplitudes.shape[1])))[0]
    return tumble(shape + (amplitudes @ directions.T).reshape(-1, *shape.shape), rng)


def test_principal_components_are_the_planted_modes(shape, rng):
    amplitudes = rng.normal(size=(4_000, 3)) * [0.3, 0.15, 0.01]
    positions = modes(shape, rng, amplitudes)
    plane = shapes.fit_pca(positions).transform(positions)
    # superposing takes a part of a random direction away, and mixes directions a little
    assert abs(np.corrcoef(plane[:, 0], amplitudes[:, 0])[0, 1]) > 0.97
    assert abs(np.corrcoef(plane[:, 1], amplitudes[:, 1])[0, 1]) > 0.9


def test_counts_and_recall_on_the_principal_plane(shape, rng):
    space = shapes.fit_pca(modes(shape, rng, rng.uniform(-0.2, 0.2, (500, 2))))
    (x0, x1), (y0, y1) = ((e[0], e[-1]) for e in space.edges)
    grid = np.array([[x, y] for x in (np.arange(10) + 0.5) / 10 for y in (np.arange(10) + 0.5) / 10])
    points = grid * [x1 - x0, y1 - y0] + [x0, y0]
    everywhere, some, rest = map(space.counts, (points, points[:30], points[30:]))
    assert (everywhere == [*[1] * 100, 0]).all() and (some + rest == everywhere).all()
    assert shapes.recall(everywhere, some) == pytest.approx(0.3) and shapes.recall(some, everywhere) == 1
    assert shapes.recall(some, some) == 1 and shapes.recall(some, rest) == 0  # bins of the reference alone count
    away = space.counts(points + 100.0)
    assert (away == [*[0] * 100, 100]).all() and shapes.recall(everywhere, away) == 0


def test_a_reference_that_stands_still_and_one_too_short(shape):
    still = np.repeat(shape[None], 10, 0)
    space = shapes.fit_pca(still)
    assert space.counts(space.transform(still)).sum() == 10
    with pytest.raises(ValueError, match="3 frames"):
        shapes.fit_pca(still[:2])
    assert shapes.rmsf(shapes.moments(still)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="at least 1 frame"):
        shapes.mean_structure(still[:0])


def test_rmsd_against_lag_of_a_growing_shape(shape, rng):
    shape = shape - shape.mean(0)
    gyration = np.sqrt((shape**2).sum(1).mean())
    positions = tumble(shape * (1 + 0.01 * np.arange(50))[:, None, None], rng)

    def sums(part):
        return np.array([shapes.rmsd_sums(part[:-lag], part[lag:], 1000) for lag in (1, 7, 30, 60)])

    curve = shapes.mean_rmsd(sums(positions) + sums(positions[:20]))
    assert curve[:3] == pytest.approx(np.array([0.01, 0.07, 0.30]) * gyration, rel=1e-6)
    assert np.isnan(curve[3])
    few = shapes.rmsd_sums(positions[:-1], positions[1:], max_pairs=5)
    assert few == pytest.approx([49 * 0.01 * gyration, 49], rel=1e-6)  # five pairs stand for all


def test_fluctuations_of_independent_atoms(rng):
    shape, sigma = rng.normal(size=(200, 3)), np.linspace(0.01, 0.03, 200)
    positions = tumble(shape + rng.normal(size=(3_000, 200, 3)) * sigma[:, None], rng)
    moved = shapes.superpose(positions, shapes.mean_structure(positions))
    sums = shapes.moments(moved[:100]) + shapes.moments(moved[100:])
    assert shapes.rmsf(sums) == pytest.approx(np.sqrt(3) * sigma, rel=0.05)


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
    moved = shapes.superpose(flat @ turn.transpose(0, 2, 1) + 3.0, flat[0])
    assert np.abs(moved - flat).max() < 0.06
    assert capfd.readouterr() == ("", "")


def test_radius_of_gyration_of_a_cube():
    corners = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), dtype=float).reshape(3, -1).T
    assert shapes.radius_of_gyration(np.stack([corners, 2 * corners + 7])) == pytest.approx([3**0.5, 2 * 3**0.5])
