"""Propagators by name: what other packages bring, what "auto" chooses, and what bad names get."""

import hashlib
import logging
import re
import warnings
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from openmm import Platform
from openmm.app import Simulation

from openmm_starmd import (
    Domain,
    HistoryError,
    JumpPropagator,
    ModelDomainError,
    Relaxation,
    StarMDError,
    StarMDIntegrator,
    available_propagators,
    choose_model,
    cli,
    load_propagator,
    rollout,
)
from openmm_starmd.geometry.rigid import Rigid
from openmm_starmd.model import _embedded
from openmm_starmd.protein.conformation import Conformation, from_positions
from openmm_starmd.protein.tokens import ResidueTokens

DOCS = Path(__file__).resolve().parents[1] / "docs" / "propagators.md"


class Sway(JumpPropagator):
    """Every residue goes up and down by turns, and a little anywhere; it sees two past frames."""

    name, context_frames, domain = "sway", 2, Domain(max_stride=500.0)

    def __init__(self, tokens, stride, temperature, *, device="cpu"):
        self.tokens, self.stride, self.temperature, self.device = tokens, stride, temperature, torch.device(device)
        self.identity = hashlib.blake2b(b"sway" + tokens.sequence.encode(), digest_size=16).digest()

    def step(self, history, generator):
        generators = [generator] if isinstance(generator, torch.Generator) else generator
        draws = torch.stack([torch.randn(1, 3, generator=g) for g in generators])
        last, up = history.last, 0.01 if (history.n_frames + history.dropped) % 2 else -0.01
        shift = 0.001 * draws + torch.tensor([0.0, 0.0, up])
        return Conformation(Rigid(last.frames.rotations, last.frames.translations + shift), last.torsions, last.angles)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Function (package, entry_points, module="") that installs a package with these lines of entry points."""

    def install(package, lines, module=""):
        site = tmp_path / "site"
        metadata = site / f"{package}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text("[openmm_starmd.propagators]\n" + lines)
        (site / f"{package}.py").write_text(module)
        monkeypatch.syspath_prepend(str(site))

    return install


@pytest.fixture
def sway(install):
    install(
        "swaying",
        "sway = swaying:Sway",
        f"from importlib import import_module\nSway = import_module({__name__!r}).Sway",
    )
    return "sway"


def simulation_of(peptide, model, **settings):
    topology, positions, system = peptide
    integrator = StarMDIntegrator(topology, 300, 100, model, randomSeed=5, device="cpu", **settings)
    simulation = Simulation(topology, system, integrator, Platform.getPlatform("Reference"))
    simulation.context.setPositions(positions)
    return simulation


def positions_of(simulation):
    return simulation.context.getState(positions=True).getPositions(asNumpy=True)._value


def test_a_propagator_of_another_package_runs_by_its_name(peptide, sway, tmp_path):
    assert sway in available_propagators()
    whole = simulation_of(peptide, sway, relaxation=None)
    whole.step(2)
    whole.saveCheckpoint(str(tmp_path / "half"))
    whole.step(2)
    rest = simulation_of(peptide, sway, relaxation=None)
    rest.loadCheckpoint(str(tmp_path / "half"))
    rest.step(2)
    assert np.array_equal(positions_of(rest), positions_of(whole))
    single = simulation_of(peptide, Sway, relaxation=None)
    single.step(4)
    assert np.array_equal(positions_of(single), positions_of(whole))
    assert np.abs(positions_of(whole) - peptide[1]._value).max() > 1e-4


def test_a_rollout_of_it_goes_on_bit_for_bit(peptide, sway, tmp_path):
    def run(folder, n_steps):
        options = {"stride": 100, "output": tmp_path / folder, "n_replicas": 2, "resume": True, "checkpoint_steps": 2}
        return [f.read_bytes() for f in rollout(sway, peptide[0], peptide[1], n_steps=n_steps, **options)]

    whole = run("whole", 6)
    run("parts", 3)
    assert run("parts", 6) == whole and whole[0] != whole[1]


def test_the_example_of_the_documentation_runs(peptide, install, tmp_path, capsys):
    code, toml = re.findall(r"```(?:python|toml)\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(code.splitlines()) <= 40
    install("jitter", toml.splitlines()[1].replace('"', ""), code)
    simulation = simulation_of(peptide, "jitter", relaxation=Relaxation(minimizationSteps=20, dynamicsSteps=5))
    simulation.step(2)
    assert np.abs(positions_of(simulation) - peptide[1]._value).max() > 0.01
    assert cli.main(["models"]) == 0 and "\njitter " in capsys.readouterr().out
    assert cli.main(["models", "jitter"]) == 0 and "Normally distributed" in capsys.readouterr().out


def test_what_a_propagator_refuses(peptide, sway):
    with pytest.raises(ModelDomainError, match="Outside the domain of model 'sway': .* strides of 10 to 500 ps"):
        StarMDIntegrator(peptide[0], 300, 600, sway)
    with pytest.raises(ValueError, match="Sway knows no denoising_steps"):
        StarMDIntegrator(peptide[0], 300, 100, sway, denoisingSteps=3)


def test_a_state_of_another_propagator_is_refused(peptide, sway, tiny_model, tmp_path):
    simulation = simulation_of(peptide, sway, relaxation=None)
    simulation.step(1)
    for way, model in product(("State", "Checkpoint"), (tiny_model, "elastic")):
        getattr(simulation, f"save{way}")(str(tmp_path / way))
        other = simulation_of(peptide, model, relaxation=None)
        before = other.context.createCheckpoint()
        with pytest.raises(HistoryError, match="another integrator, model"):
            getattr(other, f"load{way}")(str(tmp_path / way))
        assert other.context.createCheckpoint() == before


def test_names_that_lead_nowhere(peptide, install):
    with pytest.raises(StarMDError, match="No propagator 'nobody': expected one of"):
        load_propagator("nobody")
    with pytest.raises(
        StarMDError, match=r"No model 'nobody': expected one of \[.*'starmd-protein'.*'elastic'.*, 'auto'"
    ):
        StarMDIntegrator(peptide[0], 300, 100, "nobody")
    install("broken", "broken = broken:Missing")
    with pytest.raises(StarMDError, match="'broken' .* cannot be imported"):
        StarMDIntegrator(peptide[0], 300, 100, "broken")
    install("rival", "broken = rival:Broken")
    with pytest.raises(StarMDError, match="Several packages bring a propagator 'broken'"):
        load_propagator("broken")


@pytest.mark.parametrize(
    "sequence, caps, name",
    [
        ("A", True, "starmd-dipeptide"),
        ("KF", False, "starmd-dipeptide"),
        ("AGVA", False, "starmd-peptide"),
        ("GYDPETGTWG", False, "starmd-protein"),
    ],
)
def test_auto_takes_the_embedded_model_that_holds_the_molecule(build_peptide, sequence, caps, name, caplog):
    topology, positions = build_peptide(sequence, caps, caps)
    with caplog.at_level(logging.INFO, "openmm_starmd"):
        model = choose_model(topology, 100, 300, device="cpu")
    assert model.domain.check(ResidueTokens.from_topology(topology), 100, 300) == []
    assert model.name == name  # not the distilled one, which is less exact
    assert [record.getMessage().count(model.name) for record in caplog.records] == [1]
    caplog.clear()
    with caplog.at_level(logging.INFO, "openmm_starmd"):
        integrator = StarMDIntegrator(topology, 300, 100, device="cpu")
    assert len(caplog.records) == 1 and integrator._propagator.name == model.name


def test_where_auto_finds_none_the_error_tells_what_each_lacks(build_peptide, tmp_path):
    topology, positions = build_peptide("AGGA")
    for call in (
        lambda: choose_model(topology, 1e6, 450),
        lambda: StarMDIntegrator(topology, 450, 1e6),
        lambda: rollout("auto", topology, positions, stride=1e6, temperature=450, n_steps=1, output=tmp_path / "run"),
    ):
        with pytest.raises(ModelDomainError) as caught:
            call()
        told = str(caught.value)
        for name in ("starmd-peptide", "starmd-peptide-fast"):
            assert re.search(rf"{name}: the model knows [^.]*, not 450 K; the model knows strides of [^.]*\.", told)
        assert "This has 4 residues; for other numbers there are starmd-dipeptide (1 to 2), starmd-p" in told
        assert all(name in told for name in _embedded())
    assert not (tmp_path / "run").exists()


class Nameless(JumpPropagator):
    def step(self, history, generator):
        return history.last


class Stepless(JumpPropagator):
    name = "stepless"


@pytest.mark.parametrize(
    "model", [5, None, b"elastic", [], JumpPropagator, Nameless, Stepless, SimpleNamespace, Sway.step]
)
def test_what_is_no_model_is_told_what_a_model_may_be(peptide, tmp_path, model):
    for call in (
        lambda: StarMDIntegrator(peptide[0], 300, 100, model),
        lambda: rollout(model, peptide[0], peptide[1], stride=100, n_steps=1, output=tmp_path / "run"),
    ):
        with pytest.raises(StarMDError, match="model must be 'auto', .* inherits from JumpPropagator .*; got "):
            call()
    assert not (tmp_path / "run").exists()


def test_an_entry_point_that_is_no_propagator_is_named(peptide, install):
    install("idle", "idle = idle:Idle", "class Idle:\n    name = 'idle'\n")
    with pytest.raises(StarMDError, match=r"'idle' \(idle:Idle\) must be a class that inherits from JumpPropagator"):
        StarMDIntegrator(peptide[0], 300, 100, "idle")


@pytest.mark.parametrize(
    "name, value, told",
    [
        ("identity", None, "must be of the type bytes; it is None"),
        ("identity", "a str", "must be of the type bytes; it is 'a str'"),
        ("identity", b"", "must hold 1 to 64 bytes; it holds 0"),
        ("identity", bytes(65), "must hold 1 to 64 bytes; it holds 65"),
        ("tokens", None, "must be of the type ResidueTokens"),
        ("stride", "100", "must be of the type Real; it is '100'"),
        ("device", "cpu", "must be of the type device; it is 'cpu'"),
        ("context_frames", 1.5, "must be of the type int; it is 1.5"),
    ],
)
def test_what_a_propagator_lacks_is_named_when_it_is_made(peptide, tmp_path, name, value, told):
    class Lacking(Sway):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            setattr(self, name, value)

    for call in (
        lambda: StarMDIntegrator(peptide[0], 300, 100, Lacking),
        lambda: rollout(Lacking, peptide[0], peptide[1], stride=100, n_steps=1, output=tmp_path / "run"),
    ):
        with pytest.raises(StarMDError, match=rf"Lacking\.{name} {told}"):
            call()
    assert not (tmp_path / "run").exists()


RESULTS = {
    "nothing": (lambda x: None, "None"),
    "a tuple": (lambda x: x.tensors, "a tuple"),
    "too few residues": (lambda x: x[:, :2], r"rotations of shape \(1, 2, 3, 3\) in place of \(1, 3, 3, 3\)"),
    "no replica": (lambda x: x[0], r"rotations of shape \(3, 3, 3\) in place of \(1, 3, 3, 3\)"),
    "too few torsions": (
        lambda x: Conformation(x.frames, x.torsions[..., :4], x.angles),
        r"torsions of shape \(1, 3, 4\) in place of \(1, 3, 6\)",
    ),
}


@pytest.mark.parametrize("kind", RESULTS)
@pytest.mark.parametrize("method", ["step", "context_copy"])
def test_a_result_that_is_no_conformation_of_the_molecule_is_named_and_nothing_moves(peptide, tmp_path, method, kind):
    spoil, told = RESULTS[kind]

    class Failing(Sway):
        def step(self, history, generator):
            after = super().step(history, generator)
            return spoil(after) if method == "step" else after

        def context_copy(self, conformation, generator):
            return spoil(conformation) if method == "context_copy" else conformation

    simulation = simulation_of(peptide, Failing, relaxation=None)
    before = simulation.context.createCheckpoint()
    message = rf"Failing\.{method} must return a Conformation of all replicas and residues .*; it has returned {told}\."
    with pytest.raises(StarMDError, match=message):
        simulation.step(1)
    assert simulation.context.createCheckpoint() == before
    with pytest.raises(StarMDError, match=message):
        rollout(Failing, peptide[0], peptide[1], stride=100, n_steps=1, output=tmp_path / "run")


def test_a_repair_that_is_no_conformation_is_named(peptide):
    class Failing(Sway):
        def resample(self, history, conformation, residues, generator):
            return conformation[:, :1]

    tokens = ResidueTokens.from_topology(peptide[0])
    propagator, positions = Failing(tokens, 100, 300), torch.from_numpy(peptide[1]._value.copy())
    start = from_positions(positions, tokens)[None]
    with pytest.raises(StarMDError, match=r"Failing\.resample must return a Conformation .* in place of"):
        propagator.resample(propagator.start(start), start, None, generator=None)


def test_auto_that_is_not_strict_takes_the_nearest_with_a_warning(build_peptide):
    topology, _ = build_peptide("AGGA")
    with pytest.warns(UserWarning, match="not 450 K"):
        StarMDIntegrator(topology, 450, 100, strict=False, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        StarMDIntegrator(topology, 300, 100, strict=False, device="cpu")
