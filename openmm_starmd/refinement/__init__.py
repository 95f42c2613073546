"""Correct a learned run by physics: `refine`, imported when first used as it needs more libraries.

``starts`` chooses conformations of the learned run, ``swarm`` runs short unbiased MD from each, ``coordinates`` cuts
the frames into states, ``connections`` and ``posterior`` make a Markov state model of the force field with its
uncertainty, ``estimation`` judges it, ``refined`` shows the result, and ``pipeline`` does it all.
"""

from openmm_starmd.errors import lazily

_NAMES = {"Refinement": "refined", "estimate": "estimation", "refine": "pipeline"}
__all__ = list(_NAMES)
__getattr__ = lazily(__name__, _NAMES, "analysis", "Refinement")
