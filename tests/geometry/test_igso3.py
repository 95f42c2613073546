import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from openmm_starmd.geometry import igso3

SIGMAS = [0.02, 0.05, 0.1, 0.3, 0.5, 1.0, 1.5, 2.0]


def grid(sigma, n=20001):
    return torch.linspace(0, min(math.pi, 12 * sigma), n, dtype=torch.float64)


def series_density(angle, sigma):
    """The defining sum over l, as an oracle that shares nothing with the summation by images."""
    degree = torch.arange(0, int(9 / sigma) + 10, dtype=torch.float64)
    terms = (2 * degree + 1) * torch.exp(-degree * (degree + 1) * sigma**2 / 2)
    return (terms * torch.sin((degree + 0.5) * angle[:, None])).sum(-1) / torch.sin(angle / 2)


def angular_score(angle, sigma):
    """Derivative of the log density in the angle, by Tweedie's formula."""
    rotvec = angle[..., None] * torch.tensor([0, 1, 0], dtype=angle.dtype)
    return -igso3.tangent(rotvec, sigma.expand(angle.shape))[..., 1] / sigma**2


def sample(sigma, seed):
    generator = torch.Generator().manual_seed(seed)
    return igso3.from_normal(sigma, torch.randn(*sigma.shape, 3, generator=generator, dtype=sigma.dtype))


@pytest.mark.parametrize("sigma", SIGMAS)
def test_density_integrates_to_one(sigma):
    angle = grid(sigma)
    density = igso3.log_density(angle, torch.tensor(sigma, dtype=torch.float64)).exp()
    total = torch.trapezoid(density * (1 - torch.cos(angle)) / math.pi, angle)
    assert total.item() == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_density_equals_its_defining_series(sigma):
    angle = grid(sigma, 400)[1:] * 0.4
    density = igso3.log_density(angle, torch.tensor(sigma, dtype=torch.float64)).exp()
    expected = series_density(angle, sigma)
    torch.testing.assert_close(density, expected, rtol=1e-7, atol=1e-9 * expected.max().item())


@pytest.mark.parametrize("sigma", SIGMAS)
def test_score_equals_autograd_of_log_density(sigma):
    s = torch.tensor(sigma, dtype=torch.float64)
    angle = torch.tensor([1e-4, 2e-4, 4e-4, 1e-3, *np.linspace(0.01, math.pi, 300)], dtype=torch.float64)
    angle.requires_grad_(True)
    (gradient,) = torch.autograd.grad(igso3.log_density(angle, s).sum(), angle)
    torch.testing.assert_close(angular_score(angle, s).detach(), gradient, rtol=1e-6, atol=2e-8)


@pytest.mark.parametrize("sigma", [0.02, 0.3, 1.5, 2.0])
def test_tangent_points_along_the_axis(sigma):
    generator = torch.Generator().manual_seed(1)
    axis = torch.nn.functional.normalize(torch.randn(50, 3, generator=generator, dtype=torch.float64), dim=-1)
    angle = torch.linspace(0.01, 3.1, 50, dtype=torch.float64)
    s = torch.full((50,), sigma, dtype=torch.float64)
    expected = angular_score(angle, s)[:, None] * axis
    torch.testing.assert_close(igso3.tangent(angle[:, None] * axis, s), -(sigma**2) * expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_finite_and_right_at_both_ends(sigma, dtype):
    s = torch.full((4,), sigma, dtype=dtype)
    angle = torch.tensor([0, 1e-30, torch.finfo(dtype).eps, math.pi], dtype=dtype)
    rotvec = torch.zeros(4, 3, dtype=dtype)
    rotvec[:, 1] = angle
    rotvec.requires_grad_(True)
    outputs = [igso3.log_density(angle, s), angular_score(angle, s)]
    outputs += [igso3.tangent(rotvec, s)]
    outputs += torch.autograd.grad(outputs[2].sum(), rotvec)
    for output in outputs:
        assert output.dtype == dtype
        assert torch.isfinite(output).all()
    assert outputs[1][0] == 0
    # The density is even about pi, so its slope vanishes there: far below the slope -pi / sigma^2 of a plain Gaussian.
    assert abs(outputs[1][3]) < 1e-3 * math.pi / sigma**2


def test_float32_is_the_rounded_float64():
    s = torch.tensor(0.02, dtype=torch.float32)
    angle = torch.linspace(0, math.pi, 500)
    for function in (igso3.log_density, angular_score):
        exact = function(angle.double(), s.double())
        torch.testing.assert_close(function(angle, s), exact.float(), rtol=1e-6, atol=0)


def test_tangent_tends_to_the_rotation_vector():
    rotvec = torch.tensor([[0.02, -0.03, 0.01]], dtype=torch.float64)
    torch.testing.assert_close(igso3.tangent(rotvec, torch.tensor([0.05]).double()), rotvec, rtol=1e-3, atol=0)


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.5, 1.5, 2.0])
def test_samples_match_the_density(sigma):
    rotvec = sample(torch.full((40_000,), sigma), 7)
    assert rotvec.dtype == torch.float32
    angle = rotvec.double().norm(dim=-1).numpy()
    assert angle.max() <= math.pi + 1e-6
    x = grid(sigma)
    density = series_density(x[1:], sigma).clamp_min(0) * (1 - torch.cos(x[1:])) / math.pi
    cumulative = np.concatenate([[0], torch.cumsum(density, 0).numpy() * float(x[1])])
    assert kstest(angle, lambda w: np.interp(w, x.numpy(), cumulative)).pvalue > 0.01
    # Directions are uniform: each component of the axis is uniform on [-1, 1].
    for component in (rotvec / rotvec.norm(dim=-1, keepdim=True)).T.numpy():
        assert kstest(component, "uniform", args=(-1, 2)).pvalue > 0.005


def test_samples_between_nodes_of_the_table():
    """Stein's identity with test function sin(w): the mean of sin(w) score + cos(w) + sin(w) cot(w / 2) vanishes."""
    n = 100_000
    for sigma in (0.0137, 0.21, 0.777, 1.21):
        s = torch.full((n,), sigma, dtype=torch.float64)
        angle = sample(s, 3).norm(dim=-1)
        score = angular_score(angle, s)
        stein = torch.sin(angle) * (score + 1 / torch.tan(angle / 2)) + torch.cos(angle)
        assert abs(stein.mean()) < 5 * stein.std() / math.sqrt(n)


def test_samples_are_reproducible_and_follow_the_shape():
    sigma = torch.rand(4, 3, 8, generator=torch.Generator().manual_seed(0)) + 0.05
    first, second = (sample(sigma, 5) for _ in range(2))
    assert first.shape == (4, 3, 8, 3)
    assert torch.equal(first, second)
    assert not torch.equal(first, sample(sigma, 6))
    zero = sample(torch.zeros(5), 5)
    assert torch.equal(zero, torch.zeros(5, 3))
