"""Seeds of single draws, derived from the seed of a run."""

from __future__ import annotations

import hashlib


def derived(*key: int | str) -> int:
    """A seed of 63 bits that depends on every part of ``key`` and on nothing else.

    The seed is a hash, so that draws of different purposes, replicas and steps are independent of each other and of
    the order in which they are made.
    """
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little") >> 1
