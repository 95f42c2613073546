"""Compare generated with reference trajectories: `evaluate`, imported when first used as it needs more libraries.

``metrics`` takes arrays and gives arrays. ``scoring`` sets the metrics of generated frames beside those of molecular
dynamics and of null models, with intervals and a verdict. ``report`` shows the result.
"""

from openmm_starmd.errors import lazily

_NAMES = {"Evaluation": "report.evaluation", "evaluate": "report.evaluation", "read_jumps": "scoring.jumps"}
__all__ = list(_NAMES)
__getattr__ = lazily(__name__, _NAMES, "analysis", "Evaluation")
