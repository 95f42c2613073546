import math

import mdtraj
import numpy as np
import pytest
import torch

from openmm_starmd.geometry.torsions import (
    TWO_PI,
    measure_angle,
    measure_dihedral,
    rotate_about,
    wrap,
    wrapped_normal_log_density,
    wrapped_normal_score,
)

PERIODS = (math.pi, TWO_PI)


def random_points(*shape, seed=0):
    return torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_dihedral_and_angle_agree_with_mdtraj():
    points = random_points(100, 4)
    trajectory = mdtraj.Trajectory(points.numpy(), None)
    dihedrals = mdtraj.compute_dihedrals(trajectory, [[0, 1, 2, 3]], periodic=False)[:, 0]
    angles = mdtraj.compute_angles(trajectory, [[0, 1, 2]], periodic=False)[:, 0]
    np.testing.assert_allclose(measure_dihedral(*points.unbind(1)), dihedrals, atol=1e-5)
    np.testing.assert_allclose(measure_angle(*points[:, :3].unbind(1)), angles, atol=1e-4)


def test_a_right_handed_screw_is_positive():
    points = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 1, 1]])
    assert measure_dihedral(*points) == pytest.approx(math.pi / 2)


def test_dihedral_is_accurate_in_float32():
    points = random_points(1000, 4)
    error = wrap(measure_dihedral(*points.float().unbind(1)) - measure_dihedral(*points.unbind(1)))
    assert error.abs().quantile(0.99) < 1e-5


@pytest.mark.parametrize("fourth", ([2.0, 0, 0], [3.0, 0, 0]))
def test_collinear_points_give_no_nan(fourth):
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], fourth], requires_grad=True)
    dihedral = measure_dihedral(*points)
    dihedral.backward()
    assert dihedral == 0
    assert points.grad.isfinite().all()


def test_dihedral_is_differentiable():
    points = random_points(5, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: measure_dihedral(*x.unbind(1)), points)


@pytest.mark.parametrize("angle", (0.0, 1e-6, 1.0, math.pi - 1e-6, math.pi))
def test_angle_is_accurate_near_its_ends(angle):
    points = torch.tensor([[1.0, 0, 0], [0, 0, 0], [math.cos(angle), math.sin(angle), 0]], dtype=torch.float64)
    assert measure_angle(*points) == pytest.approx(angle, abs=1e-12)


def test_turning_the_far_atom_adds_to_the_dihedral():
    points, turn = random_points(50, 4), 3 * random_points(50)[:, 0]
    p0, p1, p2, p3 = points.unbind(1)
    turned = rotate_about(p3, p1, 5 * (p2 - p1), turn)
    change = measure_dihedral(p0, p1, p2, turned) - measure_dihedral(p0, p1, p2, p3)
    torch.testing.assert_close(wrap(change - turn), torch.zeros(50, dtype=torch.float64))
    torch.testing.assert_close((turned - p2).norm(dim=-1), (p3 - p2).norm(dim=-1))
    torch.testing.assert_close(measure_angle(p1, p2, turned), measure_angle(p1, p2, p3))


@pytest.mark.parametrize("period", PERIODS)
def test_wrap_stays_in_its_interval_and_changes_by_whole_periods(period):
    angle = torch.linspace(-20, 20, 1001, dtype=torch.float64)
    wrapped = wrap(angle, period)
    turns = (angle - wrapped) / period
    assert wrapped.max() <= period / 2 and wrapped.min() > -period / 2
    torch.testing.assert_close(turns, turns.round())
    assert wrap(torch.tensor(period / 2, dtype=torch.float64), period) == period / 2


def test_wrap_takes_a_period_for_each_angle():
    wrapped = wrap(torch.tensor([3.0, 3.0]), torch.tensor([math.pi, TWO_PI]))
    torch.testing.assert_close(wrapped, torch.tensor([3.0 - math.pi, 3.0]))


@pytest.mark.parametrize("period", PERIODS)
@pytest.mark.parametrize("relative_width", (0.02, 0.1, 0.3))
def test_wrapped_normal_is_normalised_and_its_score_is_its_gradient(period, relative_width):
    sigma = torch.tensor(relative_width * period, dtype=torch.float64)
    delta = torch.linspace(-period / 2, period / 2, 4001, dtype=torch.float64).requires_grad_()
    log_density = wrapped_normal_log_density(delta, sigma, period)
    assert torch.trapezoid(log_density.exp(), delta).item() == pytest.approx(1, abs=1e-6)
    (gradient,) = torch.autograd.grad(log_density.sum(), delta)
    torch.testing.assert_close(wrapped_normal_score(delta, sigma, period), gradient)


def test_wrapped_normal_matches_samples():
    sigma = 1.3
    samples = wrap(sigma * random_points(200_000).flatten())
    counts, edges = np.histogram(samples, bins=30, range=(-math.pi, math.pi))
    centres = torch.tensor((edges[1:] + edges[:-1]) / 2)
    expected = wrapped_normal_log_density(centres, torch.tensor(sigma)).exp().numpy() * len(samples) * TWO_PI / 30
    assert np.abs((counts - expected) / np.sqrt(expected)).max() < 5


def test_period_pi_is_the_sum_of_two_images():
    delta, sigma = torch.linspace(-1.5, 1.5, 31, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    halves = [wrapped_normal_log_density(delta + shift, sigma).exp() for shift in (0.0, math.pi)]
    torch.testing.assert_close(wrapped_normal_log_density(delta, sigma, math.pi).exp(), sum(halves))
