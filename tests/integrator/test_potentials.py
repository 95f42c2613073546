"""Potentials from outside OpenMM (`PythonForce`, OpenMM-Torch's `TorchForce`) act in relaxation and in dynamics."""

from importlib import metadata

import numpy as np
import openmm
import pytest
import torch
from packaging.requirements import Requirement

from openmm_starmd import HybridSchedule, Relaxation

SPRING, LENGTH, GROUP = 5000.0, 0.4, 7  # kJ/mol/nm^2, nm


class Potential(torch.nn.Module):
    """Harmonic energy (kJ/mol) of the distance between two atoms, in place of a learned potential."""

    def __init__(self, atoms):
        super().__init__()
        self.a, self.b, self.spring, self.length = int(atoms[0]), int(atoms[1]), SPRING, LENGTH

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        return 0.5 * self.spring * ((positions[self.a] - positions[self.b]).norm() - self.length).square()


def own_force(atoms):
    force = openmm.HarmonicBondForce()
    force.addBond(*map(int, atoms), LENGTH, SPRING)
    return force


def python_force(atoms):
    potential = Potential(atoms)

    def computation(state):
        x = torch.tensor(state.getPositions(asNumpy=True)._value, requires_grad=True)
        energy = potential(x)
        energy.backward()
        return energy.item(), -x.grad.numpy()

    return openmm.PythonForce(computation)


def torch_force(atoms):
    reason = "OpenMM-Torch is not installed, or its wheel does not import beside this OpenMM and this PyTorch"
    openmmtorch = pytest.importorskip("openmmtorch", reason=reason, exc_type=ImportError)
    for name in metadata.packages_distributions().get("openmmtorch", ()):
        for needed in map(Requirement, metadata.requires(name) or ()):
            if needed.name == "torch" and not needed.specifier.contains(torch.__version__, prereleases=True):
                pytest.skip(f"{name} is built for {needed}, and here is PyTorch {torch.__version__}")
    return openmmtorch.TorchForce(torch.jit.script(Potential(atoms)))


@pytest.fixture
def run(new_simulation, peptide):
    """Function (situation, new_force) -> positions (A, 3), distance (nm) of the atoms that are pulled, energy."""
    names = [(atom.residue.index, atom.name) for atom in peptide[0].atoms()]
    atoms = [names.index((0, "CA")), names.index((2, "CA"))]

    def of(situation, new_force=None):
        system = openmm.XmlSerializer.clone(peptide[2])
        if new_force:
            force = new_force(atoms)
            force.setForceGroup(GROUP)
            system.addForce(force)
        settings = {"relaxation": Relaxation(minimizationSteps=30, dynamicsSteps=0)}
        if situation == "physical segment":
            settings = {"schedule": HybridSchedule(learnedSteps=0, physicalSteps=1)}
            settings |= {"physicalIntegrator": openmm.VerletIntegrator(0.0005)}
        simulation = new_simulation(system=system, **settings)
        simulation.step(1 if situation == "relaxation" else 60)
        x = simulation.context.getState(positions=True).getPositions(asNumpy=True)._value
        energy = simulation.context.getState(energy=True, groups={GROUP}).getPotentialEnergy()._value
        return x, np.linalg.norm(x[atoms[0]] - x[atoms[1]]), energy

    return of


@pytest.mark.parametrize("new_force", [python_force, torch_force])
@pytest.mark.parametrize("situation", ["relaxation", "physical segment"])
def test_a_potential_from_outside_acts_as_one_of_openmm_does(run, situation, new_force):
    outside, own, free = (run(situation, force) for force in (new_force, own_force, None))
    assert free[1] - own[1] > 0.01  # nm: the pull is felt
    np.testing.assert_allclose(outside[0], own[0], atol=1e-4)
    assert outside[2] == pytest.approx(0.5 * SPRING * (outside[1] - LENGTH) ** 2, rel=1e-4)
