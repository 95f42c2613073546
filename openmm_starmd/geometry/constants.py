"""Constant tensors, made once for every device: on a GPU each new one makes the host wait."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor


def table(function: Callable) -> Callable:
    """Decorator: what the function gives for its arguments, such as dtype and device, is made once and for all uses.

    Made within a jump, it must do for training, too.
    """
    return lru_cache(maxsize=64)(torch.inference_mode(False)(function))


@table
def constant(values: tuple, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers, or nested tuples of them, as a tensor that nobody may write to."""
    return torch.tensor(values, dtype=dtype, device=device)
