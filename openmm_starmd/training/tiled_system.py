"""Many molecules in one System, too far apart to feel each other: enough work for a GPU.

The cutoff lies beyond the longest distance within a molecule, and the molecules lie beyond the cutoff from each other,
so that each has the energy and forces that it has alone. They diffuse; putting each back to its place now and then
changes neither.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from openmm.app import Topology

RESIDUE_LENGTH, SIDE_CHAINS = 0.38, 1.5  # nm: of a stretched chain, and what stands out at its ends
WAY = 6.0  # nm: what two molecules may come nearer to each other between two returns to their places


class TiledSystem:
    """Molecules, each a Topology with positions (A, 3) in nm, on a cubic grid; a single one stays as it is.

    ``topology`` and ``positions`` (A, 3), nm, are those of all molecules together, ``parts`` the range of atoms of
    each. The ``cutoff`` is in nm, and None for a single molecule.
    """

    def __init__(self, molecules: Sequence[tuple[Topology, np.ndarray]]):
        self.topology = joined([topology for topology, _ in molecules])
        ends = np.cumsum([0, *(topology.getNumAtoms() for topology, _ in molecules)])
        self.parts = [range(*pair) for pair in zip(ends[:-1], ends[1:], strict=True)]
        longest = RESIDUE_LENGTH * max(topology.getNumResidues() for topology, _ in molecules) + SIDE_CHAINS
        side = int(np.ceil(len(molecules) ** (1 / 3)))
        places = np.stack(np.unravel_index(np.arange(len(molecules)), (side, side, side)), 1)
        self._places = places * (2 * longest + WAY)
        self.cutoff = longest if len(molecules) > 1 else None
        self.positions = self.in_place(np.concatenate([positions for _, positions in molecules]))

    def in_place(self, positions: np.ndarray) -> np.ndarray:
        """Positions (A, 3) with every molecule's centroid back at its place."""
        if self.cutoff is None:
            return positions
        parts = zip(self.parts, self._places, strict=True)
        return np.concatenate([x - x.mean(0) + place for x, place in ((positions[atoms], p) for atoms, p in parts)])


def joined(topologies: Sequence[Topology]) -> Topology:
    """All chains of the topologies, in their order; a single topology as it is."""
    if len(topologies) == 1:
        return topologies[0]
    everything = Topology()
    for topology in topologies:
        atoms = {}
        for chain in topology.chains():
            own_chain = everything.addChain(chain.id)
            for residue in chain.residues():
                own_residue = everything.addResidue(residue.name, own_chain, residue.id, residue.insertionCode)
                for atom in residue.atoms():
                    atoms[atom] = everything.addAtom(atom.name, atom.element, own_residue, atom.id)
        for a, b in topology.bonds():
            everything.addBond(atoms[a], atoms[b])
    return everything
