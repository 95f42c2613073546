"""Packaging of openmm-starmd; the build system and the settings of ruff and pytest stand in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

EXTRAS = {
    "openmm-torch": ["openmmtorch"],
    "train": ["lightning-fabric>=2.2", "h5py", "rich", "tables", "tensorboard", "tomli; python_version < '3.11'"],
    "analysis": ["deeptime>=0.4.4", "jinja2>=3", "scikit-learn"],
    "cli": ["typer", "rich"],
    "cluster": ["distributed", "dask-jobqueue"],
    "docs": ["sphinx", "myst-nb", "numpydoc", "pydata-sphinx-theme"],
}
# openmmtorch is a choice of its own: it does not import beside a CPU build of torch (docs/guide/integrator.md).
EXTRAS["test"] = ["pytest", "pytest-xdist", "ruff", "distributed", "nbclient", "ipykernel"]
EXTRAS["test"] += [name for extra in ("train", "analysis", "cli") for name in EXTRAS[extra]]
EXTRAS["all"] = sorted({name for extra, names in EXTRAS.items() if extra != "openmm-torch" for name in names})

ROOT = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "openmm_starmd" / "__init__.py").read_text(encoding="utf-8"), re.M
)[1]

setup(
    name="openmm-starmd",
    version=VERSION,
    description="A learned integrator for OpenMM: autoregressive SE(3) diffusion instead of femtosecond steps",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="openmm-starmd developers",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["openmm_starmd", "openmm_starmd.*"]),
    package_data={
        "openmm_starmd": ["py.typed", "models/*.safetensors", "models/*.md", "models/*.json"],
        "openmm_starmd.evaluation.report": ["*.html", "*.css", "*.js"],
    },
    entry_points={"console_scripts": ["starmd = openmm_starmd.cli:main"]},
    install_requires=[
        "openmm>=8.5",
        "torch>=2.13,<2.14",  # what .ci/run tests; diffusion/tape.py rests on how operators are dispatched
        "numpy",
        "mdtraj",
        "filelock",
        "pdbfixer",
        "roma",
        "safetensors",
        "scipy",
        "matplotlib",  # the example of the README draws its Ramachandran map after a bare `pip install .`
    ],
    extras_require=EXTRAS,
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3 :: Only",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
        "Topic :: Scientific/Engineering :: Chemistry",
    ],
)
