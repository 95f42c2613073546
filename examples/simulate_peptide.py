"""40 ns of a peptide in jumps of 100 ps by a learned integrator, and how much faster that is than plain MD here."""

print("Loading OpenMM and PyTorch", flush=True)
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import mdtraj
from openmm import LangevinMiddleIntegrator, unit
from openmm.app import Simulation, StateDataReporter, XTCReporter

from openmm_starmd import StarMDIntegrator
from openmm_starmd.evaluation.report.plots import plot_ramachandran
from openmm_starmd.systems import build_peptide, peptide_system

md = Path(__file__).resolve().parents[1] / "benchmarks" / "validation" / "DWGR.xtc"  # 40 ns, made before
jumps, md_steps = 400, 5000
topology, positions = build_peptide("DWGR", seed=1)  # a sequence that the model was not trained on
learned = StarMDIntegrator(topology, 300 * unit.kelvin, 100 * unit.picoseconds, "starmd-peptide")
plain = LangevinMiddleIntegrator(300 * unit.kelvin, 1 / unit.picoseconds, 0.004 * unit.picoseconds)
log = StateDataReporter(sys.stdout, 10, time=True, progress=True, remainingTime=True, speed=True, totalSteps=jumps)
speeds = []  # ns/day
for integrator, steps, reporters in (learned, jumps, [log, XTCReporter("trajectory.xtc", 1)]), (plain, md_steps, []):
    simulation = Simulation(topology, peptide_system(topology), integrator)
    simulation.context.setPositions(positions)
    simulation.minimizeEnergy()
    simulation.reporters += reporters
    start = time.perf_counter()
    simulation.step(steps)
    speeds.append(86.4 * steps * integrator.getStepSize()._value / (time.perf_counter() - start))
frames = mdtraj.load("trajectory.xtc", top=mdtraj.Topology.from_openmm(topology))
frames[0].save("topology.pdb")
ensembles = {"40 ns of MD": mdtraj.load(md, top=md.with_suffix(".pdb")), "learned integrator": frames}
figure, axes = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
for ax, (title, shown) in zip(axes, ensembles.items(), strict=True):
    shown = shown[:: len(shown) // len(frames)]  # as many frames of MD, as far apart
    plot_ramachandran(mdtraj.compute_phi(shown)[1][:, :-1], mdtraj.compute_psi(shown)[1][:, 1:], ax, title)
figure.savefig("ramachandran.png", dpi=120)
print(f"Here {speeds[0]:,.0f} ns/day in jumps and {speeds[1]:,.0f} by plain MD: {speeds[0] / speeds[1]:.0f} times")
print("Look whether both maps of ramachandran.png fill the same regions; play trajectory.xtc with topology.pdb")
