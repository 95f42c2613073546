"""Quality and cost of windows of past frames.

    python benchmarks/context.py reference_folder

The folder holds NAME.pdb and NAME.xtc of reference MD. Every row makes as many frames of each peptide by `Propagator`,
without relaxation, and is scored as in `samplers.py`; means over the peptides. Rows are named by the frames of the
window, "full" for all of the run. The first row is the reference: beside it stands the 95 % interval that resampling
its replicas gives; "outside" counts the scores that do not lie within.
"""

from __future__ import annotations

import math
from dataclasses import replace

from samplers import arguments, compare

from openmm_starmd import StarMDModel, load_model

ROWS = ["3", "1", "2", "8", "full"]


def with_window(model: StarMDModel, label: str, frames: int) -> StarMDModel:
    """The same weights with the window of a row, in runs of so many frames."""
    config = replace(model.config, context_frames=frames + 1 if label == "full" else int(label))
    return StarMDModel(model.denoiser, config, model.domain, model.card, model.name)


def main() -> None:
    options = arguments(__doc__, "context", ROWS, 8)  # few replicas, so that runs are long
    model, length = load_model(options.model, "cpu"), math.ceil(options.frames / options.replicas)

    def sample(label: str, sampled):
        return sampled(with_window(model, label, length)), {}

    compare(options, "Context", "window", sample, **{"frames of a run": length})


if __name__ == "__main__":
    main()
