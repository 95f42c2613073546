"""How good a model is: distributions, kinetics and validity of peptides beside MD's own spread and null models.

    python benchmarks/quality.py reference_folder --model starmd-peptide

The folder holds NAME.pdb and NAME.xtc of reference MD. Writes quality.md and quality.json. All runs of a peptide start
from NAME.pdb, never from frames of the reference.

Columns
-------
MD halves      first half of the reference against the second
MD n           n evenly spaced frames of the reference (as many as the model makes, at most half) against all
model          `Propagator` and backmapping without relaxation, or `StarMDIntegrator` with --integrator
frozen         the first frame of the reference, repeated
others         each torsion drawn by itself from all values of that kind (phi, psi, chi1, ...) in the other peptides of
               the folder, or uniformly where they have none
shuffled       the frames of "MD n" in random order: right distributions, no kinetics

Rows: Jensen-Shannon divergences in bits; slowest implied timescale of a 20-state MSM (k-means on the reference's first
two tICs) at a lag of one step, as a ratio to MD with MD's bootstrap interval; share of steps that turn a torsion by
more than 60 degrees, of all torsions and of backbone and side chains apart, mean absolute difference from MD; share of
frames in which the side chains of two residues touch (heavy atoms within 0.45 nm; neighbours left out), mean over pairs
and mean absolute difference from MD; share of jumps that pass the BioEmu filter; slopes per 1,000 steps of validity and
radius of gyration, with standard errors from 20 blocks.

From MD frames: hops in one jump from 400 frames of the reference, beside those of the reference from the same frames
(in the column "MD halves"). What is wrong there is wrong in single jumps, not brought about by earlier ones.

Stride consistency, of the model alone: how the torsions turn in ten jumps of a tenth of the stride against one jump,
both from the same conformations, beside a second sample of the one jump ("of itself"); and how often they hop.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import mdtraj
import numpy as np
import torch
from common import circumstances
from openmm import Platform
from openmm.app import PDBFile, Simulation

from openmm_starmd import Propagator, Relaxation, StarMDIntegrator, load_model
from openmm_starmd.evaluation.metrics import contacts, dihedrals, markov, samples, shapes, slow_modes
from openmm_starmd.protein.clashes import resolve_clashes
from openmm_starmd.protein.conformation import from_positions
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.protein.validity import STRAINED, check_positions
from openmm_starmd.systems import peptide_system

TEMPERATURE = 300.0
N_STATES = 20
SHORTER, STARTS = 10, 400  # of stride consistency
DIVERGENCES = ("JSD backbone", "JSD side chain", "JSD tICA-0", "JSD tICA-0,1")


@dataclass
class Reference:
    """MD of one peptide; positions in nm, times in ps."""

    name: str
    pdb: PDBFile
    tokens: ResidueTokens
    trajectory: mdtraj.Trajectory
    torsions: dihedrals.Torsions
    interval: float

    @classmethod
    def load(cls, path: Path) -> Reference:
        pdb = PDBFile(str(path))
        topology = mdtraj.Topology.from_openmm(pdb.topology)
        trajectory = mdtraj.load(str(path.with_suffix(".xtc")), top=topology)
        tokens = ResidueTokens.from_topology(pdb.topology)
        torsions = dihedrals.measure_torsions(trajectory)
        return cls(path.stem, pdb, tokens, trajectory, torsions, float(trajectory.time[1] - trajectory.time[0]))

    @property
    def start(self) -> np.ndarray:
        return np.array(self.pdb.positions._value)


def jump(model, tokens, starts, stride: float, steps: int, seed: int, denoising_steps: int | None = None):
    """Positions (B, T, A, 3) of jumps by the Propagator from positions (B, A, 3), without a Context."""
    starts = torch.as_tensor(starts)
    propagator = Propagator(model, tokens, stride, TEMPERATURE, denoising_steps=denoising_steps, strict=False)
    generator = torch.Generator(model.device).manual_seed(seed)
    history, frames = propagator.start(from_positions(starts, tokens)), []
    for _ in range(steps):
        conformation, atoms = resolve_clashes(propagator.step(history, generator), starts, tokens)
        history = propagator.extend(history, conformation, generator)
        frames.append(atoms)
    return torch.stack(frames, 1)


def propagate(reference, model, options) -> tuple[np.ndarray, dict]:
    """Positions (B, T, A, 3) from the library, without a Context."""
    tokens, starts = reference.tokens, np.repeat(reference.start[None], options.replicas, 0)
    steps, begin = math.ceil(options.frames / options.replicas), time.perf_counter()
    positions = jump(model, tokens, starts, options.stride, steps, options.seed, options.denoising_steps)
    seconds = time.perf_counter() - begin
    valid = check_positions(positions, tokens, limits=STRAINED).passes_bioemu.numpy()
    return positions.numpy(), {
        "valid": valid.mean(0),
        "validity": float(valid.mean()),
        "ns per day": valid.size * options.stride / 1000 / seconds * 86400,
    }


def integrate(reference, model, options) -> tuple[np.ndarray, dict]:
    """Positions (1, T, A, 3) from the integrator with relaxation, in a plain Simulation."""
    integrator = StarMDIntegrator(
        reference.pdb.topology,
        TEMPERATURE,
        options.stride,
        model,
        relaxation=Relaxation(),
        denoisingSteps=options.denoising_steps,
        randomSeed=options.seed + 1,
        strict=False,
    )
    platform = Platform.getPlatform("CPU")
    system = peptide_system(reference.pdb.topology)
    simulation = Simulation(reference.pdb.topology, system, integrator, platform, {"Threads": "1"})
    simulation.context.setPositions(reference.pdb.positions)
    frames, retries, begin = [], [], time.perf_counter()
    for _ in range(options.frames):
        before = integrator.getStatistics()["resampled"]
        simulation.step(1)
        retries.append(integrator.getStatistics()["resampled"] - before)
        frames.append(simulation.context.getState(positions=True).getPositions(asNumpy=True)._value.copy())
    seconds = time.perf_counter() - begin
    positions = np.stack(frames)[None]
    after = check_positions(torch.from_numpy(positions), reference.tokens).passes_bioemu.numpy()
    first_try = 1.0 / (1 + np.array(retries))
    return positions, {
        "valid": first_try,
        "validity": options.frames / (options.frames + sum(retries)),
        "validity after relaxation": float(after.mean()),
        "ns per day": options.frames * options.stride / 1000 / seconds * 86400,
    }


def turns(reference: Reference, model, starts: np.ndarray, stride: float, steps: int, seed: int) -> list[np.ndarray]:
    """Torsions (2, K) before and after jumps from positions (B, A, 3)."""
    ends = jump(model, reference.tokens, starts, stride, steps, seed)[:, -1].numpy()
    both = np.stack([starts, ends], 1).astype(np.float32)
    return [dihedrals.measure_torsions(mdtraj.Trajectory(x, reference.trajectory.topology)).angles for x in both]


def hop_rate(angles: np.ndarray, periods: np.ndarray, lag: int = 1) -> np.ndarray:
    """Share of steps of ``lag`` frames, from every frame of torsions (T, K), in which each hops, (K,)."""
    hops, steps = dihedrals.hop_counts(angles[:-lag], angles[lag:], periods)
    return hops / steps


def turn_divergence(one: list[np.ndarray], other: list[np.ndarray], periods: np.ndarray) -> float:
    """Mean Jensen-Shannon divergence, bits, of the turns between torsions (2, K) before and after jumps."""
    counts = (dihedrals.torsion_counts(np.array([b - a for a, b in pairs]), periods) for pairs in (one, other))
    return float(dihedrals.torsion_jsd(*counts).mean())


def consistency(reference: Reference, model, positions: np.ndarray, options) -> dict[str, float]:
    """Ten short jumps against one long one, from evenly spaced frames of a run, positions (B, T, A, 3)."""
    if options.stride / SHORTER < model.domain.min_stride:
        return {}
    starts = samples.subsample(positions.reshape(-1, *positions.shape[2:]), STARTS)
    long, again = (turns(reference, model, starts, options.stride, 1, seed) for seed in (1, 2))
    short = turns(reference, model, starts, options.stride / SHORTER, SHORTER, 3)
    periods = reference.torsions.periods
    return {
        "stride consistency, turns": turn_divergence(short, long, periods),
        "stride consistency, turns of itself": turn_divergence(again, long, periods),
        "hop rate in one jump": np.mean([hop_rate(pair, periods) for pair in long]),
        "hop rate in ten short jumps": np.mean([hop_rate(pair, periods) for pair in short]),
    }


def from_md(reference: Reference, model, scorer: Scorer, options) -> tuple[dict[str, float], dict[str, float]]:
    """Hops of MD and of the model in one jump from frames of the reference."""
    torsions, periods = reference.torsions, reference.torsions.periods
    index = np.linspace(0, len(torsions.angles) - 1 - scorer.lag, STARTS).astype(int)
    starts = reference.trajectory.xyz[index].astype(float)
    pairs = turns(reference, model, starts, options.stride, 1, 4)
    hops, expected = (
        np.mean([hop_rate(pair, periods) for pair in both], 0)
        for both in (pairs, [torsions.angles[[k, k + scorer.lag]] for k in index])
    )
    difference = float(np.abs(hops - expected).mean())
    name = "hop rate from MD frames"
    return {name: float(expected.mean())}, {name: float(hops.mean()), f"{name}, difference": difference}


def contact_scores(touching: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    name = "side-chain contacts"
    if not touching.size:
        return {name: math.nan, f"{name}, difference": math.nan}
    return {
        name: float(touching.mean()),
        f"{name}, difference": float(np.abs(touching.mean(0) - expected.mean(0)).mean()),
    }


def torsions_of_others(reference: Reference, others: list[Reference], n: int, rng) -> np.ndarray:
    """Torsions (n, K) drawn by kind from other peptides; see the module's docstring."""
    columns = []
    for name, period in zip(reference.torsions.names, reference.torsions.periods, strict=True):
        kind = name.split()[0]
        pool = [
            o.torsions.angles[:, k]
            for o in others
            for k, other in enumerate(o.torsions.names)
            if other.split()[0] == kind
        ]
        drawn = rng.choice(np.concatenate(pool), n) if pool else rng.uniform(-period / 2, period / 2, n)
        columns.append(dihedrals.wrap(drawn, period))
    return np.stack(columns, 1)


class Scorer:
    """Scores torsions of a candidate against one reference."""

    def __init__(self, reference: Reference, stride: float, seed: int):
        torsions = reference.torsions
        self.angles, self.periods, self.backbone = torsions.angles, torsions.periods, torsions.backbone
        self.lag, self.stride = max(1, round(stride / reference.interval)), stride
        features = dihedrals.torsion_features(self.angles, self.periods)
        self.tica = slow_modes.fit_tica(features, self.lag)
        self.projection = self.tica.transform(features)
        self.states = markov.fit_states(self.projection, N_STATES, seed)
        self.discrete = self.states.transform(self.projection)
        self.hops = hop_rate(self.angles, self.periods, lag=self.lag)
        found = markov.implied_timescales(self.discrete, [self.lag], 1, n_blocks=10, n_resamples=200, seed=seed)
        values = np.nan_to_num([found.values, found.low, found.high]).ravel() * stride / self.lag
        self.timescale, *self.interval = map(float, values)  # ps

    def project(self, angles):
        return self.tica.transform(dihedrals.torsion_features(angles, self.periods))

    def divergences(self, angles: np.ndarray, against: np.ndarray | None = None) -> dict[str, float]:
        """Of torsions (T, K) against all of the reference, or against other torsions."""
        against = self.angles if against is None else against
        jsd = dihedrals.torsion_jsd(*(dihedrals.torsion_counts(a, self.periods) for a in (against, angles)))
        tica = slow_modes.tica_jsd(self.project(against), self.project(angles))
        side = jsd[~self.backbone]
        values = (jsd[self.backbone].mean(), side.mean() if len(side) else math.nan, *tica)
        return dict(zip(DIVERGENCES, map(float, values), strict=True))

    def rates(self, angles: list[np.ndarray], lag: int = 1) -> dict[str, float]:
        """Kinetics of trajectories (T, K), one step of the model being ``lag`` frames."""
        hops = np.mean([hop_rate(a, self.periods, lag=lag) for a in angles], 0)
        states = [self.states.transform(self.project(a)) for a in angles]
        counts = markov.transition_counts(states, lag)[0]
        timescale = np.nan_to_num(markov.timescales(markov.fit_counts(counts, lag), 1))[0] * self.stride / lag
        side = hops[~self.backbone]
        return {
            "timescale ratio": timescale / self.timescale if self.timescale > 0 else math.nan,
            "hop rate difference": float(np.abs(hops - self.hops).mean()),
            "hop rate": float(hops.mean()),
            "hop rate, backbone": float(hops[self.backbone].mean()),
            "hop rate, side chain": float(side.mean()) if len(side) else math.nan,
        }


def score(reference: Reference, others: list[Reference], model, options) -> dict[str, dict[str, float]]:
    """Every column of one peptide."""
    rng = np.random.default_rng(options.seed)
    scorer = Scorer(reference, options.stride, options.seed)
    angles, lag = scorer.angles, scorer.lag
    half, n = len(angles) // 2, min(options.frames, len(angles) // 2)
    fewer = angles[np.linspace(0, len(angles) - 1, n).round().astype(int)]
    first, second = scorer.rates([angles[:half]], lag), scorer.rates([angles[half:]], lag)
    columns = {
        "MD halves": scorer.divergences(angles[:half], angles[half:]) | {k: (first[k] + second[k]) / 2 for k in first},
        f"MD {n}": scorer.divergences(fewer) | scorer.rates([angles], lag),
    }
    positions, extra = (integrate if options.integrator else propagate)(reference, model, options)
    runs = [mdtraj.Trajectory(p.astype(np.float32), reference.trajectory.topology) for p in positions]
    pairs = contacts.side_chain_pairs(reference.trajectory)
    touching = contacts.side_chain_contacts(reference.trajectory, pairs)
    halves = {k: v for k, v in contact_scores(touching[:half], touching[half:]).items() if "difference" in k}
    columns["MD halves"] |= contact_scores(touching, touching) | halves
    columns["model"] = contact_scores(
        np.concatenate([contacts.side_chain_contacts(run, pairs) for run in runs]), touching
    )
    runs = [dihedrals.measure_torsions(run).angles for run in runs]
    columns["model"] |= scorer.divergences(np.concatenate(runs)) | scorer.rates(runs)
    columns["model"] |= drift(positions, extra, reference) | consistency(reference, model, positions, options)
    of_md, of_model = from_md(reference, model, scorer, options)
    columns["MD halves"] |= of_md
    columns["model"] |= of_model
    frozen = np.repeat(angles[:1], n, 0)
    columns["frozen"] = scorer.divergences(frozen) | scorer.rates([frozen])
    if others:
        drawn = torsions_of_others(reference, others, n, rng)
        columns["others"] = scorer.divergences(drawn) | scorer.rates([drawn])
    shuffled = rng.permutation(fewer)
    columns["shuffled"] = scorer.divergences(shuffled) | scorer.rates([shuffled])
    low, high = scorer.interval
    columns["MD halves"]["timescale ratio low"] = low / scorer.timescale if scorer.timescale else math.nan
    columns["MD halves"]["timescale ratio high"] = high / scorer.timescale if scorer.timescale else math.nan
    columns["MD halves"]["timescale (ps)"] = scorer.timescale
    return columns


def drift(positions: np.ndarray, extra: dict, reference: Reference) -> dict[str, float]:
    """Validity, speed and slopes (per 1,000 steps, with standard errors) of positions (B, T, A, 3)."""
    heavy = reference.tokens.heavy_atoms
    gyration = np.mean([shapes.radius_of_gyration(p[:, heavy]) for p in positions], 0)
    result = {key: value for key, value in extra.items() if key != "valid"}
    for name, series in (("validity", extra["valid"]), ("Rg (nm)", gyration)):
        value, error = samples.slope(series, min(20, len(series)))
        result |= {f"slope of {name}": 1000 * value, f"error of slope of {name}": 1000 * error}
    return result


def average(peptides: dict) -> dict[str, dict[str, float]]:
    """Mean over peptides; timescale ratios are averaged as logarithms."""

    def combine(row, values):
        values = np.array(values)
        if row.startswith("timescale ratio"):
            return float(np.exp(np.log(np.maximum(values, 1e-4)).mean()))
        return float(np.nanmean(values)) if not np.isnan(values).all() else math.nan

    generic = [{("MD n" if c.startswith("MD ") and c != "MD halves" else c): v for c, v in p.items()} for p in peptides]
    return {
        column: {row: combine(row, [p[column][row] for p in generic]) for row in generic[0][column]}
        for column in generic[0]
        if all(column in p for p in generic)
    }


def table(columns: dict[str, dict[str, float]]) -> str:
    """Markdown table, a row per quantity."""
    rows = list(dict.fromkeys(row for values in columns.values() for row in values))
    lines = [f"| Quantity | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        cells = [f"{values[row]:.4g}" if row in values else "" for values in columns.values()]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path, help="folder with NAME.pdb and NAME.xtc")
    parser.add_argument("--model", default="starmd-peptide", help="embedded name or path")
    stem = Path(__file__).with_name("results") / "quality"
    parser.add_argument("--output", default=stem, help="stem of the .md and .json files")
    parser.add_argument("--frames", type=int, default=2000, help="frames of each peptide, all replicas together")
    parser.add_argument("--replicas", type=int, default=16, help="runs at a time (one with --integrator)")
    parser.add_argument("--stride", type=float, default=100.0, help="ps")
    parser.add_argument("--denoising-steps", type=int)
    parser.add_argument("--integrator", action="store_true", help="go through StarMDIntegrator, with relaxation")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = load_model(options.model)
    paths = [p for p in sorted(options.reference.glob("*.pdb")) if p.with_suffix(".xtc").exists()]
    references = [Reference.load(path) for path in paths]
    names = {"reference": options.reference.name, "model": model.name, "output": Path(options.output).name}
    settings = circumstances(model) | vars(options) | names
    facts = "\n".join(f"- {name}: {value}" for name, value in settings.items())
    text, peptides = [f"# {model.name}: {options.frames} frames at {options.stride:g} ps\n\n{facts}"], {}
    begin = time.time()
    for reference in references:
        others = [o for o in references if o is not reference]
        peptides[reference.name] = score(reference, others, model, options)
        length = reference.trajectory.n_frames * reference.interval / 1000
        text += [f"\n## {reference.name} (reference {length:.1f} ns)\n", table(peptides[reference.name])]
        print("\n".join(text[-2:]), flush=True)
    mean = average(list(peptides.values()))
    text += [f"\n## Mean of {len(peptides)} peptides\n", table(mean)]
    print("\n".join(text[-2:]), f"\n{time.time() - begin:.0f} s")
    Path(f"{options.output}.md").write_text("\n".join(text) + "\n")

    def finite(values):
        return {k: finite(v) if isinstance(v, dict) else v if math.isfinite(v) else None for k, v in values.items()}

    Path(f"{options.output}.json").write_text(
        json.dumps({"settings": settings, "peptides": finite(peptides), "mean": finite(mean)}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
