"""Faults of a trajectory, found while its frames pass by: one sentence each, with what to do."""

from __future__ import annotations

import numpy as np
import torch

from openmm_starmd.protein.length_unit import fault_of_unit
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.protein.validity import RELAXED, check_positions
from openmm_starmd.trajectories.frames import sane

_SHORTEST_BOND = 0.08  # nm
_STRANGE = 0.2  # share of absurd bonds that tells a wrong topology from a molecule in two pieces
_NAMED = 3
_BOUNDARY = "make molecules whole across periodic boundaries (where the file has box vectors it is done here)"
_GAP = "give residues on both sides of a gap in the chain different chain IDs, or make molecules whole"


class Inspection:
    """Looks at the frames of one trajectory, of the atoms of ``tokens``, in their order.

    ``wrong_topology`` says why the frames cannot be of this topology, in nm; it is empty if they can.
    """

    def __init__(self, tokens: ResidueTokens):
        self._tokens = tokens
        self._bonds = torch.cat([tokens.inner_bonds, tokens.peptide_bonds, tokens.disulfide_bonds]).T.numpy()
        self._heavy = tokens.heavy_atoms.numpy()
        self._seen, self._last = 0, None
        self._broken: list[int] = []
        self._duplicates: list[int] = []
        self._mirrored: list[str] = []
        self.wrong_topology = ""

    def look(self, positions: np.ndarray) -> None:
        """Look at the next frames (T, A, 3), nm."""
        if self._seen == 0:
            self._look_at_start(positions[0])
        self._broken += (self._seen + np.flatnonzero(self._is_broken(positions))).tolist()
        before = positions[:1] * np.nan if self._last is None else self._last
        same = (positions == np.concatenate([before, positions[:-1]])).all((1, 2))
        self._duplicates += (self._seen + np.flatnonzero(same)).tolist()
        self._seen, self._last = self._seen + len(positions), positions[-1:].copy()

    def _lengths(self, positions: np.ndarray) -> np.ndarray:
        first, second = self._bonds
        return np.linalg.norm(positions[..., first, :] - positions[..., second, :], axis=-1)

    def _look_at_start(self, frame: np.ndarray) -> None:
        if fault := fault_of_unit(frame, self._tokens.backbone):
            self.wrong_topology = f"the positions {fault}"
            return
        lengths = self._lengths(frame)
        strange = (lengths < _SHORTEST_BOND) | (lengths > RELAXED.bond)
        if strange.mean() > _STRANGE:
            self.wrong_topology = (
                f"{strange.sum()} of {len(strange)} bonds of the topology are absurdly long or short in frame 0, "
                "so it describes other atoms or another order; give the topology that the simulation used"
            )
            return
        check = check_positions(torch.from_numpy(frame).double(), self._tokens)
        owners = dict(zip(self._tokens.protein_atoms.tolist(), self._tokens.owner.tolist(), strict=True))
        centres = check.offenders["inversions"][1][:, 0].tolist()
        self._mirrored = [self._tokens.residue_labels[owners[atom]] for atom in centres]

    def _is_broken(self, positions: np.ndarray) -> np.ndarray:
        whole = (self._lengths(positions) <= RELAXED.bond).all(1)
        return ~whole | ~sane(positions[:, self._heavy])

    def problems(self) -> list[str]:
        """Problems that were found, a sentence each."""
        if self.wrong_topology:
            return [self.wrong_topology]
        found = []
        if self._broken:
            found.append(
                f"bonds are broken or positions not finite in {_frames(self._broken, self._seen)}; "
                + (_GAP if len(self._broken) == self._seen else _BOUNDARY)
            )
        if self._duplicates:
            found.append(
                f"positions equal those of the frame before in {_frames(self._duplicates, self._seen)}; "
                "remove the duplicates"
            )
        if self._mirrored:
            names = ", ".join(self._mirrored[:_NAMED]) + (" and others" if len(self._mirrored) > _NAMED else "")
            found.append(f"{names} have D chirality, which the model does not know; leave the trajectory out")
        return found


def _frames(numbers: list[int], total: int) -> str:
    """Such as ``3 of 100 frames, the first of them frame 17``."""
    return f"{len(numbers)} of {total} frames, the first of them frame {numbers[0]}"
