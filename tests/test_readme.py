"""The README's Python blocks run as they stand, in order, in an empty folder that holds peptide.pdb and config.toml."""

import re
from pathlib import Path

import pytest
from openmm.app import PDBFile

from openmm_starmd.systems import build_peptide

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
(TOML,) = re.findall(r"^```toml\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_readme_shows_the_changed_line():
    assert any("StarMDIntegrator(pdb.topology" in block for block in BLOCKS)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block_runs(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open("peptide.pdb", "w") as file:
        PDBFile.writeFile(*build_peptide("DWGR", seed=1), file)
    Path("config.toml").write_text(TOML)
    exec(compile(BLOCKS[number], f"README.md, Python block {number + 1}", "exec"), {"__name__": "__main__"})
    if "trajectory.xtc" in BLOCKS[number]:
        mdtraj = pytest.importorskip("mdtraj")
        assert mdtraj.load("trajectory.xtc", top="peptide.pdb").n_frames == 10


def test_pictures_and_scripts_that_the_readme_names_exist():
    named = re.findall(r"\((examples/[^)]+)\)", README) + re.findall(r"(?:examples|benchmarks)/\w+\.py", README)
    assert named
    for path in named:
        assert (ROOT / path).is_file(), f"README.md names {path}"
