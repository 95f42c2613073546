"""``starmd rollout``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from openmm_starmd.cli.cluster_option import Authority, Certificate, Key, Scheduler, dask
from openmm_starmd.cli.terminal import progress


def rollout(
    molecule: Annotated[
        str,
        typer.Argument(help="PDB file with all hydrogens, or one-letter codes as in ace-DWGR-nme.", show_default=False),
    ],
    nanoseconds: Annotated[
        float, typer.Option(min=0, help="Length of each trajectory, rounded to whole strides.", show_default=False)
    ],
    stride: Annotated[float, typer.Option(help="ps of one step.")] = 100.0,
    replicas: Annotated[int, typer.Option(min=1, help="Trajectories.")] = 1,
    model: Annotated[str, typer.Option(help="Name, as `starmd models` lists them, or path; auto chooses.")] = "auto",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the trajectories.")] = Path("rollout"),
    relax: Annotated[bool, typer.Option(help="Relax every conformation in Amber ff14SB and OBC2.")] = True,
    dynamics_steps: Annotated[
        int, typer.Option(min=0, help="Of 2 fs each, at the end of a relaxation: most of its cost.")
    ] = 60,
    temperature: Annotated[float, typer.Option(help="K.")] = 300.0,
    seed: Annotated[
        int, typer.Option(help="Of all replicas, and of a start from a sequence; 0 is a seed like any other.")
    ] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Relaxations at a time, one CPU thread each.")] = 1,
    device: Annotated[str, typer.Option(help="Where the network runs: auto, cpu, cuda.")] = "auto",
    max_retries: Annotated[int, typer.Option(min=0, help="Samples more of a conformation that fails the checks.")] = 5,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Replicas in a batch of the network.", show_default="all; 8 by Dask")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(help="Warn where the model's domain is left for this reason, such as length; may be repeated."),
    ] = None,
    scheduler: Scheduler = None,
    tls_ca_file: Authority = None,
    tls_cert: Certificate = None,
    tls_key: Key = None,
) -> None:
    """Sample trajectories of a learned model; a stopped run goes on where it was, with the same command."""
    from openmm_starmd.binding.context import refuseOtherMolecules
    from openmm_starmd.domain import allowing
    from openmm_starmd.files import check_output_folder
    from openmm_starmd.plugins import NewPropagator
    from openmm_starmd.protein.tokens import ResidueTokens, refuse_missing_atoms
    from openmm_starmd.relaxation import Relaxation
    from openmm_starmd.rollout import rollout as run
    from openmm_starmd.systems import peptide_system
    from openmm_starmd.systems.molecule import read_or_build
    from openmm_starmd.trajectories.times import frames_in

    n_steps = frames_in(nanoseconds, stride, "stride")
    check_output_folder(output)
    topology, positions = read_or_build(molecule, seed)
    refuse_missing_atoms(topology)
    strict, described = allowing(allow or []), (ResidueTokens.from_topology(topology), stride, temperature)
    new_propagator = NewPropagator.of(model, *described, device if scheduler is None else "cpu", strict)
    new_propagator.require(*described)
    refuseOtherMolecules(topology)
    made = 0
    with dask(scheduler, tls_ca_file, tls_cert, tls_key) as client, progress(nanoseconds * replicas) as report:

        def count(frames):
            nonlocal made
            made += frames
            report(f"{made:,} of {n_steps * replicas:,} frames", made / (n_steps * replicas))

        files = run(
            new_propagator.source,
            topology,
            positions,
            stride=stride,
            n_steps=n_steps,
            n_replicas=replicas,
            seed=seed,
            output=output,
            resume=True,
            temperature=temperature,
            system=peptide_system(topology) if relax else None,
            relaxation=Relaxation(dynamicsSteps=dynamics_steps),
            workers=workers,
            device=device,
            max_retries=max_retries,
            batch_size=batch_size,
            strict=strict,
            client=client,
            progress=count,
        )
    for file in files:
        print(file)
