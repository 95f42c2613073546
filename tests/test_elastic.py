"""The elastic network follows the analytic law of an Ornstein-Uhlenbeck process, and goes through the integrator."""

from types import SimpleNamespace

import mdtraj
import numpy as np
import pytest
import torch
from openmm import LocalEnergyMinimizer, Platform, unit
from openmm.app import Simulation

from openmm_starmd import ModelDomainError, StarMDIntegrator, rollout
from openmm_starmd.elastic import KB, LEAST, ElasticNetwork, Modes
from openmm_starmd.protein.conformation import from_positions
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.protein.validity import check_positions
from openmm_starmd.systems import build_peptide, peptide_system


@pytest.fixture(scope="module")
def molecule():
    """Topology, System, minimised positions and tokens of a capped peptide."""
    topology, positions = build_peptide("AEAAKAEG", True, True, 1)
    simulation = Simulation(topology, peptide_system(topology), StarMDIntegrator(topology, 300, 100, "elastic"))
    simulation.context.setPositions(positions)
    LocalEnergyMinimizer.minimize(simulation.context, maxIterations=500)
    positions = simulation.context.getState(positions=True).getPositions(asNumpy=True)._value
    return SimpleNamespace(topology=topology, positions=positions, tokens=ResidueTokens.from_topology(topology))


@pytest.fixture(scope="module")
def modes(molecule):
    reference = from_positions(torch.from_numpy(molecule.positions), molecule.tokens)
    bonded = molecule.tokens.features.c_end == 0
    return Modes.of(reference, bonded)


def test_a_free_molecule_has_six_modes_without_energy(modes, molecule):
    assert len(modes.rates) == 6 * molecule.tokens.n_residues - 6
    assert (modes.rates > 0).all()


def test_shapes_and_duals_are_inverse(modes):
    amplitudes = torch.randn(3, len(modes.rates), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(modes.amplitudes(modes.displacement(amplitudes)), amplitudes)


def test_two_steps_are_one_step_of_twice_the_stride(modes):
    """Mean and variance of amplitudes, from the response to amplitudes and to noise."""
    one, zero = torch.ones(1, len(modes.rates), dtype=torch.float64), torch.zeros(1, len(modes.rates)).double()
    once, twice = (modes.propagated(one, stride, 300, zero) for stride in (10, 20))
    torch.testing.assert_close(modes.propagated(once, 10, 300, zero), twice)
    noise, noise_of_two = (modes.propagated(zero, stride, 300, one).square() for stride in (10, 20))
    kept = modes.propagated(one, 10, 300, zero).square()
    torch.testing.assert_close(noise * kept + noise, noise_of_two)


def test_long_runs_have_the_variance_of_equipartition(modes):
    generator = torch.Generator().manual_seed(2)
    normal = torch.randn(4000, len(modes.rates), dtype=torch.float64, generator=generator)
    samples = modes.propagated(torch.zeros_like(normal), 1e9, 300, normal)
    ratio = samples.square().mean(0) / (KB * 300 / modes.rates)
    assert ratio.mean() == pytest.approx(1, abs=0.02) and (ratio - 1).abs().max() < 0.15


def test_conformations_are_sound_near_the_start_and_repeat(molecule):
    propagator = ElasticNetwork(molecule.tokens, 100, 300)
    start = from_positions(torch.from_numpy(molecule.positions), molecule.tokens).map(lambda x: x[None].float())
    ends = []
    for _ in range(2):
        history, generator = propagator.start(start), torch.Generator().manual_seed(3)
        for _ in range(20):
            history = propagator.extend(history, propagator.step(history, generator), generator)
        ends.append(history.last)
    torch.testing.assert_close(ends[0].frames.translations, ends[1].frames.translations, rtol=0, atol=0)
    moved = (ends[0].frames.translations - start.frames.translations).norm(dim=-1)
    assert 0.01 < moved.mean() < 0.5


def test_relaxed_jumps_through_the_integrator(molecule):
    integrator = StarMDIntegrator(molecule.topology, 300, 100, "elastic", randomSeed=4)
    simulation = Simulation(
        molecule.topology, peptide_system(molecule.topology), integrator, Platform.getPlatform("CPU"), {"Threads": "1"}
    )
    simulation.context.setPositions(molecule.positions)
    simulation.step(10)
    end = simulation.context.getState(positions=True).getPositions(asNumpy=True)._value
    assert np.abs(end - molecule.positions).max() > 0.02
    assert check_positions(torch.from_numpy(end), molecule.tokens).valid.all()


def test_one_residue_has_no_springs(tmp_path):
    topology, positions = build_peptide("A", True, True, 1)
    for call in (
        lambda: StarMDIntegrator(topology, 300, 100, "elastic", strict=False),
        lambda: rollout("elastic", topology, positions, stride=100, n_steps=1, output=tmp_path / "run"),
    ):
        with pytest.raises(ModelDomainError, match="takes 2 or more, this has 1"):
            call()
    assert not (tmp_path / "run").exists() and f"any protein of {LEAST} residues" in ElasticNetwork.card


@pytest.mark.parametrize("capped", [True, False])
def test_two_residues_move(tmp_path, capped):
    topology, positions = build_peptide("AG", capped, capped, 1)
    positions = positions.value_in_unit(unit.nanometer)
    (path,) = rollout("elastic", topology, positions, stride=100, n_steps=3, output=tmp_path / "run")
    frames = mdtraj.load(str(path), top=str(tmp_path / "run" / "topology.pdb")).xyz
    assert np.isfinite(frames).all() and 0.005 < np.abs(frames - positions).max() < 1
