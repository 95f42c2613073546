"""Physics-corrected results: how right they are, and how much MD they save.

    python benchmarks/refine.py --folder refine_data [--molecules ace-A-nme DWGR] [--swarm-ns 12] [--starts 64]

For each molecule a learned run proposes conformations, --starts of them lead to short MD, and a Markov state model
of that gives populations and timescales (`openmm_starmd.refinement`). The same states serve for long plain MD, the
reference. All MD is made by recipes/engines/lanes.py, in ff14SB and OBC2 at 300 K. Rows: the slowest timescale and the
population of each metastable set, by the learned run, by the swarm and by plain MD, with intervals of 95 %. "saved" is
how many times more plain MD an interval as narrow (in the logarithm of the timescale or of the odds) would take, by
the square-root law from the width of the reference's own interval; the nanoseconds of the swarm count with those of
its equilibration. Where intervals are too wide to be judged, they are shown none the less. "From one basin" is an
adversarial start: the swarm starts from set 0 alone. A stopped run goes on with the trajectories that its folder
holds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import mdtraj
import numpy as np
from common import circumstances, kept, parser, table, write

from openmm_starmd import load_model, rollout
from openmm_starmd.errors import StarMDError
from openmm_starmd.evaluation.metrics import markov
from openmm_starmd.refinement.coordinates import cut_into_states, protein_features, slow_coordinates
from openmm_starmd.refinement.estimation import estimate
from openmm_starmd.refinement.posterior import sample_posterior, set_populations
from openmm_starmd.refinement.refined import CANNOT
from openmm_starmd.refinement.starts import choose_starts
from openmm_starmd.refinement.swarm import relax_strain
from openmm_starmd.systems import peptide_system
from openmm_starmd.systems.peptide import file_name, minimized_peptide

sys.path.append(str(Path(__file__).resolve().parents[1] / "recipes" / "engines"))

INTERVAL, EQUILIBRATION, TEMPERATURE = 2.0, 5.0, 300.0  # ps, ps, K
TIME_STEP = 0.004  # ps
STRIDE = 100.0  # ps


def plain_md(system, positions, nanoseconds, equilibration, seed):
    """All-atom frames (replicas, T, A, 3), nm, of MD from each of the starts (replicas, A, 3)."""
    from lanes import Lanes

    lanes = Lanes(system, positions - positions.mean(1, keepdims=True), seed, len(positions))
    lanes.draw_velocities(2 * TEMPERATURE)
    lanes.step(round(equilibration / TIME_STEP), TEMPERATURE)
    frames = []
    for _ in range(round(1000 * nanoseconds / len(positions) / INTERVAL)):
        lanes.step(round(INTERVAL / TIME_STEP), TEMPERATURE)
        frames.append(lanes.positions)
    return np.stack(frames, 1)


def features_of(topology, frames):
    """Features (T, F) of each replica of frames (replicas, T, A, 3)."""
    return np.stack([protein_features(mdtraj.Trajectory(f, topology)) for f in frames]).astype(np.float32)


def learned_run(args, model, topology, positions, folder):
    """Trajectories of jumps without relaxation; the swarm relaxes its starts."""
    files = rollout(
        model,
        topology,
        positions,
        stride=STRIDE,
        n_steps=args.jumps,
        n_replicas=args.replicas,
        seed=args.seed,
        output=folder,
        resume=True,
        temperature=TEMPERATURE,
        strict=False,
        device="cpu",
    )
    return [mdtraj.load(str(file), top=mdtraj.Topology.from_openmm(topology)) for file in files]


def compare(result, reference_states, starts):
    """Rows of a table: each quantity by the three, and how much MD was saved."""
    lag, n_states = round(result.lag / INTERVAL), len(result.sets)
    nanoseconds = result.nanoseconds + starts * EQUILIBRATION / 1000
    long = sample_posterior(reference_states, lag, n_states)
    reference_ns = sum(map(len, reference_states)) * INTERVAL / 1000
    unit = INTERVAL / 1000
    times = [unit * x for x in long.interval(lambda model: markov.timescales(model, 1)[0])]
    shares = long.interval(lambda model: set_populations(model, result.sets))
    rows = {}
    for quantity in result.quantities:
        if quantity.name == "slowest timescale":
            value, low, high = times
            width = [np.log(quantity.high / quantity.low), np.log(high / low)]
        elif quantity.name.startswith("population"):
            value, low, high = (x[int(quantity.name.split()[-1])] for x in shares)
            limits = np.array([[quantity.low, quantity.high], [low, high]])
            width = np.ptp(np.log(limits / (1 - limits)), axis=1)
        else:
            continue
        row = {
            "learned": f"{quantity.learned:.3g}",
            "refined": CANNOT,
            "plain MD": f"{value:.3g} ({low:.3g} to {high:.3g})",
        }
        if all(shortage.wide for shortage in result.shortages):
            told = f"{quantity.value:.3g} ({quantity.low:.3g} to {quantity.high:.3g})"
            row["refined"] = told if result.judged else f"{CANNOT}: {told}"
            row["intervals overlap"] = "yes" if quantity.low <= high and low <= quantity.high else "no"
            row["plain MD for this width, ns"] = reference_ns * (width[1] / width[0]) ** 2
            row["saved"] = row["plain MD for this width, ns"] / nanoseconds
        rows[f"{quantity.name} {quantity.unit}".strip()] = row
    return rows


def study(args, name, model):
    """Section of the table, results and verdicts of one molecule."""
    topology, positions = minimized_peptide(name, args.seed)
    system, short = peptide_system(topology), mdtraj.Topology.from_openmm(topology)
    place = args.folder / file_name(name)
    reference = kept(
        place / f"reference-{args.reference_ns:g}.npy",
        lambda: features_of(
            short, plain_md(system, np.tile(positions, (16, 1, 1)), args.reference_ns, 100.0, args.seed)
        ),
    )
    learned = learned_run(args, model, topology, positions, place / "learned")
    described = [protein_features(t) for t in learned]
    points = [slow_coordinates(described, 1).transform(f) for f in described]

    label = f"{args.starts}-{args.swarm_ns:g}"

    def swarm_of(chosen):
        starts = np.stack([relax_strain(system, topology, learned[k].xyz[frame]) for k, frame in chosen])
        return features_of(short, plain_md(system, starts, args.swarm_ns, EQUILIBRATION, args.seed + 1))

    swarm = kept(place / f"swarm-{label}.npy", lambda: swarm_of(choose_starts(points, args.starts)))
    slow = slow_coordinates(list(swarm), swarm.shape[1] // 10)
    states = cut_into_states([slow.transform(f) for f in swarm], None, args.seed)

    def assigned(features):
        return [states.transform(slow.transform(f)) for f in features]

    own = assigned(described)
    settings = {"learned": own, "learned_interval": STRIDE, "temperature": TEMPERATURE, "seed": args.seed}
    result = estimate(assigned(swarm), INTERVAL, **settings)
    rows = compare(result, assigned(reference), args.starts)
    basin = [np.flatnonzero(result.sets[s] == 0) for s in own]
    inside = choose_starts([p[b] for p, b in zip(points, basin, strict=True)], args.starts)
    adverse = kept(place / f"adverse-{label}.npy", lambda: swarm_of([(k, int(basin[k][frame])) for k, frame in inside]))
    try:
        missed = estimate(assigned(adverse), INTERVAL, **settings)
        told, against = missed.verdict, compare(missed, assigned(reference), args.starts)
    except StarMDError as error:
        told, against = str(error), {}
    text = f"{table(rows, 'quantity')}\n\n{result.verdict} The lag is {result.lag:g} ps.\n\nFrom one basin: {told}"
    for row in against.values():  # its slowest process is another one, so that widths do not compare
        row.pop("plain MD for this width, ns", None)
        row.pop("saved", None)
    if against:
        text += f"\n\n{table(against, 'from one basin')}"
    lengths = {"reference, ns": np.prod(reference.shape[:2]) * INTERVAL / 1000, "swarm, ns": result.nanoseconds}
    return text, {"rows": rows, "verdict": result.verdict, "from one basin": told, "its rows": against} | lengths


def main():
    made = parser(__doc__, "refine")
    made.add_argument("--folder", type=Path, required=True, help="for trajectories; a stopped run goes on with them")
    made.add_argument("--molecules", nargs="+", default=["ace-A-nme", "DWGR"])
    made.add_argument("--model", default="starmd-peptide")
    made.add_argument("--reference-ns", type=float, default=200.0, help="of 16 replicas together")
    made.add_argument("--swarm-ns", type=float, default=12.8, help="of all starts together")
    made.add_argument("--starts", type=int, default=64, help="of the swarm")
    made.add_argument("--jumps", type=int, default=200, help="of 100 ps, of each replica of the learned run")
    made.add_argument("--replicas", type=int, default=16)
    args = made.parse_args()
    model = load_model(args.model, device="cpu")
    facts, sections, results = circumstances(model), {}, {}
    for name in args.molecules:
        sections[name], results[name] = study(args, name, model)
        print(f"\n## {name}\n\n{sections[name]}", flush=True)
        write(args.output, "Refined by molecular dynamics", facts, sections, results)


if __name__ == "__main__":
    main()
