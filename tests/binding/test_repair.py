"""Local repair: what fails is sampled again with its neighbours, the rest is held; integrator and rollout agree."""

import json
from itertools import count

import numpy as np
import pytest
import torch
from openmm import Platform, unit
from openmm.app import ForceField, Modeller, Simulation

from openmm_starmd import JumpRejectedError, Propagator, StarMDIntegrator, rollout
from openmm_starmd.binding.gate import ValidityGate
from openmm_starmd.elastic import ElasticNetwork
from openmm_starmd.protein.conformation import from_positions
from openmm_starmd.protein.tokens import ResidueTokens

SEQUENCE = "AGSGAA"
TORN = [True, True, True, False, False, False]  # where residue 0 is torn off: the bond's two ends, and a neighbour


@pytest.fixture
def chain(build_peptide):
    topology, positions = build_peptide(SEQUENCE)
    system = ForceField("amber14/protein.ff14SB.xml").createSystem(topology)
    return topology, positions, system


@pytest.fixture
def new_simulation(chain, tiny_model):
    def create(**settings):
        topology, positions, system = chain
        settings = {"model": tiny_model, "relaxation": None, "randomSeed": 7, "device": "cpu"} | settings
        integrator = StarMDIntegrator(topology, 300, 100, **settings)
        simulation = Simulation(topology, system, integrator, Platform.getPlatform("Reference"))
        simulation.context.setPositions(positions)
        return simulation

    return create


@pytest.fixture
def torn(monkeypatch):
    """Function (is_torn, kind=Propagator) -> (sampled, asked): tears residue 0 off conformations of these numbers.

    The lists grow by the conformations that `step` returns and by the residues that `resample` is asked for.
    """

    def torn(is_torn, kind=Propagator):
        step, sampled, asked = kind.step, [], []
        resample = getattr(kind, "resample", None)

        def tearing(self, history, generator):
            conformation = step(self, history, generator)
            with torch.inference_mode():
                if is_torn(len(sampled)):
                    conformation.frames.translations[:, 0] += 1.0
            sampled.append(conformation)
            return conformation

        def seen(self, history, conformation, residues, generator):
            asked.append(residues.tolist())
            return resample(self, history, conformation, residues, generator)

        monkeypatch.setattr(kind, "step", tearing)
        if resample:
            monkeypatch.setattr(kind, "resample", seen)
        return sampled, asked

    return torn


def positions_of(simulation):
    return simulation.context.getState(positions=True).getPositions(asNumpy=True)._value


def test_failing_residues_and_their_neighbours_along_the_chain(build_peptide):
    (topology, positions), (second, far) = build_peptide("AGSA"), build_peptide("GAA")
    modeller = Modeller(topology, positions * unit.nanometer)
    modeller.add(second, (far + 5.0) * unit.nanometer)
    topology = modeller.topology
    gate = ValidityGate(topology, ResidueTokens.from_topology(topology), 300, True)
    atoms = {(atom.residue.index, atom.name): atom.index for atom in topology.atoms()}

    def residues(*places):
        failures = {"clashes": [[atoms[place] for place in pair] for pair in places], "energy": []}
        return torch.nonzero(gate.residues(failures))[:, 0].tolist()

    assert residues([(1, "H")]) == [0, 1, 2]
    assert residues([(0, "CB"), (6, "CA")]) == [0, 1, 5, 6]
    assert residues([(3, "CA")]) == [2, 3] and residues([(4, "N")]) == [4, 5]  # two chains
    assert residues([(0, "CB")], [(6, "CA")]) == [0, 1, 5, 6]  # every place counts, not the first alone
    assert residues() == []


def test_one_bad_residue_is_repaired_and_the_others_do_not_move(new_simulation, chain, torn):
    simulation, (sampled, asked) = new_simulation(), torn(lambda number: True)
    simulation.step(1)
    (conformation,) = sampled
    assert asked == [[TORN] * 4]
    tokens = ResidueTokens.from_topology(chain[0])
    after = from_positions(torch.from_numpy(positions_of(simulation)), tokens)
    held, free = slice(3, None), slice(0, 3)
    for reached, first in (
        (after.frames.translations, conformation.frames.translations[0]),
        (after.frames.rotations, conformation.frames.rotations[0]),
        (after.torsions, conformation.torsions[0]),
    ):
        torch.testing.assert_close(reached[held], first[held].double(), atol=1e-5, rtol=0)
        assert (reached[free] - first[free]).abs().max() > 1e-3
    statistics = simulation.integrator.getStatistics()
    assert (statistics["steps"], statistics["resampled"], statistics["repaired"]) == (1, 0, 1)
    assert statistics["acceptance"] == {"firstTry": 0.0, "afterRepair": 1.0}
    assert statistics["last"]["repaired"] and statistics["last"]["failed"]["peptide_breaks"] == 1


def test_what_fails_after_relaxation_is_repaired_too(new_simulation, torn, monkeypatch):
    relaxed, calls = ValidityGate.relaxed, count()

    def failing(self, *arguments):
        return [{"close_contacts": [[0, 1]]}] if next(calls) == 0 else relaxed(self, *arguments)

    monkeypatch.setattr(ValidityGate, "relaxed", failing)
    simulation, (sampled, asked) = new_simulation(), torn(lambda number: False)
    simulation.step(2)
    assert asked == [4 * [[True, True, False, False, False, False]]] and len(sampled) == 2
    assert simulation.integrator.getStatistics()["repaired"] == 1


def test_statistics_add_up(new_simulation, torn, monkeypatch):
    sampled, asked = torn(lambda number: number % 3 != 2)
    repaired, calls = Propagator.resample, count()

    def in_vain(self, history, conformation, residues, generator):
        new = repaired(self, history, conformation, residues, generator)
        return conformation if next(calls) % 2 else new

    monkeypatch.setattr(Propagator, "resample", in_vain)
    simulation = new_simulation()
    assert simulation.integrator.getStatistics()["acceptance"] == {"firstTry": None, "afterRepair": None}
    simulation.step(5)
    found = simulation.integrator.getStatistics()
    assert found["steps"] == 5 and found["repaired"] == 3 and found["resampled"] == 2
    assert found["steps"] + found["resampled"] == len(sampled)
    assert found["repaired"] + found["resampled"] == len(asked) == found["failed"]["peptide_breaks"]
    assert found["acceptance"] == {"firstTry": 2 / 7, "afterRepair": 5 / 7}


def test_a_repair_in_vain_is_a_try_in_vain(new_simulation, torn, monkeypatch):
    torn(lambda number: True)
    monkeypatch.setattr(Propagator, "resample", lambda self, history, conformation, *_: conformation)
    simulation = new_simulation(maxRetries=1)
    before = positions_of(simulation)
    with pytest.raises(JumpRejectedError, match="None of 2 .*peptide_breaks in 2"):
        simulation.step(1)
    assert np.array_equal(positions_of(simulation), before)
    found = simulation.integrator.getStatistics()
    assert found["resampled"] == 2 and found["acceptance"] == {"firstTry": 0.0, "afterRepair": 0.0}


def test_a_propagator_without_the_method_goes_without(new_simulation, torn):
    sampled, _ = torn(lambda number: number < 2, ElasticNetwork)
    simulation = new_simulation(model="elastic")
    simulation.step(1)
    found = simulation.integrator.getStatistics()
    assert len(sampled) == 3 and found["resampled"] == 2 and found["repaired"] == 0


def test_a_run_with_repairs_continues_bit_for_bit(new_simulation, torn, tmp_path):
    """Cut while the window grows; each half has a propagator of its own, and repairs in every other jump."""
    whole, checkpoint = new_simulation(), str(tmp_path / "run.chk")
    torn(lambda number: number % 2 == 0)
    whole.step(2)
    whole.saveCheckpoint(checkpoint)
    whole.step(4)
    rest = new_simulation(randomSeed=0)  # the seed of the checkpoint
    rest.loadCheckpoint(checkpoint)
    rest.step(4)
    assert np.array_equal(positions_of(rest), positions_of(whole))
    assert rest.integrator.getStatistics()["repaired"] == 2
    other = new_simulation(randomSeed=8)
    other.step(6)
    assert not np.array_equal(positions_of(other), positions_of(whole))


@pytest.fixture
def run(chain, tiny_model, tmp_path):
    def run(name, n_steps, n_replicas=2, **settings):
        options = {"stride": 100, "seed": 9, "checkpoint_steps": 2, "resume": True, "device": "cpu"} | settings
        folder = tmp_path / name
        rollout(tiny_model, *chain[:2], n_steps=n_steps, n_replicas=n_replicas, output=folder, **options)
        statistics = json.loads((folder / "statistics.json").read_text())
        return [file.read_bytes() for file in sorted(folder.glob("*.xtc"))], statistics

    return run


def test_a_rollout_repairs_as_the_integrator_does(run, new_simulation, torn, caplog):
    caplog.set_level("INFO", logger="openmm_starmd")
    _, asked = torn(lambda number: True)
    files, statistics = run("whole", 4)
    assert asked == 8 * [[TORN] * 4]
    assert statistics == {
        "steps": 8,
        "resampled": 0,
        "repaired": 8,
        "acceptance": {"firstTry": 0.0, "afterRepair": 1.0},
    }
    assert "8 jumps; of the sampled conformations 0.0000 were accepted at first try, 1.0000 after repair" in caplog.text
    simulation = new_simulation()
    simulation.step(4)
    assert asked[8:] == asked[:4]
    found = simulation.integrator.getStatistics()
    assert statistics["acceptance"] == found["acceptance"] and found.keys() > statistics.keys()
    run("parts", 2)
    again, second = run("parts", 4)
    assert again == files and second["steps"] == 4  # of that call


def test_the_random_numbers_of_a_repair_are_of_the_replica_and_the_try(run, torn, monkeypatch):
    seeds, resample = [], Propagator.resample

    def seen(self, history, conformation, residues, generators):
        seeds.extend(generator.initial_seed() for generator in generators)
        return resample(self, history, conformation, residues, generators)

    torn(lambda number: True)
    monkeypatch.setattr(Propagator, "resample", seen)
    run("company", 2, 2)
    company = set(seeds)
    assert len(company) == len(seeds) == 16
    seeds.clear()
    run("alone", 2, 1)
    assert set(seeds) < company
