"""Inputs of the command `refine`: the files of a rollout, and a System."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from openmm import OpenMMException, System, XmlSerializer

from openmm_starmd.errors import StarMDError
from openmm_starmd.rollout.run import TOPOLOGY
from openmm_starmd.trajectories.frames import existing


def rollout_files(given: Sequence[Path], topology: Path | None) -> tuple[list[Path], Path]:
    """Trajectories and topology file of folders that `rollout` wrote, or of single trajectories with a topology.

    A StarMDError names a folder that is not one of a rollout, a file that is not there, or the lack of a topology.
    """
    files = []
    for path in given:
        if path.is_dir():
            found = sorted(path.glob("replica*.xtc"))
            if not found or not (path / TOPOLOGY).is_file():
                raise StarMDError(f"{path} holds no {TOPOLOGY} and replica0000.xtc; name a folder of `rollout`.")
            files += found
            topology = topology or path / TOPOLOGY
        else:
            files.append(existing(path))
    if topology is None:
        raise StarMDError(f"{files[0]} holds coordinates only: give its topology, a PDB file, by --topology.")
    return files, topology


def read_system(path: Path | None) -> System | None:
    """System of an XML file; None without one."""
    if path is None:
        return None
    try:
        found = XmlSerializer.deserialize(existing(path).read_text())
    except (OpenMMException, UnicodeDecodeError, ValueError):
        found = None
    if not isinstance(found, System):
        raise StarMDError(f"{path} is no XML of an OpenMM System; write one by openmm.XmlSerializer.serialize(system).")
    return found
