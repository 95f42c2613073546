"""Faults of a file as a whole: units, order of the atoms, mirror image, copied frames."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from openmm_starmd.errors import TrajectoryError
from openmm_starmd.evaluation.metrics.structure import Terms
from openmm_starmd.protein.length_unit import fault_of_scale
from openmm_starmd.protein.validity import left_handed
from openmm_starmd.trajectories.sides import Side

LOOKED_AT = 50  # frames of a side, evenly spaced
NEIGHBOUR, NEIGHBOUR_CA = 0.14, 0.38  # nm: usual distance to the nearest atom, of heavy atoms and of CA alone
LONGEST_BOND, LONGEST_STEP = 0.25, 0.5  # nm
STRANGE = 0.3  # share of bonds that no model, but another order of the atoms makes absurd
INNER_BONDS = 3  # fewer bonds inside residues tell nothing


def _frames(side: Side) -> np.ndarray:
    """Some frames (T, A, 3) of all trajectories."""
    step = max(1, side.n_frames // LOOKED_AT)
    return np.concatenate([trajectory.xyz[::step] for trajectory in side.trajectories])


def _nearest(positions: np.ndarray) -> float:
    """Median distance of atoms to their nearest neighbour, over frames (T, A, 3), nm."""
    return float(np.median([np.median(cKDTree(frame).query(frame, 2)[0][:, 1]) for frame in positions]))


def _pairs(side: Side) -> tuple[np.ndarray, float]:
    """Atoms (P, 2) that are near each other in every protein, and how far at most: bonds in residues, or next CA."""
    topology = side.topology
    bonds = [(a.index, b.index) for a, b in topology.bonds if a.residue is b.residue]
    if len(bonds) >= INNER_BONDS:
        return np.array(bonds), LONGEST_BOND
    alpha = [atom for atom in topology.atoms if atom.name == "CA"]
    steps = [
        (a.index, b.index)
        for a, b in zip(alpha[:-1], alpha[1:], strict=True)
        if a.residue.chain is b.residue.chain and b.residue.index == a.residue.index + 1
    ]
    return np.array(steps, dtype=int).reshape(-1, 2), LONGEST_STEP


def _units_or_order(side: Side) -> str:
    positions, (pairs, longest) = _frames(side), _pairs(side)
    usual = NEIGHBOUR if longest == LONGEST_BOND else NEIGHBOUR_CA
    scale = _nearest(positions) / usual
    if fault := fault_of_scale(scale):
        return fault
    lengths = np.linalg.norm(positions[:, pairs[:, 0]] - positions[:, pairs[:, 1]], axis=-1)
    strange = (lengths > longest).mean(1, dtype=float) if len(pairs) else np.zeros(1)
    if 0.7 < scale < 1.4 and np.median(strange) > STRANGE:
        return "stand in another order than the atoms of their topology; give the topology they were written with"
    return ""


def _mirrored(side: Side) -> bool:
    centres = Terms(side.topology).centres
    return bool(len(centres)) and float(np.median(left_handed(_frames(side), centres).sum(1))) > len(centres) / 2


def copies(side: Side) -> tuple[int, int]:
    """Number of frames of a side that equal an earlier one to the last bit, and which of all frames is the first.

    Trajectories may have their first frame in common: they started there.
    """
    seen, found, first, number, starts = set(), 0, 0, 0, set()
    for trajectory in side.trajectories:
        for place, frame in enumerate(trajectory.xyz):
            key = hash(frame.tobytes())
            started_there = place == 0 and key in starts and trajectory.n_frames > 1
            if key in seen and not started_there:
                first = first if found else number
                found += 1
            seen.add(key)
            starts |= {key} if place == 0 else set()
            number += 1
    return found, first


def causes(reference: Side, generated: Side) -> tuple[str, ...]:
    """Sentences on what is wrong with the files as a whole, for the headline; none for sound ones.

    A TrajectoryError says that the coordinates of the reference have wrong units or another order of atoms: nothing can
    be measured by them.
    """
    found = []
    for side, name in ((reference, "reference"), (generated, "generated")):
        wrong = _units_or_order(side)
        if not wrong and _mirrored(side) != _mirrored(reference):
            wrong = "are a mirror image: most chiral centres are inverted; change the sign of one axis"
        if wrong and side is reference:
            raise TrajectoryError(f"The coordinates of the reference ({', '.join(side.names)}) {wrong}.")
        if wrong:
            found.append(f"The generated coordinates {wrong}.")
        number, first = copies(side)
        if number:
            found.append(
                f"{number:,} of {side.n_frames:,} {name} frames are copies of earlier ones (the first is frame "
                f"{first:,}): remove them."
            )
    return tuple(found)
