"""The reading side of `StarMDReporter`: how often jumps were sampled again, and what they cost."""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from openmm_starmd.errors import TrajectoryError
from openmm_starmd.evaluation.scoring.measures import KINETICS, VALIDITY
from openmm_starmd.evaluation.scoring.scorer import SAMPLES
from openmm_starmd.evaluation.scoring.scores import Score
from openmm_starmd.reporters import HEADERS


@dataclass(frozen=True)
class Jumps:
    """Lines of one or several tables; where there was no jump since the last line, energies are nan."""

    steps: np.ndarray  # (L,): step of each line
    times: np.ndarray  # (L,): ps
    counts: np.ndarray  # (L,) of int: jumps since the last line
    retries: np.ndarray  # (L,) of int: conformations that were sampled again
    repaired: np.ndarray  # (L,) of int: jumps that were accepted after a repair
    failed: Counter  # failed checks of all lines
    energies_before: np.ndarray  # (L,): before the relaxation of the last jump, kJ/mol
    energies_after: np.ndarray  # (L,): after it
    seconds: np.ndarray  # (L,): wall time of all jumps of a line, s

    @property
    def accepted(self) -> float:
        """Share of the sampled conformations that were accepted, repaired ones included."""
        return self._share(self.counts)

    @property
    def accepted_at_first(self) -> float:
        """Share of the sampled conformations that were accepted as they were."""
        return self._share(self.counts - self.repaired)

    def _share(self, accepted: np.ndarray) -> float:
        total = self.counts.sum()
        return float(accepted.sum() / (total + self.retries.sum())) if total else math.nan


def read_jumps(paths: str | os.PathLike | Sequence[str | os.PathLike]) -> Jumps:
    """Read what StarMDReporters have written; several tables, of replicas or parts of a run, are put one after another.

    Raises
    ------
    TrajectoryError
        If a file is not there or no such table; names it.
    """
    rows = [row for path in ([paths] if isinstance(paths, str | os.PathLike) else paths) for row in _rows(path)]
    step, time, retries, failed, _, before, after, seconds, count, repaired = zip(*rows, strict=True)
    kinds = Counter()
    for line in failed:
        kinds.update({kind: int(n) for kind, n in (pair.split(":") for pair in line.split())})
    counts = np.array(count, dtype=int)
    return Jumps(
        np.array(step, dtype=int),
        np.array(time, dtype=float),
        counts,
        np.array(retries, dtype=int),
        np.array(repaired, dtype=int),
        kinds,
        _numbers(before),
        _numbers(after),
        np.nan_to_num(_numbers(seconds)) * counts,
    )


def _rows(path) -> list[list[str]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            separator = "\t" if "\t" in file.readline() else ","
            file.seek(0)
            header, *rows = csv.reader(file, delimiter=separator)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise TrajectoryError(f"{path} cannot be read as a table of a StarMDReporter ({error}).") from error
    if [name.strip('#"') for name in header] != list(HEADERS) or not rows:
        raise TrajectoryError(
            f"{path} is no table of a StarMDReporter with lines in it: expected the columns {', '.join(HEADERS)}."
        )
    rows = [row for row in rows if row != header]  # of a run that was appended to without append=True
    torn = [number for number, row in enumerate(rows, 2) if len(row) != len(HEADERS)]
    if torn:
        raise TrajectoryError(f"Line {torn[0]} of {path} is torn; remove it, or continue the run with `resume`.")
    return rows


def _numbers(fields) -> np.ndarray:
    return np.array([float(field) if field else math.nan for field in fields])


def jump_scores(jumps: Jumps, scores: Sequence[Score]) -> list[Score]:
    """Scores that the tables add, for information: accepted conformations, and independent samples an hour."""
    samples = next(score.value for score in scores if score.name == SAMPLES)
    seconds = jumps.seconds.sum()
    hourly = samples * 3600 / seconds if seconds else math.nan
    return [
        Score.noted("accepted conformations", VALIDITY, jumps.accepted, "share"),
        Score.noted("accepted before repair", VALIDITY, jumps.accepted_at_first, "share"),
        Score.noted(f"{SAMPLES} an hour", KINETICS, hourly, ""),
    ]
