"""Compare generated with reference trajectories: `evaluate`, imported when first used as it needs more libraries.

``metrics`` (torsions, divergences, tICA, filters), ``ensemble`` (shapes, free energies), ``structure`` (all-atom
validity), ``kinetics`` and ``markov`` (rates, timescales, Markov state models), ``nulls`` (what a score is worth) and
``plots`` take arrays. ``reading`` and ``matching`` make both sides of a comparison alike; ``frames``, ``measures``,
``scores``, ``judge`` and ``verdict`` score them; ``report``, ``page``, ``figures`` and ``viewer`` show the result.
``jumps`` reads the tables of `StarMDReporter`.
"""

from importlib import import_module

_NAMES = {"Evaluation": "report", "evaluate": "report", "read_jumps": "jumps"}
__all__ = list(_NAMES)


def __getattr__(name):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
