"""States and checkpoints enter a Context whole or not at all; what goes on twice from one State draws its own noise."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from weakref import WeakSet

from openmm import Context, OpenMMException, State

from openmm_starmd.binding.store import HistoryStore
from openmm_starmd.errors import HistoryError
from openmm_starmd.seeds import derived

STREAMS = 2**48  # what the store holds of a number


class Loader:
    """Loads States and checkpoints into the Context of a HistoryStore.

    Jumps draw their noise from a seed, the number of a stream and a counter, all of which a State holds. A checkpoint
    and a State from a file restore them: the run is repeated. A State that is still in memory, as the samplers of
    OpenMM hold one for each replica, restores what is held of the past, but numbers that were drawn since the State was
    made are not drawn again: the State goes on in a stream of its own.
    """

    def __init__(self, store: HistoryStore):
        self._store, self._inMemory, self._drawn = store, WeakSet(), {}

    def issue(self, state: State):
        """Note a State that was made of the Context."""
        self._inMemory.add(state)

    def load(self, context: Context, read: Callable, source: State | bytes):
        """Let ``read(context, source)`` write into the Context.

        A HistoryError says that the source was made under another integrator, System or model; the Context may then
        hold parts of it.
        """
        store, inMemory = self._store, source in self._inMemory
        self._drawn[store.stream] = max(store.jump, self._drawn.get(store.stream, 0))
        self._read(context, read, source)
        if not inMemory:
            self._drawn[store.stream] = store.jump
        elif store.jump < self._drawn.get(store.stream, 0):
            numbers = (derived("stream", store.stream, store.jump, k) % STREAMS for k in itertools.count())
            store.stream = next(number for number in numbers if number not in self._drawn)
        if isinstance(source, State):
            self.issue(source)

    def _read(self, context: Context, read: Callable, source: State | bytes):
        try:
            read(context, source)
        except OpenMMException as error:
            raise HistoryError(_refusal(source, str(error))) from error
        if not self._store.seed:  # which every StarMDIntegrator with a Context has
            raise HistoryError(_refusal(source, "it holds no random number seed"))
        if not isinstance(source, State):  # OpenMM reads half of a checkpoint, or what it takes for one, in silence
            expected = len(context.createCheckpoint())
            if len(source) != expected:
                raise HistoryError(_refusal(source, f"it holds {len(source)} bytes; expected {expected}"))
        try:
            self._store.read()
        except HistoryError as error:
            raise HistoryError(
                _refusal(source, "its history is of another model, protein or contextFrames, or damaged")
            ) from error


def _refusal(source: State | bytes, found: str) -> str:
    other = "another integrator, model, version of its weights or contextFrames"
    if isinstance(source, State):
        return (
            f"This State was made under {other}, or of another System ({found}). Nothing was changed. Go on from its "
            "positions: context.setPositions(state.getPositions())."
        )
    return (
        f"This checkpoint was made under {other}, of another System, or by another platform or version of OpenMM, or "
        f"is damaged ({found}). Nothing was changed. Load it where it was made, and go on from the positions there: "
        "context.setPositions(other.getState(positions=True).getPositions())."
    )
