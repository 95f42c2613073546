"""Make training MD, read it, train. `train` and the dataset are imported when first used: they need more libraries."""

from importlib import import_module

from openmm_starmd.training.build import build_peptide
from openmm_starmd.training.simulate import coverage_sequences, peptide_system, simulate

_NAMES = {
    "TrainingConfig": "config",
    "TrajectoryDataset": "dataset",
    "ATLAS": "sources",
    "Files": "sources",
    "Folder": "sources",
    "MdCATH": "sources",
    "train": "fitting",
}
__all__ = ["build_peptide", "coverage_sequences", "peptide_system", "simulate", *_NAMES]


def __getattr__(name):
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
