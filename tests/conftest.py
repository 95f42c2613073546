"""Peptides for the tests of every room."""

from functools import cache

import numpy as np
import pytest
from openmm import Platform, unit
from openmm.app import ForceField, Modeller

from openmm_starmd.training import build_peptide as build


@cache
def _peptide(sequence, n_cap, c_cap, variants):
    topology, positions = build(sequence, n_cap=n_cap, c_cap=c_cap, seed=1)
    if variants:
        by_residue = [None] * n_cap + [dict(variants).get(i) for i in range(len(sequence))] + [None] * c_cap
        modeller = Modeller(topology, positions)
        modeller.delete([a for a in topology.atoms() if a.element.symbol == "H" and by_residue[a.residue.index]])
        forcefield = ForceField("amber14/protein.ff14SB.xml")
        modeller.addHydrogens(forcefield, variants=by_residue, platform=Platform.getPlatform("Reference"))
        topology, positions = modeller.topology, modeller.positions
    return topology, np.array(positions.value_in_unit(unit.nanometer), dtype=np.float64)


@pytest.fixture(scope="session")
def build_peptide():
    """Function (sequence, n_cap=False, c_cap=False, variants=None) -> (topology, positions (A, 3) in nm, float64).

    ``variants`` maps positions in the sequence to names that `Modeller.addHydrogens` knows, such as ``{2: "HIE"}``.
    Every peptide is built once a session; the positions are a copy, the topology is shared.
    """

    def peptide(sequence, n_cap=False, c_cap=False, variants=None):
        topology, positions = _peptide(sequence, n_cap, c_cap, tuple(sorted((variants or {}).items())))
        return topology, positions.copy()

    return peptide
