"""Replicas over several machines, by Dask (`distributed`).

A task brings one batch of replicas from one checkpoint to the next. It takes its states from the shared folder and
leaves them there, so that a task whose worker has died is repeated by another from the same states, with the same
result; and a worker that is only believed dead keeps its locks until it has finished or dies, while the other waits.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence

from openmm_starmd.errors import StarMDError, extra, require
from openmm_starmd.rollout.ensemble import Ensemble, Reached

with extra("cluster", "Work on several machines"):
    from distributed import Client, Security, as_completed


def connect(address: str, ca_file=None, cert=None, key=None) -> Client:
    """Client of the scheduler at an address, such as ``tcp://node1:8786``, or ``tls://...`` with three PEM files.

    Without files the client takes those that Dask's own configuration names (``distributed.comm.tls``). A StarMDError
    says which file is not there, or that TLS is asked for and files are missing.
    """
    files = {"tls_ca_file": ca_file, "tls_client_cert": cert, "tls_client_key": key}
    given = {name: str(path) for name, path in files.items() if path is not None}
    for path in given.values():
        if not os.path.isfile(path):
            raise StarMDError(f"There is no file {path}, which was to be a certificate or key of TLS.")
    security = Security(**given)
    if address.startswith("tls://") and None in [getattr(security, name) for name in files]:
        raise StarMDError(
            f"{address} asks for TLS: give the certificate of its authority, and certificate and key of this client "
            "(--tls-ca-file, --tls-cert, --tls-key), or name them in Dask's configuration (distributed.comm.tls)."
        )
    return Client(address, timeout=10, security=security)


def require_client(client) -> None:
    """Raise ValueError for what is no client of Dask."""
    require(isinstance(client, Client), f"client must be a distributed.Client; found a {type(client).__name__}.")


def distribute(
    client: Client,
    ensemble: Ensemble,
    batches: Sequence[Sequence[int]],
    steps: Sequence[int],
    n_steps: int,
    device: str,
    progress: Callable[[int], None],
) -> list[Reached]:
    """Bring all replicas to the last step, or as far as they get, on the workers of a client.

    The propagators of the ensemble are on the CPU. ``batches`` are numbers of replicas, and ``steps`` what each of them
    has; ``progress`` gets the number of new frames after each task. A ValueError refuses what is no client; the error
    of the first task that fails is raised after the other batches have come to their end.
    """
    require_client(client)
    shared = client.submit(_same, ensemble, pure=False)  # not scattered: what a dead worker held is then made again
    steps, every = list(steps), ensemble.checkpoint_steps
    counts = [Counter() for _ in steps]
    done, errors = [], []

    def submit(batch):
        until = min(n_steps, (min(steps[number] for number in batch) // every + 1) * every)
        return client.submit(_advance, shared, batch, until, device, pure=False)

    pieces = as_completed([submit(batch) for batch in batches])
    for piece in pieces:
        try:
            reached = piece.result()
        except Exception as error:
            errors.append(error)
            continue
        progress(sum(r.step - steps[r.number] for r in reached))
        for r in reached:
            steps[r.number] = r.step
            counts[r.number].update(r.counts)
        going = [r.number for r in reached if r.step < n_steps and not r.rejection]
        done += [r._replace(counts=counts[r.number]) for r in reached if r.number not in going]
        if going:
            pieces.add(submit(going))
    if errors:
        raise errors[0]
    return done


def _same(ensemble: Ensemble) -> Ensemble:
    return ensemble


def _advance(ensemble: Ensemble, numbers: list[int], until: int, device: str) -> list[Reached]:
    ensemble = ensemble.on(device)
    return ensemble.advance(numbers, until, ensemble.sampler(), wait=True)
