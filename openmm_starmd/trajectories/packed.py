"""Conformations on disk, of which only the frames that are asked for are read.

A frame takes 13 single-precision numbers a residue: translation (nm), rotation vector (rad), six torsions and the
N-CA-C angle (rad). They stand in one file without a header; what else is known of the trajectory stands in a JSON file
beside it, which is written last. The file is opened for each access anew, so that open files do not pile up; and read,
not mapped: mapping brings in many pages around each of a few scattered frames.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from openmm_starmd.files import replacing
from openmm_starmd.geometry.rigid import Rigid, exponential, logarithm
from openmm_starmd.protein.conformation import Conformation

_WIDTHS = (3, 3, 6, 1)
NUMBERS = sum(_WIDTHS)
"""Numbers a residue."""
SUFFIX = ".f32"
"""Of the files of frames."""


def pack(conformations: Conformation) -> np.ndarray:
    """Conformations (*, N) as single-precision numbers (*, N, 13)."""
    parts = [conformations.frames.translations, logarithm(conformations.frames.rotations)]
    parts += [conformations.torsions, conformations.angles[..., None]]
    return torch.cat(parts, -1).numpy().astype(np.float32)


def unpack(numbers: np.ndarray) -> Conformation:
    """Inverse of `pack`, float32."""
    translations, rotvec, torsions, angles = torch.from_numpy(numbers).split(_WIDTHS, -1)
    return Conformation(Rigid(exponential(rotvec.double()).float(), translations), torsions, angles[..., 0])


class StoredConformations:
    """Conformations of a shape (T, N) on disk or in memory; ``stored[index]`` reads the frames of the index alone.

    The numbers are those of `pack`, (T, N, 13), in a file or an array.
    """

    def __init__(self, numbers: Path | np.ndarray, shape: tuple[int, int]):
        self._numbers, self.shape = numbers, torch.Size(shape)

    def __getitem__(self, index: int | slice | Tensor) -> Conformation:
        return unpack(self.numbers(index))

    def numbers(self, index: int | slice | Tensor) -> np.ndarray:
        """Numbers (T, N, 13) for `unpack`, of the frames of an index."""
        index = index.numpy() if isinstance(index, Tensor) else index
        if not isinstance(self._numbers, Path):
            return self._numbers[index].copy()
        if isinstance(index, slice):
            return np.fromfile(self._numbers, np.float32).reshape(*self.shape, NUMBERS)[index]
        frames = np.arange(self.shape[0])[index]
        numbers = np.empty((*frames.shape, self.shape[1], NUMBERS), np.float32)
        with open(self._numbers, "rb", buffering=0) as file:
            for row, frame in zip(numbers.reshape(-1, *numbers.shape[-2:]), frames.reshape(-1).tolist(), strict=True):
                file.seek(frame * row.nbytes)
                file.readinto(row)
        return numbers


class Writer:
    """Writes one trajectory under temporary names; a kill at any moment leaves it whole or not there.

    ``path`` is the name of both files without suffix.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._length = path, 0
        self._partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
        self._file = open(self._partial, "wb")  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def append(self, numbers: np.ndarray) -> None:
        """Add frames (T, N, 13)."""
        numbers.tofile(self._file)
        self._length += len(numbers)

    def finish(self, facts: dict) -> None:
        """Give the files their names; ``facts`` is what JSON can hold."""
        self._file.close()
        _json(self._path).unlink(missing_ok=True)
        os.replace(self._partial, _frames(self._path))
        with replacing(_json(self._path)) as partial:
            partial.write_text(json.dumps(facts | {"frames": self._length}), encoding="utf-8")


def read(path: Path, source, n_residues_of) -> tuple[dict, StoredConformations] | None:
    """Facts and conformations under ``path``; None where there are none, they are torn or made from another source.

    ``path`` is that of `Writer`; ``source`` is what ``facts["source"]`` has to equal, None for any; ``n_residues_of``
    finds the number of residues in the facts.
    """
    try:
        facts = json.loads(_json(path).read_text(encoding="utf-8"))
        if source is not None and facts["source"] != source:
            return None
        shape = facts["frames"], n_residues_of(facts)
        if _frames(path).stat().st_size != 4 * NUMBERS * shape[0] * shape[1]:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return facts, StoredConformations(_frames(path), shape)


def _json(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _frames(path: Path) -> Path:
    return path.with_name(f"{path.name}{SUFFIX}")
