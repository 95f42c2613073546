"""The options of commands that can spread their work over a cluster."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

Scheduler = Annotated[
    str | None, typer.Option(help="Address of a Dask scheduler; its workers must see the output folder.")
]
Authority = Annotated[
    Path | None, typer.Option(help="Of a scheduler at tls://..., as of `dask worker`: its authority's certificate.")
]
Certificate = Annotated[Path | None, typer.Option(help="Certificate of this client of the scheduler.")]
Key = Annotated[Path | None, typer.Option(help="Private key of this client of the scheduler.")]


def dask(scheduler: str | None, *tls: Path | None):
    """Context with a client of the Dask scheduler at an address, or with None where there is no address."""
    if scheduler is None:
        return nullcontext()
    from openmm_starmd.rollout.cluster import connect

    return connect(scheduler, *tls)
