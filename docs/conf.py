"""Settings of the documentation: ``sphinx-build -W -b html docs docs/_build`` makes the site, without a network.

Tables, notes, examples and cards are part of the site where they lie in the repository: ``FOLDERS`` are copied beside
this file, and links that leave ``docs/`` (right for a reader of the repository) are turned to the copies.
"""

import re
import shutil
from pathlib import Path

from openmm_starmd import __version__

HERE = Path(__file__).resolve().parent
FOLDERS = {"benchmarks": "benchmarks", "recipes": "recipes", "examples": "examples", "openmm_starmd/models": "cards"}
COPIED = {".md", ".png", ".ipynb", ".py", ".toml", ".html"}
LEAVING = re.compile(r"\]\((?:\.\./)+(" + "|".join(FOLDERS) + ")/")

project = "openmm-starmd"
author = copyright = "openmm-starmd developers"
version = release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc"]
exclude_patterns = ["_build"]
suppress_warnings = ["myst.header"]  # pages of the repository that begin below the first level

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # tests/test_notebooks.py runs them

autosummary_generate = ["api.md"]
autodoc_typehints = "none"  # the tables of the docstrings tell
autodoc_member_order = "bysource"
autoclass_content = "both"  # OpenMM's habit: what a class is stands above, its arguments in __init__
numpydoc_show_class_members = False  # the templates list them
templates_path = ["_templates"]

html_theme = "pydata_sphinx_theme"
html_title = "openmm-starmd"
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False}


def _others(folder, names):
    """Files of a folder that the site does not show."""
    return [name for name in names if (Path(folder) / name).is_file() and Path(name).suffix not in COPIED]


def _copy_folders(app):
    for folder, copy in FOLDERS.items():
        shutil.rmtree(HERE / copy, ignore_errors=True)
        shutil.copytree(HERE.parent / folder, HERE / copy, ignore=_others)


def _turn_links(app, page, text):
    text[0] = LEAVING.sub(lambda found: f"](/{FOLDERS[found[1]]}/", text[0])


def setup(app):
    app.connect("builder-inited", _copy_folders, priority=0)
    app.connect("source-read", _turn_links)
