"""The way to System and Context, which OpenMM never tells to an integrator, and what they must not hold."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import openmm
from openmm import CompoundIntegrator, Context, CustomIntegrator, unit

from openmm_starmd.binding.store import TAG
from openmm_starmd.errors import StarMDError, UnsupportedTopologyError, listed
from openmm_starmd.protein.bond_graph import label, symbol_of
from openmm_starmd.protein.residues import canonical_name
from openmm_starmd.protein.tokens import ResidueTokens

KB = unit.MOLAR_GAS_CONSTANT_R.value_in_unit(unit.kilojoules_per_mole / unit.kelvin)


def watchContexts():
    """Wrap methods of ``openmm.Context``, once, for integrators that ask for it.

    An integrator with the methods ``inspect(system)`` and ``bind(context)`` gets them called, before and after its
    Context is made. From then on ``issue(state)`` is called with every State that holds the integrator's parameters,
    and ``load(context, read, source)`` in place of `Context.setState` and `loadCheckpoint`, which are ``read``. Other
    integrators are left alone, except that the plain CompoundIntegrator that an XML round trip makes of a
    StarMDIntegrator is refused.
    """
    if not hasattr(Context.__init__, "watchedByStarMD"):
        _wrap("__init__", _create)
        _wrap("getState", _getState)
        _wrap("setState", _load)
        _wrap("loadCheckpoint", _load)


def unwatched(context: Context, name: str, *args):
    """Result of a method of a Context as OpenMM has it, unwatched."""
    return getattr(Context, name).__wrapped__(context, *args)


def _wrap(name: str, around: Callable):
    original = getattr(Context, name)

    @functools.wraps(original)
    def method(self, *args, **kwargs):
        return around(original, self, *args, **kwargs)

    method.watchedByStarMD = True
    setattr(Context, name, method)


def _isOurs(integrator) -> bool:
    return isinstance(integrator, CompoundIntegrator) and hasattr(integrator, "inspect")


def _create(original: Callable, context: Context, *args):
    integrator = args[1] if len(args) > 1 else None
    if _isOurs(integrator):
        integrator.inspect(args[0])
    elif isinstance(integrator, CompoundIntegrator) and _isRemnant(integrator):
        raise StarMDError(
            "This integrator was a StarMDIntegrator, but XML does not hold its model. Create a StarMDIntegrator "
            "anew, and continue with simulation.loadCheckpoint or loadState."
        )
    original(context, *args)
    if _isOurs(integrator):
        integrator.bind(context)


def _getState(original: Callable, context: Context, *args, **kwargs) -> openmm.State:
    state = original(context, *args, **kwargs)
    if kwargs.get("integratorParameters") and _isOurs(integrator := getattr(context, "_integrator", None)):
        integrator.issue(state)
    return state


def _load(original: Callable, context: Context, *args, **kwargs):
    integrator, sources = getattr(context, "_integrator", None), (*args, *kwargs.values())
    if _isOurs(integrator) and len(sources) == 1:
        integrator.load(context, original, *sources)
    else:
        original(context, *args, **kwargs)


def _isRemnant(integrator: CompoundIntegrator) -> bool:
    children = [integrator.getIntegrator(i) for i in range(integrator.getNumIntegrators())]
    customs = [child for child in children if isinstance(child, CustomIntegrator)]
    return any(c.getGlobalVariableName(i) == TAG for c in customs for i in range(c.getNumGlobalVariables()))


def isWater(residue: openmm.app.topology.Residue) -> bool:
    """True if a residue is water, with or without its hydrogens and virtual sites."""
    elements = sorted(atom.element.symbol for atom in residue.atoms() if atom.element is not None)
    return elements in (["H", "H", "O"], ["O"])


def refuseOtherMolecules(topology: openmm.app.Topology):
    """Raise UnsupportedTopologyError for molecules beside the protein and its caps, such as water, ions and ligands.

    They would have to make way for a jump. What holds virtual sites alone is no molecule.
    """
    protein = {residue for residue in topology.residues() if canonical_name(residue.name)}
    bonds = [{a.residue, b.residue} for a, b in topology.bonds()]
    protein = protein.union(*(bond for bond in bonds if bond & protein))
    others = [r for r in topology.residues() if r not in protein and any(map(symbol_of, r.atoms()))]
    if others:
        kinds = dict.fromkeys(f"water ({r.name})" if isWater(r) else r.name for r in others)
        raise UnsupportedTopologyError(
            f"The Topology holds {listed(list(kinds), 5)} beside the protein (the first is {label(others[0])}), which "
            "would have to make way for a jump: remove all but the protein, as `starmd prepare FILE` does, and take an "
            'implicit solvent, or use StarMDIntegrator with relaxation=Relaxation(mode="steer").'
        )


def checkSystem(system: openmm.System, numAtoms: int, tokens: ResidueTokens):
    """Compare a System with the Topology of ``numAtoms`` atoms that the tokens were made from.

    A ValueError refuses another number of particles, an UnsupportedTopologyError Drude particles, ring polymers, and
    atoms of the protein that are frozen by a mass of 0.
    """
    found = system.getNumParticles()
    if found != numAtoms:
        raise ValueError(f"The Topology has {numAtoms} atoms, but the System {found}; make both from the same atoms.")
    if any(isinstance(force, openmm.DrudeForce) for force in system.getForces()):
        raise UnsupportedTopologyError("Drude particles are not supported; use a force field without them.")
    if any(isinstance(force, openmm.RPMDMonteCarloBarostat) for force in system.getForces()):
        raise UnsupportedTopologyError("Ring-polymer dynamics is not supported; use an ordinary barostat.")
    for index in tokens.protein_atoms.tolist():
        if system.getParticleMass(index)._value == 0 and not system.isVirtualSite(index):
            raise UnsupportedTopologyError(
                f"Atom {index} of the protein has mass 0, but a learned step moves the whole protein; give it its mass."
            )


def checkIntegrator(integrator: openmm.Integrator):
    """Raise ValueError for what cannot be the physical integrator beside the learned one."""
    if not isinstance(integrator, openmm.Integrator):
        raise ValueError(f"physicalIntegrator must be an Integrator of OpenMM; got {integrator!r}")
    unfit = (CompoundIntegrator, openmm.RPMDIntegrator, openmm.DrudeIntegrator)
    if isinstance(integrator, unfit):
        raise ValueError(
            f"physicalIntegrator cannot be a {type(integrator).__name__}: compound, ring-polymer and Drude integrators "
            "do not run beside a learned one; use one such as LangevinMiddleIntegrator."
        )


def massesOf(system: openmm.System) -> np.ndarray:
    """Masses of the particles (A,), Da."""
    return np.array([system.getParticleMass(i)._value for i in range(system.getNumParticles())])


def freedomsOf(system: openmm.System) -> int:
    """Number of degrees of freedom: three for each particle with a mass, less the constraints."""
    return 3 * np.count_nonzero(massesOf(system)) - system.getNumConstraints()


def drawVelocities(context: Context, masses: np.ndarray, temperature: float, random):
    """Draw velocities of a temperature (K) from a seed or a numpy Generator.

    Those of `Context.setVelocitiesToTemperature` lie half a time step back, where leapfrog integrators want them. The
    centre of mass rests where the System has a CMMotionRemover, as in its own dynamics.
    """
    scale = np.sqrt(KB * temperature / np.where(masses > 0, masses, np.inf))
    velocities = scale[:, None] * np.random.default_rng(random).standard_normal((len(masses), 3))
    if any(isinstance(force, openmm.CMMotionRemover) for force in context.getSystem().getForces()):
        velocities[masses > 0] -= masses @ velocities / masses.sum()
    context.setVelocities(velocities)
    context.applyVelocityConstraints(context.getIntegrator().getConstraintTolerance())


def checkedPositions(state: openmm.State) -> np.ndarray:
    """Positions (A, 3), nm, of a State; StarMDError if they were never set, or are not finite."""
    positions = np.array(state.getPositions(asNumpy=True)._value)
    if not positions.any():
        raise StarMDError("All positions are zero; call context.setPositions(...) before the first step.")
    refuseNotFinite(positions)
    return positions


def refuseNotFinite(positions: np.ndarray):
    """Raise StarMDError where positions (..., A, 3) are not finite; it tells the index of the first such atom."""
    *_, bad = np.nonzero(~np.isfinite(positions).all(-1))
    if len(bad):
        raise StarMDError(f"{len(bad)} atoms have positions that are not finite (the first: {bad[0]}); set them.")
