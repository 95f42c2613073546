"""From structure files to what a force field takes, or to one clear error."""

import numpy as np
import openmm
import pytest
from openmm import unit
from openmm.app import Element, ForceField, Modeller, PDBxFile, Topology
from pdbfixer import PDBFixer

from openmm_starmd import cli
from openmm_starmd.errors import UnsupportedTopologyError
from openmm_starmd.protein.bond_graph import ProteinBondGraph
from openmm_starmd.protein.validity import left_handed
from openmm_starmd.systems import prepare


def is_heavy(atom):
    return atom.element.symbol != "H"


def test_heavy_atoms_alone_are_enough(write, peptide):
    whole = peptide("AKWPG", c_cap=True).topology.getNumAtoms()
    modeller = peptide("AKWPG", keep=is_heavy, c_cap=True)
    topology, positions, changes = prepare(write(modeller))
    assert (topology.getNumAtoms(), len(positions)) == (whole, whole)
    assert changes == [f"added {whole - modeller.topology.getNumAtoms()} hydrogens at pH 7"]
    ForceField("amber14/protein.ff14SB.xml").createSystem(topology)


def test_a_ready_file_comes_back_without_a_change(write, peptide):
    modeller = peptide("AHKDE", n_cap=True)
    topology, positions, changes = prepare(write(modeller))
    assert changes == []
    assert [atom.name for atom in topology.atoms()] == [atom.name for atom in modeller.topology.atoms()]


def test_preparation_keeps_the_protein_and_tells_what_it_removed(write, peptide):
    modeller = peptide("AKF", c_cap=True)
    atoms = modeller.topology.getNumAtoms()
    other = Topology()
    for _ in range(2):
        other.addAtom("ZN", Element.getBySymbol("Zn"), other.addResidue("ZN", other.addChain()))
    other.addAtom("C1'", Element.getBySymbol("C"), other.addResidue("DA", other.addChain()))
    modeller.add(other, [openmm.Vec3(3, 3, z) for z in (3, 4, 5)] * unit.nanometer)
    prepared, _, changes = prepare(write(modeller))
    assert [r.name for r in prepared.residues()] == ["ALA", "LYS", "PHE", "NME"]
    assert prepared.getNumAtoms() == atoms
    assert changes == ["removed 2 ZN, 1 DA"]


def test_the_first_of_several_models_is_used_and_said(write, peptide):
    path = write(peptide("AG"))
    lines = [line for line in path.read_text().splitlines() if line.startswith("ATOM")]
    models = [line for k in "12" for line in (f"MODEL        {k}", *lines, "ENDMDL")]
    path.write_text("\n".join(models + ["END"]))
    topology, _, changes = prepare(path)
    assert (topology.getNumResidues(), changes) == (2, ["kept the first of 2 models"])


def test_what_cannot_be_read_is_one_clear_error(tmp_path):
    for name, text, words in (
        ("absent.pdb", None, "no such file"),
        ("empty.pdb", "", "is empty"),
        ("words.pdb", "no structure", "cannot be read as a PDB"),
        ("model.pdb", "MODEL       x\nENDMDL\n", "cannot be read as a PDB"),
        (
            "x.gro",
            "water\n 1\n    1SOL     OW    1   0.1   0.1   0.1\n",
            "cannot be .* PDBFile.writeFile writes what other",
        ),
        ("words.cif", "data_x\n_cell.length_a 1\n", "cannot be read as a PDB"),
    ):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(UnsupportedTopologyError, match=f"{name}.* {words}"):
            prepare(tmp_path / name)


def test_a_file_without_protein_is_refused(write):
    topology = Topology()
    topology.addAtom("ZN", Element.getBySymbol("Zn"), topology.addResidue("ZN", topology.addChain()))
    with pytest.raises(UnsupportedTopologyError, match="holds no protein"):
        prepare(write(Modeller(topology, [openmm.Vec3(0, 0, 0)] * unit.nanometer)))


@pytest.mark.parametrize(
    "before, name, after", [("SER", "SEP", "SER"), ("MET", "MSE", "MET"), ("ASN", "NLN", "ASN"), ("SER", "OLS", "SER")]
)
def test_modified_residues_become_ordinary_ones(write, peptide, before, name, after):
    """NLN is Amber's asparagine with a sugar, and another residue in the Protein Data Bank: its atoms decide."""
    path = write(peptide({"SER": "ASA", "MET": "AMA", "ASN": "ANA"}[before], keep=is_heavy))
    path.write_text(path.read_text().replace(before, name))
    topology, _, changes = prepare(path)
    assert [residue.name for residue in topology.residues()] == ["ALA", after, "ALA"]
    assert f"replaced {name} 2 of chain A by {after}" in changes
    assert not [change for change in changes if change.startswith("built")]


def test_a_ring_that_a_replacement_opens_is_said(write, peptide):
    """Pyroglutamate has proline's ring, with a carbonyl oxygen on CD; glutamate has none, and a charged N end."""
    path = write(peptide("PAG", keep=is_heavy))
    lines = [line.replace("PRO", "PCA") for line in path.read_text().splitlines()]
    (k,) = (k for k, line in enumerate(lines) if line[12:20] == " CD  PCA")
    away = [f"{float(lines[k][i : i + 8]) + 0.7:8.3f}" for i in (30, 38, 46)]
    oxygen = f"{lines[k][:12]} OE {lines[k][16:30]}{''.join(away)}{lines[k][54:76]} O"
    path.write_text("\n".join([*lines[: k + 1], oxygen, *lines[k + 1 :]]))
    topology, _, changes = prepare(path)
    assert [residue.name for residue in topology.residues()] == ["GLU", "ALA", "GLY"]
    assert "replaced PCA 1 of chain A by GLU, which opens its ring of N and CD and leaves a free N end" in changes


@pytest.mark.parametrize(
    "number, hydrogen, told",
    [(2, "H", "which takes CN from its N"), (1, "H2", "which takes CN from its N and leaves a free N end")],
)
def test_a_group_on_n_that_a_replacement_takes_is_no_ring(write, peptide, number, hydrogen, told):
    """As the methyl of sarcosine; it stands where a hydrogen was, half as far again."""
    lines, places = [], {}
    for line in (
        write(peptide("GGA", keep=lambda atom: is_heavy(atom) or atom.name == hydrogen)).read_text().split("\n")
    ):
        name, ours = line[12:16].strip(), line[17:20] == "GLY" and line[22:26] == f"{number:4d}"
        if ours:
            places[name] = np.array([float(line[i : i + 8]) for i in (30, 38, 46)])
            line = f"{line[:17]}SAR{line[20:]}"
        if ours and name == hydrogen:
            far = places["N"] + 1.45 * (places[name] - places["N"])
            line = f"{line[:12]} CN {line[16:30]}{''.join(f'{value:8.3f}' for value in far)}{line[54:76]} C"
        if ours or name != hydrogen:
            lines.append(line)
    path = write(peptide("GGA"))
    path.write_text("\n".join(lines))
    *_, changes = prepare(path)
    assert f"replaced SAR {number} of chain A by GLY, {told}" in changes


def test_a_modified_residue_in_a_chain_that_nobody_knows_is_refused(write, peptide):
    path = write(peptide("AGA", keep=is_heavy))
    text = path.read_text()
    path.write_text(text.replace("GLY", "XYZ"))
    with pytest.raises(UnsupportedTopologyError, match="XYZ 2 of chain A is bonded to the backbone of ALA 1, ALA 3"):
        prepare(path)
    for name in ("N", "CA", "C"):  # a chromophore bears no backbone names
        text = text.replace(f"{name:<3} GLY", f"{name + '1':<3} GLY")
    for line in ("", "MODRES 1ABC CRO A    2  GLY\n"):
        path.write_text(line + text.replace("GLY", "CRO").replace("  CRO\n", "  GLY\n"))
        with pytest.raises(UnsupportedTopologyError, match="CRO 2 of chain A is bonded to the backbone"):
            prepare(path)


@pytest.mark.parametrize("recorded", [True, False])
def test_a_removed_ligand_on_a_side_chain_is_said_with_its_bond(write, peptide, recorded):
    modeller = peptide("ANA")
    other = Topology()
    residue = other.addResidue("NAG", other.addChain("B"))
    x = modeller.positions.value_in_unit(unit.nanometer)
    (nitrogen,) = (atom for atom in modeller.topology.atoms() if atom.name == "ND2")
    for name in ("C1", "C2"):
        other.addAtom(name, Element.getBySymbol("C"), residue)
    start = x[nitrogen.index]
    modeller.add(other, [start + openmm.Vec3(*3 * [d]) for d in (0.08, 0.3)] * unit.nanometer)
    path = write(modeller)
    link = "LINK         ND2 ASN A   2                 C1  NAG B   1     1555   1555  1.44\n"
    path.write_text(recorded * link + path.read_text())
    _, _, changes = prepare(path)
    assert changes == ["removed NAG 1 of chain B, which was bonded to ND2 of ASN 2 of chain A"]


def test_two_copies_in_one_place_are_refused(write, peptide):
    modeller = peptide("AG")
    modeller.add(modeller.topology, modeller.positions)
    with pytest.raises(UnsupportedTopologyError, match="residue ALA 1 .* stand in one place.* there twice"):
        prepare(write(modeller))
    modeller = peptide("AGA", keep=is_heavy)
    path = write(modeller)
    second = [line for line in path.read_text().splitlines() if line[17:20] == "GLY"]
    text = path.read_text().replace(second[-1], "\n".join([second[-1], *second]).replace("GLY", "SER"))
    path.write_text(text.replace("SER", "GLY", 1))
    with pytest.raises(UnsupportedTopologyError, match="GLY 2 of chain A and residue SER 2 of chain A stand in one"):
        prepare(path)


def test_a_clashing_model_is_told_to_be_relaxed(write, facing):
    path = write(facing("SGS", (0, "OG"), (2, "OG"), 0.05, keep=is_heavy))
    with pytest.raises(UnsupportedTopologyError, match="OG of residue SER 1 .* relax it first"):
        prepare(path)


def test_a_clash_of_side_chains_is_left_to_minimisation(write, facing):
    modeller = facing("FGF", (0, "CZ"), (0, "CZ"), 0.14)
    topology, *_ = prepare(write(modeller))
    assert topology.getNumAtoms() == modeller.topology.getNumAtoms()


def test_a_bond_that_no_record_names_is_refused(write, facing):
    path = write(facing("GGGGG", (0, "N"), (4, "OXT"), 0.13, keep=is_heavy))  # stands for the C of a ring
    with pytest.raises(UnsupportedTopologyError, match="N of residue GLY 1 .* OXT of residue GLY 5 .* 0.13 nm apart"):
        prepare(path)


@pytest.mark.parametrize("record", ["LINK", "CONECT", "_struct_conn"])
def test_a_cross_link_is_looked_at_before_its_residues_are_replaced(write, peptide, record):
    """Two norleucines that are stapled do not become two free leucines."""
    modeller = peptide("AMAAAMA", keep=is_heavy)
    atoms = {(atom.residue.index, atom.name): atom.index for atom in modeller.topology.atoms()}
    x = modeller.positions.value_in_unit(unit.nanometer)
    x[atoms[5, "CE"]] = x[atoms[1, "CE"]] + openmm.Vec3(0.15, 0, 0)
    modeller.positions = x * unit.nanometer
    path = write(modeller, "x.cif" if record == "_struct_conn" else "x.pdb")
    text = path.read_text().replace("MET", "NLE")
    if record == "LINK":
        text = "LINK         CE  NLE A   2                 CE  NLE A   6     1555   1555  1.50\n" + text
    elif record == "CONECT":
        text = text.replace("END\n", f"CONECT{atoms[1, 'CE'] + 1:>5}{atoms[5, 'CE'] + 1:>5}\nEND\n")
    else:
        names = ["id", "conn_type_id"]
        for k in "12":
            names += [f"ptnr{k}_{name}" for name in ("auth_asym_id", "auth_seq_id", "label_atom_id", "symmetry")]
        text += "loop_\n" + "\n".join(f"_struct_conn.{name}" for name in names)
        text += "\nlink1 covale A 2 CE 1_555 A 6 CE 1_555\n#\n"
    path.write_text(text)
    with pytest.raises(UnsupportedTopologyError, match=f"{record} bonds CE of residue NLE 2 .* to CE of residue NLE 6"):
        prepare(path)


def test_a_trace_of_ca_atoms_is_refused_at_once(write, peptide, monkeypatch):
    monkeypatch.setattr(PDBFixer, "addMissingAtoms", lambda *_: pytest.fail("built"))
    with pytest.raises(
        UnsupportedTopologyError, match="backbone atoms .* missing in residue ALA 1 of chain A, .* and 17 more"
    ):
        prepare(write(peptide("AGKL" * 5, keep=lambda atom: atom.name == "CA")))


def test_a_d_residue_of_the_file_is_refused(write, peptide):
    modeller = peptide("AKA", keep=is_heavy)
    modeller.positions = [openmm.Vec3(-x, y, z) for x, y, z in modeller.positions._value] * unit.nanometer
    with pytest.raises(UnsupportedTopologyError, match="CA of residue ALA 1 of chain A has the D configuration"):
        prepare(write(modeller))
    modeller = peptide("GSG", keep=is_heavy)
    modeller.positions = [openmm.Vec3(-x, y, z) for x, y, z in modeller.positions._value] * unit.nanometer
    path = write(modeller)
    path.write_text(path.read_text().replace("SER", "SEP"))
    with pytest.raises(UnsupportedTopologyError, match=r"SER 2 of chain A \(SEP 2 of chain A in the file\) has the D"):
        prepare(path)


@pytest.fixture
def mirrored_side_chain(peptide):
    """A peptide whose second residue is mirrored beyond CB, in a plane through CA and CB."""

    def mirrored_side_chain(sequence, **keep):
        modeller = peptide(sequence, **keep)
        x = np.array(modeller.positions._value)
        residue = list(modeller.topology.residues())[1]
        at = {atom.name: atom.index for atom in residue.atoms()}
        n, ca, cb = (x[at[name]] for name in ("N", "CA", "CB"))
        normal = np.cross(n - ca, cb - ca)
        normal /= np.linalg.norm(normal)
        beyond = [i for name, i in at.items() if name not in ("N", "H", "CA", "HA", "CB", "C", "O")]
        x[beyond] -= 2 * np.outer((x[beyond] - cb) @ normal, normal)
        modeller.positions = x * unit.nanometer
        return modeller

    return mirrored_side_chain


@pytest.mark.parametrize("hydrogens", [True, False])
@pytest.mark.parametrize("sequence, beyond", [("AIA", {"CG1", "CG2", "CD1"}), ("ATA", {"OG1", "CG2"})])
def test_a_side_chain_whose_cb_is_mirrored_is_built_anew(write, mirrored_side_chain, sequence, beyond, hydrogens):
    modeller = mirrored_side_chain(sequence, keep=lambda atom: hydrogens or is_heavy(atom))
    places = zip(modeller.topology.atoms(), modeller.positions._value, strict=True)
    before = {(atom.residue.index, atom.name): place for atom, place in places}
    topology, positions, changes = prepare(write(modeller))
    three = {"I": "ILE", "T": "THR"}[sequence[1]]
    assert f"took away what lies beyond CB of {three} 2 of chain A, where CB is the mirror image of nature's" in changes
    (built,) = (change for change in changes if change.startswith("built"))
    assert set(built.removeprefix("built ").split(" of ")[0].split(", ")) == beyond
    centres = np.array(ProteinBondGraph(topology).chiral_centres())
    x = positions.value_in_unit(unit.nanometer)
    assert not left_handed(np.array(x)[None], centres).any()
    for atom, place in zip(topology.atoms(), x, strict=True):
        if is_heavy(atom) and atom.name not in beyond:
            assert np.allclose(place, before[atom.residue.index, atom.name], atol=1e-3)


def test_a_residue_that_the_file_calls_allo_threonine_is_no_threonine(write, mirrored_side_chain):
    path = write(mirrored_side_chain("ATA", keep=is_heavy))
    path.write_text(path.read_text().replace("THR", "ALO"))
    with pytest.raises(UnsupportedTopologyError, match=r"CB of .*THR 2.*\(ALO 2 .*configuration that nature does not"):
        prepare(path)


@pytest.mark.parametrize("suffix", [".pdb", ".cif"])
@pytest.mark.parametrize("name", ["DLY", "DCY"])
def test_the_name_of_a_d_residue_is_believed_where_its_side_chain_is_missing(write, peptide, name, suffix):
    """OpenMM's reader takes DCY for a nucleotide."""
    path = write(peptide("GAG", keep=lambda atom: is_heavy(atom) and atom.name != "CB"), f"x{suffix}")
    path.write_text(path.read_text().replace("ALA", name))
    with pytest.raises(UnsupportedTopologyError, match=f"{name} 2 of chain A has the D configuration by its name"):
        prepare(path)


@pytest.mark.parametrize("suffix", [".pdb", ".cif"])
def test_deuterium_is_taken_for_hydrogen(write, peptide, suffix):
    modeller = peptide("AKA")
    n_atoms, heavy = modeller.topology.getNumAtoms(), Element.getBySymbol("D")
    exchanged = [atom for atom in modeller.topology.atoms() if atom.name in ("H", "HZ1", "HZ2", "HZ3")]
    for atom in exchanged:
        atom.name, atom.element = atom.name.replace("H", "D", 1), heavy
    topology, _, changes = prepare(write(modeller, f"x{suffix}"))
    assert (topology.getNumAtoms(), changes) == (n_atoms, [f"took {len(exchanged)} deuterium atoms for hydrogen"])
    assert {atom.element.symbol for atom in topology.atoms()} == {"H", "C", "N", "O"}


def test_the_author_names_the_chains_of_an_mmcif_file(write, peptide):
    modeller = peptide("AGA", keep=is_heavy)
    other = peptide("AGA", keep=is_heavy)
    next(other.topology.chains()).id = "B"
    modeller.add(other.topology, [x + openmm.Vec3(5, 0, 0) for x in other.positions._value] * unit.nanometer)
    path = write(modeller, "x.cif")
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        if line.startswith("ATOM"):
            cells = line.split()
            cells[23] = {"A": "HA", "B": "L"}[cells[6]]
            lines[number] = " ".join(cells)
    path.write_text("\n".join(lines))
    topology, _, changes = prepare(path)
    assert [chain.id for chain in topology.chains()] == ["HA", "L"]
    assert not [change for change in changes if "chain A" in change]


def test_chain_names_of_two_letters_in_a_pdb_file_are_called_so(write, peptide):
    path = write(peptide("AG"))
    path.write_text(path.read_text().replace("ALA A", "ALAHA").replace("GLY A", "GLYHA"))
    with pytest.raises(UnsupportedTopologyError, match="chain name of one letter .* found 'HA' .* of ALA 1"):
        prepare(path)


def test_a_residue_that_no_template_matches_is_named(write, peptide):
    modeller = peptide("AGA", keep=is_heavy)
    path = write(modeller)
    path.write_text(path.read_text().replace("HETATM", "ATOM  ").replace(" O   GLY", " X9  GLY"))
    with pytest.raises(UnsupportedTopologyError, match="X9 of residue GLY 2 of chain A match no template"):
        prepare(path)


def test_why_no_template_matches_is_said(write, peptide):
    path = write(peptide("AGA"))
    lines = path.read_text().splitlines()
    one = next(line for line in lines if " HA2 GLY" in line)
    lines.insert(lines.index(one), one.replace("HA2", "HA9").replace(one[30:38], f"{float(one[30:38]) + 0.7:8.3f}"))
    path.write_text("\n".join(lines))
    with pytest.raises(UnsupportedTopologyError, match="GLY 2 of chain A match no template of ff14SB. The .* 1 H"):
        prepare(path)


def test_an_element_that_is_not_that_of_the_name_is_mended_and_said(write, peptide):
    """Some programs write CA into the columns of the element, which is calcium."""
    path = write(peptide("AGA", keep=is_heavy))
    lines = [line[:76] + "CA" + line[78:] if line[12:16] == " CA " else line for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines))
    topology, _, changes = prepare(path)
    assert "mended the element, Ca for C, of CA in ALA 1, GLY 2, ALA 3 of chain A" in changes
    assert {atom.element.symbol for atom in topology.atoms()} == set("CHNO")


@pytest.mark.parametrize("option", ["--relax", "--no-relax"])
def test_a_rollout_of_heavy_atoms_is_refused_and_leads_to_prepare(write, peptide, tmp_path, capsys, option):
    path = write(peptide("AKA", keep=is_heavy))
    assert cli.main(["rollout", str(path), "--nanoseconds", "1", option, "-o", str(tmp_path / "run")]) == 1
    assert "hydrogens are missing in residue ALA 1 of chain A and 2 more" in (error := capsys.readouterr().err)
    assert "starmd prepare" in error and not (tmp_path / "run").exists()


def test_the_command_writes_what_its_options_choose(write, peptide, tmp_path, capsys):
    path = write(peptide("ADA", keep=is_heavy))
    assert cli.main(["prepare", str(path), "--ph", "3", "-o", str(tmp_path / "out.cif")]) == 0
    assert "ASP 2 of chain A became ASH: pH 3" in capsys.readouterr().out
    assert "HD2" in {atom.name for atom in PDBxFile(str(tmp_path / "out.cif")).topology.atoms()}
