import math

import pytest
import torch

from openmm_starmd.geometry.rigid import Rigid, exponential, from_rodrigues, logarithm, superpose, to_rodrigues

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def tolerance(dtype):
    return {"rtol": 0, "atol": 2e-6 if dtype == torch.float32 else 1e-13}


def random_rigid(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rotvec = torch.randn(*shape, 3, generator=generator, dtype=torch.float64)
    translations = torch.randn(*shape, 3, generator=generator, dtype=torch.float64)
    return Rigid(exponential(rotvec).to(dtype), translations.to(dtype))


def random_points(shape, dtype, seed=9):
    return torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def unit_vectors():
    random = torch.nn.functional.normalize(random_points((20,), torch.float64), dim=-1)
    return torch.cat([random, torch.eye(3, dtype=torch.float64)])


@DTYPES
def test_composition_applies_the_right_factor_first(dtype):
    a, b = random_rigid((4, 5), dtype, 1), random_rigid((4, 5), dtype, 2)
    x = random_points((4, 5), dtype)
    torch.testing.assert_close((a @ b).apply(x), a.apply(b.apply(x)), **tolerance(dtype))


@DTYPES
def test_inverse_and_identity(dtype):
    a = random_rigid((6,), dtype)
    identity = Rigid.identity((6,), dtype=dtype)
    for product in (a @ a.inverse(), a.inverse() @ a):
        torch.testing.assert_close(product.rotations, identity.rotations, **tolerance(dtype))
        torch.testing.assert_close(product.translations, identity.translations, **tolerance(dtype))
    torch.testing.assert_close((identity @ a).translations, a.translations, **tolerance(dtype))


@DTYPES
def test_broadcasting_and_indexing(dtype):
    a = random_rigid((4, 5), dtype)
    points = random_points((4, 5, 7), dtype)
    moved = a[..., None].apply(points)
    assert moved.shape == (4, 5, 7, 3)
    torch.testing.assert_close(moved[2, 3], a[2, 3][None].apply(points[2, 3]), **tolerance(dtype))
    assert a[:, None].shape == (4, 1, 5)
    assert a[1].shape == (5,)
    assert (a[:, :, None] @ a[:, None]).shape == (4, 5, 5)


@DTYPES
def test_three_points_define_the_axes(dtype):
    n, ca, c = random_points((3, 20), dtype)
    frame = Rigid.from_three_points(n, ca, c)
    local_n, local_ca, local_c = (frame.inverse().apply(x) for x in (n, ca, c))
    zero = torch.zeros(20, dtype=dtype)
    torch.testing.assert_close(local_ca, torch.zeros(20, 3, dtype=dtype), **tolerance(dtype))
    torch.testing.assert_close(local_c[:, 1:], torch.zeros(20, 2, dtype=dtype), **tolerance(dtype))
    torch.testing.assert_close(local_n[:, 2], zero, **tolerance(dtype))
    assert (local_c[:, 0] > 0).all()
    assert (local_n[:, 1] > 0).all()
    torch.testing.assert_close(torch.linalg.det(frame.rotations), torch.ones(20, dtype=dtype), **tolerance(dtype))


@DTYPES
def test_three_points_are_equivariant(dtype):
    motion = random_rigid((), dtype, 4)
    n, ca, c = random_points((3, 20), dtype)
    before = motion @ Rigid.from_three_points(n, ca, c)
    after = Rigid.from_three_points(*(motion.apply(x) for x in (n, ca, c)))
    limit = {"rtol": 0, "atol": 1e-4 if dtype == torch.float32 else 1e-11}  # nearly collinear triples lose digits
    torch.testing.assert_close(after.rotations, before.rotations, **limit)
    torch.testing.assert_close(after.translations, before.translations, **limit)


@DTYPES
@pytest.mark.parametrize("angle", [0.0, 1e-30, 1e-8, 1e-4, 1e-2, 0.7, 2.0, 3.1, math.pi - 1e-3, math.pi - 1e-5])
def test_logarithm_inverts_exponential(angle, dtype):
    axes = unit_vectors()
    rotvec = (angle * axes).to(dtype)
    rotation = exponential(rotvec)
    identity = torch.eye(3, dtype=dtype).expand(23, 3, 3)
    torch.testing.assert_close(rotation @ rotation.transpose(-1, -2), identity, **tolerance(dtype))
    atol = 5e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(logarithm(rotation), rotvec, rtol=0, atol=atol)


@DTYPES
def test_logarithm_at_half_turns_is_one_of_the_two_vectors(dtype):
    axes = unit_vectors()
    rotation = (2 * axes[:, :, None] * axes[:, None] - torch.eye(3)).to(dtype)
    rotvec = logarithm(rotation)
    torch.testing.assert_close(rotvec.norm(dim=-1), torch.full((23,), math.pi, dtype=dtype), rtol=0, atol=5e-6)
    torch.testing.assert_close(exponential(rotvec), rotation, rtol=0, atol=5e-6)


def test_logarithm_has_a_finite_gradient_at_the_identity():
    rotation = torch.eye(3).requires_grad_(True)
    (gradient,) = torch.autograd.grad(logarithm(rotation).sum(), rotation)
    assert torch.isfinite(gradient).all()


@DTYPES
def test_superpose_recovers_the_motion(dtype):
    motion = random_rigid((5,), dtype, 6)
    points = random_points((5, 12), dtype)
    found = superpose(points, motion[..., None].apply(points))
    atol = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(found.rotations, motion.rotations, rtol=0, atol=atol)
    torch.testing.assert_close(found.translations, motion.translations, rtol=0, atol=atol)


@DTYPES
def test_superpose_never_mirrors_and_is_the_best_rotation(dtype):
    points = random_points((5, 12), dtype)
    target = points * torch.tensor([-1.0, 1.0, 1.0], dtype=dtype)
    found = superpose(points, target)
    torch.testing.assert_close(torch.linalg.det(found.rotations), torch.ones(5, dtype=dtype), **tolerance(dtype))
    best = (found[..., None].apply(points) - target).square().sum((-1, -2))
    centre = target.mean(-2, keepdim=True)
    for seed in range(20):
        turn = exponential(0.05 * random_points((5, 1), dtype, seed))
        other = (turn @ (found[..., None].apply(points) - centre)[..., None])[..., 0] + centre
        assert ((other - target).square().sum((-1, -2)) > best).all()


def test_to_converts_both_parts():
    a = random_rigid((3,), torch.float32).to(torch.float64)
    assert a.rotations.dtype == a.translations.dtype == torch.float64


def test_rodrigues_parameters_of_every_angle():
    """tan(angle / 4) along the axis, also at half a turn, where the sign of the axis is free."""
    for axis in unit_vectors():
        for angle in (0.0, 1e-4, 1.0, 3.0, math.pi, 4.0):
            rotation = exponential(axis * angle)
            parameters = to_rodrigues(rotation)
            assert parameters.norm() <= 1 + 1e-12
            if angle < math.pi:
                torch.testing.assert_close(parameters, axis * math.tan(angle / 4), rtol=0, atol=1e-9)
            torch.testing.assert_close(from_rodrigues(parameters), rotation, rtol=0, atol=1e-12)
