"""The reverse process: from noise to a conformation, one algorithm a class.

Each takes ``denoise(noisy, k) -> Displacement``, which returns ``sigma**2`` times the score (see `process`) at the k-th
of its times, so that an exact score can stand in for the network. One denoising step is
``x' = growth * (x + fraction * displacement) + noise``; the algorithms differ in these three numbers. The run ends with
the denoised conformation, without noise. Coefficients and noise of all steps are made before the first, so that only
the steps themselves are left to the loop; all steps are alike, so that one of them can be recorded and replayed (see
`replay`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from openmm_starmd.diffusion.denoising_state import FixedResidues, PackedConformation, State, StepCoefficients
from openmm_starmd.diffusion.process import Process
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.displacement import ANGLE, ROTATION, TORSION, TRANSLATION, Displacement, grown
from openmm_starmd.protein.tokens import ResidueFeatures

Denoise = Callable[[Conformation, int], Displacement]
OF_PARTS = (TRANSLATION,) * 3 + (TORSION,) * 6 + (ANGLE,) + (ROTATION,) * 3  # the part that each belongs to
NEVER = 1e30  # period of what is not periodic


class Sampler(ABC):
    """Common loop of the stochastic samplers.

    Parameters
    ----------
    process : Process
    steps : int
        Points in diffusion time.

    Attributes
    ----------
    remembers : bool
        Whether a step depends on the last denoised conformation.
    """

    remembers = False

    def __init__(self, process: Process, steps: int):
        self.process, self.steps = process, steps
        self._tables: dict[tuple, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def times(self) -> Tensor:
        """Diffusion times (S,) at which the denoiser is called, decreasing; float64."""

    @abstractmethod
    def coefficients(self, t: Tensor, t_next: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Growth of translations (*), fraction of the displacement and noise levels (*, 4) between two times (*)."""

    def sample(
        self, origin: Conformation, spread: Tensor, denoise: Denoise, features: ResidueFeatures, generator, known=None
    ) -> Conformation:
        """Sample a conformation; where residues are known, the others given them (inpainting).

        Parameters
        ----------
        origin : Conformation, shape (B, N)
        spread : Tensor, shape (4,)
            Of the noise about it that the run starts from: translation (nm), rotation, torsion and angle (rad).
        denoise : callable
            ``denoise(noisy, k) -> Displacement``.
        generator : torch.Generator or one for each replica
        known : (Conformation, Tensor of bool), both of shape (B, N), optional
            A conformation and where it is known. At every call the known residues replace those of the denoised
            conformation, so that they follow the forward kernel's path to where they are, with the noise of the
            others (compare Song et al., arXiv:2011.13456, section 5, where they follow a path of their own).
        """
        coefficients, state = self.begin(origin, spread, features, generator, known)
        for k in range(len(coefficients.numbers)):
            state = self.step(coefficients, state, denoise(self.seen(coefficients, state), k))
        return state.end()

    def begin(
        self, origin: Conformation, spread: Tensor, features: ResidueFeatures, generator, known=None
    ) -> tuple[StepCoefficients, State]:
        """Coefficients of all steps, and the state before the first; arguments as of `sample`.

        All noise is drawn here.
        """
        key = origin.angles.dtype, origin.device
        if key not in self._tables:
            self._tables[key] = tuple(x.to(origin.device) for x in self._made_tables(origin.angles.dtype))
        numbers, levels = self._tables[key]
        template = origin.angles[:, None].expand(-1, len(levels) + 1, -1)
        noise = self.process.noise(template, torch.cat([spread[None], levels]), features, generator)
        noise = functional.pad(_numbers(noise), (0, 0, 0, 0, 0, 1))  # none in the last step
        increments = PackedConformation.reached(noise)
        period = functional.pad(features.per_frame("torsion_period", origin.angles), (3, 1), value=NEVER)
        packed, fixed = PackedConformation.of(origin), None if known is None else self._fixed(*known)
        if fixed is not None:
            packed = fixed.put_into(packed)
        packed = packed.displaced(increments.map(lambda x: x[:, 0]))
        state = State(torch.zeros(1, dtype=torch.int64, device=origin.device), packed, packed)
        return StepCoefficients(numbers, increments.map(lambda x: x[:, 1:]), period, fixed), state

    def _fixed(self, known: Conformation, mask: Tensor) -> FixedResidues:
        alpha = self.process.alpha(self.times()).to(known.angles)
        scale = functional.pad(alpha[:, None].expand(-1, 3), (0, 7), value=1.0)
        return FixedResidues(mask[..., None], PackedConformation.of(known), scale)

    @staticmethod
    def seen(coefficients: StepCoefficients, state: State) -> Conformation:
        """Noisy conformation (B, N) as the denoiser sees it: centred, also where residues are fixed."""
        x = state.x.conformation()
        return x if coefficients.fixed is None else grown(x, 1.0)

    def step(self, coefficients: StepCoefficients, state: State, delta: Displacement) -> State:
        """One denoising step, given the displacement (B, N) to the denoised conformation."""
        x, denoised = state.x, state.denoised
        numbers = coefficients.numbers.index_select(0, state.k)
        growth, growth_before, share, share_before = numbers.split([10, 10, 13, 13], -1)
        delta = _numbers(delta)
        if coefficients.fixed is not None:
            delta = coefficients.fixed.corrected(delta, x, state.k, coefficients.period)
        deltas = [share * delta]
        if self.remembers:
            before = x.delta_to(denoised.rotations, growth_before * denoised.flat, coefficients.period)
            deltas = [torch.addcmul(deltas[0], share_before, before), delta]
        displaced = x.displaced(PackedConformation.reached(torch.stack(deltas)))
        moved, denoised = (displaced.map(lambda x, k=k: x[k]) for k in (0, -1))
        if coefficients.fixed is None:  # known residues decide on the centre themselves
            moved.flat[..., :3].sub_(moved.flat[..., :3].mean(-2, keepdim=True))
        increment = coefficients.increments.map(lambda x: x.index_select(1, state.k)[:, 0])
        return State(state.k + 1, moved.displaced(increment, growth), denoised)

    def weights(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (S, 4) of the displacement and of the displacement to the last denoised conformation."""
        one = torch.ones(len(times), 4, dtype=times.dtype)
        return one, 0 * one

    def _made_tables(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Coefficients (S, 46) of all steps, and noise levels (S - 1, 4)."""
        times = self.times()
        growth, fraction, level = self.coefficients(times[:-1], times[1:])
        growth = torch.cat([growth, 1 / self.process.alpha(times[-1:])])[:, None]
        growth = functional.pad(growth.expand(-1, 3), (0, 7), value=1.0)
        before = functional.pad(growth[:-1], (0, 0, 1, 0), value=1.0)
        fraction = functional.pad(fraction, (0, 0, 0, 1), value=1.0)
        shares = [(fraction * weights)[:, OF_PARTS] for weights in self.weights(times)]
        return torch.cat([growth, before, *shares], -1).to(dtype), level.to(dtype)


def _numbers(delta: Displacement) -> Tensor:
    """A displacement (*, N) as 13 numbers (*, N, 13)."""
    return torch.cat([delta.translation, delta.torsion, delta.angle[..., None], delta.rotation], -1)


class EulerMaruyama(Sampler):
    """Euler-Maruyama integration of the reverse SDE (Song et al., arXiv:2011.13456), the paper's reference.

    Of ``steps`` points the last is not called: the prediction at the one before it is returned.
    """

    def times(self):
        """Evenly spaced times, without the last point."""
        return torch.linspace(1, self.process.min_time, max(2, self.steps), dtype=torch.float64)[:-1]

    def coefficients(self, t, t_next):
        """Coefficients of the Euler-Maruyama step."""
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
        Each step goes down without noise to ``(sigma_next / sigma) ** churn`` of the next level and is noised from
        there (EDM's churn, arXiv:2206.00364, algorithm 2, in proportion to the step): 0 gives the deterministic
        sampler, 1 ancestral sampling, more than 1 forgets more of the noise.
    grid : float
        Power of the time grid: 1 for even steps of the logarithm of the noise, more for more of them where noise is
        high.
    """

    churn: float = 1.0
    grid: float = 1.0

    def times(self):
        """Times whose spacing follows the power ``grid``."""
        passed = torch.linspace(0, 1, self.steps, dtype=torch.float64) ** self.grid
        return 1 - (1 - self.process.min_time) * passed

    def _ratio(self, t, t_next):
        """Growth of translations (*), and noise to signal at t_next over that at t (*, 4)."""
        p = self.process
        growth, ratio = p.alpha(t_next) / p.alpha(t), p.sigma(t_next) / p.sigma(t)
        return growth, torch.cat([ratio[..., :1] / growth[..., None], ratio[..., 1:]], -1)

    def coefficients(self, t, t_next):
        """Coefficients of the posterior of the next level, with its ``churn``."""
        growth, ratio = self._ratio(t, t_next)
        level = self.process.sigma(t_next) * (1 - ratio ** (2 * self.churn)).sqrt()
        return growth, 1 - ratio ** (1 + self.churn), level


class Multistep(Ancestral):
    """Second-order multistep exponential integrator of the reverse SDE.

    SDE-DPM-Solver++(2M) (Lu et al., arXiv:2211.01095): the denoised conformation is extrapolated in the logarithm of
    the noise level from this call and the last one. Churn and grid are those that make ten calls as good as 200 for
    `starmd-peptide` (``benchmarks/results/samplers.md``).
    """

    remembers = True
    churn: float = 1.5
    grid: float = 1.2

    def weights(self, times):
        """Weights of the extrapolation from this call and the last one."""
        fall = self._ratio(times[:-1], times[1:])[1].log()
        shares, (now, before) = 0.5 * fall[1:] / fall[:-1], super().weights(times)
        now[1:-1], before[1:-1] = 1 + shares, -shares
        return now, before


SAMPLERS = {"ancestral": Ancestral, "multistep": Multistep, "euler-maruyama": EulerMaruyama}
