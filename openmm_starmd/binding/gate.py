"""ValidityGate: which sampled conformations may enter the Context, and what to say if none of them may."""

from __future__ import annotations

import math
from collections import Counter

import torch
from openmm.app import Topology

from openmm_starmd.binding.context import KB
from openmm_starmd.protein.bond_graph import BONDED, label
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.protein.validity import RELAXED, STRAINED, check_positions

Failures = dict[str, list[list[int]]]  # checks that fail, and the atoms of every place where they do


class ValidityGate:
    """Checks before and after relaxation; failures are told by their names and the atoms where they are.

    Where nothing ``relaxes``, the limits of relaxed positions and that of the energy do not apply. Temperature is in K.
    """

    def __init__(self, topology: Topology, tokens: ResidueTokens, temperature: float, relaxes: bool):
        self._atoms, self._tokens = list(topology.atoms()), tokens
        self._temperature, self._relaxes = temperature, relaxes

    def sampled(self, positions, before) -> list[Failures]:
        """Checks that each of positions (B, A, 3) of jumps from ``before`` (B, A, 3) fails, and atoms where it does."""
        return self._failures(positions, before, STRAINED)

    def relaxed(self, positions, before, energies, freedoms: int) -> list[Failures]:
        """Checks that each of relaxed positions (B, A, 3) fails, or its energy.

        Dynamics brings no more potential energy than equipartition gives to a minimised structure of ``freedoms``
        degrees of freedom, and ten times its fluctuation; what is far above has not been relaxed. The ``energies``
        (B, 3) are the base of the run (of the conformation before the jump, less its `excess`), and those before and
        after relaxation, kJ/mol.
        """
        limits = RELAXED if self._relaxes else STRAINED
        failures = self._failures(positions, before, limits)
        allowed = KB * self._temperature * (freedoms / 2 + 10 * math.sqrt(freedoms)) if self._relaxes else math.inf
        for failure, (base, _, end) in zip(failures, energies, strict=True):
            if "not_finite" not in failure and not end < base + allowed:
                failure["energy"] = []
        return failures

    def excess(self, above: float, freedoms: int) -> float:
        """Energy of a thermal conformation above the base of its run, kJ/mol, from that ``above`` the base so far.

        The base is at first the energy of the start, which may be minimised. Each conformation that lies less than the
        potential energy of equipartition above the base lowers it. So the base never rises, however hot the jumps end,
        and a change of the forces in between moves it with the conformation.
        """
        return max(above, KB * self._temperature * freedoms / 2)

    def _failures(self, positions, before, limits) -> list[Failures]:
        checked = check_positions(torch.as_tensor(positions), self._tokens, torch.as_tensor(before), limits)
        return [{} if valid else checked.culprits(k) for k, valid in enumerate(checked.valid.tolist())]

    def residues(self, failures: Failures) -> torch.Tensor:
        """Mask of the residues (N,) with an atom where a check fails, and of those bonded to them."""
        atoms = torch.tensor([atom for places in failures.values() for place in places for atom in place], dtype=int)
        failing = torch.zeros(self._tokens.n_residues, dtype=torch.bool)
        failing[self._tokens.owner[torch.isin(self._tokens.protein_atoms, atoms)]] = True
        after = torch.nonzero(self._tokens.features.n_end == BONDED)[:, 0]
        near = failing.clone()
        near[after] |= failing[after - 1]
        near[after - 1] |= failing[after]
        return near

    def rejection(self, before, attempts: int, counts: Counter, last: dict, outside=()) -> str:
        """Message that says why none of the ``attempts`` at a jump from ``before`` (A, 3) has passed.

        ``counts`` are the conformations that have failed, by check, and ``last`` the failures of the last one. What
        lies ``outside`` the domain of the model is the likely cause.
        """
        seen = ", ".join(f"{name} in {count}" for name, count in counts.most_common())
        text = f"None of {attempts} sampled conformations passed the checks ({seen}; the last: {self._places(last)})."
        if outside:
            return f"{text} The model was not trained for this: {'; '.join(outside)}."
        before = torch.as_tensor(before)
        limits = RELAXED if self._relaxes else STRAINED
        start = check_positions(before, self._tokens, before, limits).culprits(())
        if start:
            text += f" Nor does the structure that they start from ({self._places(start)}): minimise it first."
        else:
            text += " Minimise the structure or allow more retries."
        return text

    def _places(self, failures: Failures) -> str:
        return ", ".join(f"{name} at {self._place(found[0])}" if found else name for name, found in failures.items())

    def _place(self, atoms: list[int]) -> str:
        """Atoms by name and residue: ``CA of residue CYS 5 of chain A and SG of residue ...``."""
        names = {}
        for atom in (self._atoms[index] for index in atoms):
            names.setdefault(label(atom.residue), []).append(atom.name)
        return " and ".join(f"{', '.join(found)} of {residue}" for residue, found in names.items())
