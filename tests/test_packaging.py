"""What is built and installed runs outside the checkout, with nothing but its own requirements."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import openmm_starmd

ROOT = Path(__file__).resolve().parents[1]
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"

pytestmark = pytest.mark.packaging


def build(source, kind, output):
    """File that setuptools makes of a source tree; ``kind`` is ``"sdist"`` or ``"wheel"``."""
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(output)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=True)
    return output / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The sdist, built from a copy so that the build leaves nothing in the checkout."""
    folder = tmp_path_factory.mktemp("sdist")
    checkout = folder / "checkout"
    shutil.copytree(ROOT / "openmm_starmd", checkout / "openmm_starmd", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    return build(checkout, "sdist", folder)


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """The wheel that is built from the unpacked sdist."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data") if sys.version_info >= (3, 12) else archive.extractall(folder)
    (unpacked,) = [path for path in folder.iterdir() if path.is_dir()]
    return build(unpacked, "wheel", folder)


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """Folder of an environment that holds the wheel and what it requires; torch in the version that is here."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    constraints = folder / "constraints.txt"
    constraints.write_text(f"torch=={importlib.metadata.version('torch').partition('+')[0]}\n")
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--constraint", constraints, wheel], check=True)
    return folder


def run(environment, *command, cwd):
    """Run a program of the environment in another folder than the checkout."""
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(environment / "bin" / command[0]), *map(str, command[1:])]
    return subprocess.run(command, cwd=cwd, env=settings | {"MPLBACKEND": "Agg"}, capture_output=True, text=True)


def test_the_wheel_of_the_sdist_holds_every_file_of_the_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [path for path in (ROOT / "openmm_starmd").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {path.relative_to(ROOT).as_posix() for path in files} <= names
    assert {name.split("/")[0] for name in names} == {
        "openmm_starmd",
        f"openmm_starmd-{openmm_starmd.__version__}.dist-info",
    }


def test_the_main_example_runs_in_a_bare_environment(environment, tmp_path):
    example = (ROOT / "examples" / "simulate_protein.py").read_text(encoding="utf-8")
    assert "jumps, md_steps = 40, 500" in example
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "example.py").write_text(example.replace("= 40, 500", "= 3, 20"))
    shutil.copytree(ROOT / "benchmarks" / "validation", tmp_path / "benchmarks" / "validation")
    done = run(environment, "python", "examples/example.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Loading") and "times" in done.stdout.splitlines()[-2]
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        "trajectory.xtc",
        "topology.pdb",
        "villin.png",
    }
    script = "import openmm_starmd; print(openmm_starmd.__file__, openmm_starmd.__version__)"
    place, version = run(environment, "python", "-c", script, cwd=tmp_path).stdout.split()
    assert Path(place).is_relative_to(environment) and version == openmm_starmd.__version__


def test_the_command_without_its_extra_says_what_to_install(environment, tmp_path):
    done = run(environment, "starmd", "--version", cwd=tmp_path)
    assert done.returncode == 1 and 'pip install "openmm-starmd[cli,analysis]"' in done.stderr
