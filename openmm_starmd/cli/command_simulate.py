"""``starmd simulate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from openmm_starmd.cli.terminal import progress


def simulate(
    sequences: Annotated[
        list[str], typer.Argument(help="One-letter codes, with caps as in ace-AAAA-nme, or PDB files with hydrogens.")
    ],
    nanoseconds: Annotated[float, typer.Option(min=0, help="Length of each trajectory.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for NAME.pdb and NAME.xtc.")] = Path("md"),
    frame_interval: Annotated[float, typer.Option(help="ps between frames.")] = 5.0,
    temperature: Annotated[float, typer.Option(help="K.")] = 300.0,
    replicas: Annotated[int, typer.Option(min=1, help="Trajectories of each molecule: NAME, NAME_2, ...")] = 1,
    processes: Annotated[int, typer.Option(min=1, help="Systems at a time, one CPU thread each.")] = 1,
    together: Annotated[int, typer.Option(min=1, help="Trajectories in one System, far apart: for a GPU.")] = 1,
    seed: Annotated[int, typer.Option(help="Of starts, velocities and noise; 0 is a seed like any other.")] = 0,
    platform: Annotated[str, typer.Option(help="OpenMM platform.")] = "CPU",
) -> None:
    """Make MD of peptides and proteins (Amber ff14SB, OBC2); a killed run goes on by the same command."""
    from openmm_starmd.training import simulate as run

    with progress(nanoseconds * replicas * len(sequences)) as report:
        names = run(
            sequences,
            output,
            nanoseconds,
            frame_interval=frame_interval,
            temperature=temperature,
            replicas=replicas,
            processes=processes,
            together=together,
            seed=seed,
            platform=platform,
            progress=report,
        )
    for name in names:
        print(output / f"{name}.xtc")
