"""The notebooks of ``examples/`` run from the first cell to the last, with smaller numbers in their parameters."""

import re
from pathlib import Path

import pytest
from openmm.app import PDBFile

from openmm_starmd.systems import build_peptide

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
for library in ("ipykernel", "deeptime", "sklearn"):
    pytest.importorskip(library)

FOLDER = Path(__file__).resolve().parents[1] / "examples"
SMALL = {
    "small_protein": {
        "STRUCTURE": '"peptide.pdb"',
        "MODEL": '"elastic"',
        "STRIDE": 1,
        "JUMPS": 40,
        "MD_PICOSECONDS": 40,
        "FRAME": 0.5,
    },
    "explore_and_refine": {"JUMPS": 6, "STARTS": 2, "PICOSECONDS": 2},
    "free_energy_surface": {"JUMPS": 6, "MD_NANOSECONDS": 0.02, "METADYNAMICS_NANOSECONDS": 0.02},
}


def test_every_notebook_is_run():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_stored_outputs_are_of_one_execution_and_name_no_folder(name):
    """A code host shows them as they are."""
    cells = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells
    cells = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    shown = [str(output.get("text", "")) + output.get("data", {}).get("text/plain", "") for output in outputs]
    assert not re.search(r"(^|[\s'\"(])/\w+/\w+|site-packages|Traceback", "\n".join(shown))
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 500_000


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.slow
def test_notebook_runs(name, tmp_path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # pictures of a notebook are its own
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    for variable, value in SMALL[name].items():
        pattern = re.compile(rf"^{variable} = .*$", re.MULTILINE)
        parameters.source, found = pattern.subn(f"{variable} = {value}", parameters.source)
        assert found == 1, variable
    with open(tmp_path / "peptide.pdb", "w") as file:
        PDBFile.writeFile(*build_peptide("ASGA", seed=1), file)
    done = nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures = [
        output for cell in done.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert pictures
