"""Compare generated with reference trajectories; `evaluate` is imported when first used: it needs more libraries."""

from importlib import import_module

__all__ = ["Evaluation", "evaluate"]


def __getattr__(name):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.report"), name)
