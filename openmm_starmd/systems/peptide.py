"""Systems and minimised starts of peptides: ff14SB + OBC2.

OBC2 runs through the native ``GBSAOBCForce``, which on the CPU platform is about eight times as fast as the
``CustomGBForce`` of ``implicit/obc2.xml`` and gives the same energy.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from openmm import (
    Context,
    GBSAOBCForce,
    LocalEnergyMinimizer,
    NonbondedForce,
    Platform,
    System,
    VerletIntegrator,
    unit,
)
from openmm.app import CutoffNonPeriodic, HBonds, NoCutoff, Topology
from openmm.app.internal.customgbforces import GBSAOBC2Force

from openmm_starmd.errors import StarMDError, UnsupportedTopologyError, listed
from openmm_starmd.protein.bond_graph import label
from openmm_starmd.protein.tokens import ResidueTokens, refuse_missing_atoms
from openmm_starmd.protein.validity import check_positions
from openmm_starmd.systems.build import build_peptide, force_field

TIME_STEP = 0.004  # ps
ATTEMPTS = 5


def peptide_system(topology: Topology, cutoff: float | None = None) -> System:
    """ff14SB + OBC2, HBonds constraints and 4-amu hydrogens.

    The energy is that of ``implicit/obc2.xml`` (solute dielectric 1, solvent 78.5, ACE surface term). No pair further
    apart than the cutoff (nm) acts; those within it act as without one.

    Raises
    ------
    UnsupportedTopologyError
        If hydrogens are missing, or ff14SB has no template of a residue, such as an ion.
    """
    refuse_missing_atoms(topology)
    _refuse_unmatched(topology)
    system = force_field().createSystem(
        topology,
        nonbondedMethod=CutoffNonPeriodic if cutoff else NoCutoff,
        nonbondedCutoff=cutoff or 1.0,
        constraints=HBonds,
        hydrogenMass=4 * unit.amu,
    )
    nonbonded = next(force for force in system.getForces() if isinstance(force, NonbondedForce))
    nonbonded.setReactionFieldDielectric(1.0)
    solvent = GBSAOBCForce()
    solvent.setSoluteDielectric(1.0)
    solvent.setSolventDielectric(78.5)
    for atom, (radius, scale) in enumerate(p[:2] for p in GBSAOBC2Force.getStandardParameters(topology)):
        solvent.addParticle(nonbonded.getParticleParameters(atom)[0], radius, scale)
    if cutoff:
        solvent.setNonbondedMethod(GBSAOBCForce.CutoffNonPeriodic)
        solvent.setCutoffDistance(cutoff)
    system.addForce(solvent)
    return system


def _refuse_unmatched(topology: Topology) -> None:
    if unmatched := force_field().getUnmatchedResidues(topology):
        raise UnsupportedTopologyError(
            f"ff14SB has no template for {listed(list(map(label, unmatched)))}; `starmd prepare FILE` removes what is "
            "no protein, such as ions, and completes or replaces other residues."
        )


def platform_of(name: str) -> tuple[Platform, dict[str, str]]:
    """Platform of a name and its properties: one thread of the CPU."""
    return Platform.getPlatform(name), {"Threads": "1"} if name == "CPU" else {}


def split_caps(molecule: str) -> tuple[str, bool, bool]:
    """Sequence of a molecule like ``"ace-AAAA-nme"``, whether ACE stands before it, whether NME stands behind it."""
    n_cap, c_cap = molecule.lower().startswith("ace-"), molecule.lower().endswith("-nme")
    return molecule[4 if n_cap else 0 : -4 if c_cap else None], n_cap, c_cap


def file_name(molecule: str) -> str:
    """Name of the files of a molecule like ``"ace-AAAA-nme"``: ``ACE_AAAA_NME``."""
    sequence, n_cap, c_cap = split_caps(molecule)
    return ("ACE_" if n_cap else "") + sequence + ("_NME" if c_cap else "")


def minimized_peptide(molecule: str, seed: int) -> tuple[Topology, np.ndarray]:
    """A built peptide (as in ``"ace-AAAA-nme"``) after minimisation; positions (A, 3), nm.

    One that minimisation makes unsound (a residue its mirror image) is built anew.
    """
    built = (build_peptide(*split_caps(molecule), seed + attempt) for attempt in range(ATTEMPTS))
    return sound_minimum(molecule, built)


def sound_minimum(name: str, structures: Iterable) -> tuple[Topology, np.ndarray]:
    """The first of some structures that is sound after minimisation."""
    for topology, positions in structures:
        context = Context(peptide_system(topology), VerletIntegrator(TIME_STEP), *platform_of("CPU"))
        context.setPositions(positions)
        LocalEnergyMinimizer.minimize(context, maxIterations=500)
        minimized = context.getState(positions=True).getPositions(asNumpy=True)._value
        failures = check_positions(torch.from_numpy(minimized), ResidueTokens.from_topology(topology)).failures(())
        if not failures:
            return topology, minimized
    raise StarMDError(f"No structure of {name} was sound after minimisation: it fails {', '.join(failures)}.")
