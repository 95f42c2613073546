"""The option ``--scheduler`` of commands that can spread their work over a cluster."""

from __future__ import annotations

from contextlib import nullcontext


def dask(scheduler: str | None):
    """Context with a client of the Dask scheduler at an address, or with None where there is no address."""
    if scheduler is None:
        return nullcontext()
    from openmm_starmd.rollout.cluster import connect

    return connect(scheduler)
