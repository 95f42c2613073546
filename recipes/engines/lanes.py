"""Sixteen replicas of a small molecule at a time on one CPU core, each in a lane of the vector registers (lanes.cpp).

A single replica of some sixty atoms leaves those registers idle; OpenMM's CPU platform makes a tenth of the nanoseconds
of it. Any System of bonds, angles, periodic torsions, NonbondedForce without cutoff, GBSAOBCForce and constraints of
hydrogens will do; the dynamics are those of LangevinMiddleIntegrator. Needs g++ on Linux.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import compiled
import numpy as np
import openmm
from terms import GAS_CONSTANT, pair_coefficients, terms

LANES = 16
COMPILER = "g++ -std=c++17 -O3 -march=native -mprefer-vector-width=512 -ffast-math -shared -fPIC"


def library() -> ctypes.CDLL:
    """The compiled lanes.cpp."""
    return compiled.library(Path(__file__).with_name("lanes.cpp"), COMPILER, ("-lmvec", "-lm"))


_INTS, _FLOATS = ("bond", "angle", "torsion", "constraint"), ("mass", "charge", "radius", "scale")


class _Molecule(ctypes.Structure):
    """As in lanes.cpp."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("n", *(f"n_{kind}s" for kind in _INTS))),
        *((name, ctypes.c_void_p) for name in (*_INTS, *(f"{kind}_p" for kind in _INTS), "pair", *_FLOATS)),
        ("solvent", ctypes.c_float),
        ("surface", ctypes.c_float),
    ]


class Lanes:
    """Replicas of one molecule, sixteen unless said otherwise.

    Parameters
    ----------
    system : System
    positions : array, shape (A, 3) or (replicas, A, 3)
        nm; where all replicas start, or each of them.
    seed : int
        Of velocities and noise; each lane has its own.
    replicas : int
        A multiple of the 8 or 16 numbers that a vector register holds.

    Raises
    ------
    ValueError
        If the System holds a force that is not known here, or lacks one of the two of pairs.
    """

    def __init__(self, system: openmm.System, positions: np.ndarray, seed: int, replicas: int = LANES):
        self._library = library()
        found = terms(system)
        found["pair"] = pair_coefficients(found)
        self._kept = kept = {name: np.ascontiguousarray(value) for name, value in found.items()}
        self._molecule = _Molecule(
            system.getNumParticles(),
            *(len(kept[kind]) for kind in _INTS),
            *(kept[name].ctypes.data for name, kind in _Molecule._fields_ if kind is ctypes.c_void_p),
            kept["solvent"].item(),
            kept["surface"].item(),
        )
        width = self._library.lanes_width()
        if replicas % width:
            raise ValueError(f"{replicas} replicas: on this machine they come in groups of {width}")
        self._groups = replicas // width
        self._positions = _aligned((self._groups, system.getNumParticles(), 3, width))
        self._velocities = _aligned(self._positions.shape)
        self._random = _aligned((self._groups, 4, width)).view(np.uint32)
        states = np.random.default_rng(seed).integers(1, 2**32, (4, replicas), dtype=np.uint64)
        self._random[:] = np.moveaxis(states.reshape(4, self._groups, width), 1, 0)
        starts = np.broadcast_to(positions, (replicas, *self._positions.shape[1:3]))
        self._positions[:] = np.moveaxis(starts.reshape(self._groups, width, -1, 3), 1, -1)

    @property
    def positions(self) -> np.ndarray:
        """(replicas, A, 3), nm."""
        return _by_replica(self._positions)

    @property
    def velocities(self) -> np.ndarray:
        """(replicas, A, 3), nm/ps."""
        return _by_replica(self._velocities)

    def potential(self) -> tuple[np.ndarray, np.ndarray]:
        """Energies (replicas,), kJ/mol, and forces (replicas, A, 3), kJ/mol/nm."""
        forces = _aligned(self._positions.shape)
        energies = _aligned((self._groups, forces.shape[-1]))
        self._call("potential", self._positions, forces, energies)
        return energies.reshape(-1).copy(), _by_replica(forces)

    def draw_velocities(self, temperature: float):
        """Velocities of the temperature (K)."""
        self._call("velocities", self._positions, self._velocities, self._random, GAS_CONSTANT * temperature)

    def step(self, steps: int, temperature: float, time_step: float = 0.004, friction: float = 1.0):
        """Advance all replicas (K, ps, 1/ps), and bring their centres back to the origin."""
        where = self._positions, self._velocities, self._random
        self._call("run", *where, steps, time_step, friction, GAS_CONSTANT * temperature)
        self._positions -= self._positions.mean(1, keepdims=True)

    def _call(self, name: str, *values):
        """Call a function of the library for each group of replicas; arrays have a row for each."""
        kinds = {np.ndarray: lambda a: ctypes.c_void_p(a.ctypes.data), int: ctypes.c_int, float: ctypes.c_float}
        for group in range(self._groups):
            own = [value[group] if isinstance(value, np.ndarray) else value for value in values]
            arguments = [kinds[type(value)](value) for value in own]
            getattr(self._library, f"lanes_{name}")(ctypes.byref(self._molecule), *arguments)


def _by_replica(array: np.ndarray) -> np.ndarray:
    """(replicas, A, 3) of an array of groups (G, A, 3, W)."""
    return np.moveaxis(array, -1, 1).reshape(-1, *array.shape[1:3]).copy()


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros that vector registers can load."""
    size = 4 * int(np.prod(shape))
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(np.float32).reshape(shape)
