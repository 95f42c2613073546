"""openmm-starmd: a learned integrator for OpenMM.

Importing the package lets every `openmm.Context` tell a `StarMDIntegrator` its System and itself; see
`openmm_starmd.integrator`.
"""

from openmm_starmd.binding.schedule import HybridSchedule
from openmm_starmd.integrator import StarMDIntegrator
from openmm_starmd.interface import JumpPropagator
from openmm_starmd.model import StarMDModel, available_models, choose_model, load_model
from openmm_starmd.plugins import available_propagators, load_propagator
from openmm_starmd.propagator import Propagator
from openmm_starmd.protein.errors import (
    HistoryError,
    JumpRejectedError,
    ModelDomainError,
    StarMDError,
    UnsupportedTopologyError,
)
from openmm_starmd.relaxation import Relaxation
from openmm_starmd.reporters import StarMDReporter, resume
from openmm_starmd.rollout import rollout

__version__ = "0.1.0"

__all__ = [
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
