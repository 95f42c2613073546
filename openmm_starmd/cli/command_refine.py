"""``starmd refine``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from openmm_starmd.cli.cluster_option import Authority, Certificate, Key, Scheduler, dask
from openmm_starmd.cli.terminal import plain_table, progress


def refine(
    learned: Annotated[list[Path], typer.Argument(help="Folder of `starmd rollout`, or trajectories.")],
    nanoseconds: Annotated[float, typer.Option(min=0, help="MD from each start.", show_default=False)],
    starts: Annotated[int, typer.Option(min=1, help="Conformations of the run that MD starts from.")] = 64,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the MD and the result.")] = Path("refined"),
    topology: Annotated[Path | None, typer.Option(help="PDB file of trajectories that are no folder.")] = None,
    system: Annotated[Path | None, typer.Option(help="XML of an OpenMM System in place of ff14SB and OBC2.")] = None,
    temperature: Annotated[float, typer.Option(help="K.")] = 300.0,
    frame_interval: Annotated[float, typer.Option(help="ps between frames of the MD.")] = 2.0,
    precision: Annotated[float, typer.Option(help="Factor within which results have to be known.")] = 2.0,
    seed: Annotated[int, typer.Option(help="Of velocities and noise; 0 is a seed like any other.")] = 0,
    processes: Annotated[int, typer.Option(min=1, help="Trajectories at a time, one CPU thread each.")] = 1,
    platform: Annotated[str, typer.Option(help="OpenMM platform.")] = "CPU",
    scheduler: Scheduler = None,
    tls_ca_file: Authority = None,
    tls_cert: Certificate = None,
    tls_key: Key = None,
) -> None:
    """Correct a learned run by short MD: populations and rates of the force field, with intervals.

    A stopped call goes on by the same command; more nanoseconds prolong every trajectory.
    """
    from openmm_starmd.refinement import refine as run
    from openmm_starmd.refinement.inputs import read_system, rollout_files
    from openmm_starmd.systems.molecule import read_pdb

    files, structure = rollout_files(learned, topology)
    with dask(scheduler, tls_ca_file, tls_cert, tls_key) as client, progress(nanoseconds * starts) as report:
        result = run(
            files,
            read_pdb(structure).topology,
            nanoseconds=nanoseconds,
            output=output,
            n_starts=starts,
            system=read_system(system),
            temperature=temperature,
            frame_interval=frame_interval,
            precision=precision,
            seed=seed,
            processes=processes,
            platform=platform,
            client=client,
            progress=report,
        )
    console, table = Console(), plain_table("", "force field", "learned run")
    for row in result.table():
        table.add_row(*row)
    console.print(Text(result.verdict, style="bold"), "", table, "", sep="\n")
    console.print(str(output / "refined.md"), soft_wrap=True, highlight=False)
