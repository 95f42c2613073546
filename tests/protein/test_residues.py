import math

import pytest

from openmm_starmd.protein.residues import (
    C_CAPS,
    CHI_ATOMS,
    N_CAPS,
    ONE_LETTER,
    RESIDUE_TYPES,
    TORSIONS,
    atom_names,
    canonical_name,
    torsion_period,
)

# number of chi angles, by type: IUPAC-IUB, without hydrogens and arginine's chi5
CHI_COUNT = dict.fromkeys("AG", 0) | dict.fromkeys("CSTV", 1) | dict.fromkeys("DFHILNPWY", 2)
CHI_COUNT |= dict.fromkeys("EMQ", 3) | dict.fromkeys("KR", 4)


def test_twenty_types_in_a_fixed_order():
    # weights refer to types by their place in this order
    assert RESIDUE_TYPES == tuple(
        "ALA ARG ASN ASP CYS GLN GLU GLY HIS ILE LEU LYS MET PHE PRO SER THR TRP TYR VAL".split()
    )
    assert sorted(ONE_LETTER.values()) == sorted("ACDEFGHIKLMNPQRSTVWY")


@pytest.mark.parametrize("name", RESIDUE_TYPES)
def test_chi_angles_follow_one_another(name):
    chi = CHI_ATOMS[name]
    assert len(chi) == CHI_COUNT[ONE_LETTER[name]]
    assert all(first[1:] == second[:3] for first, second in zip(chi, chi[1:], strict=False))
    assert not chi or chi[0][:3] == ("N", "CA", "CB")


@pytest.mark.parametrize(
    "name, variants",
    {
        "HIS": "HID HIE HIP HSD HSE HSP",
        "CYS": "CYX CYM",
        "ASP": "ASH ASPP",
        "GLU": "GLH GLUP",
        "LYS": "LYN LSN",
        "ALA": "ALA ala",
    }.items(),
)
def test_variants_of_amber_and_charmm_are_known(name, variants):
    assert {canonical_name(variant) for variant in variants.split()} == {name}


@pytest.mark.parametrize("name", ["MSE", "HOH", "NA", "LIG", "UNK", "DA", *sorted(N_CAPS | C_CAPS)])
def test_other_residues_are_not(name):
    assert canonical_name(name) is None


def test_only_exchangeable_ends_have_half_the_period():
    symmetric = {(r, t) for r in RESIDUE_TYPES for t in TORSIONS if torsion_period(r, t) == math.pi}
    assert symmetric == {("ASP", "chi2"), ("GLU", "chi3"), ("PHE", "chi2"), ("TYR", "chi2")}
    assert torsion_period("VAL", "chi1") == 2 * math.pi


def test_standard_atom_names_come_first():
    assert atom_names("ILE", "CD1") == ("CD1", "CD")
    assert atom_names("LEU", "CD1") == ("CD1",)
    assert atom_names("LEU", "O")[:2] == ("O", "OT1")
