"""What the package promises before it does anything: names, one version, little to load."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import openmm_starmd

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "openmm", "mdtraj", "numpy", "scipy"}


def loaded_after(code):
    """Heavy libraries that a fresh interpreter has loaded after ``code``."""
    script = f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return HEAVY & set(done.stderr.split())


@pytest.mark.parametrize(
    "code",
    [
        "import openmm_starmd; openmm_starmd.__version__",
        "from openmm_starmd import StarMDError",
        "from openmm_starmd import cli; cli.main(['--help']); cli.main(['rollout', '--help'])",
    ],
)
def test_names_and_help_load_no_heavy_library(code):
    pytest.importorskip("typer")
    assert loaded_after(code) == set()


def test_every_public_name_is_there_and_known_to_type_checkers():
    tree = ast.parse((ROOT / "openmm_starmd" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    static = {alias.name: node.module for node in block.body for alias in node.names}
    assert sorted(static) == openmm_starmd.__all__
    for name, module in static.items():
        assert getattr(openmm_starmd, name) is getattr(importlib.import_module(module), name)
    assert set(openmm_starmd.__all__) <= set(dir(openmm_starmd))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = openmm_starmd.no_such_name


@pytest.mark.slow
def test_what_the_example_needs_comes_with_a_bare_installation():
    """Libraries of extras are imported where they are needed only, and `rollout` is the function, not the package."""
    extras = "deeptime jinja2 sklearn typer rich lightning_fabric h5py tables tensorboard distributed".split()
    example = (ROOT / "examples" / "simulate_protein.py").read_text(encoding="utf-8")
    imports = [line for line in example.splitlines() if line.startswith(("import", "from"))]
    code = [f"import sys; sys.modules.update(dict.fromkeys({extras}))", "import openmm_starmd.rollout.run", *imports]
    assert loaded_after("\n".join([*code, "from openmm_starmd import rollout; assert callable(rollout)"])) >= {"torch"}


def test_there_is_one_version_number(capsys):
    pytest.importorskip("typer")
    from openmm_starmd import cli

    assert cli.main(["--version"]) == 0
    told = f"starmd {openmm_starmd.__version__}\n"
    assert capsys.readouterr().out == told
    module = [sys.executable, "-m", "openmm_starmd", "--version"]
    assert subprocess.run(module, capture_output=True, text=True, cwd=ROOT).stdout == told
    version = re.compile(r"^ *version: *[\"']?([\w.]+)[\"']? *$", re.MULTILINE)
    for name in ("CITATION.cff", "conda/recipe.yaml"):
        assert version.findall((ROOT / name).read_text(encoding="utf-8")) == [openmm_starmd.__version__], name


def test_the_command_offers_the_relaxation_that_the_library_has_by_default():
    typer = pytest.importorskip("typer")
    from openmm_starmd import Relaxation, cli

    command = typer.main.get_command(cli.app).commands["rollout"]
    assert next(p for p in command.params if p.name == "dynamics_steps").default == Relaxation().dynamicsSteps


def test_the_pytorch_that_is_required_is_the_one_that_is_tested():
    """Recordings rest on how PyTorch dispatches operators, which may change with every minor version."""
    major, minor = re.search(r"torch==(\d+)\.(\d+)", (ROOT / ".ci" / "run").read_text(encoding="utf-8")).groups()
    wanted = f">={major}.{minor},<{major}.{int(minor) + 1}"
    assert f'"torch{wanted}"' in (ROOT / "setup.py").read_text(encoding="utf-8")
    assert f"pytorch {wanted}\n" in (ROOT / "conda" / "recipe.yaml").read_text(encoding="utf-8")
