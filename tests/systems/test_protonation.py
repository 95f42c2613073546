"""Protonation states and disulfides of prepared structures."""

import re

import openmm
import pytest
from openmm import unit
from openmm.app import Modeller

from openmm_starmd.systems import prepare


def is_heavy(atom):
    return atom.element.symbol != "H"


def hydrogens(topology, number):
    (residue,) = (residue for residue in topology.residues() if residue.id == str(number))
    return {atom.name for atom in residue.atoms() if not is_heavy(atom)}


@pytest.mark.parametrize(
    "sequence, name, state, present, absent",
    [
        ("AHA", "HIP", "HIP", {"HD1", "HE2"}, set()),
        ("AHA", "HSE", "HIE", {"HE2"}, {"HD1"}),
        ("AHA", "HISD", "HID", {"HD1"}, {"HE2"}),
        ("ADA", "ASH", "ASH", {"HD2"}, set()),
        ("AEA", "GLH", "GLH", {"HE2"}, set()),
        ("AKA", "LYN", "LYN", {"HZ1", "HZ2"}, {"HZ3"}),
        ("ACA", "CYM", "CYM", set(), {"HG"}),
    ],
)
def test_a_name_of_a_protonation_state_is_honoured(write, peptide, sequence, name, state, present, absent):
    path = write(peptide(sequence, keep=is_heavy))
    path.write_text(re.sub(r"(?:HIS|ASP|GLU|LYS|CYS) A", f"{name:<4}A", path.read_text()))
    topology, _, changes = prepare(path)
    assert present <= hydrogens(topology, 2) and not absent & hydrogens(topology, 2)
    (change,) = (change for change in changes if "became" in change)
    assert re.fullmatch(rf"\w+ 2 of chain A became {state}: named {state} in the file", change)


@pytest.mark.parametrize(
    "ph, sequence, left, inner",
    [
        (3.0, "DADAE", {"ASH": "ASP 1", "GLH": "GLU 5"}, "ASH"),
        (9.0, "CACAC", {"CYM": "CYS 1, CYS 5"}, "CYM"),
        (11.5, "KAKAK", {"LYN": "LYS 1, LYS 5"}, "LYN"),
    ],
)
def test_residues_at_chain_ends_take_only_states_that_the_force_field_has_there(
    write, peptide, ph, sequence, left, inner
):
    topology, _, changes = prepare(write(peptide(sequence, keep=is_heavy)), ph=ph)
    ff14sb = openmm.app.ForceField("amber14/protein.ff14SB.xml")
    assert ff14sb.createSystem(topology).getNumParticles() == topology.getNumAtoms()
    for state, residues in left.items():
        assert f"left {residues} of chain A as at pH 7: ff14SB has no {state} at chain ends" in changes
    (became,) = (change for change in changes if "became" in change)
    assert re.fullmatch(rf"\w+ 3 of chain A became {inner}: pH {ph:g}", became)


@pytest.mark.parametrize("sequence, name", [("EAA", "GLH"), ("AAD", "ASH"), ("KAA", "LYN"), ("AAC", "CYM")])
def test_a_name_of_a_state_that_the_force_field_lacks_at_chain_ends_is_told(write, peptide, sequence, name):
    path = write(peptide(sequence, keep=is_heavy))
    path.write_text(re.sub(r"(?:ASP|GLU|LYS|CYS) A", f"{name:<4}A", path.read_text()))
    *_, changes = prepare(path)
    assert any(change.endswith(f"ff14SB has no {name} at chain ends") for change in changes)


def test_a_name_is_honoured_beyond_residue_9999(write, peptide):
    path = write(peptide("AHA", keep=is_heavy))
    lines = [line for line in path.read_text().splitlines() if line[17:20] in ("ALA", "HIS")]
    path.write_text("\n".join(f"{line[:22]}A00{line[25:]}" for line in lines).replace("HIS", "HIP"))
    *_, changes = prepare(path)
    assert "HIS 10002 of chain A became HIP: named HIP in the file" in changes


@pytest.mark.parametrize("name", ["LYSH", "CYS2", "NALA", "CSER"])
def test_other_names_of_ordinary_residues_are_known(write, peptide, name):
    plain = {"LYSH": "LYS", "CYS2": "CYS", "NALA": "ALA", "CSER": "SER"}[name]
    path = write(peptide("AKCS"))
    path.write_text(path.read_text().replace(f"{plain} A", f"{name}A"))
    topology, _, changes = prepare(path)
    assert [residue.name for residue in topology.residues()] == ["ALA", "LYS", "CYS", "SER"]
    assert changes == []


def test_caps_that_charmm_counts_as_part_of_residues_are_residues(write, peptide):
    path = write(peptide("AGA", n_cap=True, c_cap=True))
    atoms = peptide("AGA", n_cap=True, c_cap=True).topology.getNumAtoms()
    charmm = {
        ("ACE", 1): ("ALA", {"CH3": "CAY", "C": "CY", "O": "OY", "H1": "HY1", "H2": "HY2", "H3": "HY3"}),
        ("NME", 5): ("ALA", {"N": "NT", "H": "HNT", "C": "CAT", "H1": "HT1", "H2": "HT2", "H3": "HT3"}),
    }
    lines = []
    for line in path.read_text().splitlines():
        if line.startswith(("ATOM", "HETATM")):
            name, residue, number = line[12:16].strip(), line[17:20], int(line[22:26])
            host, names = charmm.get((residue, number), (residue, {}))
            number = {1: 2, 5: 4}.get(number, number)
            line = f"ATOM  {line[6:12]} {names.get(name, name):<3} {host}{line[20:22]}{number:>4}{line[26:]}"
        if line.startswith(("ATOM", "END")):
            lines.append(line)
    path.write_text("\n".join(lines))
    topology, _, changes = prepare(path)
    assert [residue.name for residue in topology.residues()] == ["ACE", "ALA", "GLY", "ALA", "NME"]
    assert (topology.getNumAtoms(), changes) == (atoms, [])


@pytest.mark.parametrize("name", ["NMA", "NAC", "CT3"])
def test_a_cap_under_the_name_of_another_program_stays_a_cap(write, peptide, name):
    path = write(peptide("AGA", c_cap=True))
    atoms = peptide("AGA", c_cap=True).topology.getNumAtoms()
    path.write_text(path.read_text().replace("NME", name))
    topology, _, changes = prepare(path)
    assert [residue.name for residue in topology.residues()] == ["ALA", "GLY", "ALA", "NME"]
    assert (topology.getNumAtoms(), changes) == (atoms, [])


def test_a_lysine_with_two_hydrogens_gets_no_third(write, peptide):
    topology, _, changes = prepare(write(peptide("AKA", keep=lambda atom: atom.name != "HZ3")))
    assert "HZ3" not in hydrogens(topology, 2)
    assert changes == ["LYS 2 of chain A is LYN: NZ bears two hydrogens in the file"]


@pytest.mark.parametrize("ph", [7.0, 9.0])
def test_a_thiolate_stays_one_when_it_is_prepared_again(write, peptide, ph):
    path = write(peptide("ACA", keep=is_heavy))
    path.write_text(path.read_text().replace("CYS A", "CYM A"))
    once = prepare(path)
    again = prepare(write(Modeller(*once[:2])), ph=ph)
    assert again[2] == ["CYS 2 of chain A is CYM: SG bears no hydrogen in the file"]
    assert again[0].getNumAtoms() == once[0].getNumAtoms() and "HG" not in hydrogens(again[0], 2)


@pytest.mark.parametrize("name", ["CYX", "CYS2"])
@pytest.mark.parametrize("keep", [is_heavy, lambda atom: atom.name != "HG"])
def test_a_cysteine_of_a_disulfide_without_its_partner_is_a_thiol_and_that_is_said(write, peptide, name, keep):
    path = write(peptide("ACA", keep=keep))
    path.write_text(path.read_text().replace("CYS A", f"{name:<4}A"))
    topology, _, changes = prepare(path)
    assert "HG" in hydrogens(topology, 2)
    assert "CYS 2 of chain A became CYS: named CYX in the file, but no sulfur is near SG" in changes


@pytest.mark.parametrize("name, state", [("HIE", {"HE2"}), ("HID", {"HD1"}), ("HIP", {"HD1", "HE2"})])
def test_a_named_histidine_with_hydrogens_keeps_its_state_at_any_ph(write, build_peptide, name, state):
    topology, positions = build_peptide("AHA", variants={1: name})
    path = write(Modeller(topology, positions * unit.nanometer))
    path.write_text(path.read_text().replace("HIS A", f"{name} A"))
    for ph in (3.0, 7.0):
        topology, _, changes = prepare(path, ph=ph)
        assert hydrogens(topology, 2) & {"HD1", "HE2"} == state and changes == []


def test_a_histidine_that_is_renamed_changes_its_hydrogens(write, build_peptide):
    """As errors of domains advise where a model knows HID alone."""
    topology, positions = build_peptide("AHA", variants={1: "HIE"})
    path = write(Modeller(topology, positions * unit.nanometer))
    path.write_text(path.read_text().replace("HIS A", "HID A"))
    topology, _, changes = prepare(path)
    assert hydrogens(topology, 2) & {"HD1", "HE2"} == {"HD1"} and "removed HE2 of HIS 2 of chain A" in changes


@pytest.mark.parametrize("ph", [float("nan"), -1.0, 30.0])
def test_a_ph_that_is_none_is_refused(write, peptide, ph):
    with pytest.raises(ValueError, match="ph: expected a number from 0 to 14, found"):
        prepare(write(peptide("AHA")), ph=ph)


def test_where_disulfides_are_declined_cysteines_are_thiols_at_any_ph(write, cysteines):
    path = write(cysteines(0.205))
    topology, _, changes = prepare(path, ph=9.0, disulfides=False)
    assert hydrogens_of(topology, "CYS").count("HG") == 2
    assert "left as thiols CYS 2 of chain A; CYS 2 of chain B, 0.205 nm apart" in changes
    assert not any("CYM" in change for change in changes)


def test_a_histidine_without_a_hydrogen_bond_is_hie_and_that_is_said(write, peptide):
    topology, _, changes = prepare(write(peptide("GHG", keep=is_heavy)))
    assert {"HE2"} == hydrogens(topology, 2) & {"HD1", "HE2"}
    assert "HIS 2 of chain A became HIE: no hydrogen bond decides" in changes


@pytest.mark.parametrize("nitrogen, state", [("ND1", "HID"), ("NE2", "HIE")])
def test_a_hydrogen_bond_decides_about_a_histidine(write, peptide, nitrogen, state):
    modeller = peptide("GHG", keep=is_heavy)
    other = peptide("GG", keep=is_heavy)
    next(other.topology.chains()).id = "B"
    x = modeller.positions._value
    ring = {atom.name: x[atom.index] for atom in modeller.topology.atoms() if atom.residue.id == "2"}
    beside = [ring[name] for name in ("CE1", "CG" if nitrogen == "ND1" else "CD2")]
    away = 2 * ring[nitrogen] - beside[0] - beside[1]
    away /= unit.norm(away)
    oxygen = next(atom.index for atom in other.topology.atoms() if atom.name == "OXT")
    target, own = ring[nitrogen] + 0.28 * away, other.positions._value
    outward = unit.dot(sum(own, openmm.Vec3(0, 0, 0)) / len(own) - own[oxygen], away) > 0
    placed = [target + (p - own[oxygen]) * (1 if outward else -1) for p in own]  # glycine may be mirrored
    modeller.add(other.topology, placed * unit.nanometer)
    *_, changes = prepare(write(modeller))
    assert f"HIS 2 of chain A became {state}: hydrogen bond to OXT of GLY 2 of chain B" in changes


def test_the_ph_is_a_choice(write, peptide):
    path = write(peptide("ADHKA", keep=is_heavy))
    acid, base = (prepare(path, ph=ph) for ph in (3.0, 12.0))
    assert "HD2" in hydrogens(acid[0], 2) and "HD2" not in hydrogens(base[0], 2)
    assert "HZ3" in hydrogens(acid[0], 4) and "HZ3" not in hydrogens(base[0], 4)
    assert "ASP 2 of chain A became ASH: pH 3" in acid[2]
    assert "HIS 3 of chain A became HIP: pH 3" in acid[2]
    assert "LYS 4 of chain A became LYN: pH 12" in base[2]


@pytest.fixture
def cysteines(peptide):
    """Two CYS with sulfur atoms at a distance."""

    def cysteines(distance, keep=is_heavy):
        modeller = peptide("GCG", keep=keep)
        other = peptide("GCG", keep=keep)
        next(other.topology.chains()).id = "B"
        x, (sulfur,) = (
            modeller.positions._value,
            (atom.index for atom in modeller.topology.atoms() if atom.name == "SG"),
        )
        middle = sum(x, openmm.Vec3(0, 0, 0)) / len(x)
        axis = (x[sulfur] - middle) / unit.norm(x[sulfur] - middle)
        centre = x[sulfur] + 0.5 * distance * axis
        modeller.add(other.topology, [2 * centre - p for p in x] * unit.nanometer)
        mirrored = modeller.positions._value
        n = len(x)  # turned about an axis through the centre, since a point reflection would make D residues
        side = axis.__class__(axis[1], -axis[0], 0.0)
        side /= unit.norm(side)

        def turned(p):
            v = p - centre
            return centre + 2 * unit.dot(v, side) * side - v

        modeller.positions = [*mirrored[:n], *map(turned, mirrored[:n])] * unit.nanometer
        return modeller

    return cysteines


def test_a_disulfide_by_distance_is_listed_and_can_be_declined(write, cysteines):
    path = write(cysteines(0.205))
    path.write_text("\n".join(line for line in path.read_text().splitlines() if not line.startswith("CONECT")))
    topology, _, changes = prepare(path)
    bonds = [bond for bond in topology.bonds() if bond[0].name == bond[1].name == "SG"]
    assert len(bonds) == 1 and "HG" not in hydrogens_of(topology, "CYS")
    assert "bonded SG of CYS 2 of chain A; CYS 2 of chain B, 0.205 nm apart" in changes
    assert not [change for change in changes if "became" in change]
    topology, _, changes = prepare(path, disulfides=False)
    assert not [bond for bond in topology.bonds() if bond[0].name == bond[1].name == "SG"]
    assert hydrogens_of(topology, "CYS").count("HG") == 2
    assert "left as thiols CYS 2 of chain A; CYS 2 of chain B, 0.205 nm apart" in changes


def test_a_recorded_disulfide_is_no_change(write, cysteines):
    path = write(cysteines(0.205))
    lines = [line for line in path.read_text().splitlines() if not line.startswith("CONECT")]
    record = "SSBOND   1 CYS A    2    CYS B    2                          1555   1555  2.05"
    path.write_text("\n".join([record, *lines]))
    topology, _, changes = prepare(path)
    assert [bond for bond in topology.bonds() if bond[0].name == bond[1].name == "SG"]
    assert not [change for change in changes if "SG" in change or "became" in change]


def test_thiols_with_their_hydrogens_stay_thiols(write, cysteines):
    path = write(cysteines(0.25, keep=lambda atom: True))
    topology, _, changes = prepare(path)
    assert not [bond for bond in topology.bonds() if bond[0].name == bond[1].name == "SG"]
    assert changes == []


def hydrogens_of(topology, name):
    return [a.name for a in topology.atoms() if a.residue.name == name and a.element.symbol == "H"]
