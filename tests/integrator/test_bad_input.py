"""Bad input gets one clear error, before anything of the Context has changed."""

import copy
import pickle

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit

from openmm_starmd import (
    HybridSchedule,
    ModelDomainError,
    Propagator,
    Relaxation,
    StarMDError,
    StarMDIntegrator,
    UnsupportedTopologyError,
    rollout,
)
from openmm_starmd.binding.context import refuseOtherMolecules
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.protein.validity import check_positions


def test_positions_not_set(peptide, new_integrator):
    integrator = new_integrator()
    context = openmm.Context(peptide[2], integrator, openmm.Platform.getPlatform("Reference"))
    for move in (integrator.step, integrator.stepPhysical):
        with pytest.raises(StarMDError, match="setPositions"):
            move(1)
    assert context.getStepCount() == 0 and context.getTime()._value == 0


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_positions_not_finite(new_simulation, snapshot, poison):
    simulation = new_simulation()
    simulation.step(1)
    positions = simulation.context.getState(positions=True).getPositions(asNumpy=True)._value
    positions[3, 1] = poison
    simulation.context.setPositions(positions)
    before = snapshot(simulation)
    with pytest.raises(StarMDError, match="the first: 3"):
        simulation.step(1)
    np.testing.assert_equal(snapshot(simulation), before)


@pytest.mark.parametrize("factor, told", [(10, "ten times too large: Angstrom"), (0.1, "ten times too small")])
def test_positions_in_the_wrong_unit(new_simulation, peptide, snapshot, factor, told):
    simulation = new_simulation(strict=False)
    simulation.context.setPositions(factor * peptide[1])
    before = snapshot(simulation)
    with pytest.raises(StarMDError, match=f"{told}.*Numbers without a unit are nm"):
        simulation.step(1)
    assert snapshot(simulation) == before


def test_topology_and_system_of_different_size(peptide, new_integrator):
    topology, _, system = peptide
    longer = openmm.XmlSerializer.clone(system)
    longer.addParticle(1.0)
    integrator = new_integrator()
    n = topology.getNumAtoms()
    with pytest.raises(ValueError, match=f"{n} atoms, but the System {n + 1}"):
        openmm.Context(longer, integrator)
    openmm.Context(system, integrator, openmm.Platform.getPlatform("Reference"))  # the integrator is still free


def test_no_protein(tiny_model):
    topology = app.Topology()
    topology.addAtom("NA", app.element.sodium, topology.addResidue("NA", topology.addChain()))
    with pytest.raises(UnsupportedTopologyError, match="(?i)protein"):
        StarMDIntegrator(topology, 300, 100, tiny_model)


def _renamed(topology, positions, residue_name=None, delete=None):
    modeller = app.Modeller(copy.deepcopy(topology), positions * unit.nanometer)
    if delete:
        modeller.delete([atom for atom in modeller.topology.atoms() if (atom.residue.index, atom.name) == delete])
    copied = modeller.topology
    if residue_name:
        list(copied.residues())[1].name = residue_name
    return copied


def test_unknown_residue(build_peptide, tiny_model):
    topology = _renamed(*build_peptide("ASG"), residue_name="XYZ")
    with pytest.raises(UnsupportedTopologyError, match="XYZ"):
        StarMDIntegrator(topology, 300, 100, tiny_model)


def test_missing_backbone_atom(build_peptide, tiny_model):
    topology = _renamed(*build_peptide("ASG"), delete=(1, "CA"))
    with pytest.raises(UnsupportedTopologyError, match="CA"):
        StarMDIntegrator(topology, 300, 100, tiny_model)


@pytest.mark.parametrize(
    "settings, told",
    [({"temperature": 500}, "500 K"), ({"stepSize": 5}, "5 ps"), ({"stepSize": 2 * unit.nanoseconds}, "2000 ps")],
)
def test_temperature_and_stride_outside_the_domain(new_integrator, settings, told):
    with pytest.raises(ModelDomainError, match=told):
        new_integrator(**settings)
    with pytest.warns(UserWarning, match=told):
        new_integrator(**settings, strict=False)


@pytest.mark.parametrize("settings", [{"temperature": "300"}, {"stepSize": "100"}])
def test_a_text_is_no_number(new_integrator, settings):
    with pytest.raises(ValueError, match="expected a number in .* got '"):
        new_integrator(**settings)


def test_d_residues_are_outside_of_the_domain_and_stay_what_they_are(new_simulation, peptide):
    simulation = new_simulation()
    simulation.context.setPositions(-peptide[1])
    with pytest.raises(ModelDomainError, match="A:.* has the D configuration"):
        simulation.step(1)
    simulation = new_simulation(strict=False)
    simulation.context.setPositions(-peptide[1])
    with pytest.warns(UserWarning, match="has the D configuration"):
        simulation.step(1)
    simulation.step(2)
    tokens = ResidueTokens.from_topology(peptide[0])
    positions = simulation.context.getState(positions=True).getPositions(asNumpy=True)._value
    mirror = check_positions(torch.from_numpy(-positions), tokens)
    assert not mirror.inversions and check_positions(torch.from_numpy(positions), tokens).inversions


def test_length_outside_the_domain(build_peptide, tiny_model):
    topology, _ = build_peptide("A" * 13)
    with pytest.raises(ModelDomainError, match="13"):
        StarMDIntegrator(topology, 300, 100, tiny_model)


def test_a_new_stride_outside_the_domain_changes_nothing(new_simulation):
    simulation = new_simulation()
    with pytest.raises(ModelDomainError):
        simulation.integrator.setStepSize(5000)
    assert simulation.integrator.getStepSize() == 100 * unit.picoseconds


@pytest.mark.parametrize("value", [0, float("nan"), float("inf")])
def test_a_new_stride_or_temperature_that_is_none_changes_nothing(new_simulation, value):
    integrator = new_simulation(strict=False).integrator
    for change in (integrator.setStepSize, integrator.setTemperature):
        with pytest.raises(ValueError, match="and finite; got"):
            change(value)
    assert (integrator.getStepSize()._value, integrator.getTemperature()._value) == (100, 300)


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"stepSize": 0}, "stepSize"),
        ({"stepSize": -10 * unit.picoseconds}, "stepSize"),
        ({"stepSize": float("nan"), "strict": False}, "stepSize must be above 0 ps and finite; got nan ps"),
        ({"stepSize": float("inf"), "strict": False}, "stepSize must be above 0 ps and finite; got inf ps"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": float("inf"), "strict": False}, "temperature must be above 0 K and finite; got inf K"),
        ({"randomSeed": 2**31}, "randomSeed"),
        ({"relaxation": "minimize"}, "relaxation"),
    ],
)
def test_settings_out_of_range(new_integrator, settings, told):
    with pytest.raises(ValueError, match=told):
        new_integrator(**settings)


NO_WHOLE_NUMBERS = -1, 1.5, float("nan"), float("inf"), "two", [2], True, 2 * unit.picosecond


@pytest.mark.parametrize("value", NO_WHOLE_NUMBERS, ids=str)
@pytest.mark.parametrize(
    "setting, smallest",
    [("contextFrames", 1), ("denoisingSteps", 1), ("maxRetries", 0), ("randomSeed", 0), ("biasCandidates", 1)],
)
def test_whole_numbers_are_asked_for_when_it_is_made(new_integrator, setting, smallest, value):
    with pytest.raises(ValueError, match=f"^{setting} must be an integer of at least {smallest}, not "):
        new_integrator(**{setting: value})
    assert new_integrator(**{setting: 1.0}) is not None


@pytest.mark.parametrize("value", [None, 0])
@pytest.mark.parametrize("setting", ["context_frames", "denoising_steps"])
def test_none_is_the_models_own_and_0_is_not(tiny_model, peptide, setting, value):
    tokens = ResidueTokens.from_topology(peptide[0])
    if value is None:
        assert Propagator(tiny_model, tokens, 100, 300, **{setting: None}).context_frames
    else:
        with pytest.raises(ValueError, match=f"{setting} must be an integer of at least 1, not 0"):
            Propagator(tiny_model, tokens, 100, 300, **{setting: value})


@pytest.mark.parametrize("seed", [None, "a", 1.5, -1])
def test_a_seed_that_is_none_changes_nothing(new_simulation, seed):
    simulation = new_simulation(randomSeed=7)
    with pytest.raises(ValueError, match="randomSeed must be an integer of at least 0, not "):
        simulation.integrator.setRandomNumberSeed(seed)
    assert simulation.integrator.getRandomNumberSeed() == 7


@pytest.mark.parametrize("steps", [*NO_WHOLE_NUMBERS, None], ids=str)
def test_steps_that_are_no_number_of_steps(new_simulation, snapshot, steps):
    simulation = new_simulation()
    before = snapshot(simulation)
    for move in (simulation.integrator.step, simulation.integrator.stepPhysical):
        with pytest.raises(ValueError, match="steps must be an integer of at least 0, not "):
            move(steps)
    assert snapshot(simulation) == before


@pytest.mark.parametrize("value", [*NO_WHOLE_NUMBERS, None], ids=str)
def test_a_schedule_of_what_are_no_steps(value):
    for name in ("learnedSteps", "physicalSteps"):
        with pytest.raises(ValueError, match=f"{name} must be an integer of at least 0, not "):
            HybridSchedule(**{"learnedSteps": 1, "physicalSteps": 1, name: value})


def test_units_of_the_wrong_kind(new_integrator):
    with pytest.raises(TypeError, match="expected a Quantity in picosecond or the like; got 100 K"):
        new_integrator(stepSize=100 * unit.kelvin)


@pytest.mark.parametrize("size", ["1 fs", None, [100], b"100 ps"])
def test_what_is_no_number_is_refused_with_the_unit(new_integrator, size):
    with pytest.raises(ValueError, match="expected a number in picosecond, or a Quantity; got"):
        new_integrator(stepSize=size)


def test_a_gap_that_a_reader_bonded_over_is_said_before_a_minimisation_closes_it(tiny_model, peptide):
    topology = copy.deepcopy(peptide[0])
    for residue in list(topology.residues())[2:]:
        residue.id = str(int(residue.id) + 1)
    integrator = StarMDIntegrator(topology, 300, 100, tiny_model)
    with pytest.warns(UserWarning, match="Residue numbers jump from .*, but the Topology bonds"):
        openmm.Context(peptide[2], integrator, openmm.Platform.getPlatform("Reference"))


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"mode": "anneal"}, "mode"),
        ({"minimizationSteps": -1}, "minimizationSteps must be an integer of at least 0, not -1"),
        ({"dynamicsSteps": 0.5}, "dynamicsSteps must be an integer of at least 0, not 0.5"),
        ({"dynamicsSteps": None}, "dynamicsSteps must be an integer of at least 0, not None"),
        ({"steeringSteps": "a"}, "steeringSteps must be an integer of at least 0, not 'a'"),
        ({"restraintConstant": -1}, "restraintConstant"),
        ({"timeStep": 0}, "timeStep"),
        ({"timeStep": 2}, r"at most 0.01 ps, .*; got 2 ps \(a number without a unit is in ps\)"),
        ({"timeStep": 11 * unit.femtoseconds}, "at most 0.01 ps, .*; got 0.011 ps"),
        ({"timeStep": float("nan")}, "timeStep"),
        ({"friction": 0}, "friction"),
    ],
)
def test_relaxation_out_of_range(settings, told):
    with pytest.raises(ValueError, match=told):
        Relaxation(**settings)


def test_model_missing(new_integrator):
    with pytest.raises(StarMDError, match="no-such-model"):
        new_integrator(model="no-such-model")


def test_model_file_damaged(new_integrator, tiny_model, tmp_path):
    whole, cut, pickled = (tmp_path / name for name in ("whole.safetensors", "cut.safetensors", "pickled.pt"))
    tiny_model.save(whole)
    cut.write_bytes(whole.read_bytes()[:2000])
    pickled.write_bytes(pickle.dumps({"weights": [1.0]}))
    new_integrator(model=str(whole))
    for path in (cut, pickled):
        with pytest.raises(StarMDError, match=path.name):
            new_integrator(model=str(path))


def test_a_gpu_where_there_is_none(new_integrator, tiny_model, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    tiny_model.save(tmp_path / "model.safetensors")
    for model in (tiny_model, tmp_path / "model.safetensors"):
        with pytest.raises(StarMDError, match="cuda"):
            new_integrator(model=model, device="cuda")


def beside(topology, name, *atoms):
    """Topology with one molecule more, of atoms of these elements in a row; None is a virtual site."""
    topology = copy.deepcopy(topology)
    residue, last = topology.addResidue(name, topology.addChain()), None
    for number, symbol in enumerate(atoms):
        element = symbol and app.Element.getBySymbol(symbol)
        atom = topology.addAtom(f"{symbol}{number}", element, residue)
        if last and element:
            topology.addBond(last, atom)
        last = atom
    return topology


@pytest.mark.parametrize(
    "name, atoms, told",
    [
        *((name, ("H", "O", "H", None), rf"water \({name}\)") for name in ("HOH", "WAT", "TIP3", "SOL", "T4P")),
        ("ZN", ["Zn"], "ZN"),
        ("NA", ["Na"], "NA"),
        ("LIG", "CCON", "LIG"),
        ("POPC", "CCCCCCPO", "POPC"),
        ("ACE", "CCO", "ACE"),  # bonded to nothing
    ],
)
def test_other_molecules_are_refused_by_name_but_for_steering(build_peptide, tiny_model, tmp_path, name, atoms, told):
    topology, positions = build_peptide("ASG", True, True)
    topology = beside(topology, name, *atoms)
    positions = np.concatenate([positions, [[9.0, 9.0, 9.0]] * (topology.getNumAtoms() - len(positions))])
    options = {"stride": 100, "n_steps": 1, "output": tmp_path / "run"}
    for call in (
        lambda: StarMDIntegrator(topology, 300, 100, tiny_model),
        lambda: StarMDIntegrator(topology, 300, 100, tiny_model, relaxation=None),
        lambda: StarMDIntegrator(topology, 300, 100, "elastic"),
        lambda: rollout(tiny_model, topology, positions, **options),
    ):
        message = rf"holds {told} beside the protein \(the first is residue {name} 6 of chain 2\).*prepare.*steer"
        with pytest.raises(UnsupportedTopologyError, match=message):
            call()
    assert not (tmp_path / "run").exists()
    StarMDIntegrator(topology, 300, 100, tiny_model, relaxation=Relaxation(mode="steer"))


def test_several_kinds_of_molecules_are_told_together(build_peptide):
    topology = beside(beside(beside(build_peptide("ASG")[0], "ZN", "Zn"), "HOH", "H", "O", "H"), "ZN", "Zn")
    with pytest.raises(UnsupportedTopologyError, match=r"holds ZN, water \(HOH\) beside .* first is residue ZN 4 "):
        refuseOtherMolecules(topology)


def amidated(topology):
    """The Topology with NH2 in place of NME."""
    topology = copy.deepcopy(topology)
    modeller = app.Modeller(topology, [(0, 0, 0)] * topology.getNumAtoms() * unit.nanometer)
    modeller.delete([a for a in topology.atoms() if a.residue.name == "NME" and a.name in ("C", "H1", "H2", "H3")])
    for residue in modeller.topology.residues():
        residue.name = {"NME": "NH2"}.get(residue.name, residue.name)
    return modeller.topology


def test_whatever_counts_as_protein_is_no_other_molecule(build_peptide):
    """Several chains, caps, disulfides, names of other programs, and virtual sites."""
    capped, positions = build_peptide("ACDHE", True, True, variants={3: "HIP"})
    modeller = app.Modeller(capped, positions * unit.nanometer)
    for topology, others in (build_peptide("GA"), build_peptide("CA", False, True)):
        modeller.add(topology, others * unit.nanometer)
    renamed = copy.deepcopy(capped)
    for residue in renamed.residues():
        residue.name = {"HIS": "HSP", "ASP": "ASPP", "ALA": "NALA", "NME": "NMA"}.get(residue.name, residue.name)
    for topology in (capped, modeller.topology, renamed, amidated(capped), beside(capped, "SITE", None)):
        refuseOtherMolecules(topology)


def test_drude_particles(peptide, new_integrator):
    system = openmm.XmlSerializer.clone(peptide[2])
    system.addForce(openmm.DrudeForce())
    with pytest.raises(UnsupportedTopologyError, match="Drude"):
        openmm.Context(system, new_integrator())


def test_frozen_protein_atoms(peptide, new_integrator):
    system = openmm.XmlSerializer.clone(peptide[2])
    while system.getNumConstraints():
        system.removeConstraint(0)
    system.setParticleMass(4, 0)
    with pytest.raises(UnsupportedTopologyError, match="mass 0"):
        openmm.Context(system, new_integrator())


def test_the_topology_comes_first(peptide):
    with pytest.raises(ValueError, match=r"Topology of the System comes first: StarMDIntegrator\(topology"):
        StarMDIntegrator(300 * unit.kelvin, 1 / unit.picosecond, 2 * unit.femtoseconds)


def test_a_length_outside_is_told_before_water(build_peptide, tiny_model):
    """What is solvated in vain should not be sent to another mode of relaxation first."""
    topology, _ = build_peptide("A" * 13)
    solvated = copy.deepcopy(topology)
    water = solvated.addResidue("HOH", solvated.addChain())
    for name in ("O", "H1", "H2"):
        solvated.addAtom(name, app.Element.getBySymbol(name[0]), water)
    with pytest.raises(ModelDomainError, match="13"):
        StarMDIntegrator(solvated, 300, 100, tiny_model)


def test_one_reason_is_allowed_and_the_others_stay(build_peptide, tiny_model):
    topology, _ = build_peptide("A" * 13)
    with pytest.warns(UserWarning, match="13"):
        StarMDIntegrator(topology, 300, 100, tiny_model, strict={"length": False})
    with pytest.warns(UserWarning, match="13"), pytest.raises(ModelDomainError, match="400 K"):
        StarMDIntegrator(topology, 400, 100, tiny_model, strict={"length": False})
