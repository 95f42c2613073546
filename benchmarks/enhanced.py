"""Free-energy surfaces against CPU time: plain MD, OpenMM's Metadynamics, learned jumps, and learned jumps refined.

    python benchmarks/enhanced.py references/ACE_A_NME benchmarks/validation/DWGR --folder enhanced_data

Each argument is the stem of a reference (NAME.pdb, NAME.xtc); that of alanine dipeptide is made by
`python recipes/starmd-dipeptide/simulate_references.py references ace-A-nme`. The surface is -kT ln p of phi and psi of
the middle residue, in bins of 15 degrees, at 300 K. Its error is the root mean square difference from the reference
over the bins where that is below 4 kT. A bin that has not been visited counts as half a frame of the reference, which
is severe for short runs: a flat surface, from which Metadynamics begins, has a smaller error than a few frames.

All methods start from NAME.pdb, minimised, and take turns on one thread, each until its CPU time has doubled. CPU time
counts the run and one evaluation of its surface; making the first Context is not counted. All MD is OpenMM's on the
CPU platform (ff14SB, OBC2, 4 fs).

plain MD               LangevinMiddleIntegrator
Metadynamics           the same with OpenMM's well-tempered Metadynamics of phi and psi
learned, relaxed       StarMDIntegrator as a user has it, jumps of 100 ps
learned, 16 replicas   the same model in a batch, without relaxation
refined                an eighth of the time of such jumps, then MD from 16 of their conformations and a Markov state
                       model of it (`openmm_starmd.refinement`); until then its surface is that of the jumps

A finished repeat lies in the folder: a stopped run goes on with the next.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import mdtraj
import numpy as np
import openmm
import torch
from common import circumstances, kept, openmm_seed, parser, table, write
from matplotlib import ticker
from openmm.app import BiasVariable, Metadynamics, PDBFile, Simulation
from openmm.unit import kilojoules_per_mole

from openmm_starmd import Propagator, StarMDIntegrator, choose_model
from openmm_starmd.errors import StarMDError
from openmm_starmd.evaluation.metrics.differences import GAS_CONSTANT, free_energy_difference
from openmm_starmd.protein.clashes import resolve_clashes
from openmm_starmd.protein.conformation import from_positions
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.refinement.coordinates import cut_into_states, protein_features, slow_coordinates
from openmm_starmd.refinement.estimation import estimate
from openmm_starmd.refinement.starts import choose_starts
from openmm_starmd.refinement.swarm import Swarm, run_swarm
from openmm_starmd.systems import peptide_system

TEMPERATURE, STRIDE, TIME_STEP = 300.0, 100.0, 0.004  # K, ps, ps
KT = GAS_CONSTANT * TEMPERATURE
BINS, REPLICAS, STARTS = 24, 16, 16
PICOSECOND = round(1 / TIME_STEP)  # steps
HEIGHT, FACTOR, WIDTH, PACE = 1.0, 8.0, 0.35, PICOSECOND // 2  # kJ/mol, bias factor, radian, steps
FRAME, EQUILIBRATION, CHUNK = 0.5, 5.0, 10  # ps, ps, frames
EXPLORING, LEAST_JUMPS = 1 / 8, 8  # part of the time
DOUBLINGS = 5


class Molecule:
    """A molecule with its reference and the model that knows it."""

    def __init__(self, stem: Path):
        self.name, self.pdb = stem.name, PDBFile(f"{stem}.pdb")
        self.md = mdtraj.load(f"{stem}.xtc", top=f"{stem}.pdb")
        self.system = peptide_system(self.pdb.topology)
        self.tokens = ResidueTokens.from_topology(self.pdb.topology)
        self.model = choose_model(self.pdb.topology, STRIDE, TEMPERATURE, device="cpu")
        atoms = {(a.residue.index, a.name): a.index for a in self.pdb.topology.atoms()}
        k = self.pdb.topology.getNumResidues() // 2
        names = (k - 1, "C"), (k, "N"), (k, "CA"), (k, "C"), (k + 1, "N")
        chain = [atoms[name] for name in names]
        self.residue, self.quartets = f"{self.md.topology.residue(k)}", (chain[:4], chain[1:])
        self.reference = self.counts(self.md.xyz)

    def counts(self, frames) -> np.ndarray:
        """Frames (T, A, 3) in each bin of (phi, psi)."""
        trajectory = mdtraj.Trajectory(np.asarray(frames), self.md.topology)
        angles = mdtraj.compute_dihedrals(trajectory, self.quartets, periodic=False)
        return self.histogram(angles)

    @staticmethod
    def histogram(angles, weights=None) -> np.ndarray:
        """Histogram of (phi, psi) (T, 2)."""
        edges = np.linspace(-np.pi, np.pi, BINS + 1)
        return np.histogram2d(*np.clip(angles, -np.pi, np.pi).T, bins=(edges, edges), weights=weights)[0]

    def error(self, density: np.ndarray) -> float:
        """Difference of a surface from the reference's, kJ/mol."""
        total = self.reference.sum()
        return free_energy_difference(self.reference, density * (total / density.sum()), TEMPERATURE)

    def simulation(self, integrator, system=None) -> Simulation:
        """From the minimised start."""
        platform = openmm.Platform.getPlatform("CPU")
        made = Simulation(self.pdb.topology, system or self.system, integrator, platform, {"Threads": "1"})
        made.context.setPositions(self.pdb.positions)
        made.minimizeEnergy(maxIterations=200)
        return made


def positions_of(simulation) -> np.ndarray:
    return simulation.context.getState(positions=True).getPositions(asNumpy=True)._value


def langevin(seed: int) -> openmm.LangevinMiddleIntegrator:
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 1.0, TIME_STEP)
    integrator.setRandomNumberSeed(openmm_seed(seed))
    return integrator


class PlainMD:
    """A frame each picosecond."""

    advanced = 1e-3  # ns

    def __init__(self, molecule: Molecule, seed: int, *_):
        self.molecule, self.frames = molecule, []
        self.simulation = molecule.simulation(langevin(seed))
        self.simulation.context.setVelocitiesToTemperature(TEMPERATURE, openmm_seed(seed))

    def advance(self):
        self.simulation.step(PICOSECOND)
        self.frames.append(positions_of(self.simulation))

    @property
    def nanoseconds(self) -> float:
        return self.advanced * len(self.frames)

    def density(self) -> np.ndarray:
        return self.molecule.counts(self.frames)


class Biased(PlainMD):
    """Metadynamics of phi and psi."""

    def __init__(self, molecule: Molecule, seed: int, *_):
        self.molecule, self.picoseconds, variables = molecule, 0, []
        for quartet in molecule.quartets:
            torsion = openmm.CustomTorsionForce("theta")
            torsion.addTorsion(*quartet)
            variables.append(BiasVariable(torsion, -math.pi, math.pi, WIDTH, True, 2 * BINS + 1))
        system = openmm.XmlSerializer.clone(molecule.system)
        self.driver = Metadynamics(system, variables, TEMPERATURE, FACTOR, HEIGHT, PACE)
        self.simulation = molecule.simulation(langevin(seed), system)
        self.simulation.context.setVelocitiesToTemperature(TEMPERATURE, openmm_seed(seed))

    def advance(self):
        self.driver.step(self.simulation, PICOSECOND)
        self.picoseconds += 1

    @property
    def nanoseconds(self) -> float:
        return self.picoseconds / 1000

    def density(self) -> np.ndarray:
        energy = self.driver.getFreeEnergy().value_in_unit(kilojoules_per_mole)
        energy = energy[1::2, 1::2].T  # at the centres of the bins; OpenMM's first axis is the last variable
        return np.exp(-(energy - energy.min()) / KT)


class Relaxed(PlainMD):
    """A Simulation with the learned integrator."""

    advanced = STRIDE / 1000

    def __init__(self, molecule: Molecule, seed: int, *_):
        self.molecule, self.frames = molecule, []
        integrator = StarMDIntegrator(
            molecule.pdb.topology, TEMPERATURE, STRIDE, molecule.model, randomSeed=openmm_seed(seed), device="cpu"
        )
        self.simulation = molecule.simulation(integrator)

    def advance(self):
        self.simulation.step(1)
        self.frames.append(positions_of(self.simulation))


class Batch(PlainMD):
    """Jumps of replicas together; frames (T, A, 3), those of a jump side by side."""

    advanced = STRIDE / 1000

    def __init__(self, molecule: Molecule, seed: int, *_):
        self.molecule, self.frames = molecule, []
        minimised = positions_of(molecule.simulation(langevin(seed)))
        self.start = torch.from_numpy(np.repeat(minimised[None], REPLICAS, 0))
        self.propagator = Propagator(molecule.model, molecule.tokens, STRIDE, TEMPERATURE)
        self.generator = torch.Generator().manual_seed(seed)
        self.history = self.propagator.start(from_positions(self.start, molecule.tokens))

    def advance(self):
        made = self.propagator.step(self.history, self.generator)
        made, atoms = resolve_clashes(made, self.start, self.molecule.tokens)
        self.history = self.propagator.extend(self.history, made, self.generator)
        self.frames.extend(atoms.numpy())


class Refined(PlainMD):
    """Jumps for a while, then a swarm of MD; nanoseconds are those of MD."""

    def __init__(self, molecule: Molecule, seed: int, seconds: float, folder: Path):
        self.molecule, self.seed, self.folder, self.n_frames = molecule, seed, folder, 0
        self.learned, self.exploring, self.swarm = Batch(molecule, seed), EXPLORING * seconds, None

    def advance(self):
        if self.exploring > 0 or len(self.learned.frames) < LEAST_JUMPS * REPLICAS:
            begin = time.process_time()
            self.learned.advance()
            self.exploring -= time.process_time() - begin
            return
        self.swarm = self.swarm or self.new_swarm()
        self.n_frames += CHUNK
        run_swarm(self.swarm, self.n_frames)

    def new_swarm(self) -> Swarm:
        frames = np.array(self.learned.frames)
        runs = [mdtraj.Trajectory(frames[k::REPLICAS], self.molecule.md.topology) for k in range(REPLICAS)]
        features = [protein_features(run) for run in runs]
        points = [slow_coordinates(features, 1).transform(f) for f in features]
        return Swarm(
            folder=self.folder,
            topology=self.molecule.pdb.topology,
            system=openmm.XmlSerializer.serialize(self.molecule.system),
            starts=np.stack([runs[k].xyz[t] for k, t in choose_starts(points, STARTS)]).astype(np.float64),
            boxes=None,
            temperature=TEMPERATURE,
            frame_interval=FRAME,
            equilibration=EQUILIBRATION,
            time_step=TIME_STEP,
            seed=self.seed,
            platform="CPU",
        )

    @property
    def nanoseconds(self) -> float:
        return STARTS * (self.n_frames * FRAME + EQUILIBRATION) / 1000 if self.n_frames else 0.0

    def density(self) -> np.ndarray:
        if not self.n_frames:
            return self.learned.density()  # nothing is refined yet
        topology = self.molecule.md.topology
        files = [self.swarm.path(k) for k in range(STARTS) if not self.swarm.failure(k)]
        runs = [mdtraj.load(str(file), top=topology) for file in files]
        features = [protein_features(run) for run in runs]
        slow = slow_coordinates(features, max(1, self.n_frames // 10))
        points = [slow.transform(f) for f in features]
        states = cut_into_states(points, None, self.seed)
        result = estimate([states.transform(p) for p in points], FRAME, temperature=TEMPERATURE, seed=self.seed)
        self.verdict = result.verdict
        joined = mdtraj.join(runs)
        angles = mdtraj.compute_dihedrals(joined, self.molecule.quartets, periodic=False)
        return self.molecule.histogram(angles, np.concatenate(result.weights()))


METHODS = {
    "plain MD": PlainMD,
    "Metadynamics": Biased,
    "learned, relaxed": Relaxed,
    f"learned, {REPLICAS} replicas": Batch,
    "refined": Refined,
}


def race(molecule: Molecule, seconds: float, seed: int) -> np.ndarray:
    """CPU seconds, error (kJ/mol) and nanoseconds of each method after each turn: (methods, turns, 3)."""
    found = np.full((len(METHODS), DOUBLINGS + 1, 3), np.nan)
    with TemporaryDirectory() as folder:
        runs = [method(molecule, seed, seconds, Path(folder)) for method in METHODS.values()]
        spent = np.zeros(len(runs))
        for turn in range(DOUBLINGS + 1):
            for k, run in enumerate(runs):
                begin = time.process_time() - spent[k]
                while time.process_time() - begin < seconds / 2 ** (DOUBLINGS - turn):
                    run.advance()
                spent[k] = time.process_time() - begin
                try:
                    error = molecule.error(run.density())
                except StarMDError as reason:
                    print(f"{molecule.name}: {reason}", flush=True)
                    error = math.nan
                found[k, turn] = time.process_time() - begin, error, run.nanoseconds
        print(f"{molecule.name}: {getattr(runs[-1], 'verdict', 'nothing is refined')}", flush=True)
    return found


def summary(molecule: Molecule, races: np.ndarray) -> dict[str, dict]:
    """Rows of the table from races (repeats, methods, turns, 3)."""
    replicas = np.array_split(molecule.md.xyz, 16)
    halves = [molecule.counts(np.concatenate(replicas[k::2])) for k in (0, 1)]
    half, rows = free_energy_difference(*halves, TEMPERATURE), {}
    for k, name in enumerate(METHODS):
        row = {"ns": races[:, k, -1, 2].mean(), "CPU s": races[:, k, -1, 0].mean()}
        for turn in (DOUBLINGS // 4, (DOUBLINGS + 1) // 2, DOUBLINGS):
            part = "at the end" if turn == DOUBLINGS else f"at 1/{2 ** (DOUBLINGS - turn)} of the time"
            errors = races[:, k, turn, 1]
            row[f"error {part}"] = f"{errors.mean():.2f} ({errors.min():.2f} to {errors.max():.2f})"
        below = [run[run[:, 1] < KT, 0] for run in races[:, k]]
        row["CPU s until below 1 kT"] = ", ".join(f"{times[0]:.3g}" if len(times) else "never" for times in below)
        rows[name] = row
    length = molecule.md.n_frames * np.diff(molecule.md.time[:2])[0] / 2000
    flat = molecule.error(np.ones((BINS, BINS)))
    return rows | {
        "a flat surface": {"error at the end": f"{flat:.2f}"},
        "MD, half against half": {"ns": length, "error at the end": f"{half:.2f}"},
    }


def draw(molecules: dict[str, Molecule], races: dict[str, np.ndarray], rows: dict[str, dict], path: Path):
    """Error against CPU time: the mean of the repeats, and each of them thin."""
    figure, axes = plt.subplots(1, len(races), figsize=(5 * len(races), 4), squeeze=False, layout="constrained")
    for ax, (name, found) in zip(axes[0], races.items(), strict=True):
        for k, method in enumerate(METHODS):
            for run in found[:, k]:
                ax.plot(run[:, 0], run[:, 1], color=f"C{k}", linewidth=0.6, alpha=0.5)
            ax.plot(*found[:, k, :, :2].mean(0).T, "o-", color=f"C{k}", markersize=3, label=method)
        ax.axhline(KT, color="0.5", linestyle="--", linewidth=1, label="1 kT")
        floor = float(rows[name]["MD, half against half"]["error at the end"])
        ax.axhline(floor, color="0.5", linestyle=":", linewidth=1, label="MD, half against half")
        ax.set(xscale="log", xlabel="CPU time (s)", ylabel="RMS error below 4 kT (kJ/mol)", ylim=(0, None))
        ax.xaxis.set(
            major_locator=ticker.LogLocator(subs=(1, 2, 5)),
            major_formatter="{x:g}",
            minor_formatter=ticker.NullFormatter(),
        )
        ax.set_title(f"{name}, phi and psi of {molecules[name].residue}", fontsize=10)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    made = parser(__doc__, "enhanced")
    made.add_argument("references", type=Path, nargs="+", help="stems of NAME.pdb and NAME.xtc")
    made.add_argument("--folder", type=Path, required=True, help="for finished repeats")
    made.add_argument(
        "--seconds", type=float, nargs="+", default=[60.0], help="CPU time of a method, of all molecules or of each"
    )
    made.add_argument("--repeats", type=int, nargs="+", default=[2], help="of all molecules, or of each")
    args = made.parse_args()
    given = [x * len(args.references) if len(x) == 1 else x for x in (args.seconds, args.repeats)]
    torch.set_num_threads(args.threads)
    molecules = {stem.name: Molecule(stem) for stem in args.references}
    facts = circumstances(*(molecule.model for molecule in molecules.values()))
    rows, races = {}, {}
    for (name, molecule), seconds, number in zip(molecules.items(), *given, strict=True):
        races[name] = np.stack(
            [
                kept(
                    args.folder / f"{name}-{seconds:g}-{args.seed + k}.npy",
                    lambda m=molecule, s=seconds, k=k: race(m, s, args.seed + k),
                )
                for k in range(number)
            ]
        )
        rows[name] = summary(molecule, races[name])
        title = f"{name}, phi and psi of {molecule.residue}"
        print(f"\n## {title}\n\n{table(rows[name], 'kJ/mol')}", flush=True)
    sections = {f"{name}, phi and psi of {molecules[name].residue}": table(r, "kJ/mol") for name, r in rows.items()}
    curves = {name: dict(zip(METHODS, np.swapaxes(r, 0, 1).tolist(), strict=True)) for name, r in races.items()}
    write(args.output, "Free-energy surfaces against CPU time", facts, sections, {"rows": rows, "curves": curves})
    draw(molecules, races, rows, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
