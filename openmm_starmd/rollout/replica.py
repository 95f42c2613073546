"""The files of one replica: its trajectory, the state that it goes on from, and a lock."""

from __future__ import annotations

import json
import os
from collections import Counter
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from openmm.app import Topology, XTCFile
from safetensors import SafetensorError, safe_open

from openmm_starmd.errors import HistoryError, StarMDError
from openmm_starmd.files import save_tensors
from openmm_starmd.protein.history import History
from openmm_starmd.systems.run_settings import differing
from openmm_starmd.trajectories.xtc import frame_ends

LOCKS = ".locks"


class Replica:
    """One of several rollouts from a start (A, 3), nm; it writes its own files alone, while it is `held`.

    A state must agree in the ``settings`` to be gone on from. The stride is in ps.
    """

    def __init__(self, folder: Path, number: int, topology: Topology, torsion_mask, stride, settings: dict, start):
        self.number, self.step, self.positions, self.rejection = number, 0, start, None
        self.history: History | None = None
        self.excess = 0.0  # energy above the base that `ValidityGate` knows, kJ/mol
        self.failures: list[dict] = []  # of the tries of the jump from here
        self.counts = Counter()  # of jumps since then, as `acceptance` takes them
        self.trajectory = folder / f"replica{number:04d}.xtc"
        self._state, self._lock = self.trajectory.with_suffix(".state"), folder / LOCKS / self.trajectory.stem
        self._topology, self._mask, self._settings = topology, torsion_mask, settings
        self._stride = stride
        self._saved, self._bytes, self._file = 0, 0, None  # step of the last state, length of the trajectory there

    @contextmanager
    def held(self, wait: bool):
        """Keep all other processes from the files; the operating system's lock ends with this process at the latest.

        A StarMDError says that another process holds them, unless ``wait`` is asked for.
        """
        try:
            with FileLock(self._lock).acquire(timeout=-1 if wait else 0):
                yield
        except Timeout:
            raise StarMDError(
                f"Another process is writing {self.trajectory}; let it finish or stop it, or name another folder."
            ) from None

    @property
    def window(self) -> tuple[int, bool]:
        """Frames in the window and whether some have left it: what replicas in a batch must have in common."""
        return self.history.n_frames, self.history.dropped > 0

    def accept(self, positions: np.ndarray, history: History, excess: float):
        """Go on to positions (A, 3), the last of a history, and add them to the trajectory.

        Of the history's times only differences count; its clock may be that of another replica.
        """
        self._write(positions)
        self.step, self.positions, self.history, self.failures = self.step + 1, positions, history, []
        self.excess = excess

    def _write(self, positions: np.ndarray):
        if self._file is None:
            append = self._saved > 0
            self._file = XTCFile(str(self.trajectory), self._topology, self._stride, firstStep=1, append=append)
        self._file.writeModel(positions)

    def save(self):
        """Keep the state, if it is new, with the length of the trajectory that belongs to it.

        An OSError says that trajectory or state cannot be written. OpenMM does not tell of a frame that it could not
        write.
        """
        if self.step == self._saved:
            return
        end = self._end_of(self.step - self._saved)
        frames = torch.arange(self.step + 1 - self.history.n_frames, self.step + 1)
        clock = {"step": self.step, "dropped": int(frames[0]), "bytes": end, "excess": self.excess}
        tensors = {"positions": torch.from_numpy(self.positions), "times": self._stride * frames.double()}
        tensors["history"] = self.history.pack(self._mask)
        try:
            save_tensors(tensors, self._state, {"settings": json.dumps(self._settings), "clock": json.dumps(clock)})
        except SafetensorError as error:
            raise OSError(f"{self._state} could not be written ({error}).") from error
        self._saved, self._bytes = self.step, end

    def look(self) -> int:
        """Steps that a resumed run has already; nothing is changed.

        A HistoryError says that the state is damaged or of another run, or the trajectory shorter than it.
        """
        found = self._read()
        return found[0]["step"] if found else 0

    def load(self):
        """Go on from the last state, if there is one; frames after it are cut off, they will be made again."""
        found = self._read()
        if found is None:
            self.trajectory.unlink(missing_ok=True)
            return
        clock, vector, times, positions = found
        self.history = History.unpack(vector, self._mask, times, clock["dropped"])
        self.step, self.positions, self._bytes = clock["step"], positions.numpy(), clock["bytes"]
        self._saved, self.excess = self.step, clock["excess"]
        os.truncate(self.trajectory, self._bytes)

    def _read(self):
        if not self._state.exists():
            return None
        try:
            with safe_open(self._state, "pt") as file:
                settings, clock = (json.loads(file.metadata()[name]) for name in ("settings", "clock"))
                clock = {name: clock[name] for name in ("step", "dropped", "bytes", "excess")}
                vector, times, positions = (file.get_tensor(name) for name in ("history", "times", "positions"))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise HistoryError(
                f"{self._state} is damaged, or of an earlier version ({error}); name another folder, or remove it to "
                "start this replica anew."
            ) from error
        if others := differing(settings, self._settings):
            raise HistoryError(
                f"{self._state} belongs to another {others}; go on with the same, or name another folder."
            )
        if self._length() < clock["bytes"]:
            raise HistoryError(
                f"{self.trajectory} lacks frames that {self._state} goes on from; restore it, or remove the state to "
                "start this replica anew."
            )
        return clock, vector, times, positions

    def _length(self) -> int:
        """Bytes of the trajectory; it is opened, because a network file system may remember an old length till then."""
        try:
            with open(self.trajectory, "rb") as file:
                return file.seek(0, os.SEEK_END)
        except FileNotFoundError:
            return 0

    def _end_of(self, n_frames: int) -> int:
        """Byte where that many frames after the last state end."""
        with open(self.trajectory, "rb") as file:
            try:
                ends = [end for _, end in islice(frame_ends(file, self._bytes), n_frames)]
            except ValueError:
                ends = []
        if len(ends) < n_frames:
            raise OSError(
                f"{self.trajectory} could not be written: is the disk full, or a quota used up? Make room and resume "
                "the run."
            )
        return ends[-1]
