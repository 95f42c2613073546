"""Particles: what a System of a Context says of its particles, and their positions with whole molecules."""

from __future__ import annotations

import numpy as np
from openmm import State, System

from openmm_starmd.binding.context import checkedPositions, freedomsOf, massesOf
from openmm_starmd.binding.periodic import MoleculeImages


class Particles:
    """Masses (A,), Da, degrees of freedom, virtual sites and box of a System with the molecules of a protein."""

    def __init__(self, system: System, molecules: MoleculeImages):
        self.masses, self.freedoms = massesOf(system), freedomsOf(system)
        self.hasVirtualSites = any(system.isVirtualSite(index) for index in range(system.getNumParticles()))
        self._periodic, self._molecules = system.usesPeriodicBoundaryConditions(), molecules

    def wholeMolecules(self, state: State) -> tuple[np.ndarray, np.ndarray]:
        """Positions (A, 3), nm, with the protein's molecules whole, and what was added to the State's for that."""
        positions = checkedPositions(state)
        box = state.getPeriodicBoxVectors(asNumpy=True)._value if self._periodic else None
        shifts = self._molecules.shifts(positions, box)
        return positions + shifts, shifts
