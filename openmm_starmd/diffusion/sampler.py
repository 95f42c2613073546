"""The reverse process: from noise to a conformation, one algorithm a class.

Each takes ``denoise(noisy, k) -> Displacement``, which returns ``sigma**2`` times the score (see `process`) at the k-th
of its times, so that an exact score can stand in for the network. One move is ``x' = growth * (x + fraction * way) +
noise``; the algorithms differ in these three numbers. The run ends with the denoised conformation, without noise.
Numbers and noise of all moves are made before the first, so that only the moves themselves are left to the loop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from openmm_starmd.diffusion.process import Process
from openmm_starmd.geometry.rigid import Rigid, exponential
from openmm_starmd.geometry.torsions import wrap
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.displacement import Displacement, centred
from openmm_starmd.protein.tokens import ResidueFeatures

Denoise = Callable[[Conformation, int], Displacement]


class Sampler(ABC):
    """Common loop of the stochastic samplers.

    Parameters
    ----------
    process : Process
    steps : int
        Points in diffusion time.
    """

    def __init__(self, process: Process, steps: int):
        self.process, self.steps = process, steps

    @abstractmethod
    def times(self) -> Tensor:
        """Diffusion times (S,) at which the denoiser is called, decreasing; float64."""

    @abstractmethod
    def coefficients(self, t: Tensor, t_next: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Growth of translations (*), fraction of the way and noise levels (*, 4) of moves between two times (*)."""

    def sample(self, noise: Conformation, denoise: Denoise, features: ResidueFeatures, generator) -> Conformation:
        """Sample a conformation.

        Parameters
        ----------
        noise : Conformation, shape (B, N)
            Sample of the prior.
        denoise : callable
            ``denoise(noisy, k) -> Displacement``.
        generator : torch.Generator or one for each replica
        """
        times = self.times()
        growth, fraction, level = (x.to(noise.angles) for x in self.coefficients(times[:-1], times[1:]))
        kicks = self._kicks(noise, level, features, generator)
        corrected = self.correction(times, noise.angles, features)
        x = noise
        for k in range(len(times) - 1):
            way = corrected(denoise(x, k), x, k).scaled(fraction[k])
            x = _moved(x, way, growth[k], kicks[:, k])
        way = denoise(x, len(times) - 1)
        return _grown(way.apply(x), 1 / self.process.alpha(times[-1]).to(noise.angles))

    def correction(self, times: Tensor, template: Tensor, features: ResidueFeatures):
        """Function (way, x, k) that corrects the way from x to the denoised conformation by what came before."""
        return lambda way, x, k: way

    def _kicks(self, like: Conformation, level: Tensor, features: ResidueFeatures, generator) -> Conformation:
        """Noise of every move, as the conformations (B, S - 1, N) that residues at rest get to."""
        template = like.angles[:, None].expand(-1, len(level), -1)
        frames = Rigid.identity(template.shape, template.dtype, template.device)
        rest = Conformation(frames, torch.zeros_like(template)[..., None].expand(*template.shape, 6), 0 * template)
        return self.process.noise(template, level, features, generator).apply(rest)


class EulerMaruyama(Sampler):
    """Euler-Maruyama integration of the reverse SDE (Song et al., arXiv:2011.13456), the paper's reference.

    Of ``steps`` points the last is not called: the prediction at the one before it is returned.
    """

    def times(self):
        return torch.linspace(1, self.process.min_time, max(2, self.steps), dtype=torch.float64)[:-1]

    def coefficients(self, t, t_next):
        growth, variance = self.process.increment(t, t_next)
        fraction = variance / self.process.sigma(t) ** 2
        shrunk = torch.cat([fraction[..., :1] / growth[..., None], fraction[..., 1:]], -1)
        return growth, shrunk, variance.sqrt()


class Ancestral(Sampler):
    """Ancestral sampling: the exact posterior of the next level given this one and the denoised conformation.

    DDPM's rule (arXiv:2006.11239, equation 7) in terms of sigma / alpha: it adds the least noise that is consistent
    with the denoised conformation, so few steps already give clean geometry.

    Attributes
    ----------
    churn : float
        Each move goes down without noise to ``(sigma_next / sigma) ** churn`` of the next level and is noised from
        there (EDM's churn, arXiv:2206.00364, algorithm 2, in proportion to the step): 0 gives the deterministic
        sampler, 1 ancestral sampling, more than 1 forgets more of the noise on the way.
    grid : float
        Power of the time grid: 1 for even steps of the logarithm of the noise, more for more of them where noise is
        high.
    """

    churn: float = 1.0
    grid: float = 1.0

    def times(self):
        passed = torch.linspace(0, 1, self.steps, dtype=torch.float64) ** self.grid
        return 1 - (1 - self.process.min_time) * passed

    def _ratio(self, t, t_next):
        """Growth of translations (*), and noise to signal at t_next over that at t (*, 4)."""
        p = self.process
        growth, ratio = p.alpha(t_next) / p.alpha(t), p.sigma(t_next) / p.sigma(t)
        return growth, torch.cat([ratio[..., :1] / growth[..., None], ratio[..., 1:]], -1)

    def coefficients(self, t, t_next):
        growth, ratio = self._ratio(t, t_next)
        level = self.process.sigma(t_next) * (1 - ratio ** (2 * self.churn)).sqrt()
        return growth, 1 - ratio ** (1 + self.churn), level


class Multistep(Ancestral):
    """Second-order multistep exponential integrator of the reverse SDE.

    SDE-DPM-Solver++(2M) (Lu et al., arXiv:2211.01095): the denoised conformation is extrapolated in the logarithm of
    the noise level from this call and the last one. The churn is the one that makes ten calls as good as 200 for
    `starmd-peptide` (``benchmarks/samplers.md``).
    """

    churn: float = 1.5

    def correction(self, times, template, features):
        alpha, period = self.process.alpha(times), features.per_frame("torsion_period", template)
        growth, fall = (alpha[1:] / alpha[:-1]).to(template), self._ratio(times[:-1], times[1:])[1].log()
        shares = (0.5 * fall[1:] / fall[:-1]).to(template)
        more, less, last = 1 + shares, -shares, None

        def corrected(way: Displacement, x: Conformation, k: int) -> Displacement:
            nonlocal last
            before, last = last, way.apply(x)
            if before is None:
                return way
            way_to_before = Displacement.between(x, _grown(before, growth[k - 1]), period)
            return way.scaled(more[k - 1]) + way_to_before.scaled(less[k - 1])

        return corrected


def _grown(x: Conformation, growth: Tensor) -> Conformation:
    """Translations times ``growth``, centred again."""
    return Conformation(Rigid(x.frames.rotations, centred(x.frames.translations) * growth), x.torsions, x.angles)


def _moved(x: Conformation, way: Displacement, growth: Tensor, kick: Conformation) -> Conformation:
    """``growth * (x + way)``, then the kick."""
    frames = Rigid(
        x.frames.rotations @ exponential(way.rotation) @ kick.frames.rotations,
        centred(x.frames.translations + way.translation) * growth + kick.frames.translations,
    )
    return Conformation(frames, wrap(x.torsions + way.torsion + kick.torsions), x.angles + way.angle + kick.angles)


SAMPLERS = {"ancestral": Ancestral, "multistep": Multistep, "euler-maruyama": EulerMaruyama}
