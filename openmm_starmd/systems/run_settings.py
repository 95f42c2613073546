"""Settings of a run by name: kept with its files, and compared before it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

import numpy as np
from openmm import Force, OpenMMException, System, XmlSerializer, unit
from openmm.app import Topology


def _hash(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


def hash_of_molecule(topology: Topology) -> str:
    """Hash of the names of all atoms and residues, chain by chain; numbers of residues and names of chains are free."""
    atoms = [(a.residue.chain.index, a.residue.index, a.residue.name, a.name) for a in topology.atoms()]
    return _hash(repr(atoms).encode())


def hash_of_positions(positions) -> str:
    """Hash of positions (A, 3), a Quantity or nm."""
    nanometers = positions.value_in_unit(unit.nanometer) if unit.is_quantity(positions) else positions
    return _hash(np.array(nanometers, dtype=np.float64).tobytes())


def hash_of_system(system: System) -> str:
    """Hash of particles, constraints and forces; the XML of a whole System would tell the version of OpenMM, too."""
    particles = [(system.getParticleMass(k)._value, system.isVirtualSite(k)) for k in range(system.getNumParticles())]
    constraints = [system.getConstraintParameters(k) for k in range(system.getNumConstraints())]
    return _hash(repr([particles, constraints, *map(_text, system.getForces())]).encode())


def _text(force: Force) -> str:
    """XML of a force, or its kind and name: a PythonForce has a pickle in its XML that differs between processes."""
    kind = type(force).__name__
    try:
        written = "" if kind == "PythonForce" else XmlSerializer.serialize(force)
    except OpenMMException:
        written = ""
    return written or f"{kind} {force.getName()}"


def differing(found: Mapping, asked: Mapping) -> str:
    """Names of the settings that differ, such as ``"start, temperature and seed"``; empty where all agree."""
    *names, last = [name for name in asked if name not in found or found[name] != asked[name]] or [""]
    return f"{', '.join(names)} and {last}" if names else last
