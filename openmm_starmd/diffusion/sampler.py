"""The reverse process: from noise to a conformation, one algorithm a class.

Each takes ``denoise(noisy, k) -> Displacement``, which returns ``sigma**2`` times the score (see `process`) at the k-th
of its times, so that an exact score can stand in for the network. One move is ``x' = growth * (x + fraction * way) +
noise``; the algorithms differ in these three numbers. The run ends with the denoised conformation, without noise.
Numbers and noise of all moves are made before the first, so that only the moves themselves are left to the loop; all
moves are alike, so that one of them can be recorded and replayed (see `replay`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from openmm_starmd.diffusion.process import Process
from openmm_starmd.geometry.rigid import Rigid, exponential
from openmm_starmd.geometry.torsions import wrap
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.displacement import Displacement, centred, grown
from openmm_starmd.protein.tokens import ResidueFeatures

Denoise = Callable[[Conformation, int], Displacement]


@dataclass(frozen=True)
class Moves:
    """Numbers and noise of all S moves; the last one goes to the denoised conformation, without noise.

    Parameters
    ----------
    numbers : Tensor, shape (S, 14)
        Growth of translations in the move and in the one before it (1 each), fraction of the way (4), weights of the
        way and of the way to the last denoised conformation (4 each).
    kicks : Conformation, shape (B, S, N)
        Noise, as the conformations that residues at rest get to.
    period : Tensor, shape (B, N, 6)
        Of the torsions, rad.
    """

    numbers: Tensor
    kicks: Conformation
    period: Tensor


@dataclass(frozen=True)
class State:
    """Between two moves.

    Parameters
    ----------
    k : Tensor of int64, shape (1,)
        Number of moves that were made. A tensor, so that a recorded move can count for itself.
    x, denoised : Conformation, shape (B, N)
        Noisy conformation, and the last denoised one.
    """

    k: Tensor
    x: Conformation
    denoised: Conformation

    @classmethod
    def start(cls, noise: Conformation) -> State:
        """Before the first move."""
        return cls(torch.zeros(1, dtype=torch.int64, device=noise.device), noise, noise)


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
        self._tables: dict[tuple, tuple[Tensor, Tensor]] = {}

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
        moves, state = self.moves(noise, features, generator), State.start(noise)
        for k in range(len(moves.numbers)):
            state = self.move(moves, state, denoise(state.x, k))
        return state.x

    def moves(self, like: Conformation, features: ResidueFeatures, generator) -> Moves:
        """All moves of a conformation (B, N)."""
        key = like.angles.dtype, like.device
        if key not in self._tables:
            self._tables[key] = tuple(x.to(like.device) for x in self._made_tables(like.angles.dtype))
        numbers, level = self._tables[key]
        kicks = self._kicks(like, level, features, generator)
        return Moves(numbers, kicks, features.per_frame("torsion_period", like.angles))

    def move(self, moves: Moves, state: State, way: Displacement) -> State:
        """One move, given the way (B, N) to the denoised conformation."""
        numbers = moves.numbers.index_select(0, state.k)
        growth, growth_before, fraction, *weights = numbers.split([1, 1, 4, 4, 4], -1)
        kick = moves.kicks.map(lambda x: x.index_select(1, state.k)[:, 0])
        way, denoised = self.corrected(way, state, growth_before, weights, moves.period)
        return State(state.k + 1, _moved(state.x, way.scaled(fraction), growth, kick), denoised)

    def corrected(
        self, way: Displacement, state: State, growth_before: Tensor, weights: Sequence[Tensor], period: Tensor
    ) -> tuple[Displacement, Conformation]:
        """The way corrected by what came before, and what the next move has to know of this one."""
        return way, state.denoised

    def weights(self, times: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Weights (S, 4) of the way and of the way to the last denoised conformation."""
        one = torch.ones(len(times), 4, dtype=dtype)
        return one, 0 * one

    def _made_tables(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Numbers (S, 14) of all moves, and noise levels (S - 1, 4)."""
        times = self.times()
        growth, fraction, level = (x.to(dtype) for x in self.coefficients(times[:-1], times[1:]))
        growth = torch.cat([growth, 1 / self.process.alpha(times[-1:]).to(dtype)])[:, None]
        grown, whole = torch.cat([torch.ones_like(growth[:1]), growth[:-1]]), torch.ones(1, 4, dtype=dtype)
        return torch.cat([growth, grown, torch.cat([fraction, whole]), *self.weights(times, dtype)], -1), level

    def _kicks(self, like: Conformation, level: Tensor, features: ResidueFeatures, generator) -> Conformation:
        """Noise (B, S, N) of every move, none of the last."""
        template = like.angles[:, None].expand(-1, len(level), -1)
        noise = self.process.noise(template, level, features, generator)
        translation, rotation, torsion = (
            functional.pad(x, (0, 0, 0, 0, 0, 1)) for x in (noise.translation, noise.rotation, noise.torsion)
        )
        return Conformation(
            Rigid(exponential(rotation), translation), wrap(torsion), functional.pad(noise.angle, (0, 0, 0, 1))
        )


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

    def weights(self, times, dtype):
        fall = self._ratio(times[:-1], times[1:])[1].log()
        shares, (now, before) = (0.5 * fall[1:] / fall[:-1]).to(dtype), super().weights(times, dtype)
        now[1:-1], before[1:-1] = 1 + shares, -shares
        return now, before

    def corrected(self, way, state, growth_before, weights, period):
        now, before = weights
        way_to_before = Displacement.between(state.x, grown(state.denoised, growth_before), period)
        return way.scaled(now) + way_to_before.scaled(before), way.apply(state.x)


def _moved(x: Conformation, way: Displacement, growth: Tensor, kick: Conformation) -> Conformation:
    """``growth * (x + way)``, then the kick."""
    frames = Rigid(
        x.frames.rotations @ exponential(way.rotation) @ kick.frames.rotations,
        centred(x.frames.translations + way.translation) * growth + kick.frames.translations,
    )
    return Conformation(frames, wrap(x.torsions + way.torsion + kick.torsions), x.angles + way.angle + kick.angles)


SAMPLERS = {"ancestral": Ancestral, "multistep": Multistep, "euler-maruyama": EulerMaruyama}
