"""``starmd evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from openmm_starmd.cli.terminal import LIGHTS, plain_table, progress


def evaluate(
    reference: Annotated[list[Path], typer.Option(help="Trajectories of MD; several may follow.", show_default=False)],
    generated: Annotated[
        list[Path], typer.Option(help="Trajectories to judge; several may follow.", show_default=False)
    ],
    topology: Annotated[
        Path | None, typer.Option(help="Topology of the files that hold none of their own (PDB, HDF5).")
    ] = None,
    generated_topology: Annotated[
        Path | None, typer.Option(help="Topology of the generated files, if it is another one.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for report.html, summary.md and metrics.json.")
    ] = Path("report"),
    stride: Annotated[
        float | None, typer.Option(help="ps between generated frames, if their file does not tell.")
    ] = None,
    reference_stride: Annotated[float | None, typer.Option(help="ps between frames of the reference.")] = None,
    temperature: Annotated[float, typer.Option(help="K.")] = 300.0,
    jumps: Annotated[
        list[Path] | None, typer.Option(help="Tables of the StarMDReporters of the generated trajectories.")
    ] = None,
) -> None:
    """Compare generated trajectories with MD: a verdict, scores and a page with figures.

    Reads XTC, TRR, DCD, NetCDF, HDF5 and PDB with many models; atoms are matched by residue order and name.
    """
    from openmm_starmd.evaluation import evaluate as compare
    from openmm_starmd.evaluation.scoring.scores import MEANING
    from openmm_starmd.files import check_output_folder

    console = Console()
    check_output_folder(output)  # before the work
    with progress() as report:
        evaluation = compare(
            reference,
            generated,
            topology,
            generated_topology=generated_topology,
            stride=stride,
            reference_stride=reference_stride,
            temperature=temperature,
            jumps=jumps or (),
            progress=report,
        )
        report("drawing the page", 0.0)
        page = evaluation.write(output)
    console.print(Text(evaluation.verdict, style="bold"), "")
    console.print(_score_table(evaluation))
    console.print("")
    for name, meaning in MEANING.items():
        if name != "none":
            console.print(f"{LIGHTS[name]} {meaning}", style="dim")
    if "note" in evaluation.settings:
        console.print(Text(f"\nNote: {evaluation.settings['note']}"))
    console.print(f"\n{page}", soft_wrap=True, highlight=False)


def _score_table(evaluation) -> Table:
    from openmm_starmd.evaluation.scoring.scores import written

    table = plain_table("", "score")
    for column in ("generated", "MD itself"):
        table.add_column(column, justify="right")
    for s in evaluation.scores:
        table.add_row(LIGHTS[s.light], s.name, written(s.value, s.unit), written(s.oracle, s.unit))
    return table
