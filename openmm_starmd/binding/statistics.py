"""Statistics of the jumps of a run: counts, causes, energies, seconds."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import contextmanager

PHASES = ("network", "backmapping", "relaxation")


def acceptance(counts: Counter) -> dict:
    """Counts of jumps, and the shares of the sampled conformations that were accepted.

    The counts are ``steps``, ``resampled`` and ``repaired``. ``acceptance`` holds the share ``firstTry`` of the
    conformations that were accepted as they were sampled, and ``afterRepair`` that of these and the repaired ones
    together; None before the first.
    """
    steps, resampled, repaired = (counts[name] for name in ("steps", "resampled", "repaired"))
    sampled = steps + resampled
    shares = {"firstTry": steps - repaired, "afterRepair": steps}
    shares = {name: count / sampled if sampled else None for name, count in shares.items()}
    return {"steps": steps, "resampled": resampled, "repaired": repaired, "acceptance": shares}


class JumpStatistics:
    """Counts of one integrator since it was created."""

    def __init__(self):
        self._counts, self._passed, self._failed, self._seconds = (Counter() for _ in range(4))
        self._last = None
        self.startJump()

    def startJump(self):
        """Begin to count for one jump."""
        self._begin, self.failedNow, self.failedLast = time.perf_counter(), Counter(), {}

    def fail(self, failures):
        """Count a conformation that failed the checks of these names, at these atoms, as it was sampled."""
        self.failedLast = failures
        self.failedNow.update(list(failures))
        self._failed.update(list(failures))

    def accept(self, repaired: bool):
        """Count a conformation that has passed the checks."""
        self._passed.update(steps=1, repaired=int(repaired))

    def reject(self):
        """Count a conformation that is given up; another one is sampled, or the jump has failed."""
        self._counts["resampled"] += 1

    def finishJump(self, retries: int, repaired: bool, energies, kept: bool = True):
        """Count a jump that ends after ``retries``; ``kept`` tells whether the bias accepts its conformation.

        ``energies`` of the conformation are those before and after relaxation, kJ/mol.
        """
        self._counts.update(steps=1, repaired=int(repaired), accepted=int(kept))
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
        steps, accepted = self._counts["steps"], self._counts["accepted"]
        bias = {"accepted": accepted, "rejected": steps - accepted, "acceptance": accepted / steps if steps else None}
        shares = acceptance(self._passed + Counter(resampled=self._counts["resampled"]))["acceptance"]
        seconds = {phase: self._seconds[phase] for phase in PHASES}
        seconds["other"] = self._seconds["total"] - sum(seconds.values())
        found = {"acceptance": shares, "bias": bias, "failed": dict(self._failed), "seconds": seconds}
        return acceptance(self._counts) | found | {"last": self._last}
