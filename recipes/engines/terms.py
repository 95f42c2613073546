"""What the engines of this folder (lanes.py, blocks.py) compute of an OpenMM System, as arrays of numbers."""

from __future__ import annotations

import numpy as np

COULOMB = 138.935456  # kJ nm / (mol e^2)
GAS_CONSTANT = 8.31446e-3  # kJ / (mol K)
ATOMS_OF = {"bond": 2, "angle": 3, "torsion": 4, "constraint": 2, "exception": 2}


def terms(system) -> dict[str, np.ndarray]:
    """Arrays of the terms of a System.

    Parameters
    ----------
    system : openmm.System
        Of bonds, angles, periodic torsions, NonbondedForce and GBSAOBCForce without cutoff, constraints.

    Returns
    -------
    dict
        ``bond``, ``angle``, ``torsion`` (sorted by atoms), ``constraint`` and ``exception``: atoms (K, 2 to 4); with
        ``_p`` behind the name, their parameters. ``nonbonded``: charge, sigma, epsilon (A, 3). ``mass``; ``charge``,
        ``radius`` and ``scale`` in the solvent (A,). ``solvent``: Coulomb's constant times the difference of
        1/dielectric; ``surface``: energy of an area, times 4 pi. float32 and int32, units of OpenMM.

    Raises
    ------
    ValueError
        If the System holds a force that is not known here, or lacks one of the two of pairs.
    """
    import openmm  # here, since a machine that only simulates need not have it

    rows = {kind: [] for kind in ATOMS_OF} | {"constraint": _rows(system, "Constraint")}
    found = {"mass": [system.getParticleMass(k)._value for k in range(system.getNumParticles())]}
    for force in system.getForces():
        match force:
            case openmm.HarmonicBondForce():
                rows["bond"] += _rows(force, "Bond")
            case openmm.HarmonicAngleForce():
                rows["angle"] += _rows(force, "Angle")
            case openmm.PeriodicTorsionForce():
                rows["torsion"] += sorted(_rows(force, "Torsion"), key=lambda row: row[:4])
            case openmm.NonbondedForce() if force.getNonbondedMethod() == openmm.NonbondedForce.NoCutoff:
                found["nonbonded"], rows["exception"] = _rows(force, "Particle"), _rows(force, "Exception")
            case openmm.GBSAOBCForce() if force.getNonbondedMethod() == openmm.GBSAOBCForce.NoCutoff:
                found["charge"], found["radius"], found["scale"] = np.array(_rows(force, "Particle")).T
                found["solvent"] = COULOMB * (1 / force.getSoluteDielectric() - 1 / force.getSolventDielectric())
                found["surface"] = 4 * np.pi * force.getSurfaceAreaEnergy()._value
            case openmm.CMMotionRemover():
                pass
            case _:
                raise ValueError(f"{force.getName()} is not known here, or has a cutoff.")
    if not {"nonbonded", "charge"} <= set(found):
        raise ValueError("The System needs a NonbondedForce and a GBSAOBCForce.")
    arrays = {name: np.asarray(value, np.float32) for name, value in found.items()}
    for kind, atoms in ATOMS_OF.items():
        arrays[kind] = np.array([row[:atoms] for row in rows[kind]], np.int32).reshape(-1, atoms)
        arrays[f"{kind}_p"] = np.array([row[atoms:] for row in rows[kind]], np.float32)
    return arrays


def coefficients(charges: np.ndarray, width: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Coulomb (1/r), repulsion (1/r^12) and dispersion (1/r^6) of products of charges, sigma and epsilon, (*, 3)."""
    return np.stack([COULOMB * charges, 4 * depth * width**12, 4 * depth * width**6], -1)


def pair_coefficients(terms: dict[str, np.ndarray]) -> np.ndarray:
    """`coefficients` of all pairs of atoms, (A, A, 3), float32."""
    charge, width, depth = terms["nonbonded"].T.astype(np.float64)
    pairs = coefficients(np.outer(charge, charge), (width[:, None] + width) / 2, np.sqrt(np.outer(depth, depth)))
    first, second = terms["exception"].T
    pairs[first, second] = pairs[second, first] = coefficients(*terms["exception_p"].T.astype(np.float64))
    return pairs.astype(np.float32)


def _rows(force, kind: str) -> list[tuple[float, ...]]:
    """Parameters of all terms of a force as numbers."""
    get, n = getattr(force, f"get{kind}Parameters"), getattr(force, f"getNum{kind}s")()
    return [tuple(getattr(q, "_value", q) for q in get(k)) for k in range(n)]
