"""Files of tensors, written whole or not at all, and readable by whom the umask lets read."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors.torch import save_file


def save_tensors(tensors: dict, path: str | os.PathLike, metadata: dict[str, str]) -> None:
    """Write a safetensors file under a temporary name and give it its own when it is whole.

    Parameters
    ----------
    tensors : dict of Tensor
    path : path
    metadata : dict of str

    Raises
    ------
    OSError, safetensors.SafetensorError
        If the file cannot be written; what was there before stays.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.part")
    try:
        partial.touch()  # safetensors makes files for the owner alone: the mode is that of any other new file
        mode = partial.stat().st_mode
        save_file(tensors, str(partial), metadata)
        os.chmod(partial, mode)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
