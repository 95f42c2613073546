"""Data of ``viewer.js``: a few hundred frames of each side, small enough to stand in a page."""

from __future__ import annotations

import base64

import mdtraj
import numpy as np

from openmm_starmd.trajectories.sides import Side

MAX_FRAMES = 200
MAX_NUMBERS = 300_000  # atoms times frames of one side: 1.8 MB of coordinates, 2.4 MB as text
STICKS_UP_TO = 250  # heavy atoms; beyond, a trace of CA
UNIT = 0.001  # nm; int16 then reaches 32 nm
FAR = 32.0


def encode(positions: np.ndarray) -> str:
    """Positions (T, A, 3), nm, as base64 of little-endian int16 in picometres; what lies farther than 32 nm is cut."""
    return base64.b64encode(np.rint(np.clip(positions, -FAR, FAR) / UNIT).astype("<i2").tobytes()).decode()


def _shown(topology: mdtraj.Topology) -> tuple[str, np.ndarray]:
    """Kind of drawing, sticks or a trace, and the atoms needed for it."""
    if topology.n_atoms <= STICKS_UP_TO and topology.n_bonds:
        return "sticks", np.arange(topology.n_atoms)
    return "trace", np.array([atom.index for atom in topology.atoms if atom.name == "CA"])


def _frames(side: Side, broken: np.ndarray, n: int) -> tuple[np.ndarray, list[float], list[int]]:
    """Positions, times (ns) and whether they are broken of ``n`` evenly spaced frames of the first trajectory."""
    trajectory = side.trajectories[0]
    rows = np.unique(np.linspace(0, trajectory.n_frames - 1, n).round().astype(int))
    times = [float(f"{(row + 1) * (side.interval or 1000) / 1000:.5g}") for row in rows]
    return trajectory.xyz[rows], times, broken[rows].astype(int).tolist()


def _superposed(positions: np.ndarray, target: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Positions (T, A, 3) moved onto those of ``target`` (A, 3), by the CA or, where these are few, by all atoms."""
    chosen = alpha if len(alpha) > 3 else np.arange(len(target))
    moved = mdtraj.Trajectory(positions, None)
    return moved.superpose(mdtraj.Trajectory(target[None], None), atom_indices=chosen).xyz


def viewer_data(sides: dict[str, tuple[Side, np.ndarray]]) -> dict:
    """Data of a drawing by ``viewer.js``, to be written as JSON.

    Each title has a side, and which frames of its first trajectory are broken, (T,) of bool. This trajectory is shown,
    superposed on the first frame of the first side.
    """
    first = next(iter(sides.values()))[0]
    topology = first.topology
    mode, atoms = _shown(topology)
    alpha = np.array([atom.index for atom in topology.atoms if atom.name == "CA"])
    target = first.trajectories[0].xyz[0] - first.trajectories[0].xyz[0, alpha].mean(0)
    n = int(np.clip(MAX_NUMBERS // len(atoms), 2, MAX_FRAMES))
    place = {int(atom): i for i, atom in enumerate(atoms)}
    shown, radius = [], 0.1
    for title, (side, broken) in sides.items():
        positions, times, bad = _frames(side, broken, n)
        positions = _superposed(positions, target, alpha)[:, atoms]
        radius = max(radius, float(np.quantile(np.linalg.norm(positions, axis=-1).max(1), 0.9)))
        shown.append({"title": title, "times": times, "broken": bad, "positions": encode(positions)})
    bonds = [(a.index, b.index) for a, b in topology.bonds] if mode == "sticks" else []
    chains = [[place[a.index] for a in chain.atoms if a.name == "CA"] for chain in topology.chains]
    return {
        "mode": mode,
        "unit": UNIT,
        "radius": radius,
        "elements": [topology.atom(int(i)).element.symbol for i in atoms],
        "bonds": bonds,
        "chains": [chain for chain in chains if chain],
        "sides": shown,
    }
