"""The page of an `Evaluation`: one file that loads nothing from elsewhere."""

from __future__ import annotations

import base64
import html
import io
import json
from importlib import resources
from string import Template
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt

from openmm_starmd.evaluation.report.figures import figures
from openmm_starmd.evaluation.report.viewer import viewer_data
from openmm_starmd.evaluation.scoring.measures import DISTRIBUTIONS, KINETICS, VALIDITY
from openmm_starmd.evaluation.scoring.scores import MEANING, NONE, Score, written
from openmm_starmd.evaluation.scoring.verdict import caption

if TYPE_CHECKING:
    from openmm_starmd.evaluation.report.evaluation import Evaluation


def _asset(name: str) -> str:
    return resources.files("openmm_starmd.evaluation.report").joinpath(name).read_text(encoding="utf-8")


def _row(score: Score) -> str:
    meaning = html.escape(MEANING[score.light])
    low, high, oracle, frozen, shuffled = (
        written(value, score.unit) for value in (score.low, score.high, score.oracle, score.frozen, score.shuffled)
    )
    best = (
        ""
        if score.direction == "lower" or score.light == NONE or score.unit == "p"
        else ' <small class="less">1 is best</small>'
    )
    best = best.replace("1 is", "100 % is") if score.unit == "share" else best
    lamp = f'<span class="lamp {score.light}" role="img" aria-label="{meaning}" title="{meaning}"></span>'
    return (
        f"<tr><td>{lamp}{html.escape(score.name)}{best}</td>"
        f'<td class="value">{written(score.value, score.unit)}</td>'
        f'<td class="less">{f"{low} to {high}" if score.low == score.low else "–"}</td><td>{oracle}</td>'
        f'<td class="less">{frozen}</td><td class="less">{shuffled}</td></tr>'
    )


def _rows(scores: tuple[Score, ...]) -> str:
    lines = []
    for group in (DISTRIBUTIONS, KINETICS, VALIDITY):
        lines.append(
            f'<tr class="group"><td colspan="6">{group.capitalize()}'
            f"<small>{html.escape(caption(group))}</small></td></tr>"
        )
        lines += [_row(score) for score in scores if score.group == group]
    return "\n".join(lines)


def _picture(figure) -> str:
    """A matplotlib figure as the address of an inline SVG picture; it is closed."""
    buffer = io.StringIO()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "openmm-starmd"}):
        figure.savefig(buffer, format="svg", dpi=150, metadata={"Date": None})
    plt.close(figure)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue().encode()).decode()


def _figures(evaluation: Evaluation) -> str:
    return "\n".join(
        f'<figure class="card{" wide" * drawn.wide}">'
        + (f'<img src="{_picture(drawn.figure)}" alt="{html.escape(drawn.title)}">' if drawn.figure else "")
        + f"<figcaption><b>{html.escape(drawn.title)}.</b> {html.escape(drawn.caption)}</figcaption></figure>"
        for drawn in figures(evaluation)
    )


def _viewer(evaluation: Evaluation) -> dict:
    judge = evaluation.judge
    broken = {
        "MD": [frames.checks[:, 0] == 0 for frames in judge.reference],
        "generated": [frames.checks[:, 0] == 0 for frames in judge.generated],
    }
    return viewer_data(
        {"MD": (evaluation.reference, broken["MD"]), "generated": (evaluation.generated, broken["generated"])}
    )


def _facts(settings: dict) -> list[tuple[str, str]]:
    def side(name):
        frames, interval, length = (settings[f"{name} {key}"] for key in ("frames", "interval (ps)", "length (ns)"))
        return f"{frames:,} frames" + (f", {interval:g} ps apart: {length:,.6g} ns" if interval else ", without times")

    return [
        ("Reference", side("reference")),
        ("Generated", side("generated")),
        ("Compared", f"{settings['heavy atoms in common']:,} heavy atoms of {settings['residues']:,} residues"),
        ("Lag time", f"{settings['lag time (ps)']:g} ps; slow modes from {settings['slow modes from']}"),
        ("Temperature", f"{settings['temperature (K)']:g} K"),
        *([("Note", settings["note"])] if "note" in settings else []),
    ]


def render(evaluation: Evaluation) -> str:
    """HTML of the page."""
    data = _viewer(evaluation)
    settings = evaluation.settings
    sentences = evaluation.verdict.replace(". ", ".\n").split("\n")
    stage = "".join(
        f'<figure id="view-{i}"><figcaption><b>{html.escape(side["title"])}</b><output></output></figcaption>'
        f'<canvas tabindex="0" role="img" aria-label="3-D view of {html.escape(side["title"])}"></canvas></figure>'
        for i, side in enumerate(data["sides"])
    )
    shown = "Evenly spaced frames of the first trajectory of each side, superposed: " + (
        "heavy atoms, coloured by element."
        if data["mode"] == "sticks"
        else "the trace of CA from the N terminus (blue) to the C terminus (red)."
    )
    return Template(_asset("page.html")).substitute(
        title="Is it right? " + html.escape(settings["generated"]),
        what=f"{html.escape(settings['generated'])} against {html.escape(settings['reference'])}",
        verdict="".join(f"<span>{html.escape(sentence)}</span>" for sentence in sentences),
        facts="".join(f"<div><dt>{name}</dt><dd>{html.escape(text)}</dd></div>" for name, text in _facts(settings)),
        rows=_rows(evaluation.scores),
        key="".join(
            f'<li><span class="lamp {lamp}"></span>{html.escape(meaning)}</li>'
            for lamp, meaning in MEANING.items()
            if lamp != NONE
        ),
        shown=shown,
        stage=stage,
        figures=_figures(evaluation),
        style=_asset("page.css"),
        data=json.dumps(data, separators=(",", ":")).replace("</", "<\\/"),
        script=_asset("viewer.js"),
    )
