"""How functions of tensors run on a device: operation by operation, or recorded once and replayed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from openmm_starmd.diffusion.replay import Eager, Replayed, recording_wanted
from openmm_starmd.protein.conformation import Conformation

PAIRS_AT_ONCE = 2**14  # of residues, in frames that are encoded together and in tapes; see benchmarks/PERFORMANCE.md
LEAST_ROOM = 64  # frames, on a GPU


class Execution:
    """Runs functions of tensors on a device; recordings of different functions share their memory.

    Parameters
    ----------
    device : torch.device
    records : bool, optional
        Whether functions are recorded, on a CPU if they are about small frames; by default as `recording_wanted` says.
        After a recording that failed none is made.
    roomy : bool, optional
        Whether one recording serves contexts of many lengths; by default on a GPU.
    """

    def __init__(self, device: torch.device, records: bool | None = None, roomy: bool | None = None):
        self._device, self._records = device, recording_wanted(device) if records is None else records
        self._roomy = (self._records and device.type == "cuda") if roomy is None else roomy
        self._recordings: dict[Hashable, tuple[Hashable, Replayed]] = {}

    def clear(self) -> None:
        """Forget all recordings, since tensors that they read have been replaced."""
        self._recordings.clear()

    def runner(
        self,
        use: Hashable,
        variant: Hashable,
        function: Callable,
        frames: Conformation,
        written: Sequence[Tensor] = (),
    ) -> Replayed | Eager:
        """The runner of a function about some frames: its recording where recording pays, else the function as it is.

        Each use has one recording, which is made anew from ``function`` if it was of another variant; for ``written``
        see `Replayed`.
        """
        if any(recording.failed for _, recording in self._recordings.values()):
            self._records = False
            self.clear()
        small = frames.angles.numel() * frames.shape[-1] <= PAIRS_AT_ONCE
        if not self._records or not (small or self._roomy):
            return Eager(function)
        known = self._recordings.get(use)
        if known is None or known[0] != variant:
            self._recordings.pop(use, None)
            pool = next((recording.pool for _, recording in self._recordings.values() if recording.pool), None)
            known = self._recordings[use] = variant, Replayed(function, self._device, pool, written)
        return known[1]

    def room(self, needed: int, capacity: int) -> int:
        """Frames of a cache that a new one is computed with, the last for itself; ``needed`` at least.

        On a GPU one recording serves all contexts that fit: at least `LEAST_ROOM` or a power of two, as far as there is
        room. A CPU would have to compute what is masked.
        """
        if not self._roomy:
            return needed
        return min(capacity, max(LEAST_ROOM, 1 << (needed - 1).bit_length()))
