"""Steric clashes of sampled side chains, removed by turning them about their own bonds.

Each torsion of a sampled conformation is right to some 0.1 rad, which at the end of a side chain is 0.1 nm: in a packed
core some two atoms then stand where only one has room. Bonds and angles of a minimisation would have to carry that;
the torsions themselves give way with less.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from openmm_starmd.geometry.torsions import rotate_about
from openmm_starmd.protein.conformation import Conformation, to_positions
from openmm_starmd.protein.residues import RESIDUE_TYPES, TORSIONS
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.protein.validity import RELAXED, close_contacts

APART = 0.26  # nm; heavy atoms more than three bonds apart come to 0.241 in dynamics
HARDNESS = 0.006  # nm; a contact that much too close costs as much as a torsion that turns by 1 rad
ITERATIONS = 10


def resolve_clashes(
    conformation: Conformation, positions: Tensor, tokens: ResidueTokens
) -> tuple[Conformation, Tensor]:
    """Move the atoms that are there into sampled conformations, side chains turned until heavy atoms do not overlap.

    Conformations with two heavy atoms, more than three bonds apart, closer than dynamics brings them (`RELAXED`) are
    changed, others are not. In those the torsions chi1 to chi4 minimise ``sum ((d0 - d) / h)**2 + sum turn**2`` over
    the distances ``d`` below ``d0`` = 0.26 nm and the turns in radian, with ``h`` = 0.006 nm, by some iterations of
    L-BFGS. Rings of proline stay as they are. What becomes of a conformation does not depend on the others.

    Parameters
    ----------
    conformation : Conformation, shape (B, N)
    positions : Tensor, shape (B, A, 3)
        Current atoms of the whole Topology, nm; molecules whole.
    tokens : ResidueTokens

    Returns
    -------
    conformation : Conformation, shape (B, N)
        Float64, on the CPU.
    atoms : Tensor, shape (B, A, 3)
        Its atoms, see `to_positions`, nm.
    """
    conformation = conformation.to("cpu", torch.float64)
    atoms = to_positions(conformation, positions, tokens)
    heavy = atoms[:, tokens.heavy_atoms].numpy()
    finite = np.flatnonzero(np.isfinite(heavy).all((1, 2)))
    crowded = finite[np.unique(close_contacts(heavy[finite], tokens, RELAXED.contact)[0])].tolist()
    if crowded:
        torsions = conformation.torsions.clone()
        torsions[crowded] += torch.stack([_turns(atoms[k], tokens) for k in crowded])
        conformation = Conformation(conformation.frames, torsions, conformation.angles)
        atoms[crowded] = to_positions(conformation[crowded], positions[crowded], tokens)
    return conformation, atoms


def _turns(atoms: Tensor, tokens: ResidueTokens) -> Tensor:
    """Turns (N, 6) of the side chains of atoms (A, 3) that take heavy atoms apart."""
    free = tokens.features.torsion_mask & (tokens.features.residue_type != RESIDUE_TYPES.index("PRO"))[:, None]
    free[:, : TORSIONS.index("chi1")] = False

    def cost(x: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.tensor(x, requires_grad=True)
        heavy = _turned(atoms, torch.zeros(free.shape, dtype=x.dtype).masked_scatter(free, x), tokens)
        _, first, second = close_contacts(heavy.detach().numpy()[None], tokens, APART)
        distance = torch.linalg.vector_norm(heavy[first] - heavy[second], dim=-1)
        value = 0.5 * (((APART - distance) / HARDNESS).square().sum() + x.square().sum())
        return value.item(), torch.autograd.grad(value, x)[0].numpy()

    start = np.zeros(int(free.sum()))
    found = minimize(cost, start, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS})
    return torch.zeros(free.shape, dtype=atoms.dtype).masked_scatter(free, torch.from_numpy(found.x))


def _turned(atoms: Tensor, turns: Tensor, tokens: ResidueTokens) -> Tensor:
    """Heavy atoms (M, 3) of atoms (A, 3) after ``turns`` (N, 6) of the torsions."""
    for group in tokens.levels[1:]:
        if len(group.moved):
            rest, end = atoms[group.axis].unbind(-2)
            moved = rotate_about(atoms[group.moved], rest, end - rest, turns[group.owner, group.torsion])
            atoms = atoms.index_copy(0, group.moved, moved)
    return atoms[tokens.heavy_atoms]
