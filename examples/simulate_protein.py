"""4 ns of villin in jumps of 100 ps by a learned integrator, beside MD, with the speed of both."""

print("Loading OpenMM and PyTorch", flush=True)
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import mdtraj
from openmm import LangevinMiddleIntegrator, unit
from openmm.app import PDBFile, Simulation, StateDataReporter, XTCReporter

from openmm_starmd import StarMDIntegrator
from openmm_starmd.evaluation.report.plots import plot_ramachandran, plot_rmsf
from openmm_starmd.systems import peptide_system

md = Path(__file__).resolve().parents[1] / "benchmarks" / "validation" / "proteins"  # 8 x 0.4 ns, made before
jumps, md_steps = 40, 500
pdb = PDBFile(str(md / "villin_101.pdb"))
learned = StarMDIntegrator(pdb.topology, 300 * unit.kelvin, 100 * unit.picoseconds, randomSeed=1)
plain = LangevinMiddleIntegrator(300 * unit.kelvin, 1 / unit.picosecond, 0.004 * unit.picoseconds)
log = StateDataReporter(sys.stdout, 2, time=True, progress=True, remainingTime=True, speed=True, totalSteps=jumps)
speeds = []  # ns/day
for integrator, steps, reporters in (learned, jumps, [log, XTCReporter("trajectory.xtc", 1)]), (plain, md_steps, []):
    simulation = Simulation(pdb.topology, peptide_system(pdb.topology), integrator)
    simulation.context.setPositions(pdb.positions)
    simulation.minimizeEnergy(maxIterations=300)
    simulation.reporters += reporters
    start = time.perf_counter()
    simulation.step(steps)
    speeds.append(86.4 * steps * integrator.getStepSize()._value / (time.perf_counter() - start))
frames = mdtraj.load("trajectory.xtc", top=mdtraj.Topology.from_openmm(pdb.topology))
frames[0].save("topology.pdb")
ensembles = {"molecular dynamics": mdtraj.load(sorted(map(str, md.glob("villin_*.xtc"))), top=frames.topology)}
ensembles["learned integrator"] = frames
native = mdtraj.load(str(md / "villin_101.pdb"))
fluctuations = {}
figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
for ax, (name, shown) in zip(axes, ensembles.items(), strict=False):
    plot_ramachandran(mdtraj.compute_phi(shown)[1][:, :-1], mdtraj.compute_psi(shown)[1][:, 1:], ax, name)
    carbons = shown.atom_slice(shown.topology.select("name CA"))
    fluctuations[name] = mdtraj.rmsf(carbons.superpose(carbons), None)
    distance = mdtraj.rmsd(shown, native, atom_indices=native.topology.select("name CA"))
    print(
        f"{name}: {len(shown)} frames, CA-RMSD to the native structure {distance.mean():.2f} +- {distance.std():.2f} nm"
    )
plot_rmsf(fluctuations, axes[2], "fluctuations")
figure.savefig("villin.png", dpi=120)
print(f"Here {speeds[0]:,.0f} ns/day in jumps and {speeds[1]:,.1f} by plain MD: {speeds[0] / speeds[1]:.0f} times")
print("Look whether maps and fluctuations agree in villin.png; play trajectory.xtc with topology.pdb")
