"""openmm-starmd: a learned integrator for OpenMM.

Public names are imported when they are first used, so that ``import openmm_starmd`` alone loads neither PyTorch nor
OpenMM.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openmm_starmd.binding.schedule import HybridSchedule
    from openmm_starmd.domain import Domain
    from openmm_starmd.errors import (
        HistoryError,
        JumpRejectedError,
        ModelDomainError,
        StarMDError,
        UnsupportedTopologyError,
    )
    from openmm_starmd.integrator import StarMDIntegrator
    from openmm_starmd.interface import JumpPropagator
    from openmm_starmd.model import StarMDModel, available_models, choose_model, load_model
    from openmm_starmd.plugins import available_propagators, load_propagator
    from openmm_starmd.propagator import Propagator
    from openmm_starmd.relaxation import Relaxation
    from openmm_starmd.reporters import StarMDReporter, resume
    from openmm_starmd.rollout import rollout

__version__ = "0.1.0"

__all__ = [
    "Domain",
    "HistoryError",
    "HybridSchedule",
    "JumpPropagator",
    "JumpRejectedError",
    "ModelDomainError",
    "Propagator",
    "Relaxation",
    "StarMDError",
    "StarMDIntegrator",
    "StarMDModel",
    "StarMDReporter",
    "UnsupportedTopologyError",
    "available_models",
    "available_propagators",
    "choose_model",
    "load_model",
    "load_propagator",
    "resume",
    "rollout",
]

_MODULE_OF = {
    "Domain": "domain",
    "HybridSchedule": "binding.schedule",
    "StarMDIntegrator": "integrator",
    "StarMDModel": "model",
    "available_models": "model",
    "choose_model": "model",
    "load_model": "model",
    "JumpPropagator": "interface",
    "available_propagators": "plugins",
    "load_propagator": "plugins",
    "Propagator": "propagator",
    "Relaxation": "relaxation",
    "StarMDReporter": "reporters",
    "resume": "reporters",
    "rollout": "rollout",
}


class _Package(ModuleType):
    """The package, whose attribute ``rollout`` is the function even after the folder of that name is imported."""

    def __getattr__(self, name):
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_MODULE_OF.get(name, 'errors')}"), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name, value):
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self):
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
