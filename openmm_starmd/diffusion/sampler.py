"""The reverse process: from noise to a conformation, one algorithm a class.

Each takes ``denoise(noisy, t) -> Displacement``, which returns ``sigma**2`` times the score (see `process`), so that an
exact score can stand in for the network. One move is ``x' = growth * (x + fraction * way) + noise``; the algorithms
differ in these three numbers. The run ends with the denoised conformation, without noise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from openmm_starmd.diffusion.process import Process
from openmm_starmd.geometry.rigid import Rigid
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.displacement import Displacement, centred
from openmm_starmd.protein.tokens import ResidueFeatures

Denoise = Callable[[Conformation, Tensor], Displacement]


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
        """Diffusion times at which the denoiser is called, decreasing."""

    @abstractmethod
    def coefficients(self, t: Tensor, t_next: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Growth of translations (), fraction of the way (4,) and noise levels (4,) of the move from t to t_next."""

    def sample(self, noise: Conformation, denoise: Denoise, features: ResidueFeatures, generator) -> Conformation:
        """Sample a conformation.

        Parameters
        ----------
        noise : Conformation, shape (B, N)
            Sample of the prior.
        denoise : callable
            ``denoise(noisy, t) -> Displacement``.
        generator : torch.Generator or one for each replica
        """
        times = self.times().to(noise.angles)
        ones = noise.angles.new_ones(noise.shape[:-1])
        x = noise
        last: tuple[Tensor, Conformation] | None = None
        for t, t_next in zip(times[:-1], times[1:], strict=True):
            growth, fraction, level = self.coefficients(t, t_next)
            way = denoise(x, t)
            denoised = t, _grown(way.apply(x), 1 / self.process.alpha(t))
            way, last = self.corrected(way, x, t, t_next, last, features), denoised
            x = _grown(way.scaled(fraction.expand(*ones.shape, 4)).apply(x), growth)
            x = self.process.perturb(x, ones, level.expand(*ones.shape, 4), features, generator)
        t = times[-1]
        return _grown(denoise(x, t).apply(x), 1 / self.process.alpha(t))

    def corrected(self, way, x, t, t_next, last, features) -> Displacement:
        """The way from x to the denoised conformation, corrected by the ``last`` time and denoised conformation."""
        return way


class EulerMaruyama(Sampler):
    """Euler-Maruyama integration of the reverse SDE (Song et al., arXiv:2011.13456), the paper's reference.

    Of ``steps`` points the last is not called: the prediction at the one before it is returned.
    """

    def times(self) -> Tensor:
        return torch.linspace(1, self.process.min_time, max(2, self.steps))[:-1]

    def coefficients(self, t, t_next):
        growth, variance = self.process.increment(t, t_next)
        fraction = variance / self.process.sigma(t) ** 2
        shrunk = torch.cat([fraction[:1] / growth, fraction[1:]])
        return growth, shrunk, variance.sqrt()


class Ancestral(Sampler):
    """Ancestral sampling: the exact posterior of the next level given this one and the denoised conformation.

    DDPM's rule (arXiv:2006.11239, equation 7) in terms of sigma / alpha: it adds the least noise that is consistent
    with the denoised conformation, so few steps already give clean geometry.
    """

    def times(self) -> Tensor:
        return torch.linspace(1, self.process.min_time, self.steps)

    def _ratio(self, t, t_next):
        """Growth of translations (), and noise to signal at t_next over that at t (4,)."""
        p = self.process
        growth = p.alpha(t_next) / p.alpha(t)
        return growth, p.sigma(t_next) / p.sigma(t) / torch.cat([growth.view(1), torch.ones_like(p.sigma(t)[1:])])

    def coefficients(self, t, t_next):
        growth, ratio = self._ratio(t, t_next)
        return growth, 1 - ratio**2, self.process.sigma(t_next) * (1 - ratio**2).sqrt()


class Multistep(Ancestral):
    """Second-order multistep exponential integrator of the reverse SDE.

    SDE-DPM-Solver++(2M) (Lu et al., arXiv:2211.01095): the denoised conformation is extrapolated in the logarithm of
    the noise level from this call and the last one.
    """

    def corrected(self, way, x, t, t_next, last, features):
        if last is None:
            return way
        before, denoised = last
        ratio_before, ratio = self._ratio(before, t)[1], self._ratio(t, t_next)[1]
        share = 0.5 * ratio.log() / ratio_before.log()
        period = features.per_frame("torsion_period", x.angles)
        way_to_last = Displacement.between(x, _grown(denoised, self.process.alpha(t)), period)
        change = way + way_to_last.scaled(-torch.ones_like(share))
        return way + change.scaled(share.expand(*x.shape[:-1], 4))


def _grown(x: Conformation, growth: Tensor) -> Conformation:
    """Translations times ``growth``, centred again."""
    return Conformation(Rigid(x.frames.rotations, centred(x.frames.translations) * growth), x.torsions, x.angles)


SAMPLERS = {"ancestral": Ancestral, "multistep": Multistep, "euler-maruyama": EulerMaruyama}
