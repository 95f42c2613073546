"""Molecules in a periodic box: whole for the network, in their stored image for the Context."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from openmm.app import Topology
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, connected_components


class MoleculeImages:
    """Tells by which box vectors atoms have to be moved to make the molecules that hold them whole, side by side.

    The bonds of the topology say what belongs together; atoms that are not listed stay.
    """

    def __init__(self, topology: Topology, atoms: Iterable[int]):
        atoms = sorted(atoms)
        number = {atom: k for k, atom in enumerate(atoms)}
        bonds = [(number[a.index], number[b.index]) for a, b in topology.bonds() if {a.index, b.index} <= number.keys()]
        n = len(atoms)
        i, j = np.array(bonds, dtype=int).reshape(-1, 2).T
        graph = coo_array((np.ones(len(bonds)), (i, j)), shape=(n, n)).tocsr()
        self._atoms = np.array(atoms)
        _, self._molecule = connected_components(graph, directed=False)
        trees = [breadth_first_order(graph, first, directed=False) for first in np.unique(self._molecule, True)[1]]
        self._order = [(k, before[k]) for order, before in trees for k in order[1:]]
        self._pairs = np.array(self._order, dtype=int).reshape(-1, 2)

    def shifts(self, positions: np.ndarray, box: np.ndarray | None) -> np.ndarray:
        """Sums of box vectors (A, 3), nm, to add to positions (A, 3); all zero without a box (3, 3; rows are vectors).

        Within a molecule every bond is the shortest of its images; the centre of each molecule is put next to that of
        the one before it.
        """
        shifts = np.zeros_like(positions)
        if box is None:
            return shifts
        inside = positions[self._atoms]
        child, parent = self._pairs.T
        turns = np.zeros((len(inside), 3))
        steps = -np.round((inside[child] - inside[parent]) @ np.linalg.inv(box))
        if steps.any():
            for (k, before), step in zip(self._order, steps, strict=True):
                turns[k] = turns[before] + step
        centres = [(inside + turns @ box)[self._molecule == m].mean(0) for m in range(self._molecule.max() + 1)]
        for m in range(1, len(centres)):
            turn = -np.round((centres[m] - centres[m - 1]) @ np.linalg.inv(box))
            centres[m] = centres[m] + turn @ box
            turns[self._molecule == m] += turn
        shifts[self._atoms] = turns @ box
        return shifts
