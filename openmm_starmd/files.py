"""Files that appear whole or not at all, readable by whom the umask lets read."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from openmm_starmd.errors import StarMDError


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Temporary path beside ``path``; the file under it takes the place of ``path`` when the block has succeeded.

    A kill at any moment leaves ``path`` as it was. An exception inside the block does, too, and removes the temporary
    file.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def check_output_folder(path: str | os.PathLike) -> Path:
    """Path of a folder for results; a StarMDError says why there can be none. The folder is not made yet."""
    path = Path(path)
    there = next(place for place in (path, *path.parents) if place.exists())
    _check_writable(there, f"The output {path} cannot be made")
    return path


def check_output_file(path: str | os.PathLike) -> Path:
    """Path of a file for results; a StarMDError says why there can be none. The file is not made yet."""
    path = Path(path)
    refusal = f"The output {path} cannot be written"
    if path.is_dir():
        raise StarMDError(f"The output {path} must be a file, but it is a folder; name a file in it.")
    if not path.parent.exists():
        raise StarMDError(f"{refusal}: there is no folder {path.parent}; make it, or name another output (-o).")
    _check_writable(path.parent, refusal)
    return path


def _check_writable(folder: Path, refusal: str) -> None:
    if not folder.is_dir():
        raise StarMDError(f"{refusal}: {folder} is a file and no folder; name another output (-o).")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StarMDError(f"{refusal}: there is no permission to write in {folder}; name another output (-o).")


def write_json(content, path: str | os.PathLike) -> None:
    """Write what JSON can hold, with null in place of numbers that are not finite, by `replacing`."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(_finite(content), indent=1) + "\n", encoding="utf-8")


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_rows(path: str | os.PathLike) -> list[dict[str, np.ndarray]]:
    """Rows of a table in an ``.npz`` file: arrays of one name lie one behind the other, ``NAME.lengths`` parts them."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    columns = {}
    for name, array in arrays.items():
        if f"{name}.lengths" in arrays:
            columns[name] = np.split(array, arrays[f"{name}.lengths"].cumsum()[:-1])
        elif not name.endswith(".lengths"):
            columns[name] = list(array)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def save_tensors(tensors: dict, path: str | os.PathLike, metadata: dict[str, str]) -> None:
    """Write a safetensors file by `replacing`.

    An OSError or SafetensorError says that the file cannot be written; what was there before stays.
    """
    from safetensors.torch import save_file  # which loads torch

    with replacing(path) as partial:
        partial.touch()  # safetensors makes files for the owner alone: the mode is that of any other new file
        mode = partial.stat().st_mode
        save_file(tensors, str(partial), metadata)
        os.chmod(partial, mode)
