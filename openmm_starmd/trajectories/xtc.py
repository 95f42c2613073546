"""Frames of an XTC file, found by their headers alone."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

MAGIC = struct.pack(">i", 1995)
LAST_STEP = 2**31 - 1  # of XTC and DCD, which count steps in 32 bits
_HEADER, _PACKED_HEADER = 56, 92  # bytes before coordinates; those of more than 9 atoms are packed


def frame_ends(file: BinaryIO, begin: int = 0) -> Iterator[tuple[int, int]]:
    """Step of every whole frame from byte ``begin`` on, and the byte where the frame ends.

    A ValueError says that something else than a frame begins where a frame should.
    """
    size = file.seek(0, os.SEEK_END)
    while begin + _HEADER <= size:
        file.seek(begin)
        header = file.read(_PACKED_HEADER).ljust(_PACKED_HEADER, b"\0")
        magic, atoms, step = struct.unpack(">4s2i", header[:12])
        packed = struct.unpack(">i", header[88:])[0]
        length = _PACKED_HEADER + (packed + 3) // 4 * 4 if atoms > 9 else _HEADER + 12 * atoms
        if magic != MAGIC or length < _HEADER:
            raise ValueError(f"no frame begins at byte {begin}")
        begin += length
        if begin <= size:
            yield step, begin
