"""100 ns of a peptide in 100 ps steps by a learned integrator, beside plain MD of the same System on this machine."""

import sys
import time

import matplotlib.pyplot as plt
import mdtraj
from openmm import LangevinMiddleIntegrator, unit
from openmm.app import Simulation, StateDataReporter, XTCReporter

from openmm_starmd import StarMDIntegrator
from openmm_starmd.evaluation.report.plots import plot_ramachandran
from openmm_starmd.systems import build_peptide, peptide_system

topology, positions = build_peptide("DWGR", seed=1)  # a sequence that the model was not trained on
md = LangevinMiddleIntegrator(300 * unit.kelvin, 1 / unit.picoseconds, 0.004 * unit.picoseconds)
learned = StarMDIntegrator(topology, 300 * unit.kelvin, 100 * unit.picoseconds, "starmd-peptide")
runs = ("md", md, 500_000, 250), ("trajectory", learned, 1000, 1)  # name, integrator, steps, steps between frames
figure, axes = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
for ax, (name, integrator, steps, interval) in zip(axes, runs, strict=True):
    simulation = Simulation(topology, peptide_system(topology), integrator)
    simulation.context.setPositions(positions)
    simulation.minimizeEnergy()
    simulation.reporters.append(XTCReporter(f"{name}.xtc", interval))
    simulation.reporters.append(StateDataReporter(sys.stdout, steps // 10, time=True, temperature=True, speed=True))
    start, nanoseconds = time.perf_counter(), steps * integrator.getStepSize() / unit.picoseconds / 1000
    simulation.step(steps)
    print(title := f"{name}: {nanoseconds:g} ns at {nanoseconds / (time.perf_counter() - start) * 86400:,.0f} ns/day")
    frames = mdtraj.load(f"{name}.xtc", top=mdtraj.Topology.from_openmm(topology))
    plot_ramachandran(mdtraj.compute_phi(frames)[1][:, :-1], mdtraj.compute_psi(frames)[1][:, 1:], ax, title)
figure.savefig("ramachandran.png", dpi=120)
