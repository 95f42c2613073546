"""The ATLAS protocol: generated trajectories of the test chains against molecular dynamics, with oracle and nulls.

    python benchmarks/atlas.py atlas_folder --split atlas.csv --task 100ns --generated folder

The folder is laid out as ATLAS is (NAME/NAME.pdb, NAME/NAME_prod_R1_fit.xtc, R2, R3); the split is a CSV file with the
columns name and release_date (YYYY-MM-DD), of which chains released on or after --after are tested (82 in ATLAS).
Generated trajectories are NAME.xtc + NAME.pdb in one folder, of any program; with --model they are made there first, by
the Propagator from NAME.pdb. Scores of a chain are kept in OUTPUT_TASK.json: give the same command again to go on.

Tasks: 100ns = 80 frames at 1.2 ns, 240ns = 200 frames at 1.2 ns, 1us = 400 frames at 2.5 ns. The frames of a generated
trajectory are taken to be so far apart whatever times its file states; only so many count.

Reference is R1; "MD R2" and "MD R3", at the spacing of the task, are the oracle. MD lasts 100 ns, so for the longer
tasks oracle and nulls have fewer frames than the task. Nulls: the first frame of R1 at all times, its frames in random
order.

Rows (mean over chains, with 95 % bootstrap interval over chains)
-----------------------------------------------------------------
CA valid, BioEmu valid      share of frames that pass `ca_valid` and `bioemu_valid`
all-atom valid              share of frames that pass `check_structure`, limits from R1; like BioEmu valid absent where
                            less than 90 % of the heavy atoms were generated
PCA JSD, recall             on PC1-PC2 of CA positions in 10 x 10 bins
tICA JSD                    tICA-0 and (tICA-0, tICA-1) of R1, lag of one step, of 5 principal components of distances
                            of CA
tICA correlation            Pearson r, over distances, of the absolute correlation of each with tICA-0 of its own side
RMSD-lag difference         mean CA RMSD of frames a lag apart, mean absolute difference over lags up to half of R1
RMSF r                      Pearson r of the CA RMSF
VAMP-2 difference           absolute, on the same 5 components, lag of one step, in pieces of one length

Jensen-Shannon divergences in bits. They grow with fewer frames: compare them with the oracle's.
"""

from __future__ import annotations

import csv
import datetime
import shutil
from dataclasses import dataclass
from pathlib import Path

import mdtraj
import numpy as np
import torch
from common import circumstances, parser, plain, results_so_far, table, write
from mdtraj.formats import XTCTrajectoryFile
from openmm.app import PDBFile
from quality import jump
from sklearn.decomposition import PCA

from openmm_starmd import load_model
from openmm_starmd.errors import StarMDError
from openmm_starmd.evaluation.metrics import differences, filters, kinetics, samples, shapes, slow_modes, structure
from openmm_starmd.protein.tokens import ResidueTokens

TASKS = {"100ns": (80, 1200.0), "240ns": (200, 1200.0), "1us": (400, 2500.0)}  # frames, ps
TEST_SET = "2019-05-01"
FINER = 12  # frames of the reference within one step of the task, about
CALIBRATION = 200  # frames of R1 that the limits of all-atom validity are drawn from
COMPONENTS = 5
RMSD_PAIRS = 2_000  # at each lag
ENOUGH_ATOMS = 0.9


class ChainError(ValueError):
    """Why a chain has no scores."""


def chains_to_test(split: Path, after: str) -> list[str]:
    """Names of the chains that were released on or after a date."""
    with open(split, newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"name", "release_date"} <= rows[0].keys():
        raise SystemExit(
            f"Expected columns name and release_date in {split.name}; found {list(rows[0]) if rows else 0}."
        )
    first = datetime.date.fromisoformat(after)
    return [row["name"] for row in rows if datetime.date.fromisoformat(row["release_date"]) >= first]


def interval_of(xtc: Path) -> float:
    """Ps between the first two frames."""
    with XTCTrajectoryFile(str(xtc)) as file:
        times = file.read(2)[1]
    if len(times) < 2 or times[1] <= times[0]:
        raise ChainError(f"expected at least 2 frames with rising times in {xtc.name}")
    return float(times[1] - times[0])


def heavy(topology: mdtraj.Topology) -> dict[tuple[int, str], int]:
    """Heavy atoms by number of the residue and name."""
    return {(topology.atom(i).residue.index, topology.atom(i).name): i for i in filters.heavy_atoms(topology)}


@dataclass
class Candidate:
    """A trajectory to score, or R1 itself: heavy atoms at the spacing of the task, at most the task's frames."""

    trajectory: mdtraj.Trajectory

    @property
    def ca(self) -> np.ndarray:
        return self.trajectory.xyz[:, filters.ca_atoms(self.trajectory.topology)[0]]

    def taking(self, frames: np.ndarray) -> Candidate:
        return Candidate(self.trajectory[frames])


class Chain:
    """R1 of one chain, and how others are measured against it."""

    def __init__(self, folder: Path, name: str, task: str):
        self.folder, self.name, (self.n_frames, interval) = folder / name, name, TASKS[task]
        self.pdb = self.folder / f"{name}.pdb"
        if not self.pdb.exists() or not self.replicate(1).exists():
            raise ChainError(f"expected {self.pdb.name} and {self.replicate(1).name}")
        self.topology = mdtraj.load_topology(str(self.pdb))
        self.atoms = filters.heavy_atoms(self.topology)
        self.step = max(1, round(interval / interval_of(self.replicate(1))))
        finer = max(1, self.step // FINER)
        while self.step % finer:
            finer -= 1
        self.lag = self.step // finer
        fine = self.load(1, finer)
        self.coarse = Candidate(fine[:: self.lag][: self.n_frames])
        if self.coarse.trajectory.n_frames < 4:
            raise ChainError(f"expected at least 4 frames at {interval:g} ps in {self.replicate(1).name}")
        self._measure(Candidate(fine).ca)
        self.few = fine[samples.subsample(np.arange(len(fine)), CALIBRATION)]

    def replicate(self, number: int) -> Path:
        return self.folder / f"{self.name}_prod_R{number}_fit.xtc"

    def load(self, number: int, stride: int) -> mdtraj.Trajectory:
        file = str(self.replicate(number))
        return mdtraj.load(file, top=self.topology, stride=stride, atom_indices=self.atoms)

    def replicas(self) -> dict[str, Candidate]:
        """The oracle."""
        there = [number for number in (2, 3) if self.replicate(number).exists()]
        return {f"MD R{number}": Candidate(self.load(number, self.step)[: self.n_frames]) for number in there}

    def _measure(self, ca: np.ndarray) -> None:
        """What R1 has, from its finer frames (T, N, 3)."""
        self.plane = shapes.fit_pca(ca)
        self.counts = self.plane.counts(self.plane.transform(ca))
        distances = slow_modes.ca_distances(ca)
        self.pca = PCA(min(COMPONENTS, distances.shape[1]), random_state=0).fit(distances)
        features = self.pca.transform(distances)
        self.tica = slow_modes.fit_tica(features, self.lag)
        self.projection = self.tica.transform(features)
        self.mode = profile(distances, self.projection[:, 0])
        self.lags = np.arange(1, self.coarse.trajectory.n_frames // 2 + 1)
        self.wander = rmsd_against_lag(ca, self.lag * self.lags)
        self.rmsf = fluctuations(ca)
        self.features = self.pca.transform(slow_modes.ca_distances(self.coarse.ca))

    def score(self, candidate: Candidate) -> dict[str, float]:
        """Every row but those of heavy atoms."""
        ca = candidate.ca
        if ca.shape[1:] != self.coarse.ca.shape[1:]:
            raise ChainError(f"expected {self.coarse.ca.shape[1]} CA as in {self.pdb.name}, found {ca.shape[1]}")
        if len(ca) < 4:
            raise ChainError(f"expected at least 4 generated frames, found {len(ca)}")
        distances = slow_modes.ca_distances(ca)
        features, counts = self.pca.transform(distances), self.plane.counts(self.plane.transform(ca))
        jsd = slow_modes.tica_jsd(self.projection, self.tica.transform(features))
        length = min(len(ca), len(self.features))
        return {
            "frames": len(ca),
            "CA valid": filters.ca_valid(candidate.trajectory).mean(),
            "PCA JSD": differences.jensen_shannon(self.counts, counts),
            "PCA recall": shapes.recall(self.counts, counts),
            "tICA-0 JSD": jsd[0],
            "tICA-0,1 JSD": jsd[1],
            "tICA correlation": differences.correlation(self.mode, own_mode(distances, features)),
            "RMSD-lag difference (nm)": differences.mean_absolute_difference(
                self.wander, rmsd_against_lag(ca, self.lags)
            ),
            "RMSF r": differences.correlation(self.rmsf, fluctuations(ca)),
            "VAMP-2 difference": abs(vamp2_of_pieces(features, length) - vamp2_of_pieces(self.features, length)),
        }

    def score_atoms(self, candidates: dict[str, Candidate], common: mdtraj.Topology) -> dict[str, dict[str, float]]:
        """The rows of heavy atoms, on those that the generated trajectory has, too."""
        own = heavy(self.few.topology)
        there = heavy(common)
        order = [label for label in own if label in there]
        if len(order) < ENOUGH_ATOMS * len(own):
            return {name: {} for name in candidates}
        topology = self.few.topology.subset([own[label] for label in order])

        def cut(trajectory: mdtraj.Trajectory) -> mdtraj.Trajectory:
            place = heavy(trajectory.topology)
            return mdtraj.Trajectory(trajectory.xyz[:, [place[label] for label in order]], topology)

        limits, scores = structure.calibrate(cut(self.few)), {}
        for name, candidate in candidates.items():
            trajectory = cut(candidate.trajectory)
            bioemu = filters.bioemu_valid(trajectory)
            checked = structure.check_structure(trajectory, limits).valid
            scores[name] = {"BioEmu valid": bioemu.mean(), "all-atom valid": checked.mean()}
        return scores


def rmsd_against_lag(ca: np.ndarray, lags: np.ndarray) -> np.ndarray:
    """Mean RMSD of frames (T, N, 3) each of the lags (L,) apart, nm, (L,); nan where there is no pair."""
    sums = [shapes.rmsd_sums(ca[:-lag], ca[lag:], RMSD_PAIRS) for lag in lags]
    return shapes.mean_rmsd(np.array(sums))


def fluctuations(ca: np.ndarray) -> np.ndarray:
    """RMSF (N,) of frames (T, N, 3), nm."""
    return shapes.rmsf(shapes.moments(shapes.superpose(ca, shapes.mean_structure(ca))))


def vamp2(features: np.ndarray) -> float:
    """VAMP-2 score of features (T, F) at a lag of one frame."""
    return kinetics.vamp2(kinetics.covariance_sums(features[:-1], features[1:]))


def vamp2_of_pieces(features: np.ndarray, length: int) -> float:
    """Mean score of pieces of one length: short ones score higher, so both sides of a comparison get the same."""
    starts = range(0, len(features) - length + 1, length)
    return float(np.mean([vamp2(features[k : k + length]) for k in starts]))


def profile(distances: np.ndarray, series: np.ndarray) -> np.ndarray:
    """Absolute correlation of each distance (T, P) with a series (T,), shape (P,); 0 where one does not change."""
    x, y = distances - distances.mean(0, dtype=np.float64), series - series.mean()
    scale = np.sqrt((x**2).sum(0) * (y**2).sum())
    return np.abs(y @ x) / np.where(scale > 1e-9, scale, np.inf)


def own_mode(distances: np.ndarray, features: np.ndarray) -> np.ndarray:
    """`profile` along tICA-0 of the candidate itself; zeros where it stands still."""
    if np.ptp(features, axis=0).max() < 1e-6:
        return np.zeros(distances.shape[1])
    return profile(distances, slow_modes.fit_tica(features, 1).transform(features)[:, 0])


def generated(folder: Path, name: str, n_frames: int) -> Candidate:
    pdb, xtc = folder / f"{name}.pdb", folder / f"{name}.xtc"
    if not (pdb.exists() and xtc.exists()):
        raise ChainError(f"expected {xtc.name} and {pdb.name} in {folder.name}")
    return Candidate(mdtraj.load(str(xtc), top=str(pdb))[:n_frames])


def make(chain: Chain, model, folder: Path, options) -> None:
    """A trajectory of the task by the Propagator from the chain's PDB file, unless it is there."""
    n_frames, interval = TASKS[options.task]
    xtc = folder / f"{chain.name}.xtc"
    if xtc.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    pdb = PDBFile(str(chain.pdb))
    tokens, start = ResidueTokens.from_topology(pdb.topology), np.array(pdb.positions._value)
    frames = jump(model, tokens, start[None], interval, n_frames, options.seed)[0]
    times, xyz = interval * np.arange(1, n_frames + 1), frames.numpy().astype(np.float32)
    shutil.copyfile(chain.pdb, folder / f"{chain.name}.pdb")
    partial = xtc.with_name(f"part_{xtc.name}")
    mdtraj.Trajectory(xyz, mdtraj.Topology.from_openmm(pdb.topology), times).save_xtc(str(partial))
    partial.replace(xtc)


def examine(name: str, model, folder: Path, options) -> dict[str, dict[str, float]]:
    """Every column of one chain."""
    chain = Chain(options.atlas, name, options.task)
    if model is not None:
        make(chain, model, folder, options)
    candidates = {"generated": generated(folder, name, chain.n_frames)} | chain.replicas()
    n_frames = chain.coarse.trajectory.n_frames
    candidates |= {"frozen": chain.coarse.taking(np.zeros(n_frames, dtype=int))}
    candidates |= {"shuffled": chain.coarse.taking(np.random.default_rng(options.seed).permutation(n_frames))}
    scores = {column: chain.score(candidate) for column, candidate in candidates.items()}
    atoms = chain.score_atoms(candidates, candidates["generated"].trajectory.topology)
    return {column: scores[column] | atoms[column] for column in candidates}


def average(chains: list[dict], seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """Mean, low, high of each row and column over chains."""
    rng, result = np.random.default_rng(seed), {}
    draws = rng.integers(len(chains), size=(1000, len(chains)))
    columns = dict.fromkeys(column for chain in chains for column in chain)
    rows = dict.fromkeys(row for chain in chains for scores in chain.values() for row in scores)
    for row in rows:
        for column in columns:
            values = np.array([chain.get(column, {}).get(row) for chain in chains], dtype=float)
            if np.isfinite(values).any():
                means = np.ma.masked_invalid(values)[draws].mean(1).filled(np.nan)
                low, high = samples.percentile_interval(means)
                result.setdefault(row, {})[column] = dict(mean=np.nanmean(values), low=float(low), high=float(high))
    return result


def interval(mean: float, low: float, high: float) -> str:
    return f"{mean:.3g} [{low:.3g}, {high:.3g}]"


def main() -> None:
    made = parser(__doc__, "atlas")
    made.add_argument("atlas", type=Path, help="folder of NAME/NAME.pdb and NAME/NAME_prod_R1_fit.xtc")
    made.add_argument("--split", type=Path, required=True, help="CSV file with name and release_date")
    made.add_argument("--after", default=TEST_SET, help="date of the first test chain")
    made.add_argument("--task", choices=TASKS, default="100ns")
    made.add_argument("--generated", type=Path, required=True, help="folder of NAME.pdb and NAME.xtc")
    made.add_argument("--model", help="embedded name or path, to make what is not there yet")
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    model, stem = load_model(options.model) if options.model else None, f"{options.output}_{options.task}"
    names = chains_to_test(options.split, options.after)
    task = f"{options.task}, {TASKS[options.task][0]} frames at {TASKS[options.task][1]:g} ps"
    facts = circumstances(*[model] if model else [], task=task)
    chains, failed = results_so_far(stem, facts).get("chains", {}), {}
    for name in [name for name in names if name not in chains]:
        try:
            chains[name] = plain(examine(name, model, options.generated, options))
        except (ValueError, OSError, RuntimeError, StarMDError) as error:  # files that are damaged, missing, too short
            failed[name] = f"{type(error).__name__}: {error}"
        print(name, failed.get(name, "done"), flush=True)
        report(stem, facts, names, chains, failed, options.seed)
    print(report(stem, facts, names, chains, failed, options.seed))


def report(stem: str, facts: dict, names: list[str], chains: dict, failed: dict[str, str], seed: int) -> str:
    """Write the table over the chains that are done, and return it."""
    mean = average(list(chains.values()), seed) if chains else {}
    cells = {
        r: {c: f"{v['mean']:.3g} [{v['low']:.3g}, {v['high']:.3g}]" for c, v in s.items()} for r, s in mean.items()
    }
    facts = facts | {"chains": f"{len(chains)} of {len(names)} in the split"}
    text = table(cells, "quantity") if cells else "No chain could be scored."
    sections = {"": text} | ({"Not scored": "\n".join(f"- {n}: {e}" for n, e in failed.items())} if failed else {})
    write(stem, "ATLAS", facts, sections, {"mean": mean, "chains": chains})
    return text


if __name__ == "__main__":
    main()
