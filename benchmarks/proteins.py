"""Proteins of held-out families: runs of a model beside MD that neither saw the other.

    python benchmarks/proteins.py md_folder --names "villin_*" --model starmd-protein --stride 10 --output proteins

The folder holds NAME_K.pdb and NAME_K.xtc of replicas K of MD of each protein NAME, from its native structure; the
first halves of the replicas are the reference, the others are "MD again", and the model starts where the latter do and
makes as many jumps as they have frames at the stride (--jumps for more). Writes a table for each protein.

Columns: MD again · model (propagator and backmapping, no relaxation, nothing sampled again) · elastic (the null model
of that name, likewise) · frozen (the starts of the model's runs, repeated).

Rows, all against the reference: correlation of the RMSF of CA, and the ratio of its mean; RMSD of CA to the start, nm,
at the first, middle and last jump; Jensen-Shannon divergence, in bits, of phi and psi and of chi, and hop rates (share
of strides that turn a torsion by more than 60 degrees) with their mean absolute difference; autocorrelation of CA
displacements from the mean structure at one stride and at five, and CA-RMSD between frames so far apart, nm; root mean
square of the steps of CA, and of their part along the three largest principal components of the reference's steps, as
ratios; share of jumps that pass BioEmu's filter, and all checks (`check_positions`, strained): the share accepted at
the first try.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import mdtraj
import numpy as np
import torch
from common import circumstances, models_named, parser, table, write
from openmm.app import PDBFile

from openmm_starmd.evaluation.metrics import dihedrals, filters, shapes
from openmm_starmd.plugins import NewPropagator
from openmm_starmd.protein.clashes import resolve_clashes
from openmm_starmd.protein.conformation import from_positions
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.protein.validity import STRAINED, check_positions

TEMPERATURE = 300.0
HOP = np.pi / 3
LAGS = 1, 5
PRINCIPAL = 3


@dataclass
class Runs:
    """Positions (R, T, A, 3) of replicas, nm, one stride apart, and where they started (R, A, 3)."""

    positions: np.ndarray
    starts: np.ndarray
    topology: mdtraj.Topology

    def __post_init__(self):
        self.ca = filters.ca_atoms(self.topology)[0]
        flat = self.positions.reshape(-1, *self.positions.shape[-2:]).astype(np.float32)
        self.torsions = dihedrals.measure_torsions(mdtraj.Trajectory(flat, self.topology))

    def aligned(self, mean: np.ndarray) -> np.ndarray:
        """CA (R, T, N, 3) superposed on a mean structure (N, 3)."""
        ca = self.positions[:, :, self.ca]
        return shapes.superpose(ca.reshape(-1, *ca.shape[-2:]), mean).reshape(ca.shape)

    def hops(self) -> np.ndarray:
        """Share of strides that turn each torsion (K,) further than 60 degrees."""
        angles = self.torsions.angles.reshape(*self.positions.shape[:2], -1)
        return (np.abs(dihedrals.wrap(np.diff(angles, axis=1), self.torsions.periods)) > HOP).mean((0, 1))


def rmsd(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Least RMSD (R) of structures (R, N, 3), nm."""
    moved = [shapes.superpose(x[None], y)[0] for x, y in zip(a, b, strict=True)]
    return np.sqrt(((np.stack(moved) - b) ** 2).sum(-1).mean(-1))


def summary(runs: Runs, reference: Runs, tokens: ResidueTokens) -> dict[str, float]:
    """The rows of a column."""
    mean = shapes.mean_structure(reference.positions[:, :, reference.ca].reshape(-1, len(reference.ca), 3))
    own, others = runs.aligned(mean), reference.aligned(mean)

    def rmsf(x: np.ndarray) -> np.ndarray:
        return np.sqrt(x.reshape(-1, *x.shape[2:]).var(0).sum(-1))

    start = runs.starts[:, runs.ca]
    both, periods = (reference.torsions.angles, runs.torsions.angles), reference.torsions.periods
    divergence = dihedrals.torsion_jsd(*(dihedrals.torsion_counts(angles, periods, 50) for angles in both))
    backbone, hops, expected = reference.torsions.backbone, runs.hops(), reference.hops()
    with np.errstate(invalid="ignore", divide="ignore"):
        rows = {"RMSF r": float(np.corrcoef(rmsf(own), rmsf(others))[0, 1])}
    rows["RMSF ratio"] = float(rmsf(own).mean() / rmsf(others).mean())
    length = own.shape[1]
    for name, frame in {"first": 0, "middle": length // 2, "last": length - 1}.items():
        rows[f"RMSD to start, {name}"] = float(rmsd(own[:, frame], start).mean())
    rows |= {"JSD Ramachandran": float(divergence[backbone].mean()), "JSD chi": float(divergence[~backbone].mean())}
    for name, chosen in {"backbone": backbone, "side chain": ~backbone}.items():
        rows[f"hops, {name}"] = float(hops[chosen].mean())
        rows[f"hops, {name}, difference"] = float(np.abs(hops - expected)[chosen].mean())
    away, centre = own - own.mean((0, 1)), (own - own.mean((0, 1))).reshape(-1, *own.shape[2:])
    for lag in (lag for lag in LAGS if lag < length):
        variance = (centre**2).sum(-1).mean(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            rows[f"CA autocorrelation, {lag}"] = float(
                ((away[:, :-lag] * away[:, lag:]).sum(-1).mean((0, 1)) / variance).mean()
            )
        pairs = own[:, :-lag].reshape(-1, *own.shape[2:]), own[:, lag:].reshape(-1, *own.shape[2:])
        few = slice(None, None, max(1, len(pairs[0]) // 200))
        rows[f"RMSD, {lag} apart"] = float(rmsd(pairs[0][few], pairs[1][few]).mean())
    steps, expected = (np.diff(x, axis=1).reshape(-1, own.shape[2] * 3) for x in (own, others))
    components = np.linalg.eigh(expected.T @ expected)[1]
    for name, axes in {"steps": components, "steps, principal": components[:, -PRINCIPAL:]}.items():
        squares = [((x @ axes) ** 2).sum(-1).mean() for x in (steps, expected)]
        rows[f"{name}, ratio"] = float(np.sqrt(squares[0] / squares[1]))
    checks = check_positions(torch.as_tensor(runs.positions), tokens, limits=STRAINED)
    rows["passes BioEmu's filter"] = float(checks.passes_bioemu.double().mean())
    rows["accepted at the first try"] = float(checks.valid.double().mean())
    return rows


def propagate(model: str, tokens: ResidueTokens, starts: np.ndarray, stride: float, jumps: int, seed: int):
    """Positions (R, T, A, 3) of runs of a model, or of a propagator by its name."""
    starts = torch.as_tensor(starts, dtype=torch.float64)
    propagator = NewPropagator.of(model, tokens, stride, TEMPERATURE, strict=False)(tokens, stride, TEMPERATURE)
    generators = [torch.Generator().manual_seed(seed + k) for k in range(len(starts))]
    history, frames = propagator.start(from_positions(starts, tokens)), []
    for _ in range(jumps):
        conformation, atoms = resolve_clashes(propagator.step(history, generators), starts, tokens)
        history = propagator.extend(history, conformation, generators)
        frames.append(atoms.numpy())
    return np.stack(frames, 1)


def proteins(folder: Path, patterns: list[str]) -> dict[str, list[Path]]:
    """PDB files of the replicas of each protein."""
    found = defaultdict(list)
    for path in sorted(folder.glob("*.pdb")):
        name, _, replica = path.stem.rpartition("_")
        if replica.isdigit() and path.with_suffix(".xtc").exists() and any(fnmatchcase(path.stem, p) for p in patterns):
            found[name].append(path)
    return found


def load(paths: list[Path], stride: float) -> Runs:
    """Replicas at a stride; the start is the first frame, the run what follows."""
    topology = mdtraj.load_topology(str(paths[0]))
    trajectories = [mdtraj.load(str(path.with_suffix(".xtc")), top=topology) for path in paths]
    step = round(stride / float(trajectories[0].time[1] - trajectories[0].time[0]))
    if step < 1:
        raise SystemExit(f"{paths[0].stem} has no frames {stride:g} ps apart.")
    length = min(t.n_frames for t in trajectories)
    positions = np.stack([t.xyz[:length:step] for t in trajectories]).astype(np.float64)
    return Runs(positions[:, 1:], positions[:, 0], topology)


def score(paths: list[Path], options) -> dict[str, dict[str, float]]:
    """The table of a protein, column by column."""
    tokens = ResidueTokens.from_topology(PDBFile(str(paths[0])).topology)
    reference, again = load(paths[::2], options.stride), load(paths[1::2], options.stride)
    jumps, columns, seconds = options.jumps or again.positions.shape[1], {"MD again": again}, {}
    for column, name in {"model": options.model, "elastic": "elastic"}.items():
        begin = time.perf_counter()
        generated = propagate(name, tokens, again.starts, options.stride, jumps, options.seed)
        seconds[column] = (time.perf_counter() - begin) / (jumps * len(generated))
        columns[column] = Runs(generated, again.starts, again.topology)
    frozen = np.repeat(again.starts[:, None], again.positions.shape[1], 1)
    columns["frozen"] = Runs(frozen, again.starts, again.topology)
    results = {name: summary(runs, reference, tokens) for name, runs in columns.items()}
    for column, time_of_jump in seconds.items():
        results[column] |= {"seconds a jump": time_of_jump, "jumps": jumps}
    return results


def main() -> None:
    made = parser(__doc__, "proteins")
    made.add_argument("folder", type=Path)
    made.add_argument("--names", nargs="+", default=["*"], help="patterns of NAME_K")
    made.add_argument("--model", default="starmd-protein")
    made.add_argument("--stride", type=float, default=10.0, help="ps")
    made.add_argument("--jumps", type=int, default=0, help="0: as many as MD has")
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    results, sections = {}, {}
    facts = circumstances(*models_named(options.model), stride=f"{options.stride:g} ps", seed=options.seed)
    for name, paths in proteins(options.folder, options.names).items():
        results[name] = score(paths, options)
        rows = {row: {c: v.get(row) for c, v in results[name].items()} for row in results[name]["model"]}
        sections[f"{name}, {len(paths)} replicas"] = table(rows, "quantity")
        write(options.output, "Proteins of held-out families", facts, sections, results)


if __name__ == "__main__":
    main()
