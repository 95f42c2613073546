"""Forces and solvents of a System that a model was not trained with; jumps do not know them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import openmm
from openmm import unit
from openmm.app import Topology

from openmm_starmd.binding.context import isWater
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.systems.build import force_field

SHORT = 1.0  # nm; shorter cutoffs leave out much of the energy of a Generalised Born solvent
ORDINARY = (
    openmm.HarmonicBondForce,
    openmm.HarmonicAngleForce,
    openmm.PeriodicTorsionForce,
    openmm.RBTorsionForce,
    openmm.CMAPTorsionForce,
    openmm.NonbondedForce,
    openmm.GBSAOBCForce,
    openmm.CustomGBForce,
    openmm.CMMotionRemover,
    openmm.AndersenThermostat,
    openmm.MonteCarloBarostat,
    openmm.MonteCarloAnisotropicBarostat,
    openmm.MonteCarloMembraneBarostat,
    openmm.MonteCarloFlexibleBarostat,
)
SOLVENTS = openmm.GBSAOBCForce, openmm.CustomGBForce
EWALD = openmm.NonbondedForce.Ewald, openmm.NonbondedForce.PME, openmm.NonbondedForce.LJPME


def unknownForces(
    system: openmm.System,
    topology: Topology,
    tokens: ResidueTokens,
    trainedWith: str,
    biasGroups: Collection[int] = (),
) -> list[str]:
    """Parts of a System that a model does not know: restraints, biases, solvent, force field, short cutoffs.

    ``trainedWith`` is the ``force_field`` of the model's domain: solvent and parameters are compared where it names
    OBC2 and ff14SB. Jumps know the force groups ``biasGroups`` as their bias.
    """
    forces = [force for force in system.getForces() if force.getForceGroup() not in biasGroups]
    found = [f"the {_called(force)}" for force in forces if not isinstance(force, ORDINARY)]
    found += _restraints(forces, topology)
    if "OBC2" in trainedWith:
        found += _solvent(forces, topology)
    if "ff14SB" in trainedWith and _differsFromFF14SB(forces, topology, tokens):
        found.append("a force field other than ff14SB")
    return [*found, *_shortCutoffs(forces)]


def _called(force: openmm.Force) -> str:
    kind, name = type(force).__name__, force.getName()
    return kind if name == kind else f"{kind} {name!r}"


def _restraints(forces, topology: Topology):
    """Harmonic bonds between atoms that are neither bonded nor bonded to a common atom."""
    beside = [set() for _ in range(topology.getNumAtoms())]
    for a, b in topology.bonds():
        beside[a.index].add(b.index)
        beside[b.index].add(a.index)
    for force in forces:
        if isinstance(force, openmm.HarmonicBondForce):
            for index in range(force.getNumBonds()):
                a, b, *_ = force.getBondParameters(index)
                if b not in beside[a] and not beside[a] & beside[b]:
                    yield f"the restraint of atoms {a} and {b} in a HarmonicBondForce"
                    break


def _solvent(forces, topology: Topology):
    solvents = [force for force in forces if isinstance(force, SOLVENTS)]
    if any(isWater(residue) for residue in topology.residues()):
        yield "explicit water in place of OBC2"
    elif not solvents:
        yield "vacuum in place of OBC2"
    elif not all(isinstance(force, openmm.GBSAOBCForce) or _isOBC2(force) for force in solvents):
        yield "an implicit solvent other than OBC2"


def _isOBC2(force: openmm.CustomGBForce) -> bool:
    """True if the Born radii are those of Onufriev, Bashford and Case's second set of constants (1, 0.8, 4.85)."""
    values = [force.getComputedValueParameters(k)[1] for k in range(force.getNumComputedValues())]
    return any("4.85*psi^3" in value.replace(" ", "") for value in values)


def _differsFromFF14SB(forces: Sequence[openmm.Force], topology: Topology, tokens: ResidueTokens) -> bool:
    """True if charges, Lennard-Jones parameters or the strength of the torsions differ; only a protein is compared."""
    if len(tokens.protein_atoms) != topology.getNumAtoms():
        return False
    try:
        reference = force_field().createSystem(topology)
    except ValueError:  # no template: nothing to compare with
        return False
    ours, theirs = _parameters(forces), _parameters(list(reference.getForces()))
    return ours is not None and not all(map(_alike, ours, theirs))


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    return np.allclose(a, b, rtol=2e-3, atol=1e-3)


def _parameters(forces: Sequence[openmm.Force]) -> tuple[np.ndarray, np.ndarray] | None:
    """Charge (e), sigma (nm) and epsilon (kJ/mol) of each atom, and the sum of all torsions' constants (kJ/mol)."""
    nonbonded = next((force for force in forces if isinstance(force, openmm.NonbondedForce)), None)
    if nonbonded is None:
        return None
    rows = [nonbonded.getParticleParameters(k) for k in range(nonbonded.getNumParticles())]
    atoms = np.array([[x.value_in_unit_system(unit.md_unit_system) for x in row] for row in rows])
    atoms[atoms[:, 2] == 0, 1] = 0  # any sigma
    torsions = [force for force in forces if isinstance(force, openmm.PeriodicTorsionForce)]
    total = sum(abs(f.getTorsionParameters(k)[-1]._value) for f in torsions for k in range(f.getNumTorsions()))
    cmap = sum(isinstance(force, openmm.CMAPTorsionForce) for force in forces)
    return atoms, np.array([total, float(cmap)])


def _shortCutoffs(forces):
    solvated = any(isinstance(force, SOLVENTS) for force in forces)
    shortest = math.inf
    for force in forces:
        if isinstance(force, (openmm.NonbondedForce, *SOLVENTS)):
            method = force.getNonbondedMethod()
            ewald = isinstance(force, openmm.NonbondedForce) and method in EWALD
            if method != openmm.NonbondedForce.NoCutoff and (solvated or not ewald):
                shortest = min(shortest, force.getCutoffDistance()._value)
    if shortest < SHORT:
        yield f"a cutoff of {shortest:g} nm, by which energies are far off (use {SHORT:g} nm or more, or none)"
