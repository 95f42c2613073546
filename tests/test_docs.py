"""README and docs: pages run from top to bottom, links lead somewhere, no public name or command is missing.

The Python blocks and `starmd` commands of a page run one after another, with less to do, in a folder that holds
peptide.pdb, start.pdb, 1abc.pdb and config.toml, and MD of the peptide beside what another tool made of it.
"""

import glob
import re
import shlex
import shutil
import sys
from importlib import import_module
from pathlib import Path

import mdtraj
import numpy as np
import pytest
import torch
from mdtraj.formats import XTCTrajectoryFile
from openmm import LangevinMiddleIntegrator
from openmm.app import PDBFile, Simulation

from openmm_starmd.model import embedded_domains
from openmm_starmd.systems import peptide_system

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("docs/guide/*.md"))]
PUBLIC = ("", ".systems", ".trajectories", ".training", ".evaluation", ".refinement")
FULL = re.DOTALL | re.MULTILINE
CLUSTER = "--scheduler"  # needs one
LESS = {
    r"--nanoseconds \S+": "--nanoseconds 0.12",
    r"--replicas \d+": "--replicas 2",
    r"--frame-interval \d+": "--frame-interval 2",
    r"(starmd rollout (?!.*--stride).*)": r"\1 --stride 10",
    r"--stride \d+": "--stride 10",
    r"(starmd refine .*)--nanoseconds \S+": r"\1--nanoseconds 0.01 --starts 2 --frame-interval 0.2",
}


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), FULL)


def of_bash(code):
    return [line.partition("  #")[0].strip() for line in code.splitlines() if line.startswith("starmd ")]


def commands(page):
    return of_bash("".join(blocks(page, "bash")))


def parts(page):
    """Language and code of what runs; a command of the README that a page of the docs runs stays out."""
    elsewhere = {command for other in PAGES[1:] for command in commands(other)} if page == PAGES[0] else ()
    found = []
    for language, code in re.findall(r"^```(python|bash)\n(.*?)^```", page.read_text(encoding="utf-8"), FULL):
        if language == "python":
            found.append((language, code))
        else:
            runs = [command for command in of_bash(code) if CLUSTER not in command and command not in elsewhere]
            found += [(language, command) for command in runs]
    return found


def makes_trajectories(page):
    """True for the README, whose molecule is a protein, and for pages whose commands simulate."""
    return page == PAGES[0] or any(re.match("starmd (rollout|simulate)", command) for command in commands(page))


def takes_long(page):
    """True for pages that simulate, and for the guide; the tests of each subject hold their laws."""
    return makes_trajectories(page) or page.parent.name == "guide"


def named(pages, slow=lambda page: False):
    marks = {True: [pytest.mark.slow], False: []}
    return [pytest.param(page, id=page.relative_to(ROOT).as_posix(), marks=marks[slow(page)]) for page in pages]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folder with the files that pages read, made once; the peptide is minimised, so that pages minimise in no time."""
    folder = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (peptide,) = blocks(ROOT / "docs" / "guide" / "index.md", "python")
        exec(compile(peptide, "docs/guide/index.md", "exec"), {"__name__": "__main__"})  # peptide.pdb
        pdb = PDBFile("peptide.pdb")
        simulation = Simulation(pdb.topology, peptide_system(pdb.topology), LangevinMiddleIntegrator(300, 1, 0.004))
        simulation.context.setPositions(pdb.positions)
        simulation.minimizeEnergy()
        with open("peptide.pdb", "w") as file:
            PDBFile.writeFile(pdb.topology, simulation.context.getState(positions=True).getPositions(), file)
        for name in ("start.pdb", "1abc.pdb", "md.pdb"):
            shutil.copy("peptide.pdb", name)
        md = mdtraj.load("md.pdb")
        noise = np.random.default_rng(1).normal(0, 0.01, (60, md.n_atoms, 3))
        md = mdtraj.Trajectory(md.xyz + noise, md.topology, 10 * np.arange(1, 61))
        md.save_xtc("md.xtc")
        torch.save(torch.from_numpy(md.xyz[None, :, md.topology.select("name CA")]), "generated_coords.pt")
        (settings,) = blocks(ROOT / "docs" / "guide" / "training.md", "toml")
        Path("config.toml").write_text(settings)
    return folder


@pytest.fixture
def folder(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("page", named((page for page in PAGES if parts(page)), slow=takes_long))
def test_page_runs(page, folder, monkeypatch, capsys):
    if commands(page):
        for library in ("typer", "lightning_fabric", "deeptime"):
            pytest.importorskip(library)
        import_module("openmm_starmd.training.simulate")
        monkeypatch.setattr(sys.modules["openmm_starmd.training.simulate"], "EQUILIBRATION_STEPS", 100)
    for language, code in parts(page):
        if language == "python":
            exec(compile(code, f"{page.name}, Python", "exec"), {"__name__": "__main__"})
        else:
            run_command(code, capsys)
    if '"trajectory.xtc"' in page.read_text(encoding="utf-8"):
        with XTCTrajectoryFile("trajectory.xtc") as file:
            assert len(file) == 10


def run_command(command, capsys):
    """Run a `starmd` command with less to do."""
    from openmm_starmd import cli

    for long, short in LESS.items():
        command = re.sub(long, short, command)
    words = [word for pattern in shlex.split(command) for word in sorted(glob.glob(pattern)) or [pattern]]
    assert cli.main(words[1:]) == 0, (command, capsys.readouterr().err)


@pytest.mark.parametrize("page", named(PAGES))
def test_every_block_is_of_a_kind_that_is_run(page):
    """Settings have a test of their own, directives are Sphinx's, and pip's commands are those of test_packaging."""
    for language, code in re.findall(r"^```(\S*)\n(.*?)^```", page.read_text(encoding="utf-8"), FULL):
        assert language in ("python", "bash", "toml", "text") or language.startswith("{"), language
        if language == "bash":
            assert all(line.startswith(("starmd ", "pip install ", "python examples/")) for line in code.splitlines())


@pytest.mark.parametrize("page", named(page for page in PAGES if commands(page)))
def test_options_of_commands_exist(page, capsys):
    pytest.importorskip("typer")
    from openmm_starmd import cli

    for command in commands(page):
        name, *words = shlex.split(command)[1:]
        assert cli.main([name, "--help"]) == 0
        known = capsys.readouterr().out
        for option in (word for word in words if word.startswith("-")):
            assert f" {option} " in known, f"{page.name}: {command}: {option}"


def links(page):
    """Paths that a page links to."""
    found = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    found = [link.partition("#")[0] for link in found if "://" not in link]
    return [page.parent / link for link in found if link]


@pytest.mark.parametrize("first", ["README.md", "docs/index.md"])
def test_every_page_is_two_clicks_away(first):
    seen = reached = {ROOT / first}
    for _ in range(2):
        reached = {link.resolve() for page in reached if page.suffix == ".md" for link in links(page)}
        seen |= reached
    assert not set(PAGES[1:]) - seen - {ROOT / "docs" / "index.md"}


@pytest.mark.parametrize("page", named(PAGES))
def test_links_and_scripts_exist(page):
    text, paths = page.read_text(encoding="utf-8"), links(page)
    paths += [ROOT / script for script in re.findall(r"(?:examples|benchmarks|recipes)/[\w/-]+\.(?:py|toml)", text)]
    assert not [str(path) for path in paths if not path.exists()]


@pytest.mark.parametrize("room", PUBLIC)
def test_every_public_name_is_in_the_reference(room):
    reference = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    sections = re.findall(r"currentmodule:: (\S+)\n(.*?)```", reference, re.DOTALL)
    listed = [name for module, body in sections if module == f"openmm_starmd{room}" for name in body.split()]
    missing = set(import_module(f"openmm_starmd{room}").__all__) - set(listed)
    assert not missing, f"docs/api.md lacks {sorted(missing)}"


def test_every_command_is_in_the_docs():
    pytest.importorskip("typer")
    from openmm_starmd import cli

    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    names = [command.name or command.callback.__name__ for command in cli.app.registered_commands]
    assert names and not [name for name in names if f"`starmd {name}`" not in page]


def test_the_strides_that_the_pages_promise_are_those_of_the_models():
    """Every length takes 10 to 100 ps, tetrapeptides alone take 1 ns."""
    domains = embedded_domains().values()
    longest = {n: max(d.longest_stride(n) for d in domains if d.min_length <= n <= d.max_length) for n in range(1, 81)}
    assert min(longest.values()) >= 100 and {d.min_stride for d in domains} == {10}
    assert [n for n, stride in longest.items() if stride >= 1000] == [4] and longest[4] == 1000
    for page in (ROOT / name for name in ("README.md", "CITATION.cff", "docs/index.md", "docs/glossary.md")):
        text = " ".join(page.read_text(encoding="utf-8").split())
        assert re.search(r"10 to 100 ps[^.]*1 ns", text) and "10 ps to 1 ns" not in text, page.name


def test_the_readme_shows_the_changed_line():
    assert any("StarMDIntegrator(topology, 300 * kelvin" in code for code in blocks(ROOT / "README.md", "python"))
