"""Engines in C++ or CUDA, compiled once for each version of their source, compiler and processor."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

from openmm_starmd.files import replacing


def cache_folder() -> Path:
    """The user's folder for compiled engines, which nobody else can write to.

    Raises
    ------
    RuntimeError
        If the folder belongs to somebody else, or others may write to it: they could put any code there.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "openmm-starmd"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise RuntimeError(
            f"Compiled engines are kept in {folder}, which others than its user can write to. Make it your own with "
            f"`chmod 700 {folder}`, or set XDG_CACHE_HOME to a folder of your own."
        )
    return folder


def library(source: Path, command: str, link: Sequence[str] = ()) -> ctypes.CDLL:
    """The shared library that a compiler makes of ``source``; a second call finds it in the cache.

    Parameters
    ----------
    source : Path
        The only file that the library is made of.
    command : str
        Compiler and its options.
    link : sequence of str
        Libraries, named behind the source.

    Raises
    ------
    RuntimeError
        If the cache is not safe; see `cache_folder`.
    subprocess.CalledProcessError
        If the compiler fails; its own words are on stderr.
    """
    words = [*command.split(), str(source), *link]
    version = hashlib.sha256(b"\0".join([source.read_bytes(), " ".join(words).encode(), _processor()])).hexdigest()
    path = cache_folder() / f"{source.stem}-{version[:16]}.so"
    if not path.exists():
        with replacing(path) as partial:
            subprocess.run([*words, "-o", str(partial)], check=True)
    return ctypes.CDLL(str(path))


def _processor() -> bytes:
    """What ``-march=native`` depends on: a home folder may be shared by machines with other processors."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor().encode()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags"))})).encode()
