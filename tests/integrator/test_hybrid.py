"""Learned and physical steps together: schedules, honest time, temperature, the history, any integrator of OpenMM."""

import copy
import io
import pickle

import mdtraj
import numpy as np
import openmm
import pytest
from openmm import app

from openmm_starmd import HybridSchedule, StarMDIntegrator

SEED = 11


def langevin(timeStep=0.002, friction=1):
    integrator = openmm.LangevinMiddleIntegrator(300, friction, timeStep)
    integrator.setRandomNumberSeed(SEED)
    return integrator


def times_of(simulation, steps):
    """Time after each single step."""
    times = []
    for _ in range(steps):
        simulation.step(1)
        times.append(simulation.context.getTime()._value)
    return times


def test_learned_and_physical_steps_take_turns(new_simulation):
    simulation = new_simulation(schedule=HybridSchedule(2, 3), physicalIntegrator=langevin())
    expected = 2 * [100, 100, 0.002, 0.002, 0.002] + [100, 100]
    np.testing.assert_allclose(np.diff([0, *times_of(simulation, 12)]), expected)
    assert simulation.currentStep == 12
    assert simulation.integrator.getStatistics()["steps"] == 6


def test_many_steps_at_once_are_single_steps(new_simulation, snapshot):
    """Up to ten a call, whatever the schedule."""
    whole, single = (new_simulation("CPU", schedule=HybridSchedule(1, 7)) for _ in range(2))
    whole.step(25)
    times_of(single, 25)
    assert snapshot(whole) == snapshot(single)


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_without_learned_steps_the_run_is_plain_md(peptide, new_simulation, snapshot, platform, tmp_path):
    """Bit for bit, in the frames, their times and the step size that reporters read, too."""

    def run(name, **settings):
        simulation = new_simulation(platform, **settings)
        simulation.context.setVelocitiesToTemperature(300, 5)
        simulation.reporters.append(app.XTCReporter(str(tmp_path / name), 10))
        simulation.step(57)
        simulation.reporters.clear()
        return simulation.integrator.getStepSize(), snapshot(simulation), (tmp_path / name).read_bytes()

    hybrid = run("hybrid.xtc", schedule=HybridSchedule(0, 13), physicalIntegrator=langevin())
    assert hybrid == run("plain.xtc", integrator=langevin())


def test_a_frame_a_cycle_has_its_true_time(peptide, new_simulation, tmp_path):
    simulation, text = new_simulation(schedule=HybridSchedule(1, 4), physicalIntegrator=langevin()), io.StringIO()
    simulation.reporters += [
        app.XTCReporter(str(tmp_path / "out.xtc"), 5),
        app.StateDataReporter(text, 5, step=True, time=True, temperature=True),
    ]
    simulation.step(20)
    simulation.reporters.clear()
    truth = np.arange(1, 5) * (100 + 4 * 0.002)
    topology = mdtraj.Topology.from_openmm(peptide[0])
    np.testing.assert_allclose(mdtraj.load(str(tmp_path / "out.xtc"), top=topology).time, truth, rtol=1e-6)
    rows = [line.split(",") for line in text.getvalue().splitlines()[1:]]
    np.testing.assert_allclose([float(row[1]) for row in rows], truth)
    assert [int(row[0]) for row in rows] == [5, 10, 15, 20]


@pytest.mark.slow
def test_physical_segments_have_the_temperature(build_peptide, tiny_model):
    """1 % over 50 ps of segments between jumps; a strong thermostat, so that 50 ps can tell."""
    topology, positions = build_peptide("ASGVSG")
    system = app.ForceField("amber14/protein.ff14SB.xml").createSystem(topology, constraints=app.HBonds)
    physics, schedule = langevin(0.001, friction=20), HybridSchedule(1, 5000)
    integrator = StarMDIntegrator(
        topology, 300, 10, tiny_model, randomSeed=2, schedule=schedule, physicalIntegrator=physics
    )
    simulation = app.Simulation(topology, system, integrator, openmm.Platform.getPlatform("CPU"), {"Threads": "1"})
    simulation.context.setPositions(positions)
    simulation.minimizeEnergy()
    text = io.StringIO()
    simulation.reporters.append(app.StateDataReporter(text, 10, temperature=True))
    simulation.step(10 * 5001)
    temperatures = [float(line) for line in text.getvalue().splitlines()[1:]]
    assert integrator.getStatistics()["steps"] == 10 and len(temperatures) == 5001
    assert np.mean(temperatures) == pytest.approx(300, rel=0.01)


CONDITIONS = {  # physical steps of 2 fs: frames and times of the history at the next jump, with a stride of 0.1 ps
    "none": (0, [0.0, 0.1]),
    "less than a stride": (30, [0.0, 0.16]),
    "a stride": (50, [0.0, 0.1, 0.2]),
    "more than a stride": (70, [0.0, 0.1, 0.24]),
    "several strides": (130, [0.1, 0.2, 0.36]),
}


@pytest.mark.parametrize("case", CONDITIONS)
@pytest.mark.parametrize("split", [1, 7])
def test_the_history_follows_physical_steps(new_simulation, tiny_model, case, split, monkeypatch):
    """The conformation now is the last of the history; those of past strides are in it."""
    steps, expected = CONDITIONS[case]
    simulation = new_simulation(stepSize=0.1, strict=False, contextFrames=3)
    integrator = simulation.integrator
    simulation.step(1)
    for piece in np.diff(np.linspace(0, steps, split + 1).astype(int)):
        integrator.stepPhysical(int(piece))
    seen, propagate = [], integrator._propagator.step
    monkeypatch.setattr(integrator._propagator, "step", lambda h, g: seen.append(h) or propagate(h, g))
    now = simulation.context.getState(positions=True).getPositions(asNumpy=True)._value
    simulation.step(1)
    np.testing.assert_allclose(seen[0].times, expected, atol=1e-6)
    ca = [atom.index for atom in simulation.topology.atoms() if atom.name == "CA"]
    last = seen[0].last.frames.translations[0].numpy()
    assert np.abs(last - now[ca]).max() < 5 * tiny_model.config.process.context_noise[0] + 1e-5


@pytest.mark.parametrize("way", ["checkpoint", "state"])
def test_a_hybrid_run_continues_bit_for_bit(new_simulation, snapshot, tmp_path, way):
    """In the middle of a physical segment; a State lacks random numbers of the physical integrator, Verlet has none."""

    def create():
        physics = langevin() if way == "checkpoint" else openmm.VerletIntegrator(0.001)
        return new_simulation("CPU", schedule=HybridSchedule(2, 5), physicalIntegrator=physics)

    save, load = ("saveCheckpoint", "loadCheckpoint") if way == "checkpoint" else ("saveState", "loadState")
    whole, rest = create(), create()
    whole.step(11)
    getattr(whole, save)(str(tmp_path / "saved"))
    whole.step(13)
    getattr(rest, load)(str(tmp_path / "saved"))
    rest.step(13)
    assert snapshot(rest) == snapshot(whole)


def custom():
    integrator = openmm.CustomIntegrator(0.001)
    integrator.addComputePerDof("v", "v+dt*f/m")
    integrator.addComputePerDof("x", "x+dt*v")
    integrator.addConstrainPositions()
    return integrator


INTEGRATORS = {
    "verlet": lambda: openmm.VerletIntegrator(0.001),
    "brownian": lambda: openmm.BrownianIntegrator(300, 50, 0.0005),
    "variable": lambda: openmm.VariableLangevinIntegrator(300, 1, 0.001),
    "nose-hoover": lambda: openmm.NoseHooverIntegrator(300, 1, 0.001),
    "custom": custom,
    "mts": lambda: openmm.MTSLangevinIntegrator(300, 1, 0.002, [(0, 1)]),
}


@pytest.mark.parametrize("name", INTEGRATORS)
def test_any_integrator_of_openmm_can_be_the_physical_one(new_simulation, name):
    simulation = new_simulation("CPU", schedule=HybridSchedule(1, 9), physicalIntegrator=INTEGRATORS[name]())
    simulation.step(20)
    assert simulation.currentStep == 20
    assert 200 < simulation.context.getTime()._value < 200.1


def test_the_seed_of_the_physical_integrator(new_integrator, peptide):
    """One that the user has set stays; else it is the integrator's own."""

    def create(physics):
        integrator = new_integrator(physicalIntegrator=physics)
        context = openmm.Context(peptide[2], integrator, openmm.Platform.getPlatform("Reference"))
        assert context is not None
        return integrator.getIntegrator(0).getRandomNumberSeed()

    assert create(langevin()) == SEED
    assert create(openmm.LangevinMiddleIntegrator(300, 1, 0.002)) == create(None) == 7


def test_a_copy_has_a_physical_integrator_of_its_own(new_simulation, new_integrator, snapshot):
    original = new_integrator(schedule=HybridSchedule(1, 5), physicalIntegrator=langevin(0.003))
    runs = []
    for integrator in (original, copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        assert integrator.getIntegrator(0).getStepSize()._value == 0.003
        simulation = new_simulation(integrator=integrator)
        simulation.step(12)
        runs.append(snapshot(simulation))
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"physicalIntegrator": openmm.CompoundIntegrator()}, "CompoundIntegrator"),
        ({"physicalIntegrator": openmm.RPMDIntegrator(4, 300, 1, 0.001)}, "RPMDIntegrator"),
        ({"physicalIntegrator": openmm.DrudeLangevinIntegrator(300, 1, 1, 1, 0.001)}, "DrudeLangevinIntegrator"),
        ({"physicalIntegrator": "Langevin"}, "Langevin"),
        ({"schedule": (1, 5)}, "HybridSchedule"),
    ],
)
def test_what_cannot_run_beside_a_learned_integrator(new_integrator, settings, told):
    with pytest.raises(ValueError, match=told):
        new_integrator(**settings)


def test_more_physical_steps_than_openmm_takes_at_once(new_simulation, monkeypatch):
    simulation, asked = new_simulation(), []
    monkeypatch.setattr(openmm.CompoundIntegrator, "step", lambda self, steps: asked.append(steps))
    simulation.integrator.stepPhysical(2**32)
    assert sum(asked) == 2**32 and max(asked) < 2**31


@pytest.mark.parametrize("steps", [(0, 0), (-1, 5), (1, 0.5)])
def test_schedules_that_are_none(steps):
    with pytest.raises(ValueError):
        HybridSchedule(*steps)


def test_a_physical_segment_that_explodes_leaves_the_context_as_it_was(new_simulation, peptide, snapshot):
    system = openmm.XmlSerializer.clone(peptide[2])
    trap = openmm.CustomExternalForce("x*log(sound)")
    trap.addGlobalParameter("sound", 1.0)
    trap.addParticle(0)
    system.addForce(trap)
    simulation = new_simulation("CPU", system=system, schedule=HybridSchedule(1, 10))
    simulation.step(4)
    simulation.context.setParameter("sound", -1.0)
    before = snapshot(simulation)
    with pytest.raises(openmm.OpenMMException, match="NaN"):
        simulation.step(3)
    assert snapshot(simulation) == before
    simulation.context.setParameter("sound", 1.0)
    simulation.step(7)
    assert simulation.currentStep == 11


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_a_seed_that_is_set_late_seeds_both_children(new_simulation, snapshot, platform):
    """As one that was there before the Context, velocities aside."""

    def run(late, seed):
        simulation = new_simulation(platform, schedule=HybridSchedule(1, 20), randomSeed=0 if late else seed)
        if late:
            simulation.integrator.setRandomNumberSeed(seed)
        simulation.step(45)
        assert simulation.integrator.getIntegrator(0).getRandomNumberSeed() == seed
        return snapshot(simulation)

    assert run(True, 5) == run(False, 5) != run(True, 6)


def test_a_late_seed_leaves_a_physical_integrator_its_own(new_simulation):
    simulation = new_simulation(physicalIntegrator=langevin())
    simulation.integrator.setRandomNumberSeed(99)
    assert simulation.integrator.getIntegrator(0).getRandomNumberSeed() == SEED


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_keeps_what_was_set_later(new_simulation, new_integrator, copied):
    integrator = new_integrator()
    integrator.setConstraintTolerance(1e-7)
    integrator.getIntegrator(0).setFriction(7)
    integrator.getIntegrator(0).setStepSize(0.001)
    twin = copied(integrator)
    assert twin.getConstraintTolerance() == 1e-7
    physics = twin.getIntegrator(0)
    assert (physics.getFriction()._value, physics.getStepSize()._value) == (7, 0.001)


def test_a_copy_of_one_with_a_chosen_seed_chooses_its_own(new_simulation):
    simulation = new_simulation(randomSeed=0)
    twin = copy.deepcopy(simulation.integrator)
    again = new_simulation(integrator=twin)
    seeds = [x.integrator.getRandomNumberSeed() for x in (simulation, again)]
    assert seeds[0] != seeds[1]
    assert twin.getIntegrator(0).getRandomNumberSeed() == seeds[1]
