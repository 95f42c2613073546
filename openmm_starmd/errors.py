"""Errors of the package; each message says what was expected, what was found and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module


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


def require(condition: bool, message: str) -> None:
    """Raise ValueError with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ValueError(message)


def first_line(error: Exception) -> str:
    """First line of an error's message; its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def listed(names: Sequence[str], most: int = 3) -> str:
    """Names for a message, such as ``a, b, c and 2 more``."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def lazily(package: str, modules: Mapping[str, str], name: str, what: str) -> Callable[[str], object]:
    """``__getattr__`` of a package that imports names from its modules when they are first used; see `extra`."""

    def found(attribute: str) -> object:
        if attribute not in modules:
            raise AttributeError(f"module {package!r} has no attribute {attribute!r}")
        with extra(name, what):
            return getattr(import_module(f"{package}.{modules[attribute]}"), attribute)

    return found


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
