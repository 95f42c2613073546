"""Many runs from one State or checkpoint have noise of their own; what another integrator made is refused whole."""

import openmm
import pytest
from openmm import unit
from openmm.app import ReplicaExchangeSampler, Simulation

from openmm_starmd import HistoryError, HybridSchedule

CONTINUE = {"checkpoint": ("saveCheckpoint", "loadCheckpoint"), "state": ("saveState", "loadState")}
ALL = {"positions": True, "velocities": True, "parameters": True, "integratorParameters": True}


def positions_of(state):
    return state.getPositions(asNumpy=True)._value.tolist()


@pytest.fixture(params=CONTINUE)
def saved(request, new_simulation, tmp_path):
    """Functions (**settings) -> Simulation, and (simulation) that loads into it a run with seed 7 after four steps."""
    save, load = CONTINUE[request.param]
    schedule = HybridSchedule(1, 2)
    whole = new_simulation("CPU", schedule=schedule)
    whole.step(4)
    getattr(whole, save)(str(tmp_path / "saved"))

    def create(**settings):
        return new_simulation("CPU", schedule=schedule, **settings)

    return create, lambda simulation: getattr(simulation, load)(str(tmp_path / "saved"))


def test_runs_with_seeds_of_their_own_differ(saved, snapshot):
    create, load = saved
    runs = []
    for seed in (1, 2, 1, 0):
        simulation = create(randomSeed=seed)
        load(simulation)
        assert simulation.integrator.getRandomNumberSeed() == (seed or 7)
        simulation.step(2)  # physical ones
        physical = snapshot(simulation)
        simulation.step(1)
        runs.append((physical, snapshot(simulation)))
    assert runs[0] == runs[2]
    for kind in (0, 1):
        assert len({str(run[kind]) for run in runs}) == 3


def test_a_seed_that_stayed_is_saved(new_simulation, snapshot, tmp_path):
    first, second, third = (new_simulation(randomSeed=seed) for seed in (7, 8, 0))
    first.step(1)
    first.saveState(str(tmp_path / "first"))
    second.loadState(str(tmp_path / "first"))
    second.step(1)
    second.saveState(str(tmp_path / "second"))
    second.step(1)
    third.loadState(str(tmp_path / "second"))
    third.step(1)
    assert third.integrator.getRandomNumberSeed() == 8
    assert snapshot(third) == snapshot(second)


def test_a_seed_set_after_loading_is_another_run(saved, snapshot):
    create, load = saved
    runs = []
    for seed in (None, 5, 6):
        simulation = create(randomSeed=0)
        load(simulation)
        if seed:
            simulation.integrator.setRandomNumberSeed(seed)
        simulation.step(3)
        runs.append(str(snapshot(simulation)))
    assert len(set(runs)) == 3


@pytest.mark.parametrize("way", CONTINUE)
def test_a_file_repeats_the_jumps_of_the_same_simulation(new_simulation, snapshot, tmp_path, way):
    save, load = CONTINUE[way]
    simulation, runs = new_simulation(), []
    simulation.step(1)
    getattr(simulation, save)(str(tmp_path / "saved"))
    for _ in range(3):
        simulation.step(2)
        runs.append(snapshot(simulation))
        getattr(simulation, load)(str(tmp_path / "saved"))
    assert runs[0] == runs[1] == runs[2]


def test_a_state_in_memory_draws_new_noise_but_another_simulation_repeats_it(new_simulation, snapshot):
    simulation, other = new_simulation(), new_simulation()
    simulation.step(1)
    state = simulation.context.getState(**ALL)
    runs = []
    for _ in range(3):
        simulation.step(2)
        runs.append(snapshot(simulation))
        simulation.context.setState(state)
    other.context.setState(state)
    other.step(2)
    assert snapshot(other) == runs[0]
    assert len({str(run) for run in runs}) == 3


def replicas(simulation, iterations=2):
    sampler = ReplicaExchangeSampler([{"temperature": 300 * unit.kelvin}] * 3, simulation, 1)
    sampler.exchangesPerIteration = 0
    sampler.simulate(iterations)
    return sampler


def test_replicas_of_a_sampler_have_noise_of_their_own(new_simulation):
    """In the first iteration, from one State, and later; the seed decides about all of them."""
    for iterations in (1, 2):
        first, again = (replicas(new_simulation(), iterations).replicaConformation for _ in range(2))
        assert len({str(positions_of(state)) for state in first}) == 3
        assert list(map(positions_of, first)) == list(map(positions_of, again))


def test_replicas_go_on_from_files_as_if_they_had_not_stopped(new_simulation):
    """As ReplicaExchangeReporter(resume=True) does it."""
    sampler = replicas(new_simulation())
    texts = [openmm.XmlSerializer.serialize(state) for state in sampler.replicaConformation]
    sampler.simulate(1)
    resumed = replicas(new_simulation(randomSeed=0), 0)
    resumed.replicaConformation = [openmm.XmlSerializer.deserialize(text) for text in texts]
    resumed.simulate(1)
    ends = [[positions_of(state) for state in s.replicaConformation] for s in (sampler, resumed)]
    assert ends[0] == ends[1]


def compound():
    integrator = openmm.CompoundIntegrator()
    integrator.addIntegrator(openmm.LangevinMiddleIntegrator(300, 1, 0.002))
    return integrator


OTHERS = {
    "langevin": lambda: openmm.LangevinMiddleIntegrator(300, 1, 0.002),
    "verlet": lambda: openmm.VerletIntegrator(0.001),
    "nose-hoover": lambda: openmm.NoseHooverIntegrator(300, 1, 0.001),
    "mts": lambda: openmm.MTSIntegrator(0.001, [(0, 1)]),
    "compound": compound,
}


@pytest.mark.parametrize(
    "name, platform, way",
    [
        *((name, "CPU", "checkpoint") for name in OTHERS),
        ("compound", "CPU", "state"),
        ("langevin", "Reference", "state"),
    ],
)
def test_what_another_integrator_made_is_refused_whole(
    new_simulation, peptide, snapshot, tmp_path, name, way, platform
):
    topology, positions, system = peptide
    save, load = CONTINUE[way]
    other = Simulation(topology, system, OTHERS[name](), openmm.Platform.getPlatform(platform))
    other.context.setPositions(positions * 1.01)
    other.context.setTime(5)
    getattr(other, save)(str(tmp_path / "saved"))
    schedule = HybridSchedule(1, 2 * (platform == "CPU"))  # Contexts of the Reference platform share one generator
    runs = [new_simulation(platform, schedule=schedule) for _ in range(2)]
    for run in runs:
        run.step(2)
    before = snapshot(runs[0])
    with pytest.raises(HistoryError, match=r"another integrator, .* Nothing was changed.* context.setPositions\("):
        getattr(runs[0], load)(str(tmp_path / "saved"))
    assert snapshot(runs[0]) == before
    for run in runs:
        run.step(2)
    assert snapshot(runs[0]) == snapshot(runs[1])


def test_the_advice_leads_on(new_simulation, peptide):
    topology, positions, system = peptide
    other = Simulation(topology, system, OTHERS["langevin"](), openmm.Platform.getPlatform("Reference"))
    other.context.setPositions(positions)
    state, simulation = other.context.getState(**ALL), new_simulation()
    with pytest.raises(HistoryError):
        simulation.context.setState(state)
    simulation.context.setPositions(state.getPositions())
    simulation.step(1)
    simulation.context.setState(other.context.getState(positions=True, velocities=True))
    assert simulation.currentStep == 0  # a State without parameters of an integrator loads; the history starts anew
    simulation.step(1)
    assert simulation.currentStep == 1


def test_a_state_of_another_system_is_refused_whole(new_simulation, new_integrator, build_peptide, snapshot):
    topology, positions = build_peptide("AG")
    force_field = openmm.app.ForceField("amber14/protein.ff14SB.xml")
    other = Simulation(topology, force_field.createSystem(topology), OTHERS["langevin"]())
    other.context.setPositions(positions)
    simulation = new_simulation()
    before = snapshot(simulation)
    with pytest.raises(HistoryError, match="another System"):
        simulation.context.setState(other.context.getState(positions=True))
    assert snapshot(simulation) == before


def test_other_contexts_load_as_before(peptide):
    topology, positions, system = peptide
    plain = Simulation(topology, system, OTHERS["langevin"](), openmm.Platform.getPlatform("Reference"))
    plain.context.setPositions(positions)
    state, checkpoint = plain.context.getState(**ALL), plain.context.createCheckpoint()
    ways = {"setState": {"state": state}, "loadCheckpoint": {"checkpoint": checkpoint}}
    for name, source in ways.items():
        plain.step(1)
        getattr(plain.context, name)(**source)
        assert plain.currentStep == 0
