"""Errors of the package; each message says what was expected, what was found and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class StarMDError(Exception):
    """Base class of every error that openmm_starmd raises on purpose."""


class ModelDomainError(StarMDError):
    """The system, stride or temperature lies outside what the model was trained on."""


class UnsupportedTopologyError(StarMDError):
    """The Topology holds something that cannot be described by residue tokens."""


class JumpRejectedError(StarMDError):
    """No acceptable conformation was sampled within ``maxRetries``; the Context is in its last good state."""


class HistoryError(StarMDError):
    """Restart data are corrupt, or belong to another system, model or version."""


class TrajectoryError(StarMDError):
    """A trajectory or its topology cannot be read, or does not fit the other side of a comparison."""


class MissingLibraryError(StarMDError, ImportError):
    """A library is missing that an extra of the package brings."""


@contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """Turn an ImportError into a `MissingLibraryError` that names the extra; ``what`` needs its libraries."""
    try:
        yield
    except MissingLibraryError:
        raise
    except ImportError as missing:
        message = f'{what} needs more libraries ({missing}): pip install "openmm-starmd[{name}]"'
        raise MissingLibraryError(message, name=missing.name) from missing
