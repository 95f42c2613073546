"""Bias: jumps are accepted by the energy of some force groups, so that restraints and Metadynamics act on them.

A jump samples, nearly, the unbiased ensemble p0 in detailed balance: p0(x) T(x, y) = p0(y) T(y, x). With the target
p(x) ~ p0(x) exp(-U(x)/kT), p0 and T drop out of the rule of Metropolis and Hastings, and the acceptance is
min(1, exp(-(U(y) - U(x))/kT)).

Several candidates a jump are multiple-try Metropolis (Liu, Liang and Wong, J. Am. Stat. Assoc. 95, 121, 2000). Its
weights p(y) T(y, x) lambda(y, x) take any symmetric function lambda; here it is 1/(p0(y) T(y, x)), which detailed
balance makes symmetric, and the weights are exp(-U(y)/kT). One of the candidates y1, ..., yk from x is chosen by its
weight; k - 1 jumps from the chosen one, and x itself, are the reference set; the acceptance is the ratio of the sums of
the weights of both sets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import openmm
from openmm import Context, System

from openmm_starmd.binding.context import KB, unwatched
from openmm_starmd.binding.jump import JumpKernel, Origin, Proposal, Random
from openmm_starmd.errors import StarMDError, require
from openmm_starmd.units import wholeNumber

GROUPS = frozenset(range(32))
PHYSICAL = openmm.NonbondedForce, openmm.GBSAOBCForce, openmm.CustomGBForce


@dataclass(frozen=True)
class Bias:
    """Force groups whose energy decides whether a jump is accepted."""

    groups: frozenset[int] = field(default_factory=frozenset)  # empty for no bias
    candidates: int = 1  # conformations that are sampled in a jump, in one batch

    @classmethod
    def of(cls, groups: Iterable[int] | None, candidates: int, steers: bool) -> Bias:
        """Bias of the arguments of a StarMDIntegrator; ``steers`` tells whether its relaxation does.

        A ValueError refuses what are no force groups, and a relaxation that cannot be used with a bias.
        """
        candidates = wholeNumber("biasCandidates", candidates, 1)
        if groups is None:
            require(candidates == 1, "biasCandidates chooses by the energy of biasForceGroups; give these, too.")
            return cls()
        said = f"biasForceGroups must be a set of force groups between 0 and 31, such as {{31}}; got {groups!r}"
        require(isinstance(groups, Iterable) and not isinstance(groups, str), said)
        groups = list(groups)
        require(all(isinstance(g, int) and not isinstance(g, bool) and g in GROUPS for g in groups), said)
        require(bool(groups), "biasForceGroups is empty; name the force groups of the bias, or leave it out.")
        require(
            not steers,
            'biasForceGroups cannot be used with Relaxation(mode="steer"): a steered jump does work on the '
            'solvent, on which the energy of the bias cannot decide. Use an implicit solvent and mode="minimize".',
        )
        return cls(frozenset(groups), candidates)

    @property
    def others(self) -> set[int]:
        """Force groups that act in the relaxation."""
        return set(GROUPS - self.groups)

    def check(self, system: System):
        """Raise ValueError unless every group holds a Force, and none of them the interactions of the molecule."""
        for group in sorted(self.groups):
            forces = [force for force in system.getForces() if force.getForceGroup() == group]
            used = sorted({force.getForceGroup() for force in system.getForces()})
            require(
                bool(forces),
                f"biasForceGroups names force group {group}, but no Force of the System is in it; the groups in "
                f"use are {', '.join(map(str, used))}. Give the bias a group of its own: force.setForceGroup({group}).",
            )
            physical = next((type(force).__name__ for force in forces if isinstance(force, PHYSICAL)), None)
            require(
                physical is None,
                f"biasForceGroups names force group {group}, which holds the {physical} of the molecule. The bias "
                "needs a group of its own: force.setForceGroup(31).",
            )

    def energy(self, context: Context) -> float:
        """Energy of the bias where the Context is, kJ/mol."""
        return context.getState(energy=True, groups=set(self.groups)).getPotentialEnergy()._value

    def propose(self, kernel: JumpKernel, context: Context, origin: Origin, random: Random) -> tuple[Proposal, bool]:
        """Proposal of a jump, and whether the bias accepts it.

        If so, its atoms are in the Context; else what is in the Context means nothing. A JumpRejectedError says that no
        candidate of any attempt has passed the checks, a StarMDError that the energy of the bias at the origin is not
        finite.
        """
        here = self._weight(kernel, context)
        if here == -math.inf:
            raise StarMDError(
                f"The energy of the bias (force groups {sorted(self.groups)}) is not finite where the jump starts; "
                "check its parameters, or set positions where it is finite."
            )
        candidates = self._candidates(kernel, context, origin, random)
        weights = [candidate.weight for candidate in candidates]
        draw = np.random.default_rng(random("bias", 0)).random(2)
        chosen = candidates[_chosen(weights, draw[0])]
        reference = self._reference(kernel, context, origin, chosen, random)
        accepted = math.log(1 - draw[1]) < _logOfSum(weights) - _logOfSum([here, *reference])
        if accepted and self.candidates > 1:
            unwatched(context, "loadCheckpoint", chosen.checkpoint)
        return chosen.proposal, accepted

    def _candidates(self, kernel: JumpKernel, context: Context, origin: Origin, random: Random) -> list[Candidate]:
        """Candidates of the first attempt in which any has passed the checks."""
        randoms = [random, *(partial(_named, random, f"candidate {k}") for k in range(1, self.candidates))]
        for attempt in range(kernel.maxRetries + 1):
            if found := self._realised(kernel, context, origin, randoms, attempt):
                return found
        raise kernel.rejection(origin)

    def _reference(self, kernel: JumpKernel, context: Context, origin: Origin, chosen: Candidate, random: Random):
        """Logarithmic weights of jumps from the chosen candidate.

        The batch has the size of that of the candidates, for which the network is recorded; its last one is dropped.
        """
        if self.candidates == 1 or chosen.weight == -math.inf:
            return []
        there = kernel.arrived(origin, chosen.proposal, chosen.checkpoint)
        unwatched(context, "loadCheckpoint", there.checkpoint)
        randoms = [partial(_named, random, f"reference {k}") for k in range(self.candidates)]
        return [candidate.weight for candidate in self._realised(kernel, context, there, randoms, 0, dropped=1)]

    def _realised(self, kernel: JumpKernel, context, origin: Origin, randoms: list[Random], attempt: int, dropped=0):
        """Candidates that have passed the checks, less the last ``dropped`` of the batch; the Context moves.

        Each starts from a context copy of its own, so that they are independent of each other given the origin.
        """
        origins = [kernel.renewed(origin, random("context copy", attempt)) for random in randoms]
        samples = kernel.sampled([own.history for own in origins], randoms, attempt)
        found: list[Candidate] = []
        for own, sample, random in list(zip(origins, samples, randoms, strict=True))[: len(randoms) - dropped]:
            if found:
                unwatched(context, "loadCheckpoint", origin.checkpoint)
            if proposal := kernel.realised(context, own, *sample, random, attempt):
                found.append(Candidate(proposal, self._weight(kernel, context), context.createCheckpoint()))
        return found

    def _weight(self, kernel: JumpKernel, context: Context) -> float:
        """Logarithm of the weight where the Context is; minus infinity where the energy is not finite."""
        energy = self.energy(context)
        return -energy / (KB * kernel.temperature) if math.isfinite(energy) else -math.inf


@dataclass(frozen=True)
class Candidate:
    """A proposal with the logarithm of its weight and a checkpoint of the Context that holds its atoms."""

    proposal: Proposal
    weight: float
    checkpoint: bytes


def _named(random: Random, name: str, purpose: str, number: int) -> int:
    """Seed of a draw of one of several candidates."""
    return random(f"{purpose} of {name}", number)


def _logOfSum(weights: list[float]) -> float:
    """Logarithm of the sum of weights, given by their logarithms."""
    return float(np.logaddexp.reduce(weights))


def _chosen(weights: list[float], draw: float) -> int:
    """Index drawn in proportion to weights, given by their logarithms; ``draw`` is uniform in [0, 1)."""
    total = _logOfSum(weights)
    shares = np.exp(np.subtract(weights, total)) if total > -math.inf else np.ones(len(weights)) / len(weights)
    return min(int(np.searchsorted(np.cumsum(shares), draw, side="right")), len(weights) - 1)
