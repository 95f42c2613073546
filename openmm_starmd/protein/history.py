"""History: the bounded window of past conformations that the next one is conditioned on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openmm_starmd.errors import HistoryError
from openmm_starmd.geometry.rigid import Rigid, from_rodrigues, to_rodrigues
from openmm_starmd.protein.conformation import Conformation

ROTATION_GRID = 2.0**-20  # a turn by 4e-6 rad, far below what the model notices and above float32's own rounding


@dataclass(frozen=True)
class History:
    """Context frames of B replicas with their times.

    Parameters
    ----------
    conformations : Conformation, shape (B, T, N)
        Context copies, oldest first.
    times : Tensor, shape (T,)
        Physical times, ps; gaps may be unequal.
    reference : Conformation, shape (B, N)
        Conformation that the run started from.
    dropped : int
        Number of older frames that have left the window.
    """

    conformations: Conformation
    times: Tensor
    reference: Conformation
    dropped: int = 0

    @classmethod
    def start(cls, conformation: Conformation, time: float = 0.0) -> History:
        """History of one conformation (B, N) at ``time`` ps."""
        times = torch.tensor([time], dtype=torch.float64)
        conformation = _on_grid(conformation)
        return cls(conformation.map(lambda x: x[:, None]), times, conformation)

    @classmethod
    def join(cls, histories: Sequence[History]) -> History:
        """One history of the replicas of several whose times have the same differences; the clock is the first's."""
        first = histories[0]
        windows, references = ([getattr(h, name) for h in histories] for name in ("conformations", "reference"))
        return cls(Conformation.cat(windows), first.times, Conformation.cat(references), first.dropped)

    def split(self) -> list[History]:
        """Histories of the single replicas, which share the memory: the inverse of `join`."""
        rows = [slice(k, k + 1) for k in range(len(self.reference.angles))]
        return [History(self.conformations[k], self.times, self.reference[k], self.dropped) for k in rows]

    @property
    def n_frames(self) -> int:
        """Number of context frames T in the window."""
        return len(self.times)

    @property
    def last(self) -> Conformation:
        """Latest context frame, shape (B, N)."""
        return self.conformations[:, -1]

    def append(self, conformation: Conformation, time: float, capacity: int) -> History:
        """New history with ``conformation`` (B, N) at ``time`` (ps) added.

        At most the latest ``capacity`` frames are kept.
        """
        frame, surplus = _on_grid(conformation).map(lambda x: x[:, None]), max(0, self.n_frames + 1 - capacity)
        frames = Conformation.cat([self.conformations[:, surplus:], frame], dim=1)
        times = torch.cat([self.times[surplus:], self.times.new_tensor([time])])
        return History(frames, times, self.reference, self.dropped + surplus)

    def without_last(self) -> History:
        """History before the latest context frame was added."""
        return History(self.conformations[:, :-1], self.times[:-1], self.reference, self.dropped)

    def pack(self, torsion_mask: Tensor) -> Tensor:
        """Every number of reference and conformations of one replica as one float32 vector, without loss.

        A rotation takes three numbers on a grid, which `start` and `append` have put it on; torsions that a residue
        does not have, ``torsion_mask`` (N, 6), take none.
        """
        c = Conformation.cat([self.reference.map(lambda x: x[:, None]), self.conformations], 1)
        rotations = to_rodrigues(c.frames.rotations.double()).div(ROTATION_GRID).round()
        torsions = c.torsions[..., torsion_mask.to(c.torsions.device)]
        parts = [x.flatten(2).float() for x in (rotations, c.frames.translations, torsions, c.angles)]
        return torch.cat(parts, -1).flatten().cpu()

    @staticmethod
    def packed_length(n_frames: int, torsion_mask: Tensor) -> int:
        """Length of the vector that `pack` makes."""
        return (n_frames + 1) * (7 * len(torsion_mask) + int(torsion_mask.sum()))

    @classmethod
    def unpack(cls, vector: Tensor, torsion_mask: Tensor, times: Tensor, dropped: int = 0):
        """Inverse of `pack`; ``times`` (T,) and ``dropped`` are kept apart from the vector.

        A HistoryError refuses a vector of another length than the window needs.
        """
        n = len(torsion_mask)
        expected = cls.packed_length(len(times), torsion_mask)
        if vector.numel() != expected:
            raise HistoryError(
                f"A history of {len(times)} frames of {n} residues holds {expected} numbers, but "
                f"{vector.numel()} were found; load a checkpoint of the same system and model."
            )
        shaped = vector.view(1, len(times) + 1, -1)
        rotations, translations, present, angles = shaped.split([3 * n, 3 * n, shaped.shape[-1] - 7 * n, n], -1)
        torsions = vector.new_zeros(*shaped.shape[:2], n, 6)
        torsions[..., torsion_mask.to(vector.device)] = present
        frames = Rigid(_from_grid(rotations.unflatten(-1, (n, 3))), translations.unflatten(-1, (n, 3)))
        everything = Conformation(frames, torsions, angles)
        return cls(everything[:, 1:], times, everything[:, 0], dropped)


def _from_grid(multiples: Tensor) -> Tensor:
    """Rotations (*, 3, 3), float32, of whole multiples (*, 3) of the grid."""
    return from_rodrigues(multiples.double() * ROTATION_GRID).float()


def _on_grid(conformation: Conformation) -> Conformation:
    """The conformation with its rotations rounded to those that `History.pack` can tell."""
    multiples = to_rodrigues(conformation.frames.rotations.double()).div(ROTATION_GRID).round()
    rotations = _from_grid(multiples).to(conformation.angles.dtype)
    return Conformation(Rigid(rotations, conformation.frames.translations), conformation.torsions, conformation.angles)
