"""HistoryStore: the part of the integrator's state that travels in OpenMM's own checkpoints and States."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from openmm import CustomIntegrator

from openmm_starmd.errors import HistoryError
from openmm_starmd.protein.history import History
from openmm_starmd.protein.tokens import ResidueFeatures

PREFIX = "starmd_"  # the variables of a CustomIntegrator share their names with the parameters of the user's forces
AT_WORK = PREFIX + "python_half_at_work"
TAG = PREFIX + "tag"
WIDE = "seedHigh", "seedLow", "streamHigh", "streamLow", "jumpHigh", "jumpLow"


def scratchName(index: int) -> str:
    """Name of a per-DOF variable that is free during a jump."""
    return f"{PREFIX}history{index}"


class HistoryStore(CustomIntegrator):
    """A CustomIntegrator without dynamics that holds the history of past conformations in its variables.

    Per-DOF variables are single precision on a GPU in single precision, so vectors are float32 and integers at most 24
    bits wide. Between jumps its program never runs; a copy that has lost its Python half gives NaN. During a jump
    `Relaxation` runs a program of its own here and uses the first per-DOF variables, ``scratch`` of them, which `write`
    fills anew: so the relaxation costs nothing in a checkpoint.

    The step size is in ps, ``numParticles`` that of the System, ``features`` are those of the protein. The longest
    history has ``maxFrames`` frames, on the ``device``. ``identity`` is a hash of model and protein; a history of
    another identity is refused.
    """

    def __init__(self, stepSize, numParticles, features: ResidueFeatures, maxFrames, identity: bytes, device, scratch):
        super().__init__(stepSize)
        self.addGlobalVariable(AT_WORK, 0)
        for name in ("tag", "frames", "elapsed", "phase", "excess", *WIDE):
            self.addGlobalVariable(PREFIX + name, 0)
        self._torsionMask, self._maxFrames, self._identity = features.torsion_mask, maxFrames, identity
        self._device = device
        size = -(-sum(self._lengths(maxFrames)) // (3 * numParticles))
        self._shape = (max(size, scratch), numParticles, 3)
        for index in range(self._shape[0]):
            self.addPerDofVariable(scratchName(index), 0)
        self.beginIfBlock(f"{AT_WORK} = 0")
        self.addComputePerDof("x", f"x + log({AT_WORK}-1)")
        self.addComputeGlobal(TAG, "energy")  # the platforms that check positions for NaN do it here
        self.endBlock()
        self._known: tuple[int, tuple[History, np.ndarray] | None] = (0, None)

    seed = property(lambda self: self._getWide("seed"), lambda self, value: self._setWide("seed", value))
    """Random number seed."""

    stream = property(lambda self: self._getWide("stream"), lambda self, value: self._setWide("stream", value))
    """Number of the stream of random numbers of this seed; 0 for runs that do not share their start with others."""

    jump = property(lambda self: self._getWide("jump"), lambda self, value: self._setWide("jump", value))
    """Number of jumps tried since the integrator was created; the counter of the random numbers."""

    elapsed = property(
        lambda self: self.getGlobalVariableByName(PREFIX + "elapsed"), lambda self, t: self._set("elapsed", t)
    )
    """Time of physical steps since the last context frame, ps."""

    excess = property(
        lambda self: self.getGlobalVariableByName(PREFIX + "excess"), lambda self, e: self._set("excess", e)
    )
    """Energy of the last conformation above the base that `ValidityGate` knows, kJ/mol."""

    phase = property(lambda self: self._get("phase"), lambda self, value: self._set("phase", value))
    """Steps that have been taken of the present cycle of learned and physical ones."""

    def write(self, history: History, backbone: np.ndarray):
        """Keep a history and the positions of the protein's N, CA, C (N, 3, 3), nm, that go with it."""
        clock = np.append(history.times.numpy(), history.dropped).astype(np.float64).view(np.uint16)
        record = np.concatenate([history.pack(self._torsionMask).numpy(), backbone, clock], axis=None, dtype=np.float32)
        padded = np.zeros(self._shape)
        padded.reshape(-1)[: len(record)] = record
        for index, part in enumerate(padded):
            self.setPerDofVariable(index, part)
        tag = self._tagOf(record)
        self._set("frames", history.n_frames)
        self._set("tag", tag)
        self._set("elapsed", 0)
        self._known = tag, (history, backbone.astype(np.float32))

    def read(self) -> tuple[History, np.ndarray] | None:
        """History written last, or before the checkpoint or State that was loaded since; None if there is nothing.

        A HistoryError says that the numbers do not belong together, or to another model or protein.
        """
        tag = self._get("tag")
        if tag != self._known[0]:
            self._known = tag, self._unpack(tag) if tag else None
        return self._known[1]

    def clear(self):
        """Forget the history."""
        self._set("tag", 0)
        self._set("elapsed", 0)

    def _unpack(self, tag: int) -> tuple[History, np.ndarray]:
        frames = self._get("frames")
        if 0 < frames <= self._maxFrames:
            lengths = self._lengths(frames)
            parts = [np.array(self.getPerDofVariable(index)) for index in range(self._shape[0])]
            record = np.concatenate(parts, axis=None)[: sum(lengths)].astype(np.float32)
            if self._tagOf(record) == tag:
                packed, backbone, clock = np.split(record, np.cumsum(lengths)[:-1])
                *times, dropped = clock.astype(np.uint16).view(np.float64)
                vector, times = torch.from_numpy(packed).to(self._device), torch.tensor(times, dtype=torch.float64)
                history = History.unpack(vector, self._torsionMask, times, int(dropped))
                return history, backbone.reshape(-1, 3, 3)
        raise HistoryError(
            "The history in this checkpoint or State is damaged or belongs to another model or protein. Load one of "
            "the same simulation, or call reset() to go on from its positions alone."
        )

    def _lengths(self, frames: int) -> tuple[int, int, int]:
        """Numbers in the packed history, the backbone, and times and dropped frames in 16-bit pieces."""
        n = len(self._torsionMask)
        return History.packed_length(frames, self._torsionMask), 9 * n, 4 * (frames + 1)

    def _tagOf(self, record: np.ndarray) -> int:
        digest = hashlib.blake2b(record.tobytes(), key=self._identity, digest_size=3).digest()
        return int.from_bytes(digest, "little") or 1

    def _get(self, name: str) -> int:
        return int(self.getGlobalVariableByName(PREFIX + name))

    def _set(self, name: str, value: float):
        self.setGlobalVariableByName(PREFIX + name, value)

    def _getWide(self, name: str) -> int:
        return self._get(name + "High") << 24 | self._get(name + "Low")

    def _setWide(self, name: str, value: int):
        self._set(name + "High", value >> 24)
        self._set(name + "Low", value & 0xFFFFFF)
