"""Angstrom where nm are meant, and the reverse, are named by whoever takes positions."""

import numpy as np
import pytest
from openmm import unit
from openmm.app import PDBFile

from openmm_starmd import StarMDError, cli
from openmm_starmd.protein.length_unit import backbone_of, fault_of_unit
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.systems.molecule import read_or_build
from openmm_starmd.trajectories.inspection import Inspection

FAULTS = [(10.0, "are ten times too large: Angstrom"), (0.1, "are ten times too small: nm where Angstrom")]


@pytest.mark.parametrize("factor, told", FAULTS)
def test_frames_of_training_are_named(peptide, factor, told):
    inspection = Inspection(ResidueTokens.from_topology(peptide[0]))
    inspection.look(factor * np.array(peptide[1])[None])
    assert told in inspection.wrong_topology


@pytest.mark.parametrize("factor, told", FAULTS)
def test_pdb_files_are_named(peptide, tmp_path, factor, told, capsys):
    path = tmp_path / "x.pdb"
    with path.open("w") as file:
        PDBFile.writeFile(peptide[0], factor * np.array(peptide[1]) * unit.nanometer, file)
    with pytest.raises(StarMDError, match=f"x.pdb: The positions {told}"):
        read_or_build(str(path))
    assert cli.main(["rollout", str(path), "--nanoseconds", "1", "-o", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_strange_molecules_in_the_right_unit_are_left_to_other_checks(peptide):
    topology, positions, backbone = peptide[0], np.array(peptide[1]), backbone_of(peptide[0])
    assert backbone.tolist() == ResidueTokens.from_topology(topology).backbone.tolist()
    for stretched in (0.5 * positions, positions, 2 * positions, np.nan * positions):
        assert fault_of_unit(stretched, backbone) == ""
    assert fault_of_unit(10 * positions, backbone[:0]) == ""
