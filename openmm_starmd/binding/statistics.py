"""What happened in the jumps of a run: counts, causes, energies, seconds."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import contextmanager

PHASES = ("network", "backmapping", "relaxation")


class JumpStatistics:
    """Counts of one integrator since it was created."""

    def __init__(self):
        self._counts, self._failed, self._seconds = Counter(), Counter(), Counter()
        self._last = None
        self.startJump()

    def startJump(self):
        """Begin to count for one jump."""
        self._begin, self.failedNow = time.perf_counter(), Counter()

    def reject(self, failures):
        """A conformation has failed the checks of these names."""
        self.failedNow.update(list(failures))
        self._failed.update(list(failures))
        self._counts["resampled"] += 1

    def finishJump(self, retries: int, energies):
        """The jump has been accepted after ``retries``; ``energies`` are those before and after relaxation, kJ/mol."""
        self._counts["steps"] += 1
        self._last = {
            "retries": retries,
            "failed": dict(self.failedNow),
            "energyBefore": energies[0],
            "energyAfter": energies[1],
            "seconds": time.perf_counter() - self._begin,
        }

    @contextmanager
    def timed(self, phase: str):
        """Add the time of a block to a phase, or to the ``"total"``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[phase] += time.perf_counter() - start

    def asDict(self) -> dict:
        """What `StarMDIntegrator.getStatistics` returns."""
        seconds = {phase: self._seconds[phase] for phase in PHASES}
        seconds["other"] = self._seconds["total"] - sum(seconds.values())
        counts = {name: self._counts[name] for name in ("steps", "resampled")}
        return counts | {"failed": dict(self._failed), "seconds": seconds, "last": self._last}
