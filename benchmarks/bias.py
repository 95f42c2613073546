"""Biases that act: how reversible the jumps are, and whether biased runs give the biased ensemble of MD.

    python benchmarks/bias.py --folder bias_data --alanine references/ACE_A_NME

The reference of alanine dipeptide (NAME.pdb, NAME.xtc, a frame every 10 ps, 16 replicas one behind the other) is
made by `python recipes/starmd-dipeptide/simulate_references.py references ace-A-nme`; that of DWGR is in
benchmarks/validation. Jumps are of 100 ps with one context frame, at 300 K. Every finished piece lies in the folder: a
stopped run goes on, and a run with more replicas adds to what is there.

Reversibility   One jump, without relaxation, from each of many frames of MD. C_ij counts the jumps from bin i to bin j
                of a torsion (bins of 30 degrees). "chi2 per pair" is the mean of (C_ij - C_ji)^2 / (C_ij + C_ji): 1 for
                reversible jumps from an exact ensemble. "imbalance" is the root mean square of ln(C_ij / C_ji) beyond
                its noise, weighted by the counts, with a bootstrap interval of 95 %: by so many kT detailed balance
                fails, with respect to the ensemble of MD. "MD" is the same for frames of MD a stride apart, and tells
                what its own length leaves.
Restraints      Mean and standard deviation of a biased variable by MD reweighted with exp(-U/kT), by unbiased learned
                runs reweighted, and by biased learned runs. The last two differ by the acceptance alone, the first two
                by the model. Intervals are of 95 %.
Metadynamics    -kT ln p of a torsion (phi of alanine dipeptide, phi of GLY3 of DWGR) by OpenMM's well-tempered
                Metadynamics around the learned integrator against that of MD: root mean square difference over bins of
                5 degrees where MD is below 4 kT, and the shares of these bins in which the profile lies within 1 kT of
                MD's, and inside MD's interval of 95 %. "Unbiased" are learned runs without a bias, whose bins are
                counted: their difference from MD is the model's own, beside which that of Metadynamics stands.
"""

from __future__ import annotations

import math
from pathlib import Path

import mdtraj
import numpy as np
import openmm
import torch
from common import circumstances, kept, parser, table, write
from openmm import unit
from openmm.app import BiasVariable, Metadynamics, PDBFile, Simulation

from openmm_starmd import Propagator, StarMDIntegrator, load_model
from openmm_starmd.evaluation.metrics.differences import free_energy, free_energy_difference
from openmm_starmd.evaluation.metrics.dihedrals import measure_torsions
from openmm_starmd.evaluation.metrics.samples import block_bootstrap, percentile_interval
from openmm_starmd.protein.clashes import resolve_clashes
from openmm_starmd.protein.conformation import from_positions
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.systems import peptide_system

TEMPERATURE, STRIDE, INTERVAL = 300.0, 100.0, 10.0  # K, ps, ps
KT = (unit.MOLAR_GAS_CONSTANT_R * TEMPERATURE * unit.kelvin).value_in_unit(unit.kilojoules_per_mole)
PARTS = ["reversibility", "metadynamics", "restraints", "metadynamics, tetrapeptide"]
BINS, BATCH, LEAST, DISCARDED = 12, 250, 10, 20
GROUP = 31
VALIDATION = Path(__file__).with_name("validation") / "DWGR"
WIDTH, HEIGHT, FACTOR = 0.2, 0.5, 4.0  # radian and kJ/mol of a hill, and the bias factor
GRID = 73  # edges of bins of 5 degrees, of which the last is the first
PHI = {1: ((0, "C"), (1, "N"), (1, "CA"), (1, "C")), 2: ((1, "C"), (2, "N"), (2, "CA"), (2, "C"))}  # of residues


class Molecule:
    """A molecule with its MD and its model."""

    def __init__(self, reference: Path, model: str):
        self.name, self.model_name = reference.name, model
        self.pdb, self.model = PDBFile(f"{reference}.pdb"), load_model(model, device="cpu")
        self.md = mdtraj.load(f"{reference}.xtc", top=f"{reference}.pdb")
        self.tokens = ResidueTokens.from_topology(self.pdb.topology)
        self.atoms = {(a.residue.index, a.name): a.index for a in self.pdb.topology.atoms()}

    def chosen(self, *keys) -> list[int]:
        """Indices of atoms by residue and name."""
        return [self.atoms[key] for key in keys]

    def jumps(self, frames: np.ndarray, seed: int) -> mdtraj.Trajectory:
        """One jump from each of frames (n, A, 3), n at most BATCH."""
        propagator = Propagator(self.model, self.tokens, STRIDE, TEMPERATURE, context_frames=1)
        generator = torch.Generator().manual_seed(seed)
        before = torch.from_numpy(frames.astype(np.float64))
        start = from_positions(before, self.tokens)
        history = propagator.replace(propagator.start(start), start.map(propagator.here), 0.0, generator)
        _, after = resolve_clashes(propagator.step(history, generator), before, self.tokens)
        return mdtraj.Trajectory(after.numpy(), self.md.topology)

    def simulation(self, seed: int, force=None, metadynamics=None, candidates=1):
        """A relaxed learned run, with a biasing force or a function that adds Metadynamics to the System."""
        system, driver, groups = peptide_system(self.pdb.topology), None, None
        if metadynamics:
            driver = metadynamics(system)
        elif force:
            force.setForceGroup(GROUP)
            system.addForce(force)
        if driver or force:
            groups = {system.getForce(system.getNumForces() - 1).getForceGroup()}
        integrator = StarMDIntegrator(
            self.pdb.topology,
            TEMPERATURE,
            STRIDE,
            self.model,
            contextFrames=1,
            randomSeed=seed,
            device="cpu",
            biasForceGroups=groups,
            biasCandidates=candidates,
        )
        platform = openmm.Platform.getPlatform("CPU")
        simulation = Simulation(self.pdb.topology, system, integrator, platform, {"Threads": "1"})
        simulation.context.setPositions(self.pdb.positions)
        simulation.minimizeEnergy(maxIterations=100)
        return simulation, driver


def imbalance(counts: np.ndarray, noise: float = 1.0) -> tuple[float, float]:
    """Chi2 of C_ij against C_ji per pair, and the root mean square of ln(C_ij / C_ji) beyond its noise.

    Counts have the ``noise`` of one draw; those that are drawn again from counts have that of two.
    """
    i, j = np.triu_indices(len(counts), 1)
    there, back = counts[i, j], counts[j, i]
    seen = there + back >= LEAST
    there, back = there[seen] + 0.5, back[seen] + 0.5
    if not len(there):
        return math.nan, math.nan
    weight = there + back
    beyond = np.log(there / back) ** 2 - noise * (1 / there + 1 / back)
    return ((there - back) ** 2 / weight).mean(), math.sqrt(max(0.0, (weight * beyond).sum() / weight.sum()))


def reversibility(molecule: Molecule, args) -> dict[str, dict]:
    """Rows of the table: each backbone torsion by the model and by MD itself."""
    frames = np.linspace(0, len(molecule.md) - 1, args.starts).astype(int)
    pieces = [frames[k : k + BATCH] for k in range(0, len(frames), BATCH)]
    place = args.folder / f"{molecule.name}-{molecule.model_name}-jumps-{args.starts}"
    after = [
        kept(
            place / f"{k}.npy",
            lambda chosen=chosen, k=k: measure_torsions(molecule.jumps(molecule.md.xyz[chosen], args.seed + k)).angles,
        )
        for k, chosen in enumerate(pieces)
    ]
    found, lag = measure_torsions(molecule.md), round(STRIDE / INTERVAL)
    starts = found.angles[np.concatenate(pieces)]
    md = [(t[:-lag], t[lag:]) for t in np.array_split(found.angles, args.md_replicas)]
    pairs = {
        "model": (starts, np.concatenate(after)),
        "MD": tuple(np.concatenate([p[k][:: max(1, lag // 2)] for p in md]) for k in (0, 1)),
    }
    rows, generator = {}, np.random.default_rng(args.seed)
    for k in np.flatnonzero(found.backbone):
        for of, (start, end) in pairs.items():
            i, j = (np.floor((x[:, k] / (2 * np.pi) + 0.5) % 1 * BINS).astype(int) for x in (start, end))
            counts = np.bincount(BINS * i + j, minlength=BINS**2).reshape(BINS, BINS).astype(float)
            draws = generator.multinomial(int(counts.sum()), counts.ravel() / counts.sum(), size=200)
            low, high = percentile_interval([imbalance(d.reshape(BINS, BINS).astype(float), 2)[1] for d in draws])
            chi2, beyond = imbalance(counts)
            rows[f"{molecule.name} {found.names[k]}, {of}"] = {
                "jumps": int(counts.sum()),
                "in another bin": float((i != j).mean()),
                "chi2 per pair": chi2,
                "imbalance, kT": f"{beyond:.2f} ({low:.2f} to {high:.2f})",
            }
    return rows


def umbrellas(molecule: Molecule) -> dict[str, tuple]:
    """Biases of DWGR by name: force, variable of positions (T, A, 3), and energy (kJ/mol) of the variable."""
    ends = molecule.chosen((0, "CA"), (3, "CA"))
    distance = openmm.CustomBondForce("0.5*1000*(r-0.75)^2")
    distance.addBond(*ends)
    quartet = molecule.chosen(*PHI[2])
    torsion = openmm.CustomTorsionForce("20*(1-cos(theta-1.2))")
    torsion.addTorsion(*quartet)

    def measured(compute, atoms):
        return lambda xyz: compute(mdtraj.Trajectory(xyz, molecule.md.topology), [atoms], periodic=False)[:, 0]

    return {
        "distance CA 1 to CA 4, nm": (
            distance,
            measured(mdtraj.compute_distances, ends),
            lambda r: 500 * (r - 0.75) ** 2,
        ),
        "cos(phi GLY3 - 69 deg)": (
            torsion,
            lambda xyz: np.cos(measured(mdtraj.compute_dihedrals, quartet)(xyz) - 1.2),
            lambda c: 20 * (1 - c),
        ),
    }


def learned_run(molecule: Molecule, args, seed: int, force=None, candidates: int = 1):
    """Positions (T, A, 3) after each jump of a run, and the share of jumps that a biasing force has accepted."""
    simulation, _ = molecule.simulation(seed, force, candidates=candidates)
    frames = []
    for _ in range(args.jumps):
        simulation.step(1)
        frames.append(simulation.context.getState(positions=True).getPositions(asNumpy=True)._value)
    share = simulation.integrator.getStatistics()["bias"]["acceptance"] if force else math.nan
    return np.array(frames, dtype=np.float32), share


def unbiased(molecule: Molecule, args) -> list[np.ndarray]:
    """Positions of learned runs without a bias, after their first frames."""
    return [
        kept(
            args.folder / f"{molecule.name}-unbiased-{args.jumps}-{replica}.npy",
            lambda r=replica: learned_run(molecule, args, args.seed + r)[0],
        )[DISCARDED:]
        for replica in range(args.replicas)
    ]


def biased(molecule: Molecule, args, force, variable, candidates: int, seed: int) -> np.ndarray:
    """Values of a variable in a biased run, and the share of accepted jumps at the end."""
    frames, share = learned_run(molecule, args, seed, force, candidates)
    return np.append(variable(frames), share)


def moments(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean and standard deviation."""
    mean = np.average(values, weights=weights)
    return np.array([mean, math.sqrt(np.average((values - mean) ** 2, weights=weights))])


def told(trajectories: list[np.ndarray], energy=None) -> dict[str, str]:
    """Mean and standard deviation of a variable with intervals, reweighted by an energy."""

    def statistic(parts):
        values = np.concatenate(parts)
        return moments(values, np.exp(-energy(values) / KT) if energy else np.ones(len(values)))

    low, high = block_bootstrap(statistic, trajectories)
    names = "mean", "standard deviation"
    found = zip(names, statistic(trajectories), low, high, strict=True)
    return {name: f"{value:.3f} ({least:.3f} to {most:.3f})" for name, value, least, most in found}


def restraints(molecule: Molecule, args) -> dict[str, dict]:
    """Rows of the table: each variable by MD, by unbiased and by biased learned runs."""
    rows = {}
    for number, (name, (force, variable, energy)) in enumerate(umbrellas(molecule).items()):
        values = variable(molecule.md.xyz)
        weights = np.exp(-energy(values) / KT)
        rows[f"{name}: MD, unbiased"] = told([values])
        rows[f"{name}: MD, reweighted"] = told([values], energy) | {
            "effective frames": float(weights.sum() ** 2 / (weights**2).sum())
        }
        rows[f"{name}: learned, reweighted"] = told([variable(frames) for frames in unbiased(molecule, args)], energy)
        for candidates in args.candidates:
            pieces = [
                kept(
                    args.folder / f"{molecule.name}-bias{number}-{candidates}-{args.jumps}-{replica}.npy",
                    lambda c=candidates, r=replica, f=force, v=variable: biased(
                        molecule, args, openmm.XmlSerializer.clone(f), v, c, args.seed + r
                    ),
                )
                for replica in range(args.replicas)
            ]
            accepted = {"accepted": float(np.mean([piece[-1] for piece in pieces]))}
            rows[f"{name}: learned, biased, {candidates} a jump"] = told([p[DISCARDED:-1] for p in pieces]) | accepted
    return rows


def metadynamics_profile(molecule: Molecule, args, residue: int, replica: int) -> np.ndarray:
    """-kT ln p of phi on the grid, kJ/mol, and the share of jumps that were accepted at the end."""
    torsion = openmm.CustomTorsionForce("theta")
    torsion.addTorsion(*molecule.chosen(*PHI[residue]))
    variable = BiasVariable(torsion, -math.pi, math.pi, WIDTH, True, GRID)

    def drive(system):
        return Metadynamics(system, [variable], TEMPERATURE, FACTOR, HEIGHT, 1)

    candidates = args.candidates[0]
    simulation, driver = molecule.simulation(args.seed + replica, metadynamics=drive, candidates=candidates)
    driver.step(simulation, args.hills)
    profile = driver.getFreeEnergy().value_in_unit(unit.kilojoules_per_mole)
    return np.append(profile, simulation.integrator.getStatistics()["bias"]["acceptance"])


def counts_of(parts: list[np.ndarray]) -> np.ndarray:
    """Frames in each bin of a torsion (T,)."""
    place = np.floor((np.concatenate(parts) / (2 * np.pi) + 0.5) % 1 * (GRID - 1)).astype(int)
    return np.bincount(place, minlength=GRID - 1)


def metadynamics(molecule: Molecule, args, residue: int) -> dict[str, dict]:
    """Rows of the table: phi of a residue by MD, by unbiased learned runs, by Metadynamics and by its runs' mean."""
    quartet = molecule.chosen(*PHI[residue])

    def phi(xyz):
        return mdtraj.compute_dihedrals(mdtraj.Trajectory(xyz, molecule.md.topology), [quartet], periodic=False)[:, 0]

    replicas = np.array_split(phi(molecule.md.xyz), args.md_replicas)
    counts, total = counts_of(replicas), len(molecule.md)
    low, high = block_bootstrap(lambda parts: -KT * np.log((counts_of(parts) + 0.5) / total), replicas)
    judged = free_energy(counts, TEMPERATURE) < 4 * KT

    def row(share, frames):
        profile, expected = (-KT * np.log(np.maximum(x, 0.5 / frames))[judged] for x in (share, counts / total))
        return {
            "RMS difference, kJ/mol": float(np.sqrt(((profile - expected) ** 2).mean())),
            "bins within 1 kT": float((np.abs(profile - expected) < KT).mean()),
            "bins inside MD's interval": float(((profile >= low[judged]) & (profile <= high[judged])).mean()),
        }

    name = f"{molecule.name} phi {residue + 1}"
    half = free_energy_difference(counts_of(replicas[::2]), counts_of(replicas[1::2]), TEMPERATURE)
    rows, shares = {f"{name}: MD, half against half": {"RMS difference, kJ/mol": half}}, []
    own = [phi(frames) for frames in unbiased(molecule, args)]
    made = sum(map(len, own))
    rows[f"{name}: learned, unbiased"] = {"jumps": made} | row(counts_of(own) / made, made)
    for replica in range(args.replicas):
        profile = kept(
            args.folder / f"{molecule.name}-metadynamics-{residue}-{args.candidates[0]}-{args.hills}-{replica}.npy",
            lambda r=replica: metadynamics_profile(molecule, args, residue, r),
        )
        here = (profile[: GRID - 1] + profile[1:GRID]) / 2  # from the edges of bins to their centres
        weight = np.exp(-(here - here.min()) / KT)
        shares.append(weight / weight.sum())
        rows[f"{name}: Metadynamics, run {replica + 1}"] = {
            "jumps": args.hills,
            **row(shares[-1], total),
            "accepted": float(profile[-1]),
        }
    rows[f"{name}: Metadynamics, mean of the runs"] = row(np.mean(shares, 0), total)
    return rows


def main():
    made = parser(__doc__, "bias")
    made.add_argument("--folder", type=Path, required=True, help="for the pieces; a stopped run goes on with them")
    made.add_argument("--alanine", type=Path, required=True, help="stem of its reference")
    made.add_argument("--tetrapeptide", type=Path, default=VALIDATION, help="stem of its reference")
    made.add_argument("--starts", type=int, default=8000, help="frames of MD that jumps start from")
    made.add_argument("--replicas", type=int, default=4, help="learned runs of each kind")
    made.add_argument("--md-replicas", type=int, default=16, help="trajectories in the reference of alanine dipeptide")
    made.add_argument("--jumps", type=int, default=500, help="of each run under a restraint")
    made.add_argument("--hills", type=int, default=3000, help="jumps of each run of Metadynamics")
    made.add_argument("--candidates", type=int, nargs="+", default=[1, 4], help="the first one for Metadynamics")
    made.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    args = made.parse_args()
    torch.set_num_threads(args.threads)
    alanine, tetrapeptide = Molecule(args.alanine, "starmd-dipeptide"), Molecule(args.tetrapeptide, "starmd-peptide")
    facts, sections, results = circumstances(alanine.model, tetrapeptide.model), {}, {}
    args.folder = args.folder / f"{facts['weights'].replace(', ', '-')}-{args.seed}"
    studies = {
        "reversibility": lambda: reversibility(alanine, args) | reversibility(tetrapeptide, args),
        "metadynamics": lambda: metadynamics(alanine, args, 1),
        "restraints": lambda: restraints(tetrapeptide, args),
        "metadynamics, tetrapeptide": lambda: metadynamics(tetrapeptide, args, 2),
    }
    for part in args.parts:
        results[part] = studies[part]()
        sections[part[0].upper() + part[1:]] = table(results[part])
        print(f"\n## {part}\n\n{sections[part.capitalize()]}", flush=True)
        write(args.output, "Biases that act", facts, sections, results)


if __name__ == "__main__":
    main()
