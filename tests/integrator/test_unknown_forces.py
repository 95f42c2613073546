"""What a System holds that the model was not trained with is said, once a Context."""

import warnings

import openmm
import pytest
from openmm import unit
from openmm.app import BiasVariable, CutoffNonPeriodic, ForceField, HBonds, Metadynamics, Simulation

from openmm_starmd import StarMDIntegrator
from openmm_starmd.binding.forces import unknownForces
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.systems import peptide_system

TRAINED = "amber14 ff14SB + OBC2"


@pytest.fixture(scope="module")
def molecule(build_peptide):
    topology, positions = build_peptide("AGVD")
    return topology, positions, ResidueTokens.from_topology(topology)


def system_of(topology, *files, **settings):
    return ForceField(*files).createSystem(topology, constraints=HBonds, **settings)


def told(molecule, system):
    return unknownForces(system, molecule[0], molecule[2], TRAINED)


def test_what_the_model_was_trained_with_is_not_told(molecule):
    topology = molecule[0]
    assert told(molecule, peptide_system(topology)) == []
    assert told(molecule, system_of(topology, "amber14-all.xml", "implicit/obc2.xml")) == []


@pytest.mark.parametrize("solvent", ["hct", "obc1", "gbn", "gbn2"])
def test_another_implicit_solvent_is_told(molecule, solvent):
    system = system_of(molecule[0], "amber14-all.xml", f"implicit/{solvent}.xml")
    assert told(molecule, system) == ["an implicit solvent other than OBC2"]


def test_vacuum_is_told(molecule):
    assert told(molecule, system_of(molecule[0], "amber14-all.xml")) == ["vacuum in place of OBC2"]


@pytest.mark.parametrize("name", ["amber99sb.xml", "amber14/protein.ff15ipq.xml", "amber19/protein.ff19SB.xml"])
def test_another_force_field_is_told(molecule, name):
    assert "a force field other than ff14SB" in told(molecule, system_of(molecule[0], name))


def test_short_cutoffs_are_told(molecule):
    settings = {"nonbondedMethod": CutoffNonPeriodic, "nonbondedCutoff": 0.4 * unit.nanometer}
    (short,) = told(molecule, system_of(molecule[0], "amber14-all.xml", "implicit/obc2.xml", **settings))
    assert "0.4 nm" in short
    settings["nonbondedCutoff"] = 1.0 * unit.nanometer
    assert told(molecule, system_of(molecule[0], "amber14-all.xml", "implicit/obc2.xml", **settings)) == []


def restraint(system):
    force = openmm.CustomExternalForce("500*x^2")
    force.setName("hold")
    force.addParticle(0)
    system.addForce(force)


def distance(system):
    force = openmm.HarmonicBondForce()
    force.addBond(0, system.getNumParticles() - 1, 0.6, 1000)
    system.addForce(force)


@pytest.mark.parametrize("add, name", [(restraint, "CustomExternalForce 'hold'"), (distance, "HarmonicBondForce")])
def test_restraints_are_told_once_a_context(new_simulation, peptide, add, name):
    system = openmm.XmlSerializer.clone(peptide[2])
    add(system)
    with pytest.warns(UserWarning) as seen:
        simulation = new_simulation(system=system)
        simulation.step(2)
    (warning,) = [str(w.message) for w in seen]
    assert name in warning and "relaxation" in warning


def test_metadynamics_is_told(new_simulation, peptide, tmp_path):
    system = openmm.XmlSerializer.clone(peptide[2])
    torsion = openmm.CustomTorsionForce("theta")
    torsion.addTorsion(0, 4, 6, 8)
    bias = BiasVariable(torsion, -3.14, 3.14, 0.3, True)
    Metadynamics(system, [bias], 300 * unit.kelvin, 5.0, 1.0, 10)
    with pytest.warns(UserWarning, match="CustomCVForce"):
        new_simulation(system=system)


def test_an_ordinary_system_is_silent(molecule):
    topology, positions, _ = molecule
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        integrator = StarMDIntegrator(topology, 298.15 * unit.kelvin, 100, "starmd-peptide", device="cpu")
        simulation = Simulation(topology, peptide_system(topology), integrator)
        simulation.context.setPositions(positions)
