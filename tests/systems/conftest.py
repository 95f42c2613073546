"""Peptides as structure files."""

from copy import deepcopy
from functools import cache

import numpy as np
import pytest
from openmm import unit
from openmm.app import Modeller, PDBFile, PDBxFile
from scipy.spatial.transform import Rotation

from openmm_starmd.systems import build_peptide

built = cache(build_peptide)


@pytest.fixture
def write(tmp_path):
    def write(modeller, name="x.pdb"):
        writer = PDBxFile if name.endswith(".cif") else PDBFile
        with (tmp_path / name).open("w") as file:
            writer.writeFile(modeller.topology, modeller.positions, file, keepIds=True)
        return tmp_path / name

    return write


@pytest.fixture
def peptide():
    """A peptide as a Modeller; ``keep`` says which of its atoms are there."""

    def peptide(sequence, keep=lambda atom: True, seed=1, **caps):
        modeller = Modeller(*deepcopy(built(sequence, seed=seed, **caps)))
        modeller.delete([atom for atom in modeller.topology.atoms() if not keep(atom)])
        return modeller

    return peptide


@pytest.fixture
def facing(peptide):
    """Two molecules of one sequence, chains A and B: an atom of the one faces an atom of the other."""

    def facing(sequence, atom, other, distance, keep=lambda atom: True):
        first, second = peptide(sequence, keep=keep), peptide(sequence, keep=keep)
        next(second.topology.chains()).id = "B"
        x = np.array(first.positions._value)
        indices = {(a.residue.index, a.name): a.index for a in first.topology.atoms()}
        one, two = (x[indices[name]] for name in (atom, other))
        outward = (one - x.mean(0)) / np.linalg.norm(one - x.mean(0))
        turn = Rotation.align_vectors([-outward], [(two - x.mean(0)) / np.linalg.norm(two - x.mean(0))])[0]
        first.add(second.topology, (one + distance * outward + turn.apply(x - two)) * unit.nanometer)
        return first

    return facing
