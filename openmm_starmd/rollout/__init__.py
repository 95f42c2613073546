"""Long rollouts of many replicas at a time, to trajectory files; no Simulation of the user's is needed.

All replicas are one batch of the network, round by round; one whose jump fails the checks tries again in the next
round, a step behind the others. What a replica does depends on its own number, the seed and its start alone, so that it
can be repeated alone or in other company (to float rounding), and each can be continued.
"""

from openmm_starmd.rollout.run import rollout

__all__ = ["rollout"]
