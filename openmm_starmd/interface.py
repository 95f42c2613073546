"""The interface between what makes trajectories (integrator, rollout) and what samples their jumps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch

from openmm_starmd.domain import Domain
from openmm_starmd.errors import StarMDError
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.history import History
from openmm_starmd.protein.tokens import ResidueTokens


def float32_on(device: torch.device, x: torch.Tensor) -> torch.Tensor:
    """A tensor as float32 on a device; the host does not wait."""
    x = x.to(torch.float32)
    return x.pin_memory().to(device, non_blocking=True) if x.device.type != device.type == "cuda" else x.to(device)


def _fault(found, like: Conformation) -> str:
    """Why an object is no conformation of the shapes of another one; empty if it is one."""
    if not isinstance(found, Conformation):
        return "None" if found is None else f"a {type(found).__name__}"
    names = "rotations", "translations", "torsions", "angles"
    shapes = ([tuple(x.shape) for x in conformation.tensors] for conformation in (found, like))
    unlike = (f"{name} of shape {x} in place of {y}" for name, x, y in zip(names, *shapes, strict=True) if x != y)
    return next(unlike, "")


def _checked(method: Callable[..., Conformation]) -> Callable[..., Conformation]:
    """The method, which now refuses a result unlike the conformation or history that it was given."""

    @functools.wraps(method)
    def checked(self, *args, **kwargs):
        found = method(self, *args, **kwargs)
        given = next(x for x in (*args, *kwargs.values()) if isinstance(x, History | Conformation))
        if fault := _fault(found, given.last if isinstance(given, History) else given):
            raise StarMDError(
                f"{type(self).__name__}.{method.__name__} must return a Conformation of all replicas and residues that "
                f"it was given; it has returned {fault}."
            )
        return found

    return checked


class JumpPropagator(Protocol):
    """Samples the conformation one stride ahead, for B replicas of one protein at a time.

    A class inherits from the protocol and needs the attributes without a default, and `step`. Its constructor is
    called as ``cls(tokens, stride, temperature, *, device, **settings)``; ``settings`` are ``context_frames``
    and ``denoising_steps``, where the user gives them. An entry point of the group ``openmm_starmd.propagators`` makes
    such a class known by name; see ``docs/propagators.md``. A class may have the method of `Resampler` besides. A
    StarMDError names the class and the method whose conformations are not those of all replicas and residues.

    Attributes
    ----------
    name : str
        For messages; an attribute of the class.
    identity : bytes
        At most 64 bytes that differ wherever trajectories of one seed would differ: a hash of the sequence and of all
        weights and settings besides stride, temperature and seed. Restart data of another identity are refused.
    tokens : ResidueTokens
    stride : float
        Physical time of one step, ps.
    temperature : float
        K.
    card : str
        What the propagator is and what it is not, Markdown; an attribute of the class.
    domain : Domain, optional
        Systems that the propagator is made for; others are refused. An attribute of the class; None for any.
    device : torch.device
        Where conformations and random numbers are; the CPU by default.
    context_frames : int
        Past conformations that `step` sees; 1 by default.
    """

    name: str
    identity: bytes
    tokens: ResidueTokens
    stride: float
    temperature: float
    card: str = ""
    domain: Domain | None = None
    device: torch.device = torch.device("cpu")
    context_frames: int = 1

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # what a class of another package returns is checked here, whoever calls it: integrator, rollout, repair
        for name in {"step", "context_copy", "resample"} & vars(cls).keys():
            setattr(cls, name, _checked(vars(cls)[name]))

    def step(self, history: History, generator) -> Conformation:
        """Sample the next conformation (B, N); its C-alpha centroid is that of the last one.

        Parameters
        ----------
        history : History
        generator : torch.Generator or one for each replica
            The only source of random numbers; `protein.displacement.per_replica` draws from either kind.
        """
        ...

    def context_copy(self, conformation: Conformation, generator) -> Conformation:
        """Copy that the history keeps of a conformation (B, N); by default the conformation."""
        return conformation

    def start(self, conformation: Conformation, time: float = 0.0) -> History:
        """History of one conformation (B, N), at ``time`` ps; it is the reference structure of the run."""
        return History.start(conformation.map(self.here), time)

    def extend(self, history: History, conformation: Conformation, generator, time: float | None = None) -> History:
        """History with the context copy of ``conformation`` (B, N) appended, a stride or ``time`` (ps) later."""
        now = float(history.times[-1]) + (self.stride if time is None else time)
        copy = self.context_copy(conformation.map(self.here), generator)
        return history.append(copy, now, self.context_frames)

    def replace(self, history: History, conformation: Conformation, time: float, generator) -> History:
        """History whose last conformation has moved on to ``conformation`` (B, N) in ``time`` (ps)."""
        now = float(history.times[-1]) + time
        copy = self.context_copy(conformation.map(self.here), generator)
        return history.without_last().append(copy, now, self.context_frames)

    def here(self, x: torch.Tensor) -> torch.Tensor:
        """A tensor as float32 on the device; the host does not wait."""
        return float32_on(self.device, x)


@runtime_checkable
class Resampler(Protocol):
    """A `JumpPropagator` whose conformations can be repaired residue by residue.

    Where a sampled conformation fails the checks at some residues, the integrator and the rollout have these residues
    and their neighbours sampled again before they give the conformation up. They do without where this method is
    missing.
    """

    def resample(self, history: History, conformation: Conformation, residues: torch.Tensor, generator) -> Conformation:
        """Sample some residues of a next conformation (B, N) again; the others stay as they are, to the last bit.

        Parameters
        ----------
        history : History
        conformation : Conformation, shape (B, N)
            What `step` has returned.
        residues : Tensor of bool, shape (B, N)
            Which residues to sample.
        generator : torch.Generator or one for each replica
            The only source of random numbers.
        """
        ...
