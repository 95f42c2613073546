"""Make training MD, train. `train` and the dataset are imported when first used: they need more libraries."""

from openmm_starmd.errors import lazily
from openmm_starmd.training.simulate import coverage_sequences, simulate

_NAMES = {"TrainingConfig": "settings", "TrajectoryDataset": "dataset", "train": "fitting"}
__all__ = ["coverage_sequences", "simulate", *_NAMES]
__getattr__ = lazily(__name__, _NAMES, "train", "Training")
