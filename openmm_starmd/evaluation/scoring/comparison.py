"""Both sides of a comparison and all that scores and figures are worked out from, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from openmm_starmd.evaluation.metrics.slow_modes import tica_edges
from openmm_starmd.evaluation.scoring.projection import Frames, Projection, halves, join, split
from openmm_starmd.trajectories.sides import Side

N_PIECES = 20
MAX_MULTIPLE = 100
NULL_FRAMES = 20_000


@dataclass(frozen=True)
class Comparison:
    """Frames of both sides, measured alike, with MD against itself and null models."""

    sides: tuple[Side, Side]  # the reference and the generated trajectories
    projection: Projection  # fitted to the reference
    generated: list[Frames]  # as ``projection.frames`` gives them
    temperature: float  # K, of free energies
    kinetic: bool = True  # whether pairs of generated frames a lag apart mean anything

    @property
    def reference(self) -> list[Frames]:
        """Frames of the reference."""
        return self.projection.reference

    @cached_property
    def multiples(self) -> list[int]:
        """Lag times of curves, in units of the common lag."""
        longest = min(max(len(frames) // frames.lag for frames in side) for side in (self.reference, self.generated))
        most = int(np.clip(longest // 10, 1, MAX_MULTIPLE)) if self.kinetic else 1
        return sorted(set(np.geomspace(1, most, 8).round().astype(int).tolist()))

    @cached_property
    def edges(self) -> dict[int, list[np.ndarray]]:
        """Bins of one and of two tICs, over the range of both sides."""
        return tica_edges(*(frames.tics for frames in (*self.reference, *self.generated)))

    def pieces(self, trajectories: list[Frames]) -> list[Frames]:
        """About twenty pieces of trajectories, whose pairs up to the longest lag are those of the whole."""
        return split(trajectories, N_PIECES, self.multiples[-1] * trajectories[0].lag)

    @cached_property
    def halves(self) -> tuple[list[Frames], list[Frames], list[Frames]]:
        """MD against itself: half of the reference's files and the others, or first and second half of the only one.

        The third list is the second one, thinned to as many frames as were generated.
        """
        one, two = halves(self.reference)
        share = min(1.0, sum(map(len, self.generated)) / sum(map(len, two)))
        thin = [f.rows(np.linspace(0, len(f) - 1, max(1, round(share * len(f)))).astype(int)) for f in two]
        return one, two, thin

    @cached_property
    def nulls(self) -> dict[str, Frames]:
        """A first frame that never moves, and the reference's frames in random order: as many as were generated."""
        n, lag = min(NULL_FRAMES, sum(map(len, self.generated))), self.generated[0].lag
        rng, total = np.random.default_rng(0), sum(map(len, self.reference))
        order = rng.permutation(total)[:n] if n <= total else rng.integers(total, size=n)
        frozen = self.reference[0].rows(np.zeros(n, dtype=int))
        return {"frozen": replace(frozen, lag=lag), "shuffled": replace(join(self.reference).rows(order), lag=lag)}


def total(summarize, trajectories: list[Frames]) -> np.ndarray:
    """Sum of what a function of Frames finds in several of them."""
    return np.sum([summarize(frames) for frames in trajectories], axis=0)
