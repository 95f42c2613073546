"""Duration of a jump on this machine."""

from __future__ import annotations

import time
from tempfile import TemporaryDirectory

from openmm.app import Topology

from openmm_starmd.model import StarMDModel
from openmm_starmd.rollout.run import rollout
from openmm_starmd.systems.peptide import peptide_system

JUMPS = 5  # the first of them is not timed


def seconds_a_jump(model: StarMDModel | str, topology: Topology, positions, **settings) -> tuple[float, float]:
    """Mean wall and CPU time (s) of a relaxed jump of one replica, jumps that are sampled again included.

    ``settings`` are those of `rollout`, ``stride`` and ``temperature`` among them; so are the errors.
    """
    arrivals = []

    def arrived(frames: int) -> None:
        if frames:
            arrivals.append((time.perf_counter(), time.process_time()))

    with TemporaryDirectory() as folder:
        rollout(
            model,
            topology,
            positions,
            n_steps=JUMPS,
            output=folder,
            system=peptide_system(topology),
            progress=arrived,
            **settings,
        )
    wall, cpu = ((last - first) / (len(arrivals) - 1) for first, last in zip(arrivals[0], arrivals[-1], strict=True))
    return wall, cpu
