"""Make training MD, train. `train` and the dataset are imported when first used: they need more libraries."""

from importlib import import_module

from openmm_starmd.errors import extra
from openmm_starmd.training.simulate import coverage_sequences, simulate

_NAMES = {"TrainingConfig": "config", "TrajectoryDataset": "dataset", "train": "fitting"}
__all__ = ["coverage_sequences", "simulate", *_NAMES]


def __getattr__(name):
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with extra("train", "Training"):
        return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
