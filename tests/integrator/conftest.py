"""A tiny untrained model, whose jumps are small steps about the last conformation, and Simulations that use it."""

import pytest
import torch
from openmm import LangevinMiddleIntegrator, Platform
from openmm.app import ForceField, HBonds, Simulation

from openmm_starmd import Relaxation, StarMDIntegrator, StarMDModel
from openmm_starmd.model import Domain
from openmm_starmd.network.config import ModelConfig, NetworkConfig

QUICK = Relaxation(minimizationSteps=8, dynamicsSteps=10)


@pytest.fixture(scope="session")
def tiny_model():
    network = NetworkConfig(blocks=1, width=32, pair_width=12, heads=2, query_points=2, value_points=2)
    domain = Domain(min_length=2, max_length=12, min_stride=10.0, max_stride=1000.0)
    model = StarMDModel.create(ModelConfig(network, denoising_steps=3), domain, seed=1)
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


@pytest.fixture
def new_integrator(peptide, tiny_model):
    def create(model=tiny_model, temperature=300, stepSize=100, **settings):
        settings = {"relaxation": QUICK, "randomSeed": 7, "device": "cpu"} | settings
        return StarMDIntegrator(peptide[0], temperature, stepSize, model, **settings)

    return create


@pytest.fixture
def new_simulation(peptide, new_integrator):
    """Function (platform="Reference", integrator=None, system=None, **settings of the integrator) -> Simulation."""

    def create(platform="Reference", integrator=None, system=None, **settings):
        topology, positions, vacuum = peptide
        properties = {"Threads": "1"} if platform == "CPU" else {}
        integrator = integrator or new_integrator(**settings)
        simulation = Simulation(topology, system or vacuum, integrator, Platform.getPlatform(platform), properties)
        simulation.context.setPositions(positions)
        return simulation

    return create


@pytest.fixture
def snapshot():
    """Function (simulation) -> everything of its Context that a step may change, or must leave."""

    def take(simulation):
        state = simulation.context.getState(positions=True, velocities=True, parameters=True)
        return (
            state.getPositions(asNumpy=True)._value.tolist(),
            state.getVelocities(asNumpy=True)._value.tolist(),
            state.getTime()._value,
            state.getStepCount(),
            dict(state.getParameters()),
            [list(vector._value) for vector in state.getPeriodicBoxVectors()],
        )

    return take


@pytest.fixture
def seen_histories():
    """Function (integrator) -> list that grows by the number of context frames that each step is conditioned on."""

    def watch(integrator):
        seen, propagate = [], integrator._propagator.step

        def step(history, generator):
            seen.append(history.n_frames + history.dropped)
            return propagate(history, generator)

        integrator._propagator.step = step
        return seen

    return watch
