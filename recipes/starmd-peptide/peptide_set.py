"""Many peptides and domains in one .npz: each is a dict of arrays; arrays of one name lie one behind the other.

Needs numpy and torch only, so that a machine without OpenMM can read what another one prepared.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from openmm_starmd.files import replacing

FEATURES = "residue_type residue_index chain_index n_end c_end torsion_mask torsion_period variant".split()
TOKENS = (
    "backbone torsion_atoms protein_atoms heavy_atoms inner_bonds peptide_bonds disulfide_bonds adjacent_ca close_kin "
    "rings chiral_centres peptide_planes"
).split()
"""Attributes of ResidueTokens that measuring and checking take."""


def write(path: Path, molecules: list[dict[str, np.ndarray]]):
    """Write molecules; all have arrays of the same names, which differ in the length of the first axis only."""
    arrays = {}
    for name in molecules[0]:
        parts = [np.asarray(molecule[name]) for molecule in molecules]
        if parts[0].ndim:
            arrays[f"{name}.lengths"] = np.array([len(part) for part in parts])
            arrays[name] = np.concatenate([part for part in parts if len(part)] or parts)
        else:
            arrays[name] = np.stack(parts)
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **arrays)


def read(path: Path) -> list[dict[str, np.ndarray]]:
    """Inverse of `write`."""
    with np.load(path) as file:
        arrays = dict(file)
    columns = {}
    for name, array in arrays.items():
        if f"{name}.lengths" in arrays:
            columns[name] = np.split(array, arrays[f"{name}.lengths"].cumsum()[:-1])
        elif not name.endswith(".lengths"):
            columns[name] = list(array)
    if "residue_type" in columns and "variant" not in columns:  # a file from before there were variants
        columns["variant"] = [np.zeros_like(types) for types in columns["residue_type"]]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def token_arrays(tokens) -> dict[str, np.ndarray]:
    """What of ResidueTokens a set keeps; atom indices in 16 bits."""
    kept = {name: getattr(tokens, name).numpy().astype(np.int16) for name in TOKENS}
    return kept | {name: getattr(tokens.features, name).numpy() for name in FEATURES}


def tokens_of(molecule: dict[str, np.ndarray]) -> SimpleNamespace:
    """Stands in for ResidueTokens in `from_positions` and `check_positions`."""
    kept = {name: torch.from_numpy(molecule[name].astype(np.int64)) for name in TOKENS}
    features = SimpleNamespace(**{name: torch.from_numpy(molecule[name]) for name in FEATURES})
    return SimpleNamespace(**kept, features=features)
