"""Trajectories and topologies as they are found on disk, read as conformations."""
