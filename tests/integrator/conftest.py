"""Simulations of a peptide with the tiny model."""

import pytest
from openmm import Platform
from openmm.app import Simulation

from openmm_starmd import Relaxation, StarMDIntegrator

QUICK = Relaxation(minimizationSteps=8, dynamicsSteps=10)


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
def goes_on(snapshot, tmp_path):
    """Function (whole, rest, way, steps, more): ``rest`` ends as ``whole`` from its Checkpoint or State in mid-run."""

    def check(whole, rest, way, steps, more):
        whole.step(steps)
        getattr(whole, f"save{way}")(str(tmp_path / "saved"))
        whole.step(more)
        getattr(rest, f"load{way}")(str(tmp_path / "saved"))
        rest.step(more)
        assert snapshot(rest) == snapshot(whole)

    return check


@pytest.fixture
def seen_windows():
    """Function (integrator, of=None) -> list that grows by the history, or what is asked ``of`` it, of each step."""

    def watch(integrator, of=lambda history: history):
        seen, propagate = [], integrator._propagator.step

        def step(history, generator):
            seen.append(of(history))
            return propagate(history, generator)

        integrator._propagator.step = step
        return seen

    return watch


@pytest.fixture
def seen_histories(seen_windows):
    """Function (integrator) -> list that grows by the number of past frames that each step comes after."""
    return lambda integrator: seen_windows(integrator, lambda history: history.n_frames + history.dropped)
