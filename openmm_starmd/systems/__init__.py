"""Proteins that are ready for a simulation: from a structure file, or from a sequence."""

from openmm_starmd.systems.build import build_peptide
from openmm_starmd.systems.peptide import peptide_system
from openmm_starmd.systems.prepare import prepare

__all__ = ["build_peptide", "peptide_system", "prepare"]
