"""Peptides as structure files."""

import pytest
from openmm.app import Modeller, PDBFile, PDBxFile

from openmm_starmd.training import build_peptide


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
        modeller = Modeller(*build_peptide(sequence, seed=seed, **caps))
        modeller.delete([atom for atom in modeller.topology.atoms() if not keep(atom)])
        return modeller

    return peptide
