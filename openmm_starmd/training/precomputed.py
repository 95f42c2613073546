"""Frozen features of a structure predictor, such as OpenFold's single and pair representations, as inputs.

They are arrays beside the topology of a trajectory: NAME.single.npy (N, C) and NAME.pair.npy (N, N, C); C is what the
model was configured with. They are read when a window needs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from openmm_starmd.errors import StarMDError
from openmm_starmd.trajectories.sources import TrajectoryFile

KINDS = {"single": 1, "pair": 2}
"""The two, and how many axes of residues they have."""


def find(file: TrajectoryFile, n_residues: int, channels: dict[str, int]) -> dict[str, Path]:
    """Files of the features of one trajectory of N residues for a model of so many ``channels`` of each kind.

    A StarMDError has a line for each file that is absent, no array or of another shape.
    """
    found, problems = {}, []
    for kind, axes in KINDS.items():
        if not channels.get(kind):
            continue
        found[kind], expected = file.precomputed(kind), (n_residues,) * axes + (channels[kind],)
        try:
            shape = np.load(found[kind], mmap_mode="r", allow_pickle=False).shape
        except (OSError, ValueError, EOFError) as error:
            problems.append(
                f"{file.label}: the model takes {kind} features, but {found[kind]} cannot be read ({error})."
            )
            continue
        if shape != expected:
            problems.append(f"{file.label}: {found[kind]} must have shape {expected}, not {shape}.")
    if problems:
        raise StarMDError("\n".join(f"{problem} Make it, or take a model without." for problem in problems))
    return found


def read(paths: Sequence[dict[str, Path]]) -> dict[str, Tensor]:
    """Features (B, N, C) and (B, N, N, C), single precision, of B trajectories; each file is read once."""
    tensors = {}
    for kind in KINDS:
        files = [found[kind] for found in paths if kind in found]
        arrays = {file: torch.from_numpy(np.load(file).astype(np.float32)) for file in set(files)}
        if files:
            tensors[kind] = torch.stack([arrays[file] for file in files])
    return tensors
