"""Make training MD, read it, train. Names are imported when first used: each part needs only its own libraries."""

from importlib import import_module

_NAMES = {
    "TrainingConfig": "config",
    "TrajectoryDataset": "dataset",
    "build_peptide": "build",
    "coverage_sequences": "simulate",
    "peptide_system": "simulate",
    "train": "loop",
}
__all__ = sorted(_NAMES)


def __getattr__(name):
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
