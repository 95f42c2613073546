"""Many molecules at once on one GPU, each replica in a thread block of its own (blocks.cu).

The same dynamics as lanes.py, of many different molecules of at most 1,200 atoms: peptides and small domains. Without a
GPU the same source runs as C++, slowly, which is what the tests hold to OpenMM. Needs numpy, and nvcc or g++ on Linux;
no OpenMM.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import compiled
import numpy as np
from terms import GAS_CONSTANT, coefficients

WARP, MOST_THREADS, MOST_ATOMS = 32, 512, 1200
OFFSET = 0.009  # nm, between the radius of an atom and the one that descreens
FAR = 4  # scaled radii beyond which blocks.cu takes a series for the descreening
FEW_ATOMS = 256  # up to which it does not: too few pairs are far for a whole warp
COMPILERS = {
    False: "g++ -std=c++17 -x c++ -O3 -march=native -ffast-math -Wno-unknown-pragmas -shared -fPIC",
    True: "nvcc -std=c++17 -arch=sm_90 -O3 -ftz=true -prec-div=false -prec-sqrt=false -shared -Xcompiler -fPIC",
}


def library(device: bool) -> ctypes.CDLL:
    """The compiled blocks.cu, for a GPU or for the CPU."""
    found = compiled.library(Path(__file__).with_name("blocks.cu"), COMPILERS[device])
    found.blocks_error.restype, found.blocks_new.restype = ctypes.c_char_p, ctypes.c_void_p
    for name in ("read", "write", "velocities", "potential", "run"):
        getattr(found, f"blocks_{name}").restype = ctypes.c_bool
    return found


_TERMS = ("bond", "angle", "torsion", "pair")
_MOLECULE = np.dtype(
    [
        *((name, np.int32) for name in ("n", "atom", "word", "state")),
        *((name, np.int32, 2) for name in (*_TERMS, "cluster")),
        ("seed", np.uint32),
        ("solvent", np.float32),
        ("surface", np.float32),
        ("far", np.float32),
    ]
)
"""As in blocks.cu, as is the order of the arrays given to it."""


class Blocks:
    """Replicas of many molecules.

    Parameters
    ----------
    molecules : sequence of dict
        Of `terms.terms`.
    positions : sequence of array, shape (A, 3)
        nm; where all replicas of a molecule start.
    replicas : int
        R, of each molecule.
    seeds : sequence of int
        Of velocities and noise of each molecule; each replica has its own.
    device : bool
        Whether to run on the GPU.

    Raises
    ------
    ValueError
        If a molecule has too many atoms, other charges in the solvent than elsewhere, or constraints other than of
        one atom and up to three hydrogens.
    RuntimeError
        If the GPU fails, here or later.
    """

    def __init__(
        self,
        molecules: Sequence[dict[str, np.ndarray]],
        positions: Sequence[np.ndarray],
        replicas: int,
        seeds: Sequence[int],
        device: bool = True,
    ):
        self._library, self.replicas, self._steps, self._draws = library(device), replicas, 0, 0
        self._sizes = [len(molecule["mass"]) for molecule in molecules]
        if max(self._sizes) > MOST_ATOMS:
            raise ValueError(f"A molecule of {max(self._sizes)} atoms does not fit a block, which takes {MOST_ATOMS}.")
        tables = [_tables(molecule) for molecule in molecules]
        joined = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
        heads = np.zeros(len(molecules), _MOLECULE)
        heads["n"] = self._sizes
        heads["seed"] = np.array(seeds, dtype=np.int64) & 0xFFFFFFFF
        for name in ("solvent", "surface"):
            heads[name] = [molecule[name] for molecule in molecules]
        heads["far"] = [_far(table["kind"]) for table in tables]
        for name, table, each in (("atom", "body", 1), ("word", "exception", 1), ("state", "body", replicas)):
            heads[name] = each * _starts([len(t[table]) for t in tables])
        for name in (*_TERMS, "cluster"):
            counts = [len(t[name]) for t in tables]
            heads[name] = np.stack([_starts(counts), counts], -1)
        terms_before = _starts([len(t["torsion_p"]) for t in tables])
        joined["torsion"][:, 4] += np.repeat(terms_before, heads["torsion"][:, 1]).astype(np.int32)

        room = _up(heads["n"], WARP)
        order = np.argsort(-room, kind="stable")
        self._order = np.stack([np.repeat(order, replicas), np.tile(np.arange(replicas), len(order))], -1)
        sizes, counts = (x[::-1] for x in np.unique(room, return_counts=True))
        threads = _up(-(-sizes // -(-sizes // MOST_THREADS)), WARP)  # the fewest with as many atoms in each
        groups = np.stack([threads, sizes, _starts(counts) * replicas, counts * replicas], -1).astype(np.int32)
        start = np.concatenate([np.tile(x, (replicas, 1)) for x in positions]).astype(np.float32)
        self._state = start.shape

        arrays = [heads, self._order.astype(np.int32)]
        arrays += [joined[name] for name in ("exception", *_TERMS, *(f"{name}_p" for name in _TERMS))]
        arrays += [joined[name] for name in ("cluster", "cluster_p", "kind", "body")] + [start, np.zeros_like(start)]
        arrays = [np.ascontiguousarray(array) for array in arrays]
        pointers = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
        sizes = (ctypes.c_longlong * len(arrays))(*(array.nbytes for array in arrays))
        self._handle = self._library.blocks_new(
            pointers, sizes, ctypes.c_void_p(np.ascontiguousarray(groups).ctypes.data), len(groups)
        )
        if not self._handle:
            raise RuntimeError(self._library.blocks_error().decode())

    def __del__(self):
        if getattr(self, "_handle", None):
            self._library.blocks_free(ctypes.c_void_p(self._handle))

    @property
    def positions(self) -> list[np.ndarray]:
        """(R, A, 3) of each molecule, nm."""
        return self._split(self._read()[0])

    @property
    def velocities(self) -> list[np.ndarray]:
        """(R, A, 3) of each molecule, nm/ps."""
        return self._split(self._read()[1])

    def place(self, positions: Sequence[np.ndarray], velocities: Sequence[np.ndarray]):
        """Set positions and velocities, (R, A, 3) of each molecule."""
        joined = [
            np.concatenate([x.reshape(-1, 3) for x in arrays]).astype(np.float32) for arrays in (positions, velocities)
        ]
        self._call("write", *joined)

    def potential(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Energies (R,), kJ/mol, and forces (R, A, 3), kJ/mol/nm, of each molecule."""
        forces, energies = np.empty(self._state, np.float32), np.empty(len(self._order), np.float32)
        self._call("potential", forces, energies, len(energies))
        sorted_energies = np.empty((len(self._sizes), self.replicas), np.float32)
        sorted_energies[tuple(self._order.T)] = energies
        return list(zip(sorted_energies, self._split(forces), strict=True))

    def draw_velocities(self, temperature: float):
        """Velocities of the temperature (K)."""
        self._call("velocities", ctypes.c_longlong(self._draws), GAS_CONSTANT * temperature)
        self._draws += 1

    def step(self, steps: int, temperature: float, time_step: float = 0.004, friction: float = 1.0):
        """Advance all replicas (K, ps, 1/ps)."""
        self._run(steps, temperature, time_step, friction, 1, None)

    def frames(
        self, count: int, every: int, temperature: float, time_step: float = 0.004, friction: float = 1.0
    ) -> list[np.ndarray]:
        """Advance all replicas, and keep what they are like after every so many steps.

        Returns
        -------
        list of array, shape (R, count, A, 3)
            Of each molecule, with the centre in the origin, nm.
        """
        frames = np.empty((count, *self._state), np.float32)
        self._run(every, temperature, time_step, friction, count, frames)
        ends = np.cumsum(np.array(self._sizes) * self.replicas)[:-1]
        parts = zip(np.split(frames, ends, axis=1), self._sizes, strict=True)
        return [np.moveaxis(part.reshape(count, self.replicas, size, 3), 0, 1) for part, size in parts]

    def _run(self, steps, temperature, time_step, friction, count, frames):
        before = ctypes.c_longlong(self._steps)
        self._call("run", before, steps, time_step, friction, GAS_CONSTANT * temperature, count, frames)
        self._steps += steps * count

    def _read(self) -> tuple[np.ndarray, np.ndarray]:
        positions, velocities = np.empty(self._state, np.float32), np.empty(self._state, np.float32)
        self._call("read", positions, velocities)
        return positions, velocities

    def _split(self, state: np.ndarray) -> list[np.ndarray]:
        """(R, A, 3) of each molecule."""
        parts = np.split(state, np.cumsum(np.array(self._sizes) * self.replicas)[:-1])
        return [part.reshape(self.replicas, size, 3) for part, size in zip(parts, self._sizes, strict=True)]

    def _call(self, name: str, *values):
        kinds = {np.ndarray: lambda a: ctypes.c_void_p(a.ctypes.data), int: ctypes.c_int, float: ctypes.c_float}
        arguments = [kinds.get(type(value), lambda x: x)(value) for value in values]
        if not getattr(self._library, f"blocks_{name}")(ctypes.c_void_p(self._handle), *arguments):
            raise RuntimeError(self._library.blocks_error().decode())


def _starts(counts: Sequence[int]) -> np.ndarray:
    """Where each of so many rows begin, one behind the other."""
    return np.cumsum([0, *counts])[:-1]


def _up(numbers: np.ndarray, multiple: int) -> np.ndarray:
    """The next multiples."""
    return -(-numbers // multiple) * multiple


def _far(kind: np.ndarray) -> float:
    """Squared distance (nm^2) from which no two atoms overlap and the series of blocks.cu holds."""
    reduced, scaled = kind[:, 2:].max(0)
    return max(FAR * scaled, reduced + scaled) ** 2 if len(kind) > FEW_ATOMS else np.inf


def _tables(terms: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What blocks.cu wants to know of one molecule."""
    n, (charge, width, depth) = len(terms["mass"]), terms["nonbonded"].T.astype(np.float64)
    if not np.allclose(charge, terms["charge"]):
        raise ValueError("Charges of the solvent's force have to be those of the NonbondedForce.")
    if (terms["scale"] > 0.99).any():
        raise ValueError("Scales have to be below 1, so that no atom descreens itself.")
    reduced = terms["radius"] - np.float32(OFFSET)
    found = {
        "kind": np.stack([width / 2, 2 * np.sqrt(depth), reduced, terms["scale"] * reduced], -1),
        "body": np.stack([charge, 1 / terms["mass"], terms["radius"], np.zeros(n)], -1),
        "pair_p": coefficients(*terms["exception_p"].T.astype(np.float64)),
        **{name: terms[name] for name in ("bond", "bond_p", "angle", "angle_p", "torsion_p")},
    }
    acts = (found["pair_p"] != 0).any(1)
    found["pair"], found["pair_p"] = terms["exception"][acts], found["pair_p"][acts]
    atoms, first, count = np.unique(terms["torsion"], axis=0, return_index=True, return_counts=True)
    found["torsion"] = np.concatenate([atoms, first[:, None], count[:, None]], -1)
    found["cluster"], found["cluster_p"] = _clusters(n, terms["constraint"], terms["constraint_p"])

    off = np.zeros((-(-n // WARP) * WARP, n), np.uint32)
    np.fill_diagonal(off, 1)
    first, second = terms["exception"].T
    off[first, second] = off[second, first] = 1
    bits = off.reshape(-1, WARP, n) << np.arange(WARP, dtype=np.uint32)[:, None]
    found["exception"] = bits.sum(1, dtype=np.uint32).reshape(-1)
    kinds = {"f": np.float32, "i": np.int32, "u": np.uint32}
    return {name: np.array(array, kinds[array.dtype.kind]) for name, array in found.items()}


def _clusters(n: int, constraints: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each atom with its up to three hydrogens and their number, (K, 5), and their distances (K, 3); the most first."""
    partners = np.bincount(constraints.reshape(-1), minlength=n)
    hydrogens = {atom: [] for atom in range(n)}
    for (first, second), length in zip(constraints.tolist(), lengths[:, 0], strict=True):
        heavy, hydrogen = (first, second) if partners[second] == 1 else (second, first)
        if partners[hydrogen] > 1 or partners[heavy] > 3:
            raise ValueError("Constraints have to be those of an atom and up to three hydrogens.")
        hydrogens[heavy].append((hydrogen, length))
        del hydrogens[hydrogen]
    rows = sorted(hydrogens.items(), key=lambda row: -len(row[1]))
    filled = [(atom, [*own, *[(0, 0.0)] * (3 - len(own))], len(own)) for atom, own in rows]
    cluster = np.array([[atom, *(h for h, _ in own), count] for atom, own, count in filled])
    return cluster, np.array([[length for _, length in own] for _, own, _ in filled])
