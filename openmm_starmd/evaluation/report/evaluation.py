"""Comparison of a generated trajectory with MD: scores, a verdict, and a page to look at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from openmm import unit

from openmm_starmd.evaluation.report.page import render
from openmm_starmd.evaluation.scoring import scorer
from openmm_starmd.evaluation.scoring.causes import causes
from openmm_starmd.evaluation.scoring.comparison import Comparison
from openmm_starmd.evaluation.scoring.jumps import jump_scores, read_jumps
from openmm_starmd.evaluation.scoring.projection import Projection, common_lag
from openmm_starmd.evaluation.scoring.scores import MEANING, NONE, Score, interval, written
from openmm_starmd.evaluation.scoring.unscored import unscored
from openmm_starmd.evaluation.scoring.verdict import CAPTIONS, verdict
from openmm_starmd.files import check_output_folder, write_json
from openmm_starmd.trajectories.sides import Progress, Side, Source, read_sides
from openmm_starmd.units import positiveIn


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
    comparison : Comparison
        Frames of both sides, which figures are drawn from.
    unscored : tuple of str
        Sentences on what has no scores, and why; the verdict ends with them.
    """

    scores: tuple[Score, ...]
    verdict: str
    settings: dict
    comparison: Comparison
    unscored: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Score:
        """The score of this name."""
        for score in self.scores:
            if score.name == name:
                return score
        raise KeyError(f"no score {name!r}: expected one of {[score.name for score in self.scores]}")

    def table(self) -> str:
        """Markdown table, a row a score."""
        lines = ["| Score | generated | 95 % | MD itself | frozen | shuffled | |", "|---" * 7 + "|"]
        for group in CAPTIONS:
            lines.append(f"| **{group}** |" + " |" * 6)
            for s in (s for s in self.scores if s.group == group):
                value, *others = (written(value, s.unit) for value in (s.value, s.oracle, s.frozen, s.shuffled))
                cells = [s.name, value, interval(s), *others, s.light.replace(NONE, "")]
                lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def to_json(self, path: str | os.PathLike) -> None:
        """Verdict, what has no scores, settings and scores; what is not finite is null."""
        content = {"verdict": self.verdict, "unscored": self.unscored, "settings": self.settings}
        write_json(content | {"lights": MEANING, "scores": [asdict(score) for score in self.scores]}, path)

    def to_html(self, path: str | os.PathLike) -> None:
        """A page with verdict, table, figures and both trajectories to play, that loads nothing from elsewhere."""
        page = render(self.scores, self.verdict, self.settings, self.comparison)
        Path(path).write_text(page, encoding="utf-8")

    def to_markdown(self, path: str | os.PathLike) -> None:
        """Verdict, what was compared, and the table."""
        compared = "\n".join(f"- {key}: {value}" for key, value in self.settings.items())
        lights = "\n".join(f"- {lamp}: {meaning}" for lamp, meaning in MEANING.items())
        text = f"# {self.verdict}\n\n{compared}\n\n{self.table()}\n\n{lights}\n"
        Path(path).write_text(text, encoding="utf-8")

    def write(self, folder: str | os.PathLike) -> Path:
        """metrics.json, summary.md and report.html in a folder, which is made; returns the path of the page."""
        folder = check_output_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.to_json(folder / "metrics.json")
        self.to_markdown(folder / "summary.md")
        self.to_html(folder / "report.html")
        return folder / "report.html"


def _notes(reference: Side, generated: Side, lag_time: float, kinetic: bool) -> list[str]:
    """Sentences on the files that do not make the comparison wrong."""
    found = [*reference.notes, *generated.notes]
    if reference.gaps:
        found.append(f"the chain is interrupted between {', '.join(reference.gaps)}: no torsion is taken across it")
    for name, side in (("reference", reference), ("generated", generated)):
        short = [t.n_frames for t in side.trajectories if kinetic and t.n_frames * side.interval <= lag_time]
        if short:
            found.append(
                f"{len(short)} of {len(side.trajectories)} {name} trajectories are no longer than the lag time of "
                f"{lag_time:g} ps, too short for kinetics: they count for distributions and validity alone"
            )
    return found


def _settings(reference: Side, generated: Side, lag_time: float, temperature: float, projection: Projection) -> dict:
    return {
        "reference": ", ".join(reference.names),
        "generated": ", ".join(generated.names),
        "reference frames": reference.n_frames,
        "generated frames": generated.n_frames,
        "reference interval (ps)": reference.interval,
        "generated interval (ps)": generated.interval,
        "reference length (ns)": round(reference.nanoseconds, 6),
        "generated length (ns)": None if generated.interval is None else round(generated.nanoseconds, 6),
        "residues": sum(1 for atom in reference.topology.atoms if atom.name == "CA"),
        "heavy atoms in common": reference.topology.n_atoms,
        "lag time (ps)": lag_time,
        "temperature (K)": temperature,
        "slow modes from": "torsions" if projection.by_torsions else "distances of CA",
    }


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
        Any format and layout that `trajectories.sides` knows; atoms are matched by residue order and name.
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
    temperature = positiveIn("temperature", temperature, unit.kelvin)
    reported = read_jumps(jumps) if jumps else None
    given = {"generated_topology": generated_topology, "stride": stride, "reference_stride": reference_stride}
    one, two = read_sides(reference, generated, topology, **given, progress=progress)
    wrong = causes(one, two)
    lag_time, no_kinetics = common_lag(one, two)
    progress("measuring the reference", 0.0)
    projection = Projection(one, lag_time)
    progress("measuring the generated trajectory", 0.5)
    comparison = Comparison((one, two), projection, projection.frames(two), temperature, not no_kinetics)
    scores = tuple(scorer.scores(comparison, progress))
    settings = _settings(one, two, lag_time, temperature, projection)
    absent = unscored(scores, one.topology, no_kinetics)
    if notes := _notes(one, two, lag_time, not no_kinetics):
        settings["note"] = "; ".join(notes)
    if reported:
        scores += tuple(jump_scores(reported, scores))
        settings["failed checks"] = ", ".join(f"{n} {kind}" for kind, n in reported.failed.most_common()) or "none"
        for when, energies in (("before", reported.energies_before), ("after", reported.energies_after)):
            if (known := energies[np.isfinite(energies)]).size:
                for word, value in (("median", np.median(known)), ("mean", known.mean())):
                    settings[f"{word} energy {when} relaxation (kJ/mol)"] = round(float(value), 1)
        settings["milliseconds a jump"] = round(1000 * reported.seconds.sum() / max(1, reported.counts.sum()), 1)
    return Evaluation(scores, verdict(scores, wrong, absent), settings, comparison, absent)
