"""History: the bounded window of past conformations that the next one is conditioned on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from openmm_starmd.geometry.rigid import Rigid
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.errors import HistoryError

NUMBERS_PER_RESIDUE = 19  # 9 rotation, 3 translation, 6 torsions, 1 angle


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
        return cls(conformation.map(lambda x: x[:, None]), times, conformation)

    @property
    def n_frames(self) -> int:
        """Number of context frames T in the window."""
        return len(self.times)

    @property
    def last(self) -> Conformation:
        """Latest context frame, shape (B, N)."""
        return self.conformations[:, -1]

    def append(self, conformation: Conformation, time: float, capacity: int) -> History:
        """New history with ``conformation`` (B, N) at ``time`` (ps) added and at most ``capacity`` frames kept."""
        frames = Conformation.cat([self.conformations, conformation.map(lambda x: x[:, None])], dim=1)
        times = torch.cat([self.times, self.times.new_tensor([time])])
        surplus = max(0, len(times) - capacity)
        return History(frames[:, surplus:], times[surplus:], self.reference, self.dropped + surplus)

    def pack(self) -> Tensor:
        """Every number of reference and conformations as one float32 vector, exactly; see `packed_length`."""
        c = Conformation.cat([self.reference.map(lambda x: x[:, None]), self.conformations], 1)
        parts = [c.frames.rotations.flatten(-2), c.frames.translations, c.torsions, c.angles[..., None]]
        return torch.cat([p.float() for p in parts], -1).flatten().cpu()

    @staticmethod
    def packed_length(n_frames: int, n_residues: int, n_replicas: int = 1) -> int:
        """Length of the vector that `pack` makes."""
        return n_replicas * (n_frames + 1) * n_residues * NUMBERS_PER_RESIDUE

    @classmethod
    def unpack(cls, vector: Tensor, n_residues: int, times: Tensor, dropped: int = 0, n_replicas: int = 1) -> History:
        """Inverse of `pack`; ``times`` (T,) and ``dropped`` are kept apart from the vector.

        Raises
        ------
        HistoryError
            If the vector has another length than the window needs.
        """
        expected = cls.packed_length(len(times), n_residues, n_replicas)
        if vector.numel() != expected:
            raise HistoryError(
                f"A history of {len(times)} frames of {n_residues} residues holds {expected} numbers, but "
                f"{vector.numel()} were found; load a checkpoint of the same system and model."
            )
        shaped = vector.view(n_replicas, len(times) + 1, n_residues, NUMBERS_PER_RESIDUE)
        rotations, translations, torsions, angles = shaped.split([9, 3, 6, 1], -1)
        frames = Rigid(rotations.unflatten(-1, (3, 3)), translations)
        everything = Conformation(frames, torsions, angles[..., 0])
        return cls(everything[:, 1:], times, everything[:, 0], dropped)
