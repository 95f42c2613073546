"""Conformations in 16 bits a number: what simulate_blocks.py writes, and how trajectories are kept in the repository.

    python recipes/starmd-peptide/compact.py pack FOLDER [FOLDER ...] OUTPUT    # of trajectories for training
    python recipes/starmd-peptide/compact.py unpack FOLDER OUTPUT               # to encoded trajectories for training

`openmm_starmd.trajectories.compact` tells what a folder holds.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import peptide_set
import torch
from peptide_set import FEATURES

from openmm_starmd.protein.conformation import from_positions
from openmm_starmd.protein.tokens import ResidueFeatures
from openmm_starmd.training.dataset import TrajectoryDataset
from openmm_starmd.trajectories import compact
from openmm_starmd.trajectories.packed import Writer, pack


class Trajectory(NamedTuple):
    """Of one replica; ``numbers`` is what `openmm_starmd.trajectories.packed.unpack` takes, float32 (T, N, 13)."""

    name: str
    replica: int
    sequence: str
    features: ResidueFeatures
    interval: float
    numbers: np.ndarray


def encode(frames: list[np.ndarray], molecules: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    """Conformations of molecules.

    Parameters
    ----------
    frames : list of array, shape (R, T, A, 3)
        Of each molecule, nm; R and T are the same for all.
    molecules : list of dict
        Of `peptide_set.read`.

    Returns
    -------
    list of array of int16, shape (R, T, N, 13)
    """
    encoded, lengths = [None] * len(frames), np.array([len(molecule["backbone"]) for molecule in molecules])
    for length in np.unique(lengths):
        group = np.flatnonzero(lengths == length)
        taken = [_atoms(molecules[k]) for k in group]
        atoms = torch.from_numpy(np.stack([frames[k][:, :, own] for k, own in zip(group, taken, strict=True)]))
        features = {
            name: torch.from_numpy(np.stack([molecules[k][name] for k in group]))[:, None, None]
            for name in ("torsion_mask", "torsion_period")
        }
        # for atoms that all lie where _atoms put them
        tokens = SimpleNamespace(
            backbone=torch.arange(3 * length).reshape(-1, 3),
            torsion_atoms=torch.arange(3 * length, 27 * length).reshape(-1, 6, 4),
            features=SimpleNamespace(**features),
        )
        for k, own in zip(group, integers(pack(from_positions(atoms, tokens))), strict=True):
            encoded[k] = own
    return encoded


def integers(numbers: np.ndarray) -> np.ndarray:
    """Numbers of `pack` (*, N, 13) in 16 bits; what is no number becomes 0."""
    numbers = numbers.copy()
    numbers[..., :3] -= numbers[..., :3].mean(-2, keepdims=True)
    return np.where(np.isfinite(numbers), np.clip(np.rint(numbers / compact.UNITS), -32767, 32767), 0).astype(np.int16)


def _atoms(molecule: dict[str, np.ndarray]) -> np.ndarray:
    """Indices of the atoms N, CA, C of all residues, then of those of all torsions (any, where a torsion is absent)."""
    return np.concatenate([molecule["backbone"].reshape(-1), molecule["torsion_atoms"].reshape(-1).clip(0)])


def write(
    folder: Path,
    molecules: list[dict[str, np.ndarray]],
    encoded: list[np.ndarray],
    replicas: list[np.ndarray],
    interval: float,
):
    """Write trajectories; a kill at any moment leaves a folder without an index, or whole.

    Parameters
    ----------
    folder : Path
        What it holds is replaced.
    molecules : list of dict
        Of `peptide_set.read`.
    encoded : list of array of int16, shape (R, T, N, 13)
        Of `encode`; joined along T.
    replicas : list of array of int
        Which replicas of each molecule are kept.
    interval : float
        Time between frames, ps.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts, index = {}, []
    for molecule, numbers, kept in zip(molecules, encoded, replicas, strict=True):
        own = parts.setdefault(numbers.shape[2], [])
        first = sum(len(part) for part in own)
        own.append(numbers[kept].reshape(-1, *numbers.shape[2:]))
        facts = {"replica": kept, "first": first, "frames": numbers.shape[1], "interval": interval}
        index.append(facts | {name: molecule[name] for name in ("name", "sequence", *FEATURES)})
    for old in (folder / compact.INDEX, *folder.glob("length_*.npy")):
        old.unlink(missing_ok=True)
    for length, own in parts.items():
        np.save(folder / f"length_{length}.npy", np.concatenate(own))
    peptide_set.write(folder / compact.INDEX, index)


def read(folder: Path) -> Iterator[Trajectory]:
    """All trajectories of a folder."""
    index = Path(folder) / compact.INDEX
    for number, row in enumerate(compact.rows(index)):
        for place, replica in enumerate(row["replica"].tolist()):
            sequence, features, interval, stored = compact.load(index, f"{number}/{place}")
            yield Trajectory(str(row["name"]), replica, sequence, features, interval, stored.numbers(slice(None)))


def pack_folders(*sources: Path):
    """All trajectories of folders, each by its own name, into the last; their intervals must agree."""
    *sources, output = sources
    trajectories = TrajectoryDataset(sources).trajectories
    molecules, encoded = [], []
    for trajectory in trajectories:
        features = {name: getattr(trajectory.features, name).numpy() for name in FEATURES}
        molecules.append({"name": trajectory.name, "sequence": trajectory.sequence} | features)
        encoded.append(integers(trajectory.conformations.numbers(slice(None)))[None])
    (interval,) = {trajectory.interval for trajectory in trajectories}
    write(output, molecules, encoded, len(molecules) * [np.array([0])], interval)


def unpack_folder(folder: Path, output: Path):
    """A folder of encoded trajectories, which `TrajectoryDataset` reads as they are.

    They are NAME.f32 and .json or, where there are several of a name, NAME_REPLICA.
    """
    counts = Counter(trajectory.name for trajectory in read(folder))
    for trajectory in read(folder):
        name = f"{trajectory.name}_{trajectory.replica}" if counts[trajectory.name] > 1 else trajectory.name
        features = {name: getattr(trajectory.features, name).tolist() for name in FEATURES}
        facts = {"source": None, "sequence": trajectory.sequence, "interval": trajectory.interval}
        with Writer(output / name) as writer:
            writer.append(trajectory.numbers)
            writer.finish(facts | {"features": features})


if __name__ == "__main__":
    {"pack": pack_folders, "unpack": unpack_folder}[sys.argv[1]](*map(Path, sys.argv[2:]))
