"""`evaluate`: is a generated trajectory as good as MD? Scores, a verdict, and a page to look at."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from openmm_starmd.evaluation.frames import Projection, common_lag
from openmm_starmd.evaluation.judge import Judge
from openmm_starmd.evaluation.jumps import jump_scores, read_jumps
from openmm_starmd.evaluation.measures import DISTRIBUTIONS, KINETICS, VALIDITY
from openmm_starmd.evaluation.page import render
from openmm_starmd.evaluation.reading import Progress, Side, Source, read_sides
from openmm_starmd.evaluation.scores import MEANING, Score
from openmm_starmd.evaluation.verdict import verdict

GROUPS = (DISTRIBUTIONS, KINETICS, VALIDITY)


def number(value: float) -> str:
    """A number for a table; empty where there is none."""
    return "" if math.isnan(value) else f"{value:.3g}"


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`.

    Parameters
    ----------
    scores : tuple of Score
    verdict : str
        Two or three plain sentences.
    settings : dict
        What was compared: files, lengths, intervals, atoms, lag time.
    reference, generated : Side
    judge : Judge
    """

    scores: tuple[Score, ...]
    verdict: str
    settings: dict
    reference: Side
    generated: Side
    judge: Judge

    def __getitem__(self, name: str) -> Score:
        """The score of this name."""
        for score in self.scores:
            if score.name == name:
                return score
        raise KeyError(f"no score {name!r}: expected one of {[score.name for score in self.scores]}")

    def table(self) -> str:
        """Markdown table, a row a score."""
        lines = ["| Score | generated | 95 % | MD itself | frozen | shuffled | unit | |", "|---" * 8 + "|"]
        for group in GROUPS:
            lines.append(f"| **{group}** |" + " |" * 7)
            for s in (s for s in self.scores if s.group == group):
                interval = "" if math.isnan(s.low) else f"{number(s.low)} to {number(s.high)}"
                cells = [s.name, number(s.value), interval, *map(number, (s.oracle, s.frozen, s.shuffled))]
                lines.append(f"| {' | '.join([*cells, s.unit, s.light.replace('none', '')])} |")
        return "\n".join(lines)

    def to_json(self, path: str | os.PathLike) -> None:
        """Verdict, settings and scores; what is not finite is null."""
        rows = [
            {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(score).items()}
            for score in self.scores
        ]
        content = {"verdict": self.verdict, "settings": self.settings, "lights": MEANING, "scores": rows}
        Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def to_html(self, path: str | os.PathLike) -> None:
        """A page with verdict, table, figures and both trajectories to play, that loads nothing from elsewhere."""
        Path(path).write_text(render(self), encoding="utf-8")

    def to_markdown(self, path: str | os.PathLike) -> None:
        """Verdict, what was compared, and the table."""
        compared = "\n".join(f"- {key}: {value}" for key, value in self.settings.items())
        lights = "\n".join(f"- {lamp}: {meaning}" for lamp, meaning in MEANING.items())
        text = f"# {self.verdict}\n\n{compared}\n\n{self.table()}\n\n{lights}\n"
        Path(path).write_text(text, encoding="utf-8")

    def write(self, folder: str | os.PathLike) -> Path:
        """metrics.json, summary.md and report.html in a folder, which is made; returns the path of the page."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.to_json(folder / "metrics.json")
        self.to_markdown(folder / "summary.md")
        self.to_html(folder / "report.html")
        return folder / "report.html"


def doubtful_times(side: Side) -> bool:
    """Whether the times are 0, 1, 2, ... ps: what mdtraj writes for frames whose times it does not know."""
    return side.interval == 1.0 and all(trajectory.time[0] == 0 for trajectory in side.trajectories)


def _settings(reference: Side, generated: Side, lag_time: float, temperature: float, projection: Projection) -> dict:
    doubtful = " and ".join(n for n, s in (("reference", reference), ("generated", generated)) if doubtful_times(s))
    notes = {"note": f"times of {doubtful}: 0, 1, 2 ... ps, perhaps unknown to the writer; --stride sets them"}
    return {
        "reference": ", ".join(reference.names),
        "generated": ", ".join(generated.names),
        "reference frames": reference.n_frames,
        "generated frames": generated.n_frames,
        "reference interval (ps)": reference.interval,
        "generated interval (ps)": generated.interval,
        "reference length (ns)": round(reference.nanoseconds, 6),
        "generated length (ns)": round(generated.nanoseconds, 6),
        "residues": sum(1 for atom in reference.topology.atoms if atom.name == "CA"),
        "heavy atoms in common": reference.topology.n_atoms,
        "lag time (ps)": lag_time,
        "temperature (K)": temperature,
        "slow modes from": "torsions" if projection.by_torsions else "distances of CA",
    } | (notes if doubtful else {})


def evaluate(
    reference: Source | Sequence[Source],
    generated: Source | Sequence[Source],
    topology=None,
    *,
    generated_topology=None,
    stride: float | None = None,
    reference_stride: float | None = None,
    temperature: float = 300.0,
    jumps: str | os.PathLike | Sequence[str | os.PathLike] = (),
    progress: Progress = lambda text, done: None,
) -> Evaluation:
    """Compare generated with reference trajectories of one protein.

    Parameters
    ----------
    reference, generated : path, mdtraj.Trajectory, or sequence of them
        Any format and layout that `evaluation.reading` knows; atoms are matched by residue order and name.
    topology : path or mdtraj.Topology, optional
        Of all files that hold none of their own.
    generated_topology : path or mdtraj.Topology, optional
        Of the generated files, where it is another one.
    stride, reference_stride : float, optional
        ps between frames, for files without times or with wrong ones.
    temperature : float
        K, of free energies.
    jumps : path, or sequence of them
        Tables of the StarMDReporters of the generated trajectories.
    progress : callable, optional
        Takes what is being done, and how much of it is done (0 to 1).

    Returns
    -------
    Evaluation

    Raises
    ------
    TrajectoryError
        If the files cannot be read or compared; the message is one line.
    """
    if not temperature > 0:
        raise ValueError(f"expected a temperature above 0 K, found {temperature:g}")
    reported = read_jumps(jumps) if jumps else None
    one, two = read_sides(
        reference,
        generated,
        topology,
        generated_topology=generated_topology,
        stride=stride,
        reference_stride=reference_stride,
        progress=progress,
    )
    lag_time = common_lag(one, two)
    progress("measuring the reference", 0.0)
    projection = Projection(one, lag_time)
    progress("measuring the generated trajectory", 0.5)
    judge = Judge(projection, projection.frames(two), temperature)
    scores = tuple(judge.scores(progress))
    settings = _settings(one, two, lag_time, temperature, projection)
    if reported:
        scores += tuple(jump_scores(reported, scores))
        settings["failed checks"] = ", ".join(f"{n} {kind}" for kind, n in reported.failed.most_common()) or "none"
        settings["milliseconds a jump"] = round(1000 * reported.seconds.sum() / max(1, reported.counts.sum()), 1)
    return Evaluation(scores, verdict(scores), settings, one, two, judge)
