"""Peptides, and a tiny model that knows them, for the tests of every room."""

import os
from functools import cache

if "PYTEST_XDIST_WORKER" in os.environ:  # workers would fight for the cores; read by what is imported next
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENMM_CPU_THREADS", "1")

import numpy as np
import pytest
import torch
from openmm import LangevinMiddleIntegrator, Platform, unit
from openmm.app import ForceField, HBonds, Modeller, Simulation
from torch.utils._python_dispatch import TorchDispatchMode

from openmm_starmd import StarMDModel
from openmm_starmd.model import Domain
from openmm_starmd.network.config import ModelConfig, NetworkConfig
from openmm_starmd.systems import build_peptide as build


@cache
def _peptide(sequence, n_cap, c_cap, variants):
    topology, positions = build(sequence, n_cap=n_cap, c_cap=c_cap, seed=1)
    if variants:
        by_residue = [None] * n_cap + [dict(variants).get(i) for i in range(len(sequence))] + [None] * c_cap
        modeller = Modeller(topology, positions)
        modeller.delete([a for a in topology.atoms() if a.element.symbol == "H" and by_residue[a.residue.index]])
        forcefield = ForceField("amber14/protein.ff14SB.xml")
        modeller.addHydrogens(forcefield, variants=by_residue, platform=Platform.getPlatform("Reference"))
        topology, positions = modeller.topology, modeller.positions
    return topology, np.array(positions.value_in_unit(unit.nanometer), dtype=np.float64)


@pytest.fixture(scope="session")
def build_peptide():
    """Function (sequence, n_cap=False, c_cap=False, variants=None) -> (topology, positions (A, 3) in nm, float64).

    ``variants`` maps positions in the sequence to names that `Modeller.addHydrogens` knows, such as ``{2: "HIE"}``.
    Every peptide is built once a session; the positions are a copy, the topology is shared.
    """

    def peptide(sequence, n_cap=False, c_cap=False, variants=None):
        topology, positions = _peptide(sequence, n_cap, c_cap, tuple(sorted((variants or {}).items())))
        return topology, positions.copy()

    return peptide


@pytest.fixture(scope="session")
def tiny_model():
    """An untrained model whose jumps are small steps about the last conformation."""
    network = NetworkConfig(blocks=1, width=32, pair_width=12, heads=2, query_points=2, value_points=2)
    domain = Domain(min_length=2, max_length=12, min_stride=10.0, max_stride=1000.0)
    model = StarMDModel.create(ModelConfig(network, denoising_steps=3, sampler="ancestral"), domain, seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # its heads start at zero, and the past would have no influence
        for parameter in model.denoiser.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    model.denoiser.step_scales[:, 0] = 0.003  # nm
    model.denoiser.step_scales[:, 1:] = 0.03  # rad
    return model


@pytest.fixture(scope="session")
def peptide(build_peptide):
    """Topology, positions and vacuum System of a minimised tripeptide."""
    topology, positions = build_peptide("ASG")
    system = ForceField("amber14/protein.ff14SB.xml").createSystem(topology, constraints=HBonds)
    platform = Platform.getPlatform("Reference")
    simulation = Simulation(topology, system, LangevinMiddleIntegrator(300, 1, 0.002), platform)
    simulation.context.setPositions(positions)
    simulation.minimizeEnergy(maxIterations=50)
    return topology, simulation.context.getState(positions=True).getPositions(asNumpy=True), system


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    """Every kind of device that is here."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return request.param


class NoWaiting(TorchDispatchMode):
    """Fails where a GPU would have to be waited for: numbers that the host looks at, or makes."""

    FORBIDDEN = (
        "_local_scalar_dense",
        "item",
        "nonzero",
        "masked_select",
        "equal",
        "is_nonzero",
        "lift_fresh",
        "unique",
        "_linalg_check_errors",
    )

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in self.FORBIDDEN, f"{name} makes the host wait for a GPU"
        if name == "index":
            assert not any(x is not None and x.dtype == torch.bool for x in args[1]), "a mask as an index"
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="session")
def no_waiting():
    """Context manager that fails where a GPU would have to be waited for."""
    return NoWaiting
