"""Quality and cost of the window: how many past frames, with the first of the run kept or not?

    python benchmarks/context.py reference_folder --output context

The folder holds NAME.pdb and NAME.xtc of reference MD. Every row makes as many frames of each peptide by `Propagator`,
without relaxation, and is scored as in `samplers.py`; means over the peptides. Rows are named by the frames of the
window, "full" for all of the run, and by how many of them are the first of the run. The first row is the reference:
beside it stands the 95 % interval that resampling its replicas gives; "outside" counts the scores that do not lie
within.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import circumstances, parser, table, write
from quality import Judge, Reference
from samplers import SCORES, STRIDE, Sampled, intervals, mean_scores

from openmm_starmd import StarMDModel, load_model

ROWS = ["3", "1", "2", "3 sinks 1", "8", "8 sinks 1", "full"]


def with_window(model: StarMDModel, label: str, frames: int) -> StarMDModel:
    """The same weights with the window of a row, in runs of so many frames."""
    length, _, sinks = label.partition(" sinks ")
    length = frames + 1 if length == "full" else int(length)
    config = replace(model.config, context_frames=length, sink_frames=int(sinks or 0))
    return StarMDModel(model.denoiser, config, model.domain, model.card, model.name)


def main() -> None:
    made = parser(__doc__, "context")
    made.add_argument("reference", type=Path, help="folder with NAME.pdb and NAME.xtc")
    made.add_argument("--model", default="starmd-peptide", help="embedded name or path")
    made.add_argument("--frames", type=int, default=2000, help="of each peptide, all replicas together")
    made.add_argument("--replicas", type=int, default=8, help="at least 2; few, so that runs are long")
    made.add_argument("--rows", nargs="+", default=ROWS, help='windows, as "3 sinks 1"; the first is the reference')
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    model, length = load_model(options.model, "cpu"), math.ceil(options.frames / options.replicas)
    paths = [path for path in sorted(options.reference.glob("*.pdb")) if path.with_suffix(".xtc").exists()]
    references = [Reference.load(path) for path in paths]
    judges = [Judge(reference, STRIDE, options.seed) for reference in references]
    facts = circumstances(peptides=", ".join(r.name for r in references), frames=options.frames)
    facts["frames of a run"], rows = length, {}
    for label in options.rows:
        chosen = with_window(model, label, length)
        peptides = [Sampled(j, r, chosen, options) for j, r in zip(judges, references, strict=True)]
        scores = mean_scores(peptides)
        if not rows:
            limits = intervals(peptides, options.seed)
            rows = {"low": {n: limits[n][0] for n in SCORES}, "high": {n: limits[n][1] for n in SCORES}}
        outside = sum(not limits[n][0] <= scores[n] <= limits[n][1] for n in SCORES)
        seconds = float(np.mean([p.seconds for p in peptides]))
        rows[label] = scores | {"outside": outside, "CPU ms a frame": 1000 * seconds}
        print(label, rows[label], flush=True)
        write(options.output, "Context", facts, {"": table(rows, "window")}, rows)


if __name__ == "__main__":
    main()
