"""What relaxation does to jumped structures, beside MD of the same System: ways to minimise, energies after dynamics.

    python benchmarks/relaxation.py

Makes its own MD (300 K, as `openmm_starmd.training.simulate`, HBonds constraints) of the tetrapeptide DWGR and of
villin, which OpenMM ships. Jumps of DWGR are those of `starmd-peptide`; random ones move every residue by 0.01 nm along
each axis and turn it by 0.06 rad and its torsions by 0.1 rad. Jumps that fail `check_positions` are left out, as the
integrator does. Times are CPU times of one thread.

Tables
------
Minimisation: energy above the median of MD frames that were minimised to convergence under the same restraints (median
and 99th percentile over jumps; beside it the 99th percentile of those MD frames), share of jumps within that percentile
and, like for like, within that of MD frames minimised in the same way; backbone moved (mean and largest root mean
square); largest relative error of a constraint. FIRE is `Relaxation` without dynamics; descent is steepest descent with
capped moves whose step follows the energy; L-BFGS n is `LocalEnergyMinimizer` with n iterations a round and the
restraint as a force of the System.

Energies: of MD frames that are relaxed where they are, of single jumps from MD frames, each with the steps of
minimisation + dynamics, and of ordinary runs; against those of MD (two-sample Kolmogorov-Smirnov), shift of the mean in
standard deviations of MD, the same of each kind of force in its own standard deviations, and by how much relaxation
turns phi and psi.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import mdtraj
import numpy as np
import openmm
import torch
from openmm.app import Modeller, PDBFile, Simulation, Topology
from scipy.stats import ks_2samp

from openmm_starmd import Propagator, Relaxation, StarMDIntegrator, load_model
from openmm_starmd.binding.store import AT_WORK, scratchName
from openmm_starmd.protein.conformation import from_positions, to_positions
from openmm_starmd.protein.displacement import tangent_noise
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.protein.validity import check_positions
from openmm_starmd.systems import build_peptide, peptide_system

TEMPERATURE, STRIDE, SEED = 300.0, 100.0, 1
TOLERANCE = 1e-5
LONG = 400  # steps of dynamics, the former default
RESTRAINT_GROUP = 31
PARTS = {"bonds": "HarmonicBondForce", "angles": "HarmonicAngleForce", "torsions": "PeriodicTorsionForce"}


@dataclass
class Molecule:
    """A System, a force group for each of `PARTS`, with frames (T, A, 3), nm, and energies (T), kJ/mol, of its MD."""

    name: str
    topology: Topology
    system: openmm.System
    tokens: ResidueTokens
    frames: np.ndarray
    energies: np.ndarray

    @property
    def held(self) -> list[int]:
        return self.tokens.backbone.flatten().tolist()

    @cached_property
    def parts_of_md(self) -> np.ndarray:
        return self.parts(self.frames)

    def parts(self, frames) -> np.ndarray:
        """Energies (T, P), kJ/mol, of each of `PARTS` and, last, of all else: non-bonded forces and solvent."""
        context = new_context(self.system, openmm.VerletIntegrator(0.001))
        rows = []
        for x in frames:
            context.setPositions(x)
            states = [context.getState(energy=True, groups={k}) for k in (*range(1, len(PARTS) + 1), 0)]
            rows.append([state.getPotentialEnergy()._value for state in states])
        return np.array(rows)


def positions_of(context) -> np.ndarray:
    return context.getState(positions=True).getPositions(asNumpy=True)._value


def energy_of(context) -> float:
    groups = 0xFFFFFFFF & ~(1 << RESTRAINT_GROUP)
    return context.getState(energy=True, groups=groups).getPotentialEnergy()._value


def new_context(system, integrator):
    return openmm.Context(system, integrator, openmm.Platform.getPlatform("CPU"), {"Threads": "1"})


def place(context, positions):
    """Set positions as the integrator does after a jump; returns them with constraints applied."""
    context.setPositions(positions)
    context.applyConstraints(TOLERANCE)
    return positions_of(context)


def villin():
    pdb = PDBFile(str(Path(openmm.__file__).parent / "app" / "data" / "test.pdb"))
    modeller = Modeller(pdb.topology, pdb.positions)
    modeller.delete([r for r in modeller.topology.residues() if r.name in ("HOH", "Cl")])
    return modeller.topology, modeller.positions


def simulate(name, topology, positions, n, interval, equilibration, kept: Path | None) -> Molecule:
    """MD frames ``interval`` ps apart; taken from the folder ``kept`` if they are there."""
    system, tokens = peptide_system(topology), ResidueTokens.from_topology(topology)
    for group, kind in enumerate(PARTS.values(), start=1):
        for force in system.getForces():
            if force.getName() == kind:
                force.setForceGroup(group)
    file = kept / f"{name}.npz" if kept else None
    if file and file.exists():
        known = np.load(file)
        if len(known["x"]) >= n:
            return Molecule(name, topology, system, tokens, known["x"][:n], known["e"][:n])
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 1, 0.004)
    integrator.setRandomNumberSeed(SEED)
    context = new_context(system, integrator)
    context.setPositions(positions)
    openmm.LocalEnergyMinimizer.minimize(context, 10, 500)
    context.setVelocitiesToTemperature(TEMPERATURE, SEED)
    integrator.step(round(equilibration / 0.004))
    frames, energies = [], []
    for _ in range(n):
        integrator.step(round(interval / 0.004))
        frames.append(positions_of(context))
        energies.append(energy_of(context))
    if file:
        np.savez(file, x=frames, e=energies)
    return Molecule(name, topology, system, tokens, np.array(frames), np.array(energies))


def jumps_of_model(molecule: Molecule, frames) -> np.ndarray:
    """One jump of `starmd-peptide` from each frame, without history."""
    model = load_model("starmd-peptide", device="cpu")
    propagator = Propagator(model, molecule.tokens, STRIDE, TEMPERATURE)
    history = propagator.start(from_positions(torch.from_numpy(frames), molecule.tokens))
    return written(molecule, frames, propagator.step(history, torch.Generator().manual_seed(SEED)))


def random_jumps(molecule: Molecule, frames) -> np.ndarray:
    """Every residue moved a little, as a good model errs."""
    start = from_positions(torch.from_numpy(frames), molecule.tokens)
    scales = torch.tensor([0.01, 0.06, 0.1, 0.0], dtype=torch.float64)  # translation, rotation, torsions, N-CA-C
    generator = torch.Generator().manual_seed(SEED)
    noise = tangent_noise(start.angles, molecule.tokens.features.torsion_mask, generator)
    return written(molecule, frames, noise.scaled(scales).apply(start))


def written(molecule, frames, conformations) -> np.ndarray:
    """Atoms (n, A, 3) of those conformations that pass the checks."""
    conformations = conformations.to("cpu", torch.float64)
    atoms = torch.stack(
        [to_positions(conformations[k], torch.from_numpy(x), molecule.tokens) for k, x in enumerate(frames)]
    )
    return atoms[check_positions(atoms, molecule.tokens).valid].numpy()


class Fire:
    """`Relaxation` in a Context of its own."""

    def __init__(self, molecule: Molecule, relaxation: Relaxation):
        self.relaxation, self.held, self.evaluations = relaxation, molecule.held, relaxation.minimizationSteps
        compound, program = openmm.CompoundIntegrator(), openmm.CustomIntegrator(STRIDE)
        program.addGlobalVariable(AT_WORK, 0)
        program.addPerDofVariable(scratchName(0), 0)
        relaxation.addProgram(program)
        compound.addIntegrator(program)
        self.context = new_context(molecule.system, compound)

    def __call__(self, start: np.ndarray, seed: int = 1):
        self.relaxation.relax(self.context, 0, self.held, lambda fraction: start, TEMPERATURE, seed)


class Descent:
    """Steepest descent by 0.005 nm an axis at most, its step 1.2 times as long where the last led down, else half."""

    def __init__(self, molecule: Molecule, steps: int, constant: float):
        self.held, self.evaluations = molecule.held, steps
        self.program = program = openmm.CustomIntegrator(0.001)
        for name in ("length", "power"):
            program.addGlobalVariable(name, 0)
        program.addPerDofVariable("reference", 0)
        force = f"(f-step(5e5-reference)*{constant}*(x-reference))"
        program.addComputeSum("power", f"{force}*v")
        program.addComputeGlobal("length", "length*select(step(power), 1.2, 0.5)")
        program.addComputePerDof("v", f"max(-0.005, min(0.005, length*{force}))")
        program.addComputePerDof("x", "x + v")
        program.addConstrainPositions()
        self.context = new_context(molecule.system, program)

    def __call__(self, start: np.ndarray):
        reference = np.full_like(start, 1e6)
        reference[self.held] = start[self.held]
        self.program.setPerDofVariableByName("reference", reference)
        self.program.setGlobalVariableByName("length", 2e-6)
        self.context.setVelocities(0 * start)
        self.program.step(self.evaluations)


class Minimizer:
    """`LocalEnergyMinimizer` with the restraint as a force of the System."""

    evaluations = math.nan

    def __init__(self, molecule: Molecule, iterations: int, constant: float):
        self.held, self.iterations = molecule.held, iterations
        self.restraint = openmm.CustomExternalForce(f"0.5*{constant}*((x-x0)^2+(y-y0)^2+(z-z0)^2)")
        self.restraint.setForceGroup(RESTRAINT_GROUP)
        for axis in "xyz":
            self.restraint.addPerParticleParameter(f"{axis}0")
        for atom in self.held:
            self.restraint.addParticle(atom, [0, 0, 0])
        system = copy.deepcopy(molecule.system)
        system.addForce(self.restraint)
        self.context = new_context(system, openmm.VerletIntegrator(0.001))

    def __call__(self, start: np.ndarray):
        for index, atom in enumerate(self.held):
            self.restraint.setParticleParameters(index, atom, start[atom])
        self.restraint.updateParametersInContext(self.context)
        openmm.LocalEnergyMinimizer.minimize(self.context, 10, self.iterations)


def apply(way, structures) -> dict[str, np.ndarray]:
    """Energies (kJ/mol), backbone root mean squares (nm) and CPU times (ms) of one way on structures (n, A, 3)."""
    rows = []
    for structure in structures:
        start = place(way.context, structure)
        begin = time.process_time()
        way(start)
        seconds = time.process_time() - begin
        moved = (positions_of(way.context) - start)[way.held]
        rows.append((energy_of(way.context), math.sqrt((moved**2).sum(1).mean()), 1000 * seconds, strain(way.context)))
    return dict(zip(("energy", "moved", "ms", "strain"), np.array(rows).T, strict=True))


def strain(context) -> float:
    """Largest relative error of a constraint."""
    system, x = context.getSystem(), positions_of(context)
    constraints = [system.getConstraintParameters(k) for k in range(system.getNumConstraints())]
    return max(abs(np.linalg.norm(x[i] - x[j]) / length._value - 1) for i, j, length in constraints)


def milliseconds_of_one_evaluation(molecule: Molecule) -> float:
    context, n = new_context(molecule.system, openmm.VerletIntegrator(0.001)), 100
    context.setPositions(molecule.frames[0])
    context.getState(forces=True)
    begin = time.process_time()
    for _ in range(n):
        context.setPositions(molecule.frames[0])
        context.getState(forces=True)
    return 1000 * (time.process_time() - begin) / n


def compare_minimisers(molecule: Molecule, jumps: np.ndarray, frames: np.ndarray) -> dict[str, dict[str, float]]:
    """A row for each way."""
    k = Relaxation().restraintConstant
    ways = {f"FIRE {n}": Fire(molecule, Relaxation(minimizationSteps=n, dynamicsSteps=0)) for n in (25, 50, 100, 140)}
    ways |= {f"descent {n}": Descent(molecule, n, k) for n in (100, 140)}
    ways |= {f"L-BFGS {n or 'to the end'}": Minimizer(molecule, n, k) for n in (20, 40, 0)}
    one = milliseconds_of_one_evaluation(molecule)
    converged = apply(Minimizer(molecule, 0, k), frames)
    zero, limit = np.median(converged["energy"]), np.percentile(converged["energy"], 99)
    rows = {}
    for name, way in ways.items():
        done, same = apply(way, jumps), apply(way, frames)["energy"]
        rows[name] = {
            "median": np.median(done["energy"]) - zero,
            "99th percentile": np.percentile(done["energy"], 99) - zero,
            "MD's 99th": limit - zero,
            "share within": (done["energy"] <= limit).mean(),
            "share within, like for like": (done["energy"] <= np.percentile(same, 99)).mean(),
            "moved (nm)": done["moved"].mean(),
            "most moved (nm)": done["moved"].max(),
            "evaluations": way.evaluations,
            "ms": done["ms"].mean(),
            "ms / evaluation's": done["ms"].mean() / one,
            "constraint error": done["strain"].max(),
        }
        print(molecule.name, name, {key: f"{value:.4g}" for key, value in rows[name].items()}, flush=True)
    return rows


def backbone_turn(molecule: Molecule, starts, ends) -> float:
    """Root mean square difference of phi and psi, degrees."""
    topology = mdtraj.Topology.from_openmm(molecule.topology)
    angles = []
    for x in (starts, ends):
        trajectory = mdtraj.Trajectory(np.asarray(x, np.float32), topology)
        angles.append(np.hstack([mdtraj.compute_phi(trajectory)[1], mdtraj.compute_psi(trajectory)[1]]))
    turn = (angles[1] - angles[0] + np.pi) % (2 * np.pi) - np.pi
    return float(np.degrees(np.sqrt((turn**2).mean())))


def against_md(frames, molecule: Molecule) -> dict[str, float]:
    md, parts, found = molecule.energies, molecule.parts_of_md, molecule.parts(frames)
    energies, shifts = found.sum(1), (found.mean(0) - parts.mean(0)) / parts.std(0)
    test = ks_2samp(energies, md)
    row = {
        "frames": len(energies),
        "KS distance": test.statistic,
        "p": test.pvalue,
        "shift (sd)": (energies.mean() - md.mean()) / md.std(),
        "sd / MD's": energies.std() / md.std(),
    }
    return row | {f"{part} (sd)": shift for part, shift in zip((*PARTS, "all else"), shifts, strict=True)}


def compare_dynamics(molecule: Molecule) -> dict[str, dict[str, float]]:
    """A row for each kind of jump and numbers of steps."""
    kinds = {"MD frames": molecule.frames, "jumps": jumps_of_model(molecule, molecule.frames)}
    usual, rows = Relaxation().dynamicsSteps, {}
    trials = [("MD frames", None, n) for n in (0, usual // 2, usual, 2 * usual, LONG)] + [("MD frames", 140, usual)]
    trials += [("jumps", None, n) for n in (0, usual, LONG)]
    for kind, minimization, dynamics in trials:
        way = Fire(molecule, Relaxation(minimizationSteps=minimization, dynamicsSteps=dynamics))
        starts, ends, begin = [], [], time.process_time()
        for index, structure in enumerate(kinds[kind]):
            starts.append(place(way.context, structure))
            way(starts[-1], 1000 * (len(rows) + 1) + index)
            ends.append(positions_of(way.context))
        ms = 1000 * (time.process_time() - begin) / len(starts)
        turn = {"phi, psi turned (degrees)": backbone_turn(molecule, starts, ends), "ms": ms}
        name = f"{kind}, {way.evaluations} + {dynamics} steps"
        rows[name] = against_md(ends, molecule) | turn
        print(name, {key: f"{value:.4g}" for key, value in rows[name].items()}, flush=True)
    return rows


def run_of_integrator(molecule: Molecule, n: int, relaxation: Relaxation) -> list[np.ndarray]:
    """Frames of an ordinary run with `starmd-peptide`."""
    settings = {"relaxation": relaxation, "randomSeed": SEED, "device": "cpu"}
    integrator = StarMDIntegrator(molecule.topology, TEMPERATURE, STRIDE, **settings)
    cpu = openmm.Platform.getPlatform("CPU")
    simulation = Simulation(molecule.topology, molecule.system, integrator, cpu, {"Threads": "1"})
    simulation.context.setPositions(molecule.frames[0])
    frames = []
    for _ in range(n):
        simulation.step(1)
        frames.append(positions_of(simulation.context))
    return frames


def table(rows: dict[str, dict[str, float]]) -> str:
    """Markdown table, a line per row."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        cells = ["" if math.isnan(row.get(c, math.nan)) else f"{row[c]:.3g}" for c in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stem = Path(__file__).with_name("results") / "relaxation"
    parser.add_argument("--output", default=stem, help="stem of the .md and .json files")
    parser.add_argument("--frames", type=int, default=500, help="frames of DWGR, 4 ps apart")
    parser.add_argument("--jumps", type=int, nargs=2, default=(100, 30), help="to minimise, of DWGR and of villin")
    parser.add_argument("--md", type=Path, help="folder that keeps the MD for another run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    few, many = options.jumps[1], options.frames
    peptide = simulate("DWGR", *build_peptide("DWGR", seed=SEED), many, 4.0, 40.0, options.md)
    protein = simulate("villin", *villin(), max(few, 100), 1.0, 20.0, options.md)
    chosen = peptide.frames[np.linspace(0, many - 1, options.jumps[0]).astype(int)]
    chosen_of_protein = protein.frames[np.linspace(0, len(protein.frames) - 1, few).astype(int)]
    results = {
        "Minimisation of DWGR": compare_minimisers(peptide, jumps_of_model(peptide, chosen), chosen),
        "Minimisation of villin": compare_minimisers(
            protein, random_jumps(protein, chosen_of_protein), chosen_of_protein
        ),
    }
    results["Energies of DWGR"] = compare_dynamics(peptide) | {
        "MD, one half": against_md(peptide.frames[: many // 2], peptide)
    }
    for relaxation in (Relaxation(), Relaxation(dynamicsSteps=LONG)):
        name = f"StarMDIntegrator, {relaxation.minimizationSteps} + {relaxation.dynamicsSteps} steps"
        results["Energies of DWGR"][name] = against_md(run_of_integrator(peptide, many, relaxation), peptide)
    settings = {
        "command": f"python benchmarks/relaxation.py --frames {many} --jumps {options.jumps[0]} {few}",
        "versions": {"python": platform.python_version(), "openmm": openmm.__version__, "torch": torch.__version__},
        "threads": 1,
        "cores": os.cpu_count(),
        "platform": "CPU",
        "relaxation": repr(Relaxation()),
    }
    text = ["# Relaxation", *(f"\n- {key}: {value}" for key, value in settings.items())]
    text += [f"\n\n## {title} (energies in kJ/mol)\n\n{table(rows)}" for title, rows in results.items()]
    Path(f"{options.output}.md").write_text("".join(text) + "\n")
    plain = json.loads(json.dumps(results, default=float).replace("NaN", "null"))
    Path(f"{options.output}.json").write_text(json.dumps({"settings": settings, "results": plain}, indent=1) + "\n")


if __name__ == "__main__":
    main()
