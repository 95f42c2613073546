"""Quality of the samplers against their cost in calls of the network.

    python benchmarks/samplers.py reference_folder

The folder holds NAME.pdb and NAME.xtc of reference MD. Every row makes as many frames of each peptide by `Propagator`,
without relaxation, and is scored as in `quality.py`; means over the peptides. The first row is the reference sampler
with many steps: beside it stands the 95 % interval that resampling its replicas gives, and a row whose score lies
within is as good. "outside" counts the scores that do not.

Rows are named by sampler and steps, and by churn or time grid where these are not the sampler's own, or by a distilled
model and its steps. A call that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import matplotlib.pyplot as plt
import mdtraj
import numpy as np
import torch
from common import circumstances, parser, results_so_far, table, write
from matplotlib.ticker import NullFormatter, ScalarFormatter
from quality import Reference, Scorer, propagate

from openmm_starmd import StarMDModel, available_models, load_model
from openmm_starmd.diffusion.sampler import SAMPLERS
from openmm_starmd.evaluation.metrics import dihedrals
from openmm_starmd.evaluation.metrics.samples import percentile_interval
from openmm_starmd.protein.validity import STRAINED, check_positions

STRIDE = 100.0  # ps
DISTILLED = "starmd-peptide-fast"
ROWS = ["ancestral 200", *(f"multistep {n}" for n in (4, 5, 7, 8, 9, 10, 12, 15, 25))]
ROWS += [f"multistep 9 {c}" for c in ("churn 0.0", "churn 1.0", "churn 2.0", "grid 1.0", "grid 1.4")]
ROWS += [f"{DISTILLED} 4", *(f"ancestral {n}" for n in (4, 5, 10, 15, 25, 50)), "euler-maruyama 200"]
SCORES = ("JSD backbone", "JSD side chain", "JSD tICA-0", "hop rate difference", "hop rate", "validity")
COLOURS = {"ancestral": "tab:blue", "multistep": "tab:orange", "euler-maruyama": "tab:green", DISTILLED: "tab:red"}
N_RESAMPLES = 100
FEW = 4  # calls


def with_sampler(model: StarMDModel, name: str, steps: int) -> StarMDModel:
    """The same weights with another default sampler."""
    config = replace(model.config, sampler=name, denoising_steps=steps)
    return StarMDModel(model.denoiser, config, model.domain, model.card, model.name)


class Sampled:
    """Torsions and validity of every replica of one peptide."""

    def __init__(self, scorer: Scorer, reference: Reference, model: StarMDModel, options):
        chosen = {"stride": STRIDE, "frames": options.frames, "replicas": options.replicas, "denoising_steps": None}
        begin = time.process_time()
        positions, _ = propagate(reference, model, argparse.Namespace(seed=options.seed, **chosen))
        self.seconds = (time.process_time() - begin) / positions[..., 0, 0].size
        topology = reference.trajectory.topology
        self.angles = [
            dihedrals.measure_torsions(mdtraj.Trajectory(x.astype(np.float32), topology)).angles for x in positions
        ]
        checked = check_positions(torch.from_numpy(positions), reference.tokens, limits=STRAINED)
        self.scorer, self.valid = scorer, checked.passes_bioemu.double().mean(1).numpy()

    def scores(self, replicas) -> dict[str, float]:
        """Of some of the replicas."""
        angles = [self.angles[k] for k in replicas]
        scores = self.scorer.divergences(np.concatenate(angles)) | self.scorer.rates(angles)
        return scores | {"validity": float(self.valid[list(replicas)].mean())}


def mean_scores(peptides: list[Sampled], draws=None) -> dict[str, float]:
    """Mean over the peptides, of all replicas or of those drawn."""
    rows = [p.scores(range(len(p.angles)) if draws is None else draws) for p in peptides]
    return {name: float(np.mean([row[name] for row in rows])) for name in SCORES}


def intervals(peptides: list[Sampled], seed: int) -> dict[str, tuple[float, float]]:
    """95 % interval of each score over resampled replicas, centred: drawing replicas twice makes divergences grow."""
    rng, n, value = np.random.default_rng(seed), len(peptides[0].angles), mean_scores(peptides)
    rows = [mean_scores(peptides, rng.integers(n, size=n)) for _ in range(N_RESAMPLES)]
    found = {}
    for name in SCORES:
        draws = np.array([row[name] for row in rows])
        found[name] = tuple(map(float, percentile_interval(draws - draws.mean() + value[name])))
    return found


def draw(rows: dict[str, dict], path: Path):
    """Scores against calls of the network, the interval of the reference as a band; what lies far off is cut off."""
    reference = next(label for label in rows if label not in ("low", "high"))
    figure, axes = plt.subplots(2, 3, figsize=(10, 6), layout="constrained")
    for ax, name in zip(axes.flat, SCORES, strict=True):
        for kind, colour in COLOURS.items():
            of_kind = {label: (row["calls"], row[name]) for label, row in rows.items() if label.startswith(kind)}
            plain = [point for label, point in of_kind.items() if len(label.split()) == 2]
            if plain:
                ax.plot(*np.array(sorted(plain)).T, "o-", color=colour, label=kind)
            varied = [point for label, point in of_kind.items() if len(label.split()) > 2]
            if varied:
                ax.plot(*np.array(varied).T, "x", color=colour, label=f"{kind}, churn or grid varied")
        ax.axhspan(rows["low"][name], rows["high"][name], color="0.85", label=f"95 % of {reference}")
        shown = [row[name] for row in rows.values() if row.get("calls", math.inf) >= FEW] + [rows["low"][name]]
        margin = 0.1 * (max(shown) - min(shown)) or 0.1
        ax.set(xscale="log", xlabel="network calls a frame", title=name)
        ax.set(ylim=(min(shown) - margin, max(shown) + margin))
        ax.set_xticks([5, 10, 20, 50, 100, 200])
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_formatter(NullFormatter())
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def arguments(doc: str, name: str, rows: list[str], replicas: int) -> argparse.Namespace:
    """The command line of a script that scores variants of a model against reference MD."""
    made = parser(doc, name)
    made.add_argument("reference", type=Path, help="folder with NAME.pdb and NAME.xtc")
    made.add_argument("--model", default="starmd-peptide", help="embedded name or path")
    made.add_argument("--frames", type=int, default=2000, help="of each peptide, all replicas together")
    made.add_argument("--replicas", type=int, default=replicas, help="at least 2")
    made.add_argument("--rows", nargs="+", default=rows, help="variants; the first is the reference")
    return made.parse_args()


def _others(options) -> list[StarMDModel]:
    """Models beside --model that rows are named by."""
    names = {label.split()[0] for label in options.rows} & set(available_models())
    return [load_model(name, "cpu") for name in sorted(names)]


def compare(options, title: str, corner: str, sample, **facts) -> dict[str, dict]:
    """Scores of every row beside the interval of the first; written after each.

    ``sample(label, sampled)`` returns ``sampled(model)`` for the model of a row, and further columns.
    """
    torch.set_num_threads(options.threads)
    paths = [path for path in sorted(options.reference.glob("*.pdb")) if path.with_suffix(".xtc").exists()]
    references = [Reference.load(path) for path in paths]
    scorers = [Scorer(reference, STRIDE, options.seed) for reference in references]
    models = [load_model(options.model, "cpu"), *_others(options)]
    facts = circumstances(*models, peptides=", ".join(r.name for r in references), frames=options.frames, **facts)

    def sampled(model: StarMDModel) -> list[Sampled]:
        return [Sampled(j, r, model, options) for j, r in zip(scorers, references, strict=True)]

    rows = results_so_far(options.output, facts)
    if rows:
        limits = {name: (rows["low"][name], rows["high"][name]) for name in SCORES}
    for label in (label for label in options.rows if label not in rows):
        peptides, more = sample(label, sampled)
        scores = mean_scores(peptides)
        if not rows:
            limits = intervals(peptides, options.seed)
            rows = {"low": {n: limits[n][0] for n in SCORES}, "high": {n: limits[n][1] for n in SCORES}}
        outside = sum(not limits[n][0] <= scores[n] <= limits[n][1] for n in SCORES)
        cost = {"CPU ms a frame": 1000 * float(np.mean([p.seconds for p in peptides]))}
        rows[label] = scores | {"outside": outside} | more | cost
        print(label, rows[label], flush=True)
        write(options.output, title, facts, {"": table(rows, corner)}, rows)
    return rows


def main() -> None:
    options = arguments(__doc__, "samplers", ROWS, 32)
    model = load_model(options.model, "cpu")

    def sample(label: str, sampled):
        name, steps, *varied = label.split()
        if name not in SAMPLERS:
            distilled = load_model(name, "cpu")
            return sampled(with_sampler(distilled, distilled.config.sampler, int(steps))), {"calls": int(steps)}
        varied = {key: float(value) for key, value in zip(varied[::2], varied[1::2], strict=True)}
        with patch.dict(SAMPLERS, {name: type(name, (SAMPLERS[name],), varied)}):
            return sampled(with_sampler(model, name, int(steps))), {"calls": int(steps)}

    draw(compare(options, "Samplers", "sampler, steps", sample), options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
