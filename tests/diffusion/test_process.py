"""Laws of the forward process."""

import math

import pytest
import torch

from openmm_starmd.diffusion.process import Process
from openmm_starmd.geometry.rigid import Rigid, logarithm
from openmm_starmd.geometry.torsions import wrap, wrapped_normal_log_density
from openmm_starmd.network.config import paper, peptide
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.displacement import tangent_noise
from openmm_starmd.protein.tokens import ResidueFeatures

BOTH = pytest.mark.parametrize("config", [paper(), peptide()], ids=["paper", "peptide"])


def features(batch, n=3):
    zero = torch.zeros(batch, n, dtype=torch.long)
    mask = torch.ones(batch, n, 6, dtype=torch.bool)
    mask[:, 0, 2:] = False
    return ResidueFeatures(zero, zero, zero, zero, zero, mask, torch.full((batch, n, 6), 2 * math.pi))


def still(*shape, n=3):
    frames = Rigid.identity((*shape, n))
    return Conformation(frames, torch.zeros(*shape, n, 6), torch.full((*shape, n), 1.96))


def test_paper_schedule():
    """Facts of the paper's schedule: t = 0.1 means 3.2 A of translation noise and 33 degrees; 0.05 means 1.7 A."""
    process = Process(paper().process)
    sigma = process.sigma(torch.tensor([0.05, 0.1, 1.0]))
    assert sigma[1, 0] == pytest.approx(0.32, abs=0.01)
    assert sigma[0, 0] == pytest.approx(0.19, abs=0.02)
    mean_angle = math.sqrt(8 / math.pi) * math.degrees(sigma[1, 1])  # of a normal distribution in three dimensions
    assert mean_angle == pytest.approx(33, abs=1)
    assert sigma[2, 1] == pytest.approx(1.5)
    t = torch.linspace(0.01, 1, 20)
    torch.testing.assert_close(process.alpha(t) ** 2 + process.sigma(t)[:, 0] ** 2, torch.ones(20))


@BOTH
def test_noise_has_the_stated_levels(config):
    process, n = Process(config.process), 4000
    t = torch.full((n,), 0.3)
    generator = torch.Generator().manual_seed(0)
    x = process.perturb(still(n), process.alpha(t), process.sigma(t), features(n), generator)
    st, sr, sx, sa = process.sigma(t[0])
    assert x.frames.translations.mean(-2).abs().max() < 1e-5
    # the mean over three residues is removed, which leaves two thirds of the variance
    assert x.frames.translations.var() / st**2 == pytest.approx(2 / 3, rel=0.05)
    if sr < 0.4:  # small noise is nearly normal
        assert logarithm(x.frames.rotations).var() / sr**2 == pytest.approx(1, rel=0.05)
    assert (x.torsions[:, 0, 2:] == 0).all()
    assert x.torsions[:, 1].cos().mean() == pytest.approx(math.exp(-(sx**2) / 2), abs=0.02)
    assert (x.angles - 1.96).std() / sa == pytest.approx(1, rel=0.05)


@BOTH
def test_score_is_the_gradient_of_the_forward_kernel(config):
    """Along a random tangent direction, the score equals the numerical derivative of the log density."""
    process, generator = Process(config.process), torch.Generator().manual_seed(0)
    t = torch.full((1,), 0.4, dtype=torch.float64)
    alpha, sigma = process.alpha(t), process.sigma(t)
    clean, feats = still(1).to(torch.float64), features(1)
    noisy = process.perturb(clean, alpha, sigma, feats, generator)
    delta = process.score_displacement(noisy, clean, alpha, sigma, feats)
    direction = tangent_noise(noisy.angles, feats.torsion_mask, generator)

    def log_density(x):
        from openmm_starmd.geometry import igso3

        rotvec = logarithm(x.frames.rotations)
        level = sigma[..., 1, None].expand(x.shape)
        translation = -(x.frames.translations**2).sum() / (2 * sigma[0, 0] ** 2)
        torsion = wrapped_normal_log_density(x.torsions, sigma[0, 2]) * feats.torsion_mask
        angle = -((x.angles - clean.angles) ** 2).sum() / (2 * sigma[0, 3] ** 2)
        return translation + igso3.log_density(rotvec.norm(dim=-1), level).sum() + torsion.sum() + angle

    h = 1e-4
    plus, minus = (direction.scaled(torch.full((1, 4), s * h, dtype=torch.float64)).apply(noisy) for s in (1, -1))
    numerical = (log_density(plus) - log_density(minus)) / (2 * h)
    s = sigma[0] ** 2
    analytic = (
        (delta.translation * direction.translation).sum() / s[0]
        + (delta.rotation * direction.rotation).sum() / s[1]
        + (delta.torsion * direction.torsion).sum() / s[2]
        + (delta.angle * direction.angle).sum() / s[3]
    )
    assert analytic.item() == pytest.approx(numerical.item(), rel=1e-4, abs=1e-4)


@BOTH
def test_context_copies(config):
    process, n = Process(config.process), 4000
    generator = torch.Generator().manual_seed(0)
    copy = process.context_copy(still(n), features(n), generator)
    moved = (wrap(copy.torsions).abs().amax((-1, -2)) > 0).float().mean()
    assert moved.item() == pytest.approx(0.75, abs=0.03)


@BOTH
def test_replicas_do_not_depend_on_their_company(config):
    process = Process(config.process)

    def generators():
        return [torch.Generator().manual_seed(k) for k in range(3)]

    t = torch.full((3,), 0.5)
    together = process.perturb(still(3), process.alpha(t), process.sigma(t), features(3), generators())
    alone = process.perturb(still(1), process.alpha(t[:1]), process.sigma(t[:1]), features(1), generators()[1:2])
    torch.testing.assert_close(together.frames.rotations[1:2], alone.frames.rotations)
    torch.testing.assert_close(together.torsions[1:2], alone.torsions)
    with pytest.raises(ValueError, match="generators"):
        process.perturb(still(3), process.alpha(t), process.sigma(t), features(3), generators()[:2])
