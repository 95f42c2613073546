"""Many peptides and domains in one .npz: each is a dict of arrays; arrays of one name lie one behind the other.

Needs numpy and torch only, so that a machine without OpenMM can read what another one prepared.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from openmm_starmd.files import read_rows, replacing

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
    rows = read_rows(path)
    for row in rows:
        if "residue_type" in row:  # a file from before there were variants has none
            row.setdefault("variant", np.zeros_like(row["residue_type"]))
    return rows


def token_arrays(tokens) -> dict[str, np.ndarray]:
    """What of ResidueTokens a set keeps; atom indices in 16 bits."""
    kept = {name: getattr(tokens, name).numpy().astype(np.int16) for name in TOKENS}
    return kept | {name: getattr(tokens.features, name).numpy() for name in FEATURES}


def tokens_of(molecule: dict[str, np.ndarray]) -> SimpleNamespace:
    """Stands in for ResidueTokens in `from_positions` and `check_positions`."""
    kept = {name: torch.from_numpy(molecule[name].astype(np.int64)) for name in TOKENS}
    features = SimpleNamespace(**{name: torch.from_numpy(molecule[name]) for name in FEATURES})
    return SimpleNamespace(**kept, features=features)
