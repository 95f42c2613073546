"""The page of a comparison: one HTML file that loads nothing from elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from importlib import resources

import matplotlib.pyplot as plt
from jinja2 import Environment
from matplotlib.figure import Figure

from openmm_starmd.evaluation.report.figures import figures
from openmm_starmd.evaluation.report.viewer import viewer_data
from openmm_starmd.evaluation.scoring.comparison import Comparison
from openmm_starmd.evaluation.scoring.scores import MEANING, Score, interval, written
from openmm_starmd.evaluation.scoring.verdict import CAPTIONS


def _asset(name: str) -> str:
    return resources.files("openmm_starmd.evaluation.report").joinpath(name).read_text(encoding="utf-8")


def _picture(figure: Figure) -> str:
    """Address of a matplotlib figure as an inline SVG picture; the figure is closed."""
    buffer = io.StringIO()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "openmm-starmd"}):
        figure.savefig(buffer, format="svg", dpi=150, metadata={"Date": None})
    plt.close(figure)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue().encode()).decode()


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


def render(scores: Sequence[Score], verdict: str, settings: dict, comparison: Comparison) -> str:
    """HTML of the page of scores, a verdict and the settings, what was compared; every text is escaped by Jinja2."""
    sides = zip(("MD", "generated"), comparison.sides, (comparison.reference, comparison.generated), strict=True)
    environment = Environment(autoescape=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.filters |= {"written": written, "interval": interval, "picture": _picture}
    return environment.from_string(_asset("page.html")).render(
        scores=scores,
        sentences=verdict.replace(". ", ".\n").split("\n"),
        settings=settings,
        facts=_facts(settings),
        captions=CAPTIONS,
        meaning=MEANING,
        viewer=viewer_data({title: (side, frames[0].checks[:, 0] == 0) for title, side, frames in sides}),
        figures=figures(comparison),
        style=_asset("page.css"),
        script=_asset("viewer.js"),
    )
