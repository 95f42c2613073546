"""Speed and effective samples beside plain MD: same System, same machine, one run.

    python benchmarks/compare_md.py --minutes 5 --reference reference_folder

Molecules: a tetrapeptide, a peptide of 10 residues and villin (35 residues, of OpenMM's own files, without water). The
embedded model knows 3 to 10 residues: beyond that only the speed means something. For villin, where its conformations
would not pass the checks, an untrained network of the same size makes small moves, so that every phase runs.

Rows
----
MD                            LangevinMiddle, 4 fs, 4-amu hydrogens, HBonds, ff14SB and native OBC2, no cutoff
StarMDIntegrator              with its default relaxation, or without, in a plain Simulation
Propagator                    so many replicas at a time: network and backmapping, without relaxation and checks

Every row gets the same wall time, from one minimised start; making the Context and minimisation are not counted, all
else is. So "MD" is the fair competitor of the others: what one has after that time.

Columns
-------
Integrated autocorrelation time of tICA-0 (tICA of torsions, fitted to the reference, or to this run's MD where there is
none) and effective samples an hour: time simulated in an hour over that autocorrelation time, which for MD is taken
from the reference where there is one. An autocorrelation time that rests on fewer than about 20 effective samples is
too short, and independent samples of a wrong distribution are worth nothing: read them with the Jensen-Shannon
divergences (bits, against the reference).

"accepted": share of sampled conformations that passed the checks, those of the Propagator before any relaxation.
Milliseconds a jump by phase, rejected conformations included.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import mdtraj
import numpy as np
import quality
import torch
from common import circumstances, openmm_seed, parser, table, write
from openmm import LangevinMiddleIntegrator, Platform, System
from openmm.app import Simulation, Topology
from quality import Reference
from relaxation import villin

from openmm_starmd import JumpRejectedError, Propagator, Relaxation, StarMDIntegrator, load_model
from openmm_starmd.evaluation.metrics import dihedrals, samples, slow_modes
from openmm_starmd.model import StarMDModel
from openmm_starmd.protein.clashes import resolve_clashes
from openmm_starmd.protein.conformation import Conformation, from_positions
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.protein.validity import STRAINED, check_positions
from openmm_starmd.systems import build_peptide, peptide_system

TEMPERATURE, TIME_STEP = 300.0, 0.004
PHASES = ("network", "backmapping", "relaxation", "other")
STILL = (0.001, 0.01, *[0.02] * 6, 0.005)  # steps of the untrained network: nm, rad
LEAST_LAGS = 3  # a tICA needs a trajectory of more lags


@dataclass
class Molecule:
    """What is simulated, by which model, and how often MD writes a frame (ps)."""

    name: str
    topology: Topology
    positions: np.ndarray
    model: StarMDModel
    stride: float
    md_interval: float

    @property
    def system(self) -> System:
        return peptide_system(self.topology)

    @property
    def tokens(self) -> ResidueTokens:
        return ResidueTokens.from_topology(self.topology)

    @property
    def outside(self) -> list[str]:
        return self.model.domain.check(self.tokens, self.stride, TEMPERATURE)


@dataclass
class Measurement:
    """Frames (T, A, 3) of each trajectory, their interval (ps), the wall time they took (s), and what else is known."""

    trajectories: list[np.ndarray]
    interval: float
    seconds: float
    facts: dict[str, float] = field(default_factory=dict)

    @property
    def nanoseconds(self) -> float:
        return sum(map(len, self.trajectories)) * self.interval / 1000


def still_model(config) -> StarMDModel:
    """An untrained network that keeps near the last conformation."""
    model = StarMDModel.create(config)
    model.denoiser.step_scales.copy_(torch.tensor(STILL).expand_as(model.denoiser.step_scales))
    return model


def molecule(name: str, options) -> Molecule:
    """By one-letter sequence, or villin; minimised."""
    model = load_model(options.model, "cpu" if options.platform == "CPU" else "auto")
    if name == "villin":
        (topology, positions), model = villin(), still_model(model.config).on(model.device)
    else:
        topology, positions = build_peptide(name, seed=options.seed)
    simulation = new_simulation(topology, LangevinMiddleIntegrator(TEMPERATURE, 1, TIME_STEP), options)
    simulation.context.setPositions(positions)
    simulation.minimizeEnergy()
    interval = 10.0 if len(name) <= 4 else 1.0
    return Molecule(name, topology, frame_of(simulation.context), model, options.stride, interval)


def new_simulation(topology, integrator, options) -> Simulation:
    properties = {"Threads": str(options.threads)} if options.platform == "CPU" else {}
    platform = Platform.getPlatform(options.platform)
    return Simulation(topology, peptide_system(topology), integrator, platform, properties)


def frame_of(context) -> np.ndarray:
    return context.getState(positions=True).getPositions(asNumpy=True)._value.astype(np.float32)


def run_md(what: Molecule, options) -> Measurement:
    """Plain MD until the time is up."""
    integrator = LangevinMiddleIntegrator(TEMPERATURE, 1, TIME_STEP)
    integrator.setRandomNumberSeed(openmm_seed(options.seed))
    simulation = new_simulation(what.topology, integrator, options)
    simulation.context.setPositions(what.positions)
    simulation.context.setVelocitiesToTemperature(TEMPERATURE, openmm_seed(options.seed))
    steps, frames, begin = round(what.md_interval / TIME_STEP), [], time.perf_counter()
    while not frames or time.perf_counter() - begin < 60 * options.minutes:
        simulation.step(steps)
        frames.append(frame_of(simulation.context))
    return Measurement([np.stack(frames)], what.md_interval, time.perf_counter() - begin)


def run_integrator(what: Molecule, relaxation: Relaxation | None, options) -> Measurement:
    """Jumps in an ordinary Simulation until the time is up; a step that is given up costs its time."""
    integrator = StarMDIntegrator(
        what.topology,
        TEMPERATURE,
        what.stride,
        what.model,
        relaxation=relaxation,
        randomSeed=openmm_seed(options.seed),
        strict=not what.outside,
    )
    simulation = new_simulation(what.topology, integrator, options)
    simulation.context.setPositions(what.positions)
    frames, given_up, begin = [], 0, time.perf_counter()
    while not frames + [None] * given_up or time.perf_counter() - begin < 60 * options.minutes:
        try:
            simulation.step(1)
        except JumpRejectedError:
            given_up += 1
        else:
            frames.append(frame_of(simulation.context))
    seconds, done = time.perf_counter() - begin, integrator.getStatistics()
    jumps = len(frames) or math.nan
    facts = {"accepted": len(frames) / (len(frames) + done["resampled"])}
    facts |= {f"{phase} (ms)": 1000 * done["seconds"][phase] / jumps for phase in PHASES}
    empty = np.zeros((0, *what.positions.shape), np.float32)
    return Measurement([np.stack(frames) if frames else empty], what.stride, seconds, facts)


def run_propagator(what: Molecule, options) -> Measurement:
    """Replicas at a time, atoms and all, until the time is up."""
    tokens, start = what.tokens, torch.from_numpy(what.positions).double()
    propagator = Propagator(what.model, tokens, what.stride, TEMPERATURE, strict=not what.outside)
    generator = torch.Generator(what.model.device).manual_seed(options.seed)
    history = propagator.start(Conformation.stack([from_positions(start, tokens)] * options.replicas))
    frames, network, begin = [], 0.0, time.perf_counter()
    while not frames or time.perf_counter() - begin < 60 * options.minutes:
        now = time.perf_counter()
        sampled = propagator.step(history, generator)
        network += time.perf_counter() - now
        conformation, atoms = resolve_clashes(sampled, start.expand(options.replicas, -1, -1), tokens)
        history = propagator.extend(history, conformation, generator)
        frames.append(atoms.float())
    seconds = time.perf_counter() - begin
    positions = torch.stack(frames, 1)
    jumps = positions.shape[0] * positions.shape[1]
    accepted = check_positions(positions.flatten(0, 1), tokens, limits=STRAINED).valid.double().mean()
    facts = {"accepted": float(accepted), "network (ms)": 1000 * network / jumps}
    facts |= {"backmapping (ms)": 1000 * (seconds - network) / jumps}
    return Measurement(list(positions.numpy()), what.stride, seconds, facts)


class Scorer:
    """Autocorrelation times along tICA-0, and divergences where there is a reference to measure against."""

    def __init__(self, what: Molecule, md: Measurement, options):
        self.topology = mdtraj.Topology.from_openmm(what.topology)
        file = options.reference / f"{what.name}.pdb" if options.reference else None
        self.scorer, self.tica = None, None
        if file and file.exists():
            self.scorer = quality.Scorer(Reference.load(file), what.stride, options.seed)
            interval = what.stride / self.scorer.lag
            self.md_time = samples.autocorrelation_time(self.scorer.projection[:, 0]) * interval
            self.md_length = len(self.scorer.projection) * interval / 1000
            self.project = self.scorer.project
            return
        angles, lag = self.angles(md.trajectories[0]), round(what.stride / md.interval)
        self.periods = angles.periods
        if len(angles.angles) > LEAST_LAGS * lag:
            self.tica = slow_modes.fit_tica(dihedrals.torsion_features(angles.angles, self.periods), lag)
            self.project = lambda values: self.tica.transform(dihedrals.torsion_features(values, self.periods))

    def angles(self, positions: np.ndarray) -> dihedrals.Torsions:
        return dihedrals.measure_torsions(mdtraj.Trajectory(positions, self.topology))

    def __call__(self, run: Measurement, is_md: bool) -> dict[str, float]:
        if (self.scorer is None and self.tica is None) or sum(map(len, run.trajectories)) < 2:
            return {}
        angles = [self.angles(x).angles for x in run.trajectories]
        autocorrelation = samples.autocorrelation_time([self.project(a)[:, 0] for a in angles]) * run.interval
        length = run.nanoseconds
        if is_md and self.scorer is not None:
            autocorrelation, length = self.md_time, self.md_length
        result = {
            "autocorrelation time (ps)": autocorrelation,
            "effective samples it rests on": 1000 * length / autocorrelation,
            "effective samples an hour": 3.6e6 * run.nanoseconds / autocorrelation / run.seconds,
        }
        return result | (self.scorer.divergences(np.concatenate(angles)) if self.scorer else {})


def compare(what: Molecule, options) -> dict[str, dict[str, float]]:
    """Every row of one molecule."""
    ways: dict[str, Callable[[], Measurement]] = {
        "MD": lambda: run_md(what, options),
        "StarMDIntegrator": lambda: run_integrator(what, Relaxation(), options),
        "StarMDIntegrator, no relaxation": lambda: run_integrator(what, None, options),
        f"Propagator, {options.replicas} replicas": lambda: run_propagator(what, options),
    }
    rows, scorer = {}, None
    for name, way in ways.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if what.outside else "default")
            run = way()
        if scorer is None:
            scorer = Scorer(what, run, options)
        rows[name] = {"ns/day": run.nanoseconds / run.seconds * 86400, "wall time (s)": run.seconds}
        rows[name] |= {"frames": sum(map(len, run.trajectories))} | run.facts
        if not what.outside and what.name != "villin":
            rows[name] |= scorer(run, name == "MD")
        print(what.name, name, {k: f"{v:.4g}" for k, v in rows[name].items()}, flush=True)
    return rows


def heading(what: Molecule) -> str:
    note = f"{what.tokens.n_residues} residues, {what.topology.getNumAtoms()} atoms"
    if what.name == "villin":
        return f"{note}; untrained network of the embedded model's size: only the speed means something."
    if what.outside:
        return f"{note}; outside the model's domain ({'; '.join(what.outside)}): only the speed means something."
    return f"{note}; within the model's domain."


def main() -> None:
    made = parser(__doc__, "compare_md")
    made.add_argument("molecules", nargs="*", default=["DWGR", "AGHWELKDTV", "villin"], help="sequences, or villin")
    made.add_argument("--minutes", type=float, default=5.0, help="wall time of each measurement")
    made.add_argument("--reference", type=Path, help="folder that may hold NAME.pdb and NAME.xtc of long MD")
    made.add_argument("--model", default="starmd-peptide", help="embedded name or path")
    made.add_argument("--platform", default="CPU", help="of OpenMM; the network follows it")
    made.add_argument("--replicas", type=int, default=32, help="of the Propagator")
    made.add_argument("--stride", type=float, default=100.0, help="ps")
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    models = [load_model(options.model)]
    facts = circumstances(*models, platform=options.platform, minutes=options.minutes, stride=f"{options.stride:g} ps")
    sections, results = {}, {}
    for name in options.molecules:
        what = molecule(name, options)
        results[name] = compare(what, options)
        sections[name] = f"{heading(what)}\n\n{table(results[name])}"
        write(options.output, "Plain MD and learned jumps", facts, sections, results)
    print("\n\n".join(sections.values()))


if __name__ == "__main__":
    main()
