"""Which of several conformations and residues in one place is kept."""

import numpy as np
import pytest
from openmm.app import PDBxFile

from openmm_starmd.systems import prepare


def is_heavy(atom):
    return atom.element.symbol != "H"


@pytest.fixture
def alternates(write, peptide):
    """A file in which residue 2 has two conformations, the second 0.03 nm (in z) from the first."""

    def alternates(occupancies, sequence="ASA", second_name=None, suffix=".pdb"):
        path = write(peptide(sequence, keep=is_heavy if second_name else lambda atom: True))
        lines = []
        for line in path.read_text().splitlines():
            if line[:6] in ("ATOM  ", "HETATM") and line[22:26].strip() == "2":
                for letter, occupancy, shift in zip("AB", occupancies, (0.0, 0.3), strict=True):
                    name = second_name if second_name and letter == "B" else line[17:20]
                    z = float(line[46:54]) + shift
                    lines.append(f"{line[:16]}{letter}{name}{line[20:46]}{z:8.3f}{occupancy:6.2f}{line[60:]}")
            else:
                lines.append(line)
        path.write_text("\n".join(lines))
        if suffix == ".cif":
            path = as_mmcif(path, path.with_suffix(suffix))
        return path

    return alternates


def as_mmcif(path, target):
    """The same atoms, alternates included, as mmCIF."""
    names = "id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id label_seq_id auth_seq_id "
    names += "pdbx_PDB_ins_code Cartn_x Cartn_y Cartn_z occupancy auth_asym_id pdbx_PDB_model_num"
    rows = []
    for line in path.read_text().splitlines():
        if line[:6] in ("ATOM  ", "HETATM"):
            number = line[22:26].strip()
            cells = [line[6:11], line[76:78], line[12:16], line[16].strip() or ".", line[17:20], "A", number, number]
            rows.append(" ".join([*cells, "?", line[30:38], line[38:46], line[46:54], line[54:60], "A", "1"]))
    loop = ["data_x", "loop_", *(f"_atom_site.{name}" for name in names.split())]
    target.write_text("\n".join([*loop, *rows, "#"]))
    PDBxFile(str(target))
    return target


@pytest.mark.parametrize("suffix", [".pdb", ".cif"])
@pytest.mark.parametrize("occupancies, letter", [((0.6, 0.4), "A"), ((0.3, 0.7), "B"), ((0.5, 0.5), "A")])
def test_the_conformation_of_the_highest_occupancy_is_kept_whole(alternates, occupancies, letter, suffix):
    both = {x: np.array(prepare(alternates(o, suffix=suffix))[1]._value) for x, o in (("A", (1, 0)), ("B", (0, 1)))}
    topology, positions, changes = prepare(alternates(occupancies, suffix=suffix))
    np.testing.assert_array_equal(np.array(positions._value), both[letter])  # hydrogens, too
    assert np.abs(both["A"] - both["B"]).max() == pytest.approx(0.03, abs=1e-3)
    assert changes == [f"kept conformation {letter}, of the highest occupancy, of SER 2 of chain A"]


@pytest.mark.parametrize("suffix", [".pdb", ".cif"])
def test_of_two_residues_in_one_place_one_is_kept(alternates, suffix):
    topology, _, changes = prepare(alternates((0.4, 0.6), second_name="VAL", sequence="AGA", suffix=suffix))[:3]
    assert [residue.name for residue in topology.residues()] == ["ALA", "VAL", "ALA"]
    assert "kept VAL 2 of chain A, not GLY in its place (occupancy 0.60)" in changes


def test_equal_occupancies_follow_the_rest_of_the_file(alternates, peptide):
    """In 1EN2 the neighbours with other occupancies say which of two equal conformations fits."""
    path = alternates((0.5, 0.5))
    text = path.read_text().splitlines()
    third = [line for line in text if line[:4] == "ATOM" and line[22:26].strip() == "3"]
    mixed = [f"{line[:16]}{x}{line[17:54]}{o:6.2f}{line[60:]}" for line in third for x, o in (("A", 0.2), ("B", 0.8))]
    path.write_text("\n".join([line for line in text if line not in third and line[:3] != "TER"][:-1] + mixed))
    *_, changes = prepare(path)
    assert changes == ["kept conformation B, of the highest occupancy, of SER 2, ALA 3 of chain A"]


def test_water_with_the_number_of_a_residue_is_not_part_of_it(write, peptide):
    path = write(peptide("AG"))
    lines = [line for line in path.read_text().splitlines() if line.startswith("ATOM")]
    water = "HETATM   99  O   HOH A   1      30.000  30.000  30.000  1.00  0.00           O"
    path.write_text("\n".join([*lines, water]))
    topology, _, changes = prepare(path)
    assert (topology.getNumResidues(), changes) == (2, ["removed 1 HOH"])


def test_an_atom_that_is_there_several_times_is_said(write, peptide):
    path = write(peptide("AS"))
    lines = path.read_text().splitlines()
    (oxygen,) = (i for i, line in enumerate(lines) if line[12:16].strip() == "OG")
    path.write_text("\n".join([*lines[:oxygen], lines[oxygen], *lines[oxygen:]]))
    topology, _, changes = prepare(path)
    assert topology.getNumAtoms() == peptide("AS").topology.getNumAtoms()
    assert changes == ["kept the first of the atoms that are there several times under one name in SER 2 of chain A"]
