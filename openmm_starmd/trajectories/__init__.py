"""Trajectories and topologies as they are found on disk, read as conformations."""

from openmm_starmd.trajectories.sources import ATLAS, Files, Folder, MdCATH

__all__ = ["ATLAS", "Files", "Folder", "MdCATH"]
