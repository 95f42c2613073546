"""Progress of long work for log files: a line now and then, in place of a bar."""

from __future__ import annotations

import time
from collections.abc import Callable

FIRST, LONGEST = 30.0, 600.0  # s between lines, which doubles from one line to the next


class ProgressLines:
    """Writes what is done, the share of everything, the speed and the time that is left.

    ``write`` takes each line. The ``amount`` is what everything is, such as nanoseconds, and ``speed`` how an amount in
    a day is written; without an amount no speed is told. ``clock`` gives the time in s.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        amount: float | None = None,
        speed: str = "{:,.0f} ns/day",
        clock: Callable[[], float] = time.monotonic,
    ):
        self._write, self._amount, self._speed, self._clock = write, amount, speed, clock
        self._begin, self._last, self._next, self._gap = (0.0, 0.0), float("inf"), clock() + FIRST, FIRST

    def __call__(self, text: str, done: float) -> None:
        """Tell what is done, in words and as a share of everything, from 0 to 1; 0 where that is not known."""
        now = self._clock()
        if done < self._last or not done:  # a stage begins; what an earlier run has done counts for no speed
            self._begin = now, done
        self._last = done
        begun = self._gap > FIRST  # what ends within the first seconds needs no lines
        if now < self._next and not (begun and done >= 1):
            return
        self._next, self._gap = now + self._gap, min(2 * self._gap, LONGEST)
        self._write(", ".join([text, *self._told(now, done)]))

    def _told(self, now: float, done: float):
        if done:
            yield f"{done:.1%}"
        rate = (done - self._begin[1]) / (now - self._begin[0]) if now > self._begin[0] else 0.0  # shares a second
        if rate and self._amount:
            yield self._speed.format(86400 * rate * self._amount)
        if rate and done < 1:
            yield f"{duration((1 - done) / rate)} left"


def duration(seconds: float) -> str:
    """A time as people say it: ``"40 s"``, ``"12 min"``, ``"3.5 h"``, ``"2.1 days"``."""
    for size, name in ((86_400, "days"), (3600, "h")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
