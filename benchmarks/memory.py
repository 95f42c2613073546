"""Memory of molecular dynamics: how far the past beyond the last frame helps to predict the next frame.

    python benchmarks/memory.py references/ACE_A_NME benchmarks/validation/DWGR benchmarks/validation/proteins/villin

Each argument is the stem of MD: NAME.pdb and NAME.xtc, one trajectory, cut into 16 pieces; or NAME_K.pdb and NAME_K.xtc
of replicas K. No model is involved. Variables: cosines and sines of torsions and of twice the torsions (all of a
peptide, phi and psi of ten residues or more), and, of ten residues or more, the displacements of CA from the mean
structure, superposed on it. Each is predicted from its own past and from that of more and more variables:

own            the torsion, or the CA, itself
residue        all torsions of its residue
neighbours     the residue, the next ones along the chain, and the nearest, seven residues in all

Prediction     Ridge regression of a frame on the last 1, 2, 4 or 8, held out by piece or replica; the penalty is chosen
               within the others. "R2, 1 frame" is the explained share of the variance. "2", "4" and "8" tell by how
               much (%) the unexplained variance is smaller than with one frame: 0 for a Markov process, negative where
               more frames cost more by noise than they tell. Intervals of 95 % by bootstrap over pieces or replicas.
Kernel         Discrete Mori-Zwanzig equation with linear projection, x(n+1) = sum over l of K(l) x(n-l) + noise, from
               correlation matrices (Lin et al., SIAM J. Appl. Dyn. Syst. 20, 2558, 2021). K(0) is the Markov term, the
               others are memory. Shown is the variance, in % of that of what is predicted, that each term brings; it is
               the product of two halves of the data, so that noise alone gives 0 on the mean.

A stopped run goes on by the same command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import mdtraj
import numpy as np
from common import circumstances, parser, results_so_far, table, write
from scipy.linalg import solve

from openmm_starmd.evaluation.metrics import dihedrals, filters, shapes
from openmm_starmd.evaluation.metrics.samples import percentile_interval

FRAMES = (1, 2, 4, 8)
TERMS = (0, 1, 2, 3, 4, 6)
PIECES, RESAMPLES = 16, 200
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the number of frames, for variables of unit variance
LEAST_RESIDUES, NEIGHBOURS = 10, 7


@dataclass
class Task:
    """Columns of variables that are predicted, and those of which the past is known, by the name of the set."""

    predicted: np.ndarray
    known: dict[str, np.ndarray]


def past(run: np.ndarray, frames: int, lag: int) -> np.ndarray:
    """The last frames of a run (T, F) and a constant, for every frame from the longest past on: (n, frames F + 1)."""
    first = max(FRAMES) * lag
    blocks = [run[first - k * lag : len(run) - k * lag] for k in range(1, frames + 1)]
    return np.concatenate([*blocks, np.ones((len(run) - first, 1))], 1)


def ridge(gram: np.ndarray, moment: np.ndarray, penalty: float) -> np.ndarray:
    """Coefficients; the constant, the last one, has no penalty."""
    weight = np.full(len(gram), penalty * gram[-1, -1])
    weight[-1] = 0
    return solve(gram + np.diag(weight + 1e-9), moment, assume_a="pos")


def held_out_errors(x: Sequence[np.ndarray], y: Sequence[np.ndarray]) -> np.ndarray:
    """Summed squared errors (R,) of each replica by ridge regression of y (n, D) on x (n, P) of the others."""
    grams, moments = ([a.T @ b for a, b in zip(x, z, strict=True)] for z in (x, y))

    def fit(chosen, penalty):
        return ridge(sum(grams[k] for k in chosen), sum(moments[k] for k in chosen), penalty)

    def error(of, coefficients):
        return sum(((y[k] - x[k] @ coefficients) ** 2).sum() for k in of)

    found = []
    for out in range(len(x)):
        rest = [k for k in range(len(x)) if k != out]
        halves = [(rest[::2], rest[1::2]), (rest[1::2], rest[::2])]
        inner = [sum(error(b, fit(a, penalty)) for a, b in halves) for penalty in PENALTIES]
        found.append(error([out], fit(rest, PENALTIES[int(np.argmin(inner))])))
    return np.array(found)


def prediction(runs: list[np.ndarray], tasks: list[Task], lag: int) -> dict[str, np.ndarray]:
    """Errors (frames + 1, R) of each set, summed over its tasks; the first row is the variance about the mean."""
    errors = {}
    for task in tasks:
        y = [run[max(FRAMES) * lag :, task.predicted] for run in runs]
        total = held_out_errors([np.ones((len(values), 1)) for values in y], y)
        for name, columns in task.known.items():
            of_frames = [held_out_errors([past(r[:, columns], k, lag) for r in runs], y) for k in FRAMES]
            errors[name] = errors.get(name, 0) + np.array([total, *of_frames])
    return errors


def correlations(run: np.ndarray, lag: int) -> np.ndarray:
    """Sums of x(t + l) x(t)^T over a run (T, F) at the lags of the kernel, per frame: (terms + 2, F, F)."""
    lags = [k * lag for k in range(max(TERMS) + 2)]
    return np.stack([run[k:].T @ run[: len(run) - k] / (len(run) - k) for k in lags])


def kernel(correlation: np.ndarray) -> np.ndarray:
    """Terms (L, F, F) of the discrete Mori-Zwanzig equation from correlations (L + 1, F, F)."""
    size = correlation.shape[-1]
    inverse = np.linalg.inv(correlation[0] + 1e-6 * np.trace(correlation[0]) / size * np.eye(size))
    terms = []
    for lag in range(len(correlation) - 1):
        known = sum((term @ correlation[lag - k] for k, term in enumerate(terms)), np.zeros((size, size)))
        terms.append((correlation[lag + 1] - known) @ inverse)
    return np.array(terms)


def kernel_shares(runs: list[np.ndarray], tasks: list[Task], lag: int, seed: int = 1) -> dict[str, np.ndarray]:
    """Part of the variance that each term brings, by set: (resamples + 1, terms), the first of all replicas."""
    generator, halves = np.random.default_rng(seed), [np.arange(k, len(runs), 2) for k in (0, 1)]
    draws = [halves] + [[generator.choice(half, len(half)) for half in halves] for _ in range(RESAMPLES // 2)]
    sums = {}
    for task in tasks:
        for name, columns in task.known.items():
            rows = np.searchsorted(columns, task.predicted)
            of_runs = np.stack([correlations(run[:, columns], lag) for run in runs])
            shares = sums.setdefault(name, np.zeros((len(draws), len(TERMS) + 1)))
            for number, draw in enumerate(draws):
                means = [of_runs[half].mean(0) for half in draw]
                a, b = (kernel(mean)[np.array(TERMS)][:, rows] for mean in means)
                middle = (means[0][0] + means[1][0]) / 2
                shares[number, :-1] += np.einsum("lij,jk,lik->l", a, middle, b)
                shares[number, -1] += np.trace(middle[np.ix_(rows, rows)])
    return {name: shares[:, :-1] / shares[:, -1:] for name, shares in sums.items()}


def torsion_tasks(found: dihedrals.Torsions, near: np.ndarray, topology) -> tuple[np.ndarray, list[Task]]:
    """Features (T, 4K) of torsions, four each one behind the other, and tasks for each torsion and each residue."""
    phase = found.angles * (2 * np.pi / found.periods)
    values = np.stack([np.cos(phase), np.sin(phase), np.cos(2 * phase), np.sin(2 * phase)], -1)
    numbers = {str(residue): residue.index for residue in topology.residues}
    of = np.array([numbers[name.split()[1]] for name in found.names])
    kept = found.backbone | (topology.n_residues < LEAST_RESIDUES)
    values, of = values[:, kept], of[kept]

    def columns(chosen):
        return (4 * np.flatnonzero(chosen)[:, None] + np.arange(4)).ravel()

    singles = [columns(np.arange(len(of)) == k) for k in range(len(of))]
    tasks = [Task(single, {"own": single}) for single in singles]
    for residue in np.unique(of):
        own = columns(of == residue)
        known = {"residue": own}
        if len(np.unique(of)) > 1:
            known["neighbours"] = columns(np.isin(of, near[residue]))
        tasks.append(Task(own, known))
    return values.reshape(len(values), -1), tasks


def neighbours(topology, mean: np.ndarray) -> np.ndarray:
    """Of each residue itself, those next to it along the chain and the nearest: (N, 7), or fewer of short chains."""
    middle = np.array([mean[[a.index for a in residue.atoms]].mean(0) for residue in topology.residues])
    distance = np.linalg.norm(middle[:, None] - middle, axis=-1)
    along = np.abs(np.subtract.outer(*2 * [np.arange(len(middle))])) <= 1
    return np.argsort(np.where(along, -1 / (1 + distance), distance), axis=1)[:, :NEIGHBOURS]


def load(stem: Path) -> list[mdtraj.Trajectory]:
    """Replicas, or pieces of one trajectory."""
    if stem.with_suffix(".xtc").exists():
        whole = mdtraj.load(f"{stem}.xtc", top=f"{stem}.pdb")
        return [whole[piece] for piece in np.array_split(np.arange(whole.n_frames), PIECES)]
    paths = sorted(stem.parent.glob(f"{stem.name}_*.xtc"))
    if len(paths) < 4:
        raise SystemExit(f"{stem}.xtc is not there, and of {stem.name}_K.xtc there are {len(paths)}: expected four.")
    return [mdtraj.load(str(path), top=str(path.with_suffix(".pdb"))) for path in paths]


def families(trajectories: list[mdtraj.Trajectory]) -> dict[str, tuple[list[np.ndarray], list[Task]]]:
    """Variables of each replica (T, F), of unit variance about their mean, and tasks, by family."""
    topology, joined = trajectories[0].topology, mdtraj.join(trajectories)
    near = neighbours(topology, joined.xyz[0])
    found = {"torsions": torsion_tasks(dihedrals.measure_torsions(joined), near, topology)}
    ca = filters.ca_atoms(topology)[0]
    if len(ca) >= LEAST_RESIDUES:
        positions = joined.xyz[:, ca]
        moved = shapes.superpose(positions, shapes.mean_structure(positions)).reshape(joined.n_frames, -1)
        of = [topology.atom(int(atom)).residue.index for atom in ca]
        tasks = []
        for k, residue in enumerate(of):
            own = 3 * k + np.arange(3)
            beside = (3 * np.flatnonzero(np.isin(of, near[residue]))[:, None] + np.arange(3)).ravel()
            tasks.append(Task(own, {"own": own, "neighbours": beside}))
        found["CA"] = moved.astype(float), tasks
    cuts = np.cumsum([len(t) for t in trajectories])[:-1]
    unit = {name: ((x - x.mean(0)) / np.maximum(x.std(0), 1e-6), tasks) for name, (x, tasks) in found.items()}
    return {name: (np.split(x, cuts), tasks) for name, (x, tasks) in unit.items()}


def gains(errors: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Explained share with one frame, and the part (%) of the unexplained that more frames take away."""
    sums = errors[:, chosen].sum(1)
    return np.concatenate([[1 - sums[1] / sums[0]], 100 * (1 - sums[2:] / sums[1])])


def measured(errors: np.ndarray, shares: np.ndarray, seed: int = 1) -> dict[str, list]:
    """Value, low and high of each column of both tables."""
    generator, n = np.random.default_rng(seed), errors.shape[1]
    draws = [gains(errors, generator.integers(n, size=n)) for _ in range(RESAMPLES)]
    gain = [gains(errors, np.arange(n)), *percentile_interval(draws)]
    return {
        "gain": np.array(gain).tolist(),
        "kernel": (100 * np.array([shares[0], *percentile_interval(shares[1:])])).tolist(),
    }


def tables(found: dict[str, dict]) -> dict[str, str]:
    """Both tables, by title."""
    columns = {"gain": ["R2, 1 frame", *map(str, FRAMES[1:])], "kernel": [f"K({k})" for k in TERMS]}

    def row(kind, numbers):
        told = zip(columns[kind], *numbers, strict=True)
        digits = {"R2, 1 frame": 2} | dict.fromkeys(columns["gain"][1:], 1)
        return {c: "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(*x, d=digits.get(c, 2)) for c, *x in told}

    titles = {"gain": ("Prediction", "predicted from"), "kernel": ("Kernel", "variables")}
    return {
        title: table({name: row(kind, numbers[kind]) for name, numbers in found.items()}, corner)
        for kind, (title, corner) in titles.items()
    }


def draw(found: dict[str, dict], path: Path):
    """Gains against the number of frames, a panel a molecule and family; a line for each set and stride."""
    panels = list(dict.fromkeys(name.rpartition(", ")[0] for name in found))
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 2.8 * rows), squeeze=False, layout="constrained")
    for ax, panel in zip(axes.flat, panels, strict=False):
        of_panel = [name for name in found if name.rpartition(", ")[0] == panel]
        for k, name in enumerate(of_panel):
            value, low, high = (np.array(x)[1:] for x in found[name]["gain"])
            place, error = np.arange(1, len(FRAMES)) + 0.06 * (k - 2), np.maximum([value - low, high - value], 0)
            ax.errorbar(place, value, error, fmt="o-", markersize=3, linewidth=1, label=name.rpartition(", ")[2])
        ax.axhline(0, color="0.6", linewidth=0.8)
        ax.set_xticks(np.arange(1, len(FRAMES)), map(str, FRAMES[1:]))
        ax.set_title(panel, fontsize=9)
        ax.set(xlabel="past frames", ylabel="unexplained variance less (%)")
        ax.legend(fontsize=6, frameon=False)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    made = parser(__doc__, "memory")
    made.add_argument("molecules", type=Path, nargs="+", help="stems of MD")
    made.add_argument("--strides", type=float, nargs="+", default=[10.0, 100.0], help="ps, where runs are long enough")
    args = made.parse_args()
    facts = circumstances()
    found = results_so_far(args.output, facts)
    for stem in args.molecules:
        trajectories = load(stem)
        interval = float(np.diff(trajectories[0].time[:2])[0])
        for family, (runs, tasks) in families(trajectories).items():
            for stride in args.strides:
                lag, case = round(stride / interval), f"{stem.name}, {family}, {stride:g} ps: "
                if lag < 1 or min(map(len, runs)) < 2 * max(FRAMES) * lag:
                    continue  # no frames so near, or too short for a past of eight frames
                if any(name.startswith(case) for name in found):
                    continue
                errors, shares = prediction(runs, tasks, lag), kernel_shares(runs, tasks, lag, args.seed)
                found |= {case + name: measured(errors[name], shares[name], args.seed) for name in errors}
                write(args.output, "Memory of molecular dynamics", facts, tables(found), found)
                print(case, "done", flush=True)
    draw(found, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
