"""Execute notebooks of ``examples/`` and store their outputs, which visitors of the repository and of the site see.

``python docs/execute_notebooks.py`` takes all of them, ``python docs/execute_notebooks.py NAME ...`` some; ten minutes
of one core in all. What the notebooks write goes to a temporary folder.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def execute(path):
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, resources=resources, record_timing=False).execute()
    notebook.metadata["language_info"] = {"name": "python"}  # not the version of this machine
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(path.stem for path in EXAMPLES.glob("*.ipynb")):
        print(name, flush=True)
        execute(EXAMPLES / f"{name}.ipynb")
