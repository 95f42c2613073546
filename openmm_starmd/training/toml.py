"""Settings from TOML: tables to dataclasses, with whatever is unknown or of the wrong kind refused by name."""

from __future__ import annotations

import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

from openmm_starmd.errors import StarMDError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_KINDS = {"int": int, "float": (int, float), "str": str, "bool": bool}


def read(path: Path) -> dict:
    """The tables of a TOML file; StarMDError if there is none, or it cannot be parsed."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StarMDError(f"The configuration {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StarMDError(f"{path} is no TOML file: {error}.") from error


def checked(kind: type, table: dict, prefix: str = "") -> dict:
    """``table``; ValueError unless its keys are fields of the dataclass ``kind`` and plain values of the right type."""
    known = {field.name: field.type for field in fields(kind)}
    unknown = sorted(table.keys() - known.keys())
    if unknown:
        names = ", ".join(prefix + name for name in unknown)
        raise ValueError(f"there is no setting {names}; expected some of {', '.join(known)}.")
    for name, value in table.items():
        expected = _KINDS.get(known[name])
        if expected and (not isinstance(value, expected) or isinstance(value, bool) != (expected is bool)):
            raise ValueError(f"{prefix}{name} must be of type {known[name]}, not {value!r}.")
    return table


def changed(value, table: dict, prefix: str):
    """The dataclass ``value`` with the fields of ``table``; tables inside go to the dataclasses inside."""
    if not isinstance(table, dict):
        raise ValueError(f"{prefix.rstrip('.')} must be a table, not {table!r}.")
    new = dict(checked(type(value), table, prefix))
    for name in new:
        if is_dataclass(getattr(value, name)):
            new[name] = changed(getattr(value, name), new[name], f"{prefix}{name}.")
        elif isinstance(new[name], list):
            new[name] = tuple(new[name])
    return replace(value, **new)
