"""Compare generated with reference trajectories: `evaluate`, imported when first used as it needs more libraries.

``metrics`` takes arrays and gives arrays. ``scoring`` sets the metrics of generated frames beside those of molecular
dynamics and of null models, with intervals and a verdict. ``report`` shows the result.
"""

from importlib import import_module

from openmm_starmd.errors import extra

_NAMES = {"Evaluation": "report.evaluation", "evaluate": "report.evaluation", "read_jumps": "scoring.jumps"}
__all__ = list(_NAMES)


def __getattr__(name):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with extra("analysis", "Evaluation"):
        return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
