"""Time between the frames of a trajectory, and frames in a time."""

from __future__ import annotations

import numpy as np
from openmm import unit

from openmm_starmd.errors import TrajectoryError, require
from openmm_starmd.trajectories.xtc import LAST_STEP
from openmm_starmd.units import positiveIn


def frames_in(nanoseconds, interval, name: str) -> int:
    """Frames at an interval (ps) in a time (ns), rounded; an interval is called ``name``.

    A ValueError refuses what is not above 0 and finite, and a time that holds no frame or more than a file can count.
    """
    nanoseconds = positiveIn("nanoseconds", nanoseconds, unit.nanoseconds)
    interval = positiveIn(name, interval, unit.picoseconds)
    frames, told = 1000 * nanoseconds / interval, f"{name.replace('_', ' ')} of {interval:g} ps"
    require(frames > 0.5, f"{nanoseconds:g} ns hold no {told}; expected one or more")
    require(frames <= LAST_STEP, f"{nanoseconds:g} ns hold more than {LAST_STEP:,} times the {told}; expected less")
    return round(frames)


def frame_interval(times: np.ndarray, name: str, remedy: str) -> float:
    """Time between frames, ps, of evenly spaced times (T,), ps.

    A TrajectoryError refuses fewer than two frames, and names the first frame (from 0) that does not follow at the
    usual interval. Its message calls the trajectory ``name`` and offers the ``remedy`` by which the user gives the
    interval.
    """
    if len(times) < 2:
        raise TrajectoryError(f"{name} holds {len(times)} frame(s); at least 2 are needed to tell their interval.")
    # Files store single-precision times: late in a long trajectory that is coarser than 2 % of the interval.
    rounding = 2 * np.spacing(np.nanmax(np.abs(np.float32(times)), initial=0.0))
    times = np.asarray(times, dtype=np.float64)
    steps = np.diff(times)
    usual = float(np.nanmedian(steps)) if np.isfinite(steps).any() else 0.0
    uneven = ~(np.abs(steps - usual) <= 0.02 * abs(usual) + rounding)
    if not usual > 0:
        uneven = np.ones(1, dtype=bool)
    if uneven.any():
        frame = int(np.argmax(uneven)) + 1
        raise TrajectoryError(
            f"The frames of {name} are not evenly spaced in time: frame {frame} is at {times[frame]:g} ps, the frame "
            f"before it at {times[frame - 1]:g} ps, and the usual step is {usual:g} ps. Write frames at one fixed "
            f"interval, cut the trajectory at frame {frame}, or {remedy}."
        )
    return float(f"{(times[-1] - times[0]) / (len(times) - 1):.6g}")
