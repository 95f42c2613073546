"""Elastic network: Langevin dynamics of a protein in the harmonic well of its reference structure, without training.

Residues move as rigid bodies (rotations and translations of blocks: Durand, Trinquier, Sanejouand, Biopolymers 34, 759,
1994) of three sites: N, CA, C. Springs hold the distances of sites of residues whose CA are near each other at those of
the reference (anisotropic network model: Atilgan et al., Biophys. J. 80, 505, 2001); bond, angles and omega of
peptide bonds have the force constants of Amber, phi and psi one of their own, without which small peptide planes would
swing as no chain does. Every mode is an Ornstein-Uhlenbeck process, whose exact propagator is one line.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.linalg import eigh
from scipy.sparse import coo_matrix, csr_matrix, vstack

from openmm_starmd.errors import ModelDomainError
from openmm_starmd.geometry.rigid import Rigid, exponential, logarithm, superpose
from openmm_starmd.geometry.torsions import measure_angle, measure_dihedral, wrap
from openmm_starmd.interface import JumpPropagator
from openmm_starmd.model import choose_device
from openmm_starmd.protein.bond_graph import BONDED
from openmm_starmd.protein.conformation import Conformation
from openmm_starmd.protein.displacement import per_replica
from openmm_starmd.protein.history import History
from openmm_starmd.protein.residues import TORSIONS
from openmm_starmd.protein.tokens import ResidueTokens

CUTOFF = 1.5  # nm, of CA
GAMMA = 150.0  # kJ/mol/nm^2 (0.36 kcal/mol/A^2) of the springs between two residues together
BOND, ANGLE_AT_C, ANGLE_AT_N, OMEGA = 4.1e5, 586.0, 418.0, 167.0  # kJ/mol/nm^2 and kJ/mol/rad^2; Amber ff14SB
TORSION = 40.0  # kJ/mol/rad^2; phi and psi vary by 12 degrees, as those of the helix of Trp-cage
FRICTION = 2e4  # kJ/mol ps/nm^2 of a residue; CA of Trp-cage lose memory as in MD from 10 to 50 ps
RIGID = 1e-8  # share of the largest eigenvalue below which a mode costs no energy
KB = 0.00831446  # kJ/mol/K
SITES = 3
LEAST = 2  # residues; one alone has no springs
PSI = TORSIONS.index("psi")


@dataclass(frozen=True)
class Modes:
    """Normal modes of the network about a reference structure of N residues, M modes."""

    # (M, N, 6): translation (nm, global axes) and rotation vector (rad, axes of the residue) of each residue for an
    # amplitude of 1; orthonormal in the metric of the friction
    shapes: torch.Tensor
    duals: torch.Tensor  # (M, N, 6): what gives the amplitudes of a displacement: its scalar products with these
    # (M,): inverse relaxation times, 1/ps; ascending. The variance of an amplitude is kT over the rate
    rates: torch.Tensor

    @classmethod
    def of(cls, reference: Conformation, bonded: torch.Tensor) -> Modes:
        """Modes about a reference (N), float64; ``bonded`` (N,) tells whether a residue follows on a peptide bond."""
        sites = reference.backbone()
        moves = _site_moves(reference, sites)
        springs = vstack(_springs(sites, bonded)) @ moves
        stiffness = (springs.T @ springs).toarray()
        metric = (FRICTION / SITES * (moves.T @ moves)).toarray()
        rates, vectors = eigh(stiffness, metric)
        soft = rates > RIGID * rates[-1]
        shapes, duals = vectors[:, soft].T, (metric @ vectors[:, soft]).T
        parts = (np.ascontiguousarray(x).reshape(len(x), -1, 6) for x in (shapes, duals))
        return cls(*map(torch.from_numpy, parts), torch.from_numpy(rates[soft]))

    def amplitudes(self, displacement: torch.Tensor) -> torch.Tensor:
        """Amplitudes (B, M) of displacements (B, N, 6)."""
        return torch.einsum("mni,bni->bm", self.duals, displacement)

    def displacement(self, amplitudes: torch.Tensor) -> torch.Tensor:
        """Displacements (B, N, 6) of amplitudes (B, M)."""
        return torch.einsum("mni,bm->bni", self.shapes, amplitudes)

    def propagated(self, amplitudes, stride: float, temperature: float, normal: torch.Tensor) -> torch.Tensor:
        """Amplitudes (B, M) a stride (ps) later, given standard normal numbers (B, M).

        The exact solution of the overdamped Langevin equation (Uhlenbeck, Ornstein, Phys. Rev. 36, 823, 1930).
        """
        kept = torch.exp(-stride * self.rates)
        return kept * amplitudes + (KB * temperature / self.rates * (1 - kept**2)).sqrt() * normal


def _site_moves(reference: Conformation, sites: torch.Tensor) -> csr_matrix:
    """Displacements of the sites (9 N rows) by small displacements (6 N columns) of the residue frames (N)."""
    arms = sites - reference.frames.translations[:, None]
    turns = torch.linalg.cross(reference.frames.rotations.transpose(-1, -2)[:, None], arms[:, :, None])
    blocks = torch.cat([torch.eye(3, dtype=arms.dtype).expand(*arms.shape[:2], 3, 3), turns.transpose(-1, -2)], -1)
    n, size = len(arms), 3 * SITES
    columns = np.broadcast_to(6 * np.arange(n)[:, None, None] + np.arange(6), (n, size, 6))
    rows = np.broadcast_to(np.arange(size * n).reshape(n, size, 1), (n, size, 6))
    return coo_matrix((blocks.reshape(-1).numpy(), (rows.ravel(), columns.ravel())), (size * n, 6 * n)).tocsr()


def _springs(sites: torch.Tensor, bonded: torch.Tensor) -> list[csr_matrix]:
    """Gradients of internal coordinates of the sites times the square roots of force constants, a row a spring."""
    ca, points, each = sites[:, 1], sites.reshape(-1, 3), torch.arange(SITES)
    first, second = (SITES * x for x in torch.triu_indices(len(ca), len(ca), 1))
    near = (points[first + 1] - points[second + 1]).norm(dim=-1) < CUTOFF
    ends = torch.broadcast_tensors(first[near, None, None] + each[:, None], second[near, None, None] + each)
    n, ca, c, next_n, next_ca, next_c = (SITES * torch.nonzero(bonded) + torch.arange(6)).unbind(-1)
    springs = [
        (_distance, torch.stack(ends, -1).reshape(-1, 2), GAMMA / SITES**2),
        (_distance, torch.stack([c, next_n], -1), BOND),
        (measure_angle, torch.stack([ca, c, next_n], -1), ANGLE_AT_C),
        (measure_angle, torch.stack([c, next_n, next_ca], -1), ANGLE_AT_N),
        (measure_dihedral, torch.stack([ca, c, next_n, next_ca], -1), OMEGA),
        (measure_dihedral, torch.stack([n, ca, c, next_n], -1), TORSION),
        (measure_dihedral, torch.stack([c, next_n, next_ca, next_c], -1), TORSION),
    ]
    return [constant**0.5 * _gradient(measure, points, index) for measure, index, constant in springs]


def _distance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return (first - second).norm(dim=-1)


def _gradient(measure, points: torch.Tensor, index: torch.Tensor) -> csr_matrix:
    """Gradients (K rows, 3 P columns) of what ``measure`` makes of the places ``index`` (K, m) of points (P, 3)."""
    with torch.inference_mode(False), torch.enable_grad():
        chosen = points[index].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(measure(*chosen.unbind(1)).sum(), chosen)
    rows = torch.arange(len(index))[:, None, None].expand(gradient.shape)
    columns = 3 * index[:, :, None] + torch.arange(3)
    entries = (x.reshape(-1).numpy() for x in (rows, columns))
    return coo_matrix((gradient.reshape(-1).numpy(), tuple(entries)), (len(index), points.numel())).tocsr()


class ElasticNetwork(JumpPropagator):
    """Overdamped Langevin dynamics of an elastic network about the reference structure, by exact steps.

    Side chains keep their torsions, and ride on the residue frames. See `card`. Histories and random numbers are on the
    device; the propagator computes on the CPU.
    """

    name = "elastic"
    card = f"""# elastic

For motions of a folded protein about its start; a null model, not learned.

## What it is

Residues are rigid bodies in an anisotropic network (ANM, CA within
{10 * CUTOFF:g} A, {GAMMA:g} kJ/mol/nm^2 a pair), with peptide bonds of Amber's
stiffness. Each normal mode is an Ornstein-Uhlenbeck process with the variance
kT/k and the relaxation time friction/k, advanced exactly over any stride. The
friction ({FRICTION:g} kJ/mol ps/nm^2 a residue) and the spring constant give
C-alpha of folded parts of Trp-cage the fluctuation and the memory of 1 ns of
MD. The propagator takes any protein of {LEAST} residues or more, any stride and
any temperature. A learned model of a folded protein has to beat it.

## What it is not

It cannot fold, unfold, or leave the well of its start: loops and tails move too
little, and their slow motions too fast. Side chains ride with their residues;
torsions change in the relaxation alone. The solvent and the sequence do not
matter to it. `model="auto"` never chooses it.
"""

    def __init__(self, tokens: ResidueTokens, stride: float, temperature: float, *, device="cpu"):
        if tokens.n_residues < LEAST:
            raise ModelDomainError(
                f"Outside the domain of model 'elastic': it moves residues against each other, so it takes {LEAST} or "
                f"more, this has {tokens.n_residues}. Use another model (`starmd models` lists them)."
            )
        self.tokens, self.stride, self.temperature = tokens, float(stride), float(temperature)
        self.device = choose_device(device)
        settings = CUTOFF, GAMMA, BOND, ANGLE_AT_C, ANGLE_AT_N, OMEGA, TORSION, FRICTION, tokens.sequence
        self.identity = hashlib.blake2b(repr(("elastic", *settings)).encode(), digest_size=16).digest()
        self._bonded = tokens.features.c_end == BONDED
        self._known: dict[bytes, Modes] = {}

    @torch.inference_mode()
    def step(self, history: History, generator) -> Conformation:
        """Sample the next conformation (B, N); its C-alpha centroid is that of the last one."""
        last, reference = (x.to("cpu", torch.float64) for x in (history.last, history.reference))
        rows = last.angles.new_empty(len(last.angles), 6 * last.shape[-1])
        normal = per_replica(_normal, rows.to(self.device, torch.float32), generator).to("cpu", torch.float64)
        frames = last.frames.translations.clone(), last.frames.rotations.clone()
        for modes, which in self._groups(reference):
            new = self._moved(last[which].frames, last[which], reference[which], modes, normal[which])
            frames[0][which], frames[1][which] = new.translations, new.rotations
        moved = Conformation(Rigid(frames[1], frames[0]), last.torsions, last.angles)
        return replace(moved, torsions=self._carbonyls(last, moved)).map(self.here)

    def _groups(self, reference: Conformation) -> list[tuple[Modes, list[int]]]:
        """Modes of each different structure among the references (B, N), and the replicas that have it."""
        groups: dict[bytes, list[int]] = {}
        for k, translations in enumerate(reference.frames.translations):
            key = translations.numpy().tobytes() + reference.frames.rotations[k].numpy().tobytes()
            groups.setdefault(key, []).append(k)
        known = {
            key: self._known.get(key) or Modes.of(reference[rows[0]], self._bonded) for key, rows in groups.items()
        }
        self._known = known
        return [(known[key], rows) for key, rows in groups.items()]

    def _moved(self, frames: Rigid, last: Conformation, reference: Conformation, modes: Modes, normal) -> Rigid:
        """Residue frames (B, N) a stride later, where those of the last conformations are."""
        motion = superpose(last.backbone().flatten(-3, -2), reference.backbone().flatten(-3, -2))
        here, rest = motion[..., None] @ frames, reference.frames
        rotation = logarithm(rest.rotations.transpose(-1, -2) @ here.rotations)
        amplitudes = modes.amplitudes(torch.cat([here.translations - rest.translations, rotation], -1))
        later = modes.propagated(amplitudes, self.stride, self.temperature, normal[:, : len(modes.rates)])
        translation, rotation = modes.displacement(later).split(3, -1)
        new = Rigid(rest.rotations @ exponential(rotation), rest.translations + translation)
        new = motion.inverse()[..., None] @ new
        drift = (new.translations - frames.translations).mean(-2, keepdim=True)
        return Rigid(new.rotations, new.translations - drift)

    def _carbonyls(self, last: Conformation, new: Conformation) -> torch.Tensor:
        """Torsions (B, N, 6) with psi such that each O keeps its place in the peptide plane."""
        before, after = (self._psi(x) for x in (last, new))
        torsions = new.torsions.clone()
        torsions[:, self._bonded, PSI] = wrap(torsions[:, self._bonded, PSI] + after - before)
        return torsions

    def _psi(self, conformation: Conformation) -> torch.Tensor:
        """Dihedrals N-CA-C-N (B, K) before peptide bonds."""
        atoms, here = conformation.backbone(), torch.nonzero(self._bonded)[:, 0]
        return measure_dihedral(*atoms[:, here].unbind(-2), atoms[:, here + 1, 0])


def _normal(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(rows.shape, generator=generator, dtype=rows.dtype, device=generator.device)
