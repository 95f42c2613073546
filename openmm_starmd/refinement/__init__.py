"""Correct a learned run by physics: `refine`, imported when first used as it needs more libraries.

``starts`` chooses conformations of the learned run, ``swarm`` runs short unbiased MD from each, ``coordinates`` cuts
the frames into states, ``connections`` and ``posterior`` make a Markov state model of the force field with its
uncertainty, ``estimation`` judges it, ``refined`` shows the result, and ``pipeline`` does it all.
"""

from importlib import import_module

_NAMES = {"Refinement": "refined", "estimate": "estimation", "refine": "pipeline"}
__all__ = list(_NAMES)


def __getattr__(name):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
