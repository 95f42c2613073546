"""Checkpoints, States and copies: a continued run is the run that was never interrupted, bit for bit."""

import copy
import pickle
from dataclasses import fields

import openmm
import pytest
import torch
from openmm import app, unit

from openmm_starmd import HistoryError, StarMDError, StarMDIntegrator, StarMDModel
from openmm_starmd.network.config import ModelConfig, NetworkConfig, ProcessConfig
from openmm_starmd.protein.tokens import ResidueTokens

CONTINUE = {
    "checkpoint": ("saveCheckpoint", "loadCheckpoint"),
    "state": ("saveState", "loadState"),
}


@pytest.mark.parametrize("cut, platform", [(1, "CPU"), (4, "Reference")])
@pytest.mark.parametrize("way", CONTINUE)
def test_a_fresh_simulation_continues_bit_for_bit(new_simulation, snapshot, tmp_path, platform, cut, way):
    """Cut while the window of three frames grows, and after frames have left it; without a seed it is the State's."""
    save, load = CONTINUE[way]
    whole = new_simulation(platform)
    whole.step(cut)
    getattr(whole, save)(str(tmp_path / "saved"))
    whole.step(2)
    rest = new_simulation(platform, randomSeed=0)
    getattr(rest, load)(str(tmp_path / "saved"))
    rest.step(2)
    assert snapshot(rest) == snapshot(whole)
    assert rest.integrator.getRandomNumberSeed() == 7


SETTINGS = [("network", f.name) for f in fields(NetworkConfig)] + [("process", f.name) for f in fields(ProcessConfig)]
SETTINGS += [("", f.name) for f in fields(ModelConfig) if f.name not in ("network", "process")]


@pytest.mark.parametrize(("part", "name"), SETTINGS, ids=map(".".join, SETTINGS))
def test_every_setting_belongs_to_the_identity(tiny_model, peptide, part, name):
    tokens, config = ResidueTokens.from_topology(peptide[0]), copy.deepcopy(tiny_model.config)
    same = StarMDModel(tiny_model.denoiser, ModelConfig.from_dict(config.to_dict()), tiny_model.domain, "card", "name")
    assert same.identity(tokens) == tiny_model.identity(tokens)
    object.__setattr__(getattr(config, part) if part else config, name, "another")
    assert StarMDModel(tiny_model.denoiser, config, tiny_model.domain).identity(tokens) != tiny_model.identity(tokens)


def test_sequence_and_weights_belong_to_the_identity(tiny_model, peptide, build_peptide):
    tokens, other = (ResidueTokens.from_topology(topology) for topology in (peptide[0], build_peptide("GGG")[0]))
    denoiser = copy.deepcopy(tiny_model.denoiser)
    denoiser.step_scales[0, 0] = torch.nextafter(denoiser.step_scales[0, 0], torch.tensor(9.0))
    changed = StarMDModel(denoiser, tiny_model.config, tiny_model.domain)
    assert len({m.identity(t) for m in (tiny_model, changed) for t in (tokens, other)}) == 4


def test_the_history_matters(new_simulation, snapshot, tmp_path):
    """Without the past the run would go on differently, so the test above can fail."""
    simulations = [new_simulation(), new_simulation()]
    for simulation in simulations:
        simulation.step(2)
    simulations[1].integrator.reset()
    for simulation in simulations:
        simulation.step(1)
    assert snapshot(simulations[0])[0] != snapshot(simulations[1])[0]


@pytest.mark.parametrize("way", CONTINUE)
@pytest.mark.parametrize("saved_at", [0, 2, 4])
def test_rewinding_the_same_simulation(new_simulation, snapshot, seen_histories, tmp_path, way, saved_at):
    save, load = CONTINUE[way]
    simulation = new_simulation()
    seen = seen_histories(simulation.integrator)
    simulation.step(saved_at)
    getattr(simulation, save)(str(tmp_path / "saved"))
    simulation.step(2)
    once = snapshot(simulation)
    getattr(simulation, load)(str(tmp_path / "saved"))
    simulation.step(2)
    assert snapshot(simulation) == once
    assert seen[-2:] == [saved_at + 1, saved_at + 2]


def test_an_edit_after_loading_starts_the_history_anew(new_simulation, seen_histories, peptide, tmp_path):
    simulation = new_simulation()
    simulation.step(2)
    simulation.saveCheckpoint(str(tmp_path / "saved"))
    rest = new_simulation()
    seen = seen_histories(rest.integrator)
    rest.loadCheckpoint(str(tmp_path / "saved"))
    rest.context.setPositions(peptide[1])
    rest.step(1)
    assert seen == [1]


@pytest.mark.parametrize("preserve", [True, False])
def test_reinitialize(new_simulation, seen_histories, peptide, preserve):
    simulation = new_simulation()
    seen = seen_histories(simulation.integrator)
    simulation.step(2)
    simulation.context.reinitialize(preserveState=preserve)
    if not preserve:
        simulation.context.setPositions(peptide[1])
    simulation.step(1)
    assert seen == [1, 2, 3 if preserve else 1]


@pytest.mark.parametrize("way", CONTINUE)
@pytest.mark.parametrize("steps", [0, 2])
def test_what_was_made_under_another_model_is_refused_and_the_run_goes_on(
    new_simulation, tiny_model, snapshot, tmp_path, way, steps
):
    """Models of as many context frames, whose histories are of one size; other weights and another propagator."""
    save, load = CONTINUE[way]
    stranger = StarMDModel.create(tiny_model.config, tiny_model.domain, seed=2)
    stranger.denoiser.step_scales[:] = tiny_model.denoiser.step_scales
    models = {"tiny": (tiny_model, 1), "stranger": (stranger, 1), "elastic": ("elastic", None)}
    settings = {name: {"model": model, "contextFrames": frames} for name, (model, frames) in models.items()}
    for name in models:
        simulation = new_simulation(**settings[name])
        simulation.step(1)
        getattr(simulation, save)(str(tmp_path / name))
    for name in models:
        run, whole = (new_simulation(**settings[name]) for _ in range(2))
        for simulation in (run, whole):
            simulation.step(steps)
        before = snapshot(run)
        for other in models.keys() - {name}:
            with pytest.raises(
                HistoryError, match="made under another integrator, model, .*contextFrames.*Nothing was changed"
            ):
                getattr(run, load)(str(tmp_path / other))
            assert snapshot(run) == before
        for simulation in (run, whole):
            simulation.step(1)
        assert snapshot(run) == snapshot(whole)


@pytest.mark.parametrize("variable, value", [("frames", 0), ("frames", 1e6), ("tag", 5)])
def test_a_damaged_history_is_refused(new_simulation, snapshot, tmp_path, variable, value):
    simulation = new_simulation()
    simulation.step(1)
    simulation.integrator.getIntegrator(1).setGlobalVariableByName(f"starmd_{variable}", value)
    simulation.saveCheckpoint(str(tmp_path / "saved"))
    rest = new_simulation()
    before = snapshot(rest)
    with pytest.raises(HistoryError, match="damaged"):
        rest.loadCheckpoint(str(tmp_path / "saved"))
    assert snapshot(rest) == before


def test_a_history_that_is_damaged_in_place_is_refused_by_the_next_step(new_simulation, snapshot):
    simulation = new_simulation()
    simulation.step(1)
    simulation.integrator.getIntegrator(1).setGlobalVariableByName("starmd_tag", 5)
    before = snapshot(simulation)
    with pytest.raises(HistoryError, match="damaged.*call reset"):
        simulation.step(1)
    assert snapshot(simulation) == before
    simulation.integrator.reset()
    simulation.step(1)
    assert simulation.currentStep == 2


COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_is_a_new_integrator_with_the_same_settings(new_simulation, snapshot, way):
    simulation = new_simulation(contextFrames=2, randomSeed=3)
    simulation.integrator.setStepSize(200)
    simulation.step(2)
    duplicate = COPIES[way](simulation.integrator)
    assert isinstance(duplicate, StarMDIntegrator)
    fresh, copied = new_simulation(contextFrames=2, randomSeed=3, stepSize=200), new_simulation(integrator=duplicate)
    for other in (fresh, copied):
        other.step(2)
    assert snapshot(copied) == snapshot(fresh)
    simulation.step(1)
    assert simulation.currentStep == 3


def test_xml_ends_in_an_error(new_integrator, peptide, tmp_path):
    topology, _, system = peptide
    path = tmp_path / "integrator.xml"
    path.write_text(openmm.XmlSerializer.serialize(new_integrator()))
    with pytest.raises(StarMDError, match="XML"):
        app.Simulation(topology, system, str(path))
    with pytest.raises(StarMDError, match="XML"):
        openmm.Context(system, openmm.XmlSerializer.clone(new_integrator()))


def test_an_xml_copy_does_not_move_silently_where_the_package_is_not_imported(new_integrator, peptide):
    _, positions, system = peptide
    remnant = openmm.XmlSerializer.clone(new_integrator())
    unwatched = openmm.Context.__init__.__wrapped__
    context = openmm.Context.__new__(openmm.Context)
    unwatched(context, system, remnant, openmm.Platform.getPlatform("CPU"))
    context.setPositions(positions)
    with pytest.raises(openmm.OpenMMException, match="NaN"):
        remnant.step(1)


def test_one_integrator_one_context(new_simulation, peptide):
    simulation = new_simulation()
    with pytest.raises(openmm.OpenMMException, match="already bound"):
        openmm.Context(peptide[2], simulation.integrator)
    simulation.step(1)
    assert simulation.currentStep == 1


def test_without_a_context_a_step_is_an_error(new_integrator, new_simulation):
    with pytest.raises(StarMDError, match="no Context"):
        new_integrator().step(1)
    with pytest.raises(StarMDError, match="not the integrator"):
        new_integrator().bind(new_simulation().context)


def test_binding_by_hand(new_integrator, peptide):
    """The way for Contexts that were made while the package was not watching."""
    _, positions, system = peptide
    integrator, context = new_integrator(), openmm.Context.__new__(openmm.Context)
    openmm.Context.__init__.__wrapped__(context, system, integrator, openmm.Platform.getPlatform("Reference"))
    context.setPositions(positions)
    with pytest.raises(StarMDError, match="no Context"):
        integrator.step(1)
    integrator.bind(context)
    integrator.step(1)
    assert context.getTime() == 100 * unit.picoseconds
