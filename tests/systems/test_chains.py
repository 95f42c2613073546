"""Which residues belong together: ends of chains, molecules, and bonds that a file names but that cannot be made."""

import re

import openmm
import pytest
from openmm import unit

from openmm_starmd.errors import UnsupportedTopologyError
from openmm_starmd.systems import prepare


def is_heavy(atom):
    return atom.element.symbol != "H"


def atom_lines(path):
    return [line for line in path.read_text().splitlines() if line.startswith(("ATOM", "HETATM"))]


@pytest.fixture
def two_molecules(write, peptide):
    """Function (first number of the second, *records between, keep, **caps) -> PDB file of ASG and GHA, 5 nm apart."""

    def two_molecules(start, *between, keep=is_heavy, **caps):
        lines = atom_lines(write(peptide("ASG", keep=keep, **caps)))
        modeller = peptide("GHA", keep=keep, **caps)
        modeller.positions = [x + openmm.Vec3(5, 0, 0) for x in modeller.positions._value] * unit.nanometer
        path = write(modeller)
        second = [f"{line[:22]}{int(line[22:26]) + start - 1:>4}{line[26:]}" for line in atom_lines(path)]
        path.write_text("\n".join([*lines, *between, *second, "END"]))
        return path

    return two_molecules


@pytest.mark.parametrize("caps", [{}, {"n_cap": True, "c_cap": True}])
def test_two_molecules_without_a_record_between_them_are_two_chains(two_molecules, caps):
    first = 6 if caps else 4
    topology, _, changes = prepare(two_molecules(first, keep=lambda atom: True, **caps))
    assert topology.getNumChains() == 2
    assert len(changes) == 1 and changes[0].startswith("began a chain between")
    assert changes[0].endswith("nm apart: two molecules")


@pytest.mark.parametrize("between", [[], ["TER"]])
def test_residues_with_one_number_are_told_apart_by_a_new_chain_name(two_molecules, between):
    topology, _, changes = prepare(two_molecules(1, *between))
    assert [chain.id for chain in topology.chains()] == ["A", "B"]
    assert "renamed the chain A from GLY 1 on to B, as its residue numbers are there before" in changes
    assert not [change for change in changes if "gap" in change]


@pytest.mark.parametrize("first, second", [("HIP", "HIE"), ("HIE", "HIP")])
def test_a_protonation_name_holds_for_its_own_residue_alone(write, peptide, first, second):
    modeller = peptide("AHA", keep=is_heavy)
    lines = [line[:21] + " " + line[22:] for line in atom_lines(write(modeller))]
    modeller.positions = [x + openmm.Vec3(5, 0, 0) for x in modeller.positions._value] * unit.nanometer
    path = write(modeller)
    others = [line[:21] + " " + line[22:] for line in atom_lines(path)]
    parts = [line.replace("HIS", name) for name, part in ((first, lines), (second, others)) for line in [*part, "TER"]]
    path.write_text("\n".join(parts))
    *_, changes = prepare(path)
    assert f"HIS 2 of chain ' ' became {first}: named {first} in the file" in changes
    assert f"HIS 2 of chain A became {second}: named {second} in the file" in changes


def test_what_the_sequence_has_beyond_the_ends_is_said(write, peptide):
    path = write(peptide("AGV", keep=is_heavy))
    path.write_text(f"SEQRES   1 A    6  GLY SER ALA GLY VAL LYS\n{path.read_text()}")
    topology, _, changes = prepare(path)
    assert topology.getNumResidues() == 3
    assert "left out GLY SER, which the sequence has before ALA 1 of chain A" in changes
    assert "left out LYS, which the sequence has behind VAL 3 of chain A" in changes


SSBOND = "SSBOND   1 CYS A    2    CYS A    6                          1555   {}  2.05"
LINK = "LINK         NZ  LYS A   4                 OD1 ASP A   5     1555   {}  1.33"


@pytest.mark.parametrize(
    "record, told",
    [
        (
            SSBOND.format("1555"),
            "left out the bond of SSBOND between SG of CYS 2 .* and SG of CYS 6 .* nm apart",
        ),
        (SSBOND.format("2555"), "left out the disulfide .SSBOND. of SG of CYS 2 .* to SG of CYS 6 .* symmetry copy"),
        (LINK.format("1555"), "left out the bond of LINK between NZ of LYS 4 of chain A and OD1 of ASP 5 .* nm apart"),
    ],
)
def test_a_bond_that_is_named_but_not_made_is_said(write, peptide, record, told):
    path = write(peptide("ACGKDCA"))
    path.write_text(f"{record}\n{path.read_text()}")
    *_, (change,) = prepare(path)
    assert re.fullmatch(told, change)


def test_a_link_to_a_symmetry_copy_is_refused(write, peptide):
    path = write(peptide("ACGKDCA"))
    path.write_text(f"{LINK.format('2555')}\n{path.read_text()}")
    with pytest.raises(UnsupportedTopologyError, match="LINK bonds NZ of LYS 4 .* OD1 of ASP 5 .* in a symmetry copy"):
        prepare(path)


@pytest.mark.parametrize("number", ["9999.999", "   0.000", "     nan"])
@pytest.mark.parametrize("name", ["NZ", "HZ1"])
def test_an_atom_that_was_never_placed_is_named(write, peptide, number, name):
    path = write(peptide("GKG"))
    lines = [line[:30] + 3 * number + line[54:] if line[12:16].strip() == name else line for line in atom_lines(path)]
    path.write_text("\n".join(lines))
    with pytest.raises(UnsupportedTopologyError, match=f"{name} .*LYS 2 of chain A .*(no position|nm apart).* built"):
        prepare(path)


def test_positions_in_nanometres_are_refused(write, peptide):
    modeller = peptide("AGA")
    modeller.positions = [0.1 * x for x in modeller.positions._value] * unit.nanometer
    with pytest.raises(UnsupportedTopologyError, match="the positions are ten times too small: nm where Angstrom"):
        prepare(write(modeller))


def test_a_free_amino_acid_is_called_so(write, peptide):
    modeller, other = peptide("AGA", keep=is_heavy), peptide("GA", keep=is_heavy)
    other.delete([residue for residue in other.topology.residues() if residue.name == "ALA"])
    next(other.topology.chains()).id = "B"
    modeller.add(other.topology, [x + openmm.Vec3(5, 0, 0) for x in other.positions._value] * unit.nanometer)
    with pytest.raises(UnsupportedTopologyError, match="GLY 1 of chain B stands alone, .* free amino acid"):
        prepare(write(modeller))


def test_a_record_that_parts_bonded_residues_is_named(write, peptide):
    path = write(peptide("AGA", c_cap=True))
    lines = atom_lines(path)
    (cut,) = (i for i, line in enumerate(lines) if line[17:20] == "NME" and line[12:16].strip() == "N")
    path.write_text("\n".join([*lines[:cut], "TER", *lines[cut:]]))
    with pytest.raises(UnsupportedTopologyError, match="ALA 3 .* NME 4 .* are bonded, but a TER record"):
        prepare(path)


def test_a_byte_order_mark_costs_no_atom(write, peptide):
    path = write(peptide("AGA"))
    text = "\n".join(atom_lines(path))
    path.write_text(text, encoding="utf-8-sig")
    topology, _, changes = prepare(path)
    assert (topology.getNumAtoms(), changes) == (peptide("AGA").topology.getNumAtoms(), [])
