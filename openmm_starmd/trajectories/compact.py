"""Trajectories in 16 bits a number, as the recipes of the embedded models keep them.

A folder holds ``length_N.npy``, int16 (frames, N, 13), the conformations of all molecules of N residues, one trajectory
behind the other, and ``index.npz``, which says where each begins. The 13 numbers of a residue are `packed.pack`'s:
translations from the centre of all CA in units of 1e-4 nm, all others in units of pi / 32767.
"""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from openmm_starmd.errors import StarMDError
from openmm_starmd.files import read_rows
from openmm_starmd.protein.tokens import ResidueFeatures
from openmm_starmd.trajectories.packed import NUMBERS, StoredConformations

INDEX = "index.npz"
UNITS = np.full(NUMBERS, np.pi / 32767)
UNITS[:3] = 1e-4  # nm


def rows(index: Path) -> list[dict[str, np.ndarray]]:
    """Rows of an index, one a molecule: name, sequence, features, interval (ps), replicas, frames and place."""
    try:
        return _rows(index, index.stat().st_mtime_ns)
    except (OSError, ValueError, KeyError) as error:
        raise StarMDError(f"{index} is no index of packed trajectories ({error}); pack them again.") from error


@lru_cache(maxsize=16)
def _rows(index: Path, _modified: int) -> list[dict[str, np.ndarray]]:
    return read_rows(index)


def load(index: Path, place: str) -> tuple[str, ResidueFeatures, float, StoredConformations]:
    """Sequence, features, interval (ps) and conformations of the trajectory at ``"row/replica"``."""
    number, replica = map(int, place.split("/"))
    row = rows(index)[number]
    features = {f.name: torch.from_numpy(row[f.name]) for f in fields(ResidueFeatures) if f.name in row}
    count, length = int(row["frames"]), len(row["residue_type"])
    first = int(row["first"]) + replica * count
    path = index.with_name(f"length_{length}.npy")
    try:
        numbers = np.load(path, mmap_mode="r")[first : first + count]
    except (OSError, ValueError) as error:
        raise StarMDError(f"{path}, which {index} names, cannot be read ({error}); pack it again.") from error
    if len(numbers) < count:
        raise StarMDError(f"{path} ends before the trajectories that {index} names; pack them again.")
    stored = StoredConformations((numbers * UNITS).astype(np.float32), (count, length))
    return str(row["sequence"]), ResidueFeatures(**features), float(row["interval"]), stored
