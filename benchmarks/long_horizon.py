"""Does a long run drift? Validity, size and divergences against the step, in ten windows, with slopes.

    python benchmarks/long_horizon.py DWGR --jumps 10000 --reference reference_folder

Makes the run as soak.py does (an ordinary Simulation, resumable), or reads one that soak.py has made:

    python benchmarks/long_horizon.py DWGR --trajectory soak.xtc --table soak.csv --reference reference_folder

Writes long_horizon.md, .json and .png. The folder may hold SEQUENCE.pdb and SEQUENCE.xtc of reference MD; without it
there are no divergences.

Rows
----
accepted conformations    share of sampled conformations that passed the checks, from the table of the StarMDReporter
energy                    potential energy after relaxation, kJ/mol, from the same table
valid frames              share of written frames that pass the checks
radius of gyration        of all atoms, nm, with that of the reference
JSD ...                   Jensen-Shannon divergence, bits, of the frames of a window against all of the reference;
                          beside them the first half of the reference against the second

Slopes are per 1,000 jumps, of a straight line through the means (for JSD the values) of the windows, with standard
error and the probability that a run without drift has as steep a slope (t-test). With so many rows one below 0.05 is
no surprise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mdtraj
import numpy as np
import torch
from common import circumstances, parser, table, write
from matplotlib.figure import Figure
from quality import DIVERGENCES, Reference, Scorer
from scipy.stats import t as student
from soak import rows_of, simulate, valid_frames

from openmm_starmd import load_model
from openmm_starmd.evaluation.metrics import dihedrals, samples, shapes
from openmm_starmd.systems import build_peptide

LEAST_JUMPS = 2  # in a window


@dataclass
class Series:
    """One quantity along a run: values (T,), jumps between two of them, and what MD has."""

    values: np.ndarray
    spacing: float
    md: float = float("nan")

    def windows(self, n: int) -> np.ndarray:
        """Means of n equal windows."""
        length = len(self.values) // n
        return self.values[: n * length].reshape(n, length).mean(1)

    def drift(self, n: int) -> dict[str, float]:
        """Slope per 1,000 jumps, its standard error, and the t-test's p."""
        slope, error = (1000 / self.spacing * x for x in samples.slope(self.values, n))
        p = 2 * student.sf(abs(slope) / error, n - 2) if error > 0 else float("nan")
        return {"slope per 1,000 jumps": slope, "standard error": error, "p": p}


def from_table(rows: list[dict[str, str]]) -> dict[str, Series]:
    """What the lines of the StarMDReporter tell, one value a line."""
    step = next(key for key in rows[0] if "Step" in key)
    every = int(rows[1][step]) - int(rows[0][step])
    retries = np.array([int(row["Retries"]) for row in rows])
    energies = np.array([float(row["Energy After Relaxation (kJ/mole)"]) for row in rows])
    return {
        "accepted conformations": Series(every / (every + retries), every),
        "energy (kJ/mol)": Series(energies, every),
    }


def from_frames(trajectory: mdtraj.Trajectory, valid: np.ndarray, reference: Reference | None) -> dict[str, Series]:
    """What the frames tell, one value a jump."""
    md = shapes.radius_of_gyration(reference.trajectory.xyz).mean() if reference else float("nan")
    size = shapes.radius_of_gyration(trajectory.xyz)
    return {"valid frames": Series(valid.astype(float), 1), "radius of gyration (nm)": Series(size, 1, float(md))}


def from_torsions(trajectory: mdtraj.Trajectory, reference: Reference, options) -> dict[str, Series]:
    """Divergences of each window from all of the reference."""
    torsions = dihedrals.measure_torsions(trajectory)
    if torsions.names != reference.torsions.names:
        raise SystemExit(
            f"The torsions of the run ({', '.join(torsions.names)}) are not those of the reference "
            f"({', '.join(reference.torsions.names)}); give the same peptide twice."
        )
    scorer, length = Scorer(reference, options.stride, options.seed), trajectory.n_frames // options.windows
    windows = [torsions.angles[k * length : (k + 1) * length] for k in range(options.windows)]
    scores = [scorer.divergences(window) for window in windows]
    half = len(scorer.angles) // 2
    floor = scorer.divergences(scorer.angles[:half], scorer.angles[half:])
    return {name: Series(np.array([s[name] for s in scores]), length, floor[name]) for name in DIVERGENCES}


def draw(series: dict[str, Series], n: int, total: int, options) -> Figure:
    """Windows against the step, with their straight lines and MD as a dotted line."""
    panels = {
        "share": [name for name in series if name in ("accepted conformations", "valid frames")],
        "radius of gyration (nm)": ["radius of gyration (nm)"],
        "energy (kJ/mol)": [name for name in series if name == "energy (kJ/mol)"],
        "divergence from MD (bits)": [name for name in series if name in DIVERGENCES],
    }
    panels = {label: names for label, names in panels.items() if names}
    figure = Figure(figsize=(9, 2.6 * ((len(panels) + 1) // 2)), layout="constrained")
    axes = figure.subplots((len(panels) + 1) // 2, 2, squeeze=False).ravel()
    step = (np.arange(n) + 0.5) * total / n
    for ax, (label, names) in zip(axes, panels.items(), strict=False):
        for name in names:
            values = series[name].windows(n)
            (points,) = ax.plot(step, values, "o", markersize=4, label=name.removeprefix("JSD "))
            ax.plot(step, np.poly1d(np.polyfit(step, values, 1))(step), color=points.get_color(), linewidth=1)
            if np.isfinite(series[name].md):
                ax.axhline(series[name].md, color=points.get_color(), linestyle=":", linewidth=1)
        ax.set(xlabel="jump", ylabel=label, xlim=(0, total))
        if len(names) > 1:
            ax.legend(fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(names))
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    figure.suptitle(f"{options.sequence}: {total:,} jumps of {options.stride:g} ps; dotted: MD", fontsize=10)
    return figure


def examine(topology, options) -> tuple[dict[str, Series], int]:
    """Every row, and the number of jumps."""
    file = options.reference / f"{options.sequence}.pdb" if options.reference else None
    if file and not (file.exists() and file.with_suffix(".xtc").exists()):
        raise SystemExit(f"Expected {file.name} and {file.stem}.xtc in {options.reference.name}; found none.")
    reference = Reference.load(file) if file else None
    trajectory = mdtraj.load(str(options.trajectory), top=mdtraj.Topology.from_openmm(topology))
    if trajectory.n_frames < LEAST_JUMPS * options.windows:
        raise SystemExit(
            f"Expected at least {LEAST_JUMPS * options.windows} frames for {options.windows} windows; found "
            f"{trajectory.n_frames} in {options.trajectory.name}. Make more jumps, or ask for fewer --windows."
        )
    rows = rows_of(options.table) if options.table else []
    series = from_table(rows) if len(rows) >= options.windows else {}
    series |= from_frames(trajectory, valid_frames(topology, options.trajectory), reference)
    return series | (from_torsions(trajectory, reference, options) if reference else {}), trajectory.n_frames


def main() -> None:
    made = parser(__doc__, "long_horizon")
    made.add_argument("sequence", nargs="?", default="DWGR")
    made.add_argument("--trajectory", type=Path, help="of soak.py, a frame a jump; made if it is not given")
    made.add_argument("--table", type=Path, help="of the StarMDReporter of the same run")
    made.add_argument("--reference", type=Path, help="folder with SEQUENCE.pdb and SEQUENCE.xtc of MD")
    made.add_argument("--model", default="starmd-peptide", help="of a run that is made: embedded name or path")
    made.add_argument("--jumps", type=int, default=10_000, help="of a run that is made")
    made.add_argument("--stride", type=float, default=100.0, help="ps")
    made.add_argument("--windows", type=int, default=10)
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    topology, positions = build_peptide(options.sequence, seed=1)
    facts = circumstances(load_model(options.model))
    if options.trajectory is None:
        facts |= {"speed (ns/day), of the last process": f"{simulate(topology, positions, options)['ns per day']:.0f}"}
        options.trajectory, options.table = (Path(f"{options.output}.{ending}") for ending in ("xtc", "csv"))
    series, total = examine(topology, options)
    n, rows = options.windows, {}
    for name, one in series.items():
        windows = {f"window {k + 1}": value for k, value in enumerate(one.windows(n))}
        rows[name] = windows | {"MD": one.md} | one.drift(n)
    draw(series, n, total, options).savefig(f"{options.output}.png", dpi=150)
    text = f"{table(rows, 'quantity')}\n\n![The same, drawn]({options.output.name}.png)"
    facts |= {"jumps": total, "stride": f"{options.stride:g} ps"}
    write(options.output, f"A long run of {options.sequence}", facts, {"": text}, rows)
    print(text)


if __name__ == "__main__":
    main()
