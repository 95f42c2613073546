"""Proteins that are ready for a simulation: from a structure file, or from a sequence."""

from openmm_starmd.systems.prepare import prepare

__all__ = ["prepare"]
