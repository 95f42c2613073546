"""Statistics of the jumps of a run: counts, causes, energies, seconds."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import contextmanager

PHASES = ("network", "backmapping", "relaxation")


def acceptance(counts: Counter) -> dict:
    """Counts of jumps, and the shares of the sampled conformations that were accepted.

    Parameters
    ----------
    counts : Counter
        ``steps``, ``resampled`` and ``repaired``.

    Returns
    -------
    dict
        The counts, and ``acceptance``: ``firstTry`` of those as they were sampled, ``afterRepair`` of those and the
        repaired ones together; None before the first.
    """
    steps, resampled, repaired = (counts[name] for name in ("steps", "resampled", "repaired"))
    sampled = steps + resampled
    shares = {"firstTry": steps - repaired, "afterRepair": steps}
    shares = {name: count / sampled if sampled else None for name, count in shares.items()}
    return {"steps": steps, "resampled": resampled, "repaired": repaired, "acceptance": shares}


class JumpStatistics:
    """Counts of one integrator since it was created."""

    def __init__(self):
        self._counts, self._failed, self._seconds = Counter(), Counter(), Counter()
        self._last = None
        self.startJump()

    def startJump(self):
        """Begin to count for one jump."""
        self._begin, self.failedNow = time.perf_counter(), Counter()

    def fail(self, failures):
        """Count a conformation that failed the checks of these names as it was sampled."""
        self.failedNow.update(list(failures))
        self._failed.update(list(failures))

    def reject(self):
        """Count a conformation that is given up; another one is sampled, or the jump has failed."""
        self._counts["resampled"] += 1

    def finishJump(self, retries: int, repaired: bool, energies):
        """Count a jump that is accepted after ``retries``; ``energies`` before and after relaxation, kJ/mol."""
        self._counts.update(steps=1, repaired=int(repaired))
        self._last = {
            "retries": retries,
            "repaired": repaired,
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
        """Statistics as `StarMDIntegrator.getStatistics` returns them."""
        seconds = {phase: self._seconds[phase] for phase in PHASES}
        seconds["other"] = self._seconds["total"] - sum(seconds.values())
        return acceptance(self._counts) | {"failed": dict(self._failed), "seconds": seconds, "last": self._last}
