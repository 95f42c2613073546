"""From structure files to what a force field takes, or to one clear error."""

import openmm
import pytest
from openmm import unit
from openmm.app import Element, ForceField, Modeller, PDBFile, Topology

from openmm_starmd.errors import UnsupportedTopologyError
from openmm_starmd.systems import build_peptide, prepare


@pytest.fixture
def write(tmp_path):
    def write(topology, positions, name="x.pdb"):
        with (tmp_path / name).open("w") as file:
            PDBFile.writeFile(topology, positions, file, keepIds=True)
        return tmp_path / name

    return write


def peptide(sequence, **caps):
    topology, positions = build_peptide(sequence, seed=1, **caps)
    return Modeller(topology, positions)


def test_heavy_atoms_alone_are_enough(write):
    modeller = peptide("AKWPG", c_cap=True)
    whole = modeller.topology.getNumAtoms()
    modeller.delete([atom for atom in modeller.topology.atoms() if atom.element.symbol == "H"])
    topology, positions, changes = prepare(write(modeller.topology, modeller.positions))
    assert (topology.getNumAtoms(), len(positions), changes) == (whole, whole, [])
    ForceField("amber14/protein.ff14SB.xml").createSystem(topology)


def test_preparation_keeps_the_protein_and_tells_what_it_removed(write):
    modeller = peptide("AKF", c_cap=True)
    atoms = modeller.topology.getNumAtoms()
    other = Topology()
    for _ in range(2):
        other.addAtom("ZN", Element.getBySymbol("Zn"), other.addResidue("ZN", other.addChain()))
    modeller.add(other, [openmm.Vec3(3, 3, z) for z in (3, 4)] * unit.nanometer)
    prepared, _, changes = prepare(write(modeller.topology, modeller.positions))
    assert [r.name for r in prepared.residues()] == ["ALA", "LYS", "PHE", "NME"]
    assert prepared.getNumAtoms() == atoms
    assert changes == ["removed 2 ZN"]


def test_preparation_tells_of_a_gap_that_the_reader_bridges(write):
    modeller = peptide("AGGGA")
    modeller.delete([residue for residue in modeller.topology.residues() if residue.id in "234"])
    (change,) = prepare(write(modeller.topology, modeller.positions))[2]
    assert change.startswith("ALA 1 bonded to ALA 5 over")


def test_modified_residues_become_ordinary_ones(write):
    modeller = peptide("ASA")
    path = write(modeller.topology, modeller.positions)
    path.write_text(path.read_text().replace("SER", "SEP"))
    topology, _, changes = prepare(path)
    assert [residue.name for residue in topology.residues()] == ["ALA", "SER", "ALA"]
    assert changes == ["replaced 1 SEP to SER"]


def test_what_cannot_be_read_is_one_clear_error(tmp_path):
    for name, text, words in (
        ("absent.pdb", None, "no such file"),
        ("empty.pdb", "", "is empty"),
        ("words.pdb", "no structure", "cannot be read as a PDB"),
        ("model.pdb", "MODEL       x\nENDMDL\n", "cannot be read as a PDB"),
    ):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(UnsupportedTopologyError, match=f"{name}.* {words}"):
            prepare(tmp_path / name)


def test_a_file_without_protein_is_refused(write):
    topology = Topology()
    topology.addAtom("ZN", Element.getBySymbol("Zn"), topology.addResidue("ZN", topology.addChain()))
    with pytest.raises(UnsupportedTopologyError, match="holds no protein"):
        prepare(write(topology, [openmm.Vec3(0, 0, 0)] * unit.nanometer))


def test_two_copies_in_one_place_are_refused(write):
    modeller = peptide("AG")
    modeller.add(modeller.topology, modeller.positions)
    with pytest.raises(UnsupportedTopologyError, match="N of residue ALA 1 .* stand 0.00 nm apart"):
        prepare(write(modeller.topology, modeller.positions))


def test_a_closed_ring_is_refused(write):
    modeller = peptide("GGGGG")
    atoms = {(atom.residue.index, atom.name): atom.index for atom in modeller.topology.atoms()}
    x = modeller.positions.value_in_unit(unit.nanometer)
    x[atoms[4, "OXT"]] = x[atoms[0, "N"]] + openmm.Vec3(0.13, 0, 0)  # stands for the C of a ring
    with pytest.raises(UnsupportedTopologyError, match="N of residue GLY 1 .* OXT of residue GLY 5 .* 0.13 nm apart"):
        prepare(write(modeller.topology, x * unit.nanometer))


def test_a_clash_of_side_chains_is_left_to_minimisation(write):
    modeller = peptide("FGF")
    atoms = {(atom.residue.index, atom.name): atom.index for atom in modeller.topology.atoms()}
    x = modeller.positions.value_in_unit(unit.nanometer)
    x[atoms[2, "CZ"]] = x[atoms[0, "CZ"]] + openmm.Vec3(0.14, 0, 0)
    topology, *_ = prepare(write(modeller.topology, x * unit.nanometer))
    assert topology.getNumAtoms() == modeller.topology.getNumAtoms()


def test_a_residue_that_no_template_matches_is_named(write):
    modeller = peptide("AGA")
    path = write(modeller.topology, modeller.positions)
    path.write_text(path.read_text().replace("GLY", "XYZ"))
    with pytest.raises(UnsupportedTopologyError, match="residue XYZ 2 of chain A.* match no template"):
        prepare(path)
