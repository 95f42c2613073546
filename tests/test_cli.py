"""The command `starmd`: exit codes, one-line errors, files."""

import copy
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from glob import glob
from importlib import import_module
from pathlib import Path

import mdtraj
import numpy as np
import pytest
from openmm import Context, Platform, VerletIntegrator
from openmm.app import Element, Modeller, PDBFile, Topology
from openmm.unit import Quantity, nanometer
from safetensors import safe_open
from safetensors.torch import save_file

pytest.importorskip("typer")
pytest.importorskip("deeptime")

import openmm_starmd  # noqa: E402
from openmm_starmd import Propagator, available_models, available_propagators, cli, load_propagator  # noqa: E402
from openmm_starmd.evaluation.scoring.scores import MEANING  # noqa: E402
from openmm_starmd.model import embedded_cards  # noqa: E402
from openmm_starmd.systems import build_peptide as build  # noqa: E402
from openmm_starmd.systems import peptide_system  # noqa: E402


@pytest.fixture
def files(build_peptide, tmp_path, monkeypatch):
    """Folder with md.xtc, more.xtc and top.pdb; it is the working folder."""
    topology, positions = build_peptide("AVW")
    xyz = positions + np.random.default_rng(0).normal(0, 0.01, (80, *positions.shape))
    trajectory = mdtraj.Trajectory(xyz, mdtraj.Topology.from_openmm(topology), 10.0 * np.arange(1, 81))
    trajectory[:40].save(str(tmp_path / "md.xtc"))
    trajectory[40:].save(str(tmp_path / "more.xtc"))
    trajectory[0].save(str(tmp_path / "top.pdb"))
    (tmp_path / "config.toml").write_text('data = ["."]\noutput = "md.xtc"\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_help_has_an_example(capsys):
    assert cli.main(["--help"]) == 0
    assert "Usage: starmd" in capsys.readouterr().out
    for command, example in cli.EXAMPLES.items():
        assert cli.main([command.__name__, "--help"]) == 0
        told = " ".join(capsys.readouterr().out.split())
        assert f"Usage: starmd {command.__name__}" in told and f"Example: {example}" in told


LESS = {
    "--nanoseconds 1000 --stride 100 --replicas 16": "--nanoseconds 0.1 --stride 10 --replicas 2",
    "--nanoseconds 100 --frame-interval 10": "--nanoseconds 0.1 --frame-interval 2",
}
CONFIG = """data = ["md"]
output = "trained"
start_from = "starmd-peptide"
batch_size = 2
frames = 2
stride_range = [10, 12]
total_steps = 2
"""


@pytest.mark.slow
def test_the_examples_lead_from_a_structure_file_to_a_report(tmp_path, monkeypatch, capsys):
    pytest.importorskip("lightning_fabric")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(import_module("openmm_starmd.training.simulate"), "EQUILIBRATION_STEPS", 100)
    with open("1abc.pdb", "w") as file:
        PDBFile.writeFile(*build("AGS", seed=1), file)
    Path("config.toml").write_text(CONFIG)
    assert all(any(long in example for example in cli.EXAMPLES.values()) for long in LESS)
    for command, example in cli.EXAMPLES.items():
        if command.__name__ == "refine":  # needs more frames than these; tests/refinement/test_pipeline.py runs it
            continue
        for long, short in LESS.items():
            example = example.replace(long, short)
        words = [word for pattern in shlex.split(example) for word in sorted(glob(pattern)) or [pattern]]
        assert words[0] == "starmd" and cli.main(words[1:]) == 0, (example, capsys.readouterr().err)
    assert Path("report/report.html").is_file() and Path("trained/model.safetensors").is_file()


@pytest.mark.slow
def test_evaluate_writes_a_report_from_several_values_after_one_option(files, capsys):
    arguments = ["--reference", "md.xtc", "more.xtc", "--generated", "more.xtc", "md.xtc", "--topology", "top.pdb"]
    assert cli.main(["evaluate", *arguments, "-o", "out"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    content = json.loads((files / "out" / "metrics.json").read_text())
    assert content["settings"]["reference"] == "md.xtc, more.xtc"
    assert content["settings"]["generated frames"] == 80
    assert content["verdict"] in out and "out/report.html" in out
    assert all(meaning in out for light, meaning in MEANING.items() if light != "none")
    assert (files / "out" / "report.html").is_file() and (files / "out" / "summary.md").is_file()


def test_spread_values_leaves_other_options_alone():
    given = "evaluate --reference a b --topology t --generated c d e -o out --stride 5".split()
    expected = "evaluate --reference a --reference b --topology t --generated c --generated d --generated e -o out"
    assert cli.spread_values(given) == [*expected.split(), "--stride", "5"]
    assert cli.spread_values(["simulate", "AAA", "AAG", "--seed", "1"]) == ["simulate", "AAA", "AAG", "--seed", "1"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("evaluate --reference md.xtc --topology top.pdb", 2, "Missing option '--generated'"),
        ("evaluate --reference md.xtc --generated nowhere.xtc --topology top.pdb", 1, "no file nowhere.xtc"),
        ("evaluate --reference md.xtc --generated more.xtc", 1, "give its topology"),
        ("evaluate --reference md.xtc --generated more.xtc --topology md.xtc", 1, "cannot be read as a topology"),
        ("evaluate --reference md.xtc --generated more.xtc --topology top.pdb --stride -3", 1, "positive, finite"),
        ("evaluate --reference md.xtc --generated more.xtc --topology top.pdb --temperature 0", 1, "must be above 0 K"),
        ("evaluate --reference md.xtc --generated more.xtc --topology top.pdb --stride inf", 1, "positive, finite"),
        ("evaluate --reference md.xtc --generated more.xtc --topology top.pdb --temperature nan", 1, "got nan K"),
        ("evaluate --reference md.xtc --generated no.xtc -o top.pdb", 1, "The output top.pdb cannot be made"),
        ("evaluate --reference md.xtc md.xtc --generated more.xtc --topology top.pdb", 1, "given twice"),
        ("models no-such-model", 1, "No model 'no-such-model'"),
        ("models nope", 1, "'elastic'"),
        ("simulate ABZ --nanoseconds 0.01", 1, "one-letter codes"),
        ("simulate AAA --nanoseconds inf", 1, "nanoseconds must be above 0 ns and finite; got inf ns"),
        ("simulate AAA --nanoseconds 0.002", 1, "0.002 ns hold no frame interval of 5 ps"),
        ("simulate AAA --nanoseconds 1 --frame-interval 0", 1, "frame_interval must be above 0 ps"),
        ("simulate AAA --nanoseconds 1 --frame-interval nan", 1, "frame_interval must be above 0 ps"),
        ("simulate AAA --nanoseconds 1 -o md.xtc", 1, "The output md.xtc cannot be made: md.xtc is a file"),
        ("simulate AAA AAA --nanoseconds 1", 1, "would both be written to md/AAA.xtc"),
        ("simulate AAA", 2, "Missing option '--nanoseconds'"),
        ("simulate nowhere.pdb --nanoseconds 0.01", 1, "no file nowhere.pdb"),
        ("prepare nowhere.pdb", 1, "no such file"),
        ("prepare top.pdb -o nodir/x.pdb", 1, "nodir/x.pdb cannot be written: there is no folder nodir; make it"),
        ("prepare top.pdb -o .", 1, "must be a file, but it is a folder"),
        ("prepare top.pdb -o md.xtc/x.pdb", 1, "md.xtc is a file and no folder; name another output"),
        ("rollout nowhere.pdb --nanoseconds 1", 1, "no file nowhere.pdb"),
        ("rollout nowhere --nanoseconds 1", 1, "neither a file"),
        ("rollout AGB --nanoseconds 1", 1, "neither a file"),
        ("info nowhere.pdb", 1, "no such file"),
        ("info ZZZ", 1, "neither a file"),
        ("rollout top.pdb --nanoseconds 10 --stride 5000", 1, "strides of"),
        ("rollout top.pdb --nanoseconds 0", 1, "nanoseconds must be above 0 ns"),
        ("rollout top.pdb --nanoseconds 0.04", 1, "hold no stride of 100 ps"),
        ("rollout top.pdb --nanoseconds 0.2 --stride 0 --allow stride", 1, "stride must be above 0 ps and finite"),
        ("rollout top.pdb --nanoseconds 0.2 --stride nan --allow stride", 1, "stride must be above 0 ps and finite"),
        ("rollout top.pdb --nanoseconds inf", 1, "nanoseconds must be above 0 ns and finite; got inf ns"),
        ("rollout top.pdb --nanoseconds 1e308", 1, "more than 2,147,483,647 times the stride of 100 ps"),
        ("rollout top.pdb --nanoseconds 1 --temperature inf --allow temperature", 1, "temperature must be above 0 K"),
        ("rollout top.pdb --nanoseconds 1 -o md.xtc", 1, "The output md.xtc cannot be made: md.xtc is a file"),
        ("info top.pdb --stride 0", 1, "stride must be above 0 ps"),
        ("info top.pdb --temperature nan", 1, "temperature must be above 0 K"),
        ("refine md.xtc --topology top.pdb --nanoseconds inf", 1, "nanoseconds must be above 0 ns"),
        ("refine md.xtc --topology top.pdb --nanoseconds 1 --frame-interval 0", 1, "frame_interval must be above 0 ps"),
        ("refine md.xtc --topology top.pdb --nanoseconds 1 --precision inf", 1, "finite factor above 1"),
        ("refine md.xtc --topology top.pdb --nanoseconds 1 --temperature nan", 1, "temperature must be above 0 K"),
        ("refine md.xtc --topology top.pdb --nanoseconds 1 -o top.pdb", 1, "The output top.pdb cannot be made"),
        ("train config.toml", 1, "The output md.xtc cannot be made: md.xtc is a file"),
        ("refine nowhere --nanoseconds 1", 1, "no file nowhere"),
        ("refine md.xtc --nanoseconds 1", 1, "give its topology"),
        ("refine md.xtc --topology top.pdb --nanoseconds 1 --system top.pdb", 1, "XML of an OpenMM System"),
        ("refine . --nanoseconds 1", 1, "no topology.pdb"),
        ("train nowhere.toml", 1, "nowhere.toml"),
        ("play", 2, "No such command"),
    ],
)
def test_bad_input_is_one_line_on_stderr(files, capsys, monkeypatch, arguments, code, message):
    monkeypatch.setattr("openmm_starmd.progress.FIRST", float("inf"))  # on a slow machine there were lines of progress
    assert cli.main(arguments.split()) == code
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("starmd: ") and message in lines[0]


def test_an_output_that_nobody_may_write_is_refused(files, capsys, monkeypatch):
    (files / "closed").mkdir()
    allowed = os.access  # to root everything is

    def access(path, mode):
        return allowed(path, mode) and not (mode & os.W_OK and Path(path).name == "closed")

    monkeypatch.setattr(os, "access", access)
    for command in ("prepare top.pdb -o closed/x.pdb", "rollout top.pdb --nanoseconds 1 -o closed"):
        assert cli.main(command.split()) == 1
        assert "there is no permission to write in closed; name another output" in capsys.readouterr().err


def test_a_file_that_prepare_cannot_write_stays_as_it_was(files, monkeypatch):
    (files / "start.pdb").write_text("mine")

    def full(*arguments, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr(PDBFile, "writeFile", full)
    assert cli.main("prepare top.pdb -o start.pdb".split()) == 1
    assert (files / "start.pdb").read_text() == "mine" and not list(files.glob("*.tmp"))


def test_an_ion_beside_the_protein_of_a_simulation_leads_to_prepare(build_peptide, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    topology, positions = build_peptide("DWGR")
    modeller, sodium = Modeller(topology, Quantity(positions.tolist(), nanometer)), Topology()
    sodium.addAtom("NA", Element.getBySymbol("Na"), sodium.addResidue("NA", sodium.addChain()))
    modeller.add(sodium, Quantity([[3.0, 3.0, 3.0]], nanometer))
    with open("ion.pdb", "w") as file:
        PDBFile.writeFile(modeller.topology, modeller.positions, file)
    assert cli.main(["simulate", "ion.pdb", "--nanoseconds", "0.1"]) == 1
    told = capsys.readouterr().err.strip()
    assert "ff14SB has no template for residue NA" in told and "`starmd prepare FILE` removes" in told
    assert told.count("\n") == 0
    assert cli.main("prepare ion.pdb -o start.pdb".split()) == 0
    assert PDBFile("start.pdb").topology.getNumAtoms() == topology.getNumAtoms()


def test_simulate_tells_what_its_folder_belongs_to(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(import_module("openmm_starmd.training.simulate"), "EQUILIBRATION_STEPS", 10)
    monkeypatch.chdir(tmp_path)
    command = "simulate AG --nanoseconds 0.0002 --frame-interval 0.1 -o md".split()
    assert cli.main(command) == cli.main(command) == 0
    assert capsys.readouterr().out.split() == 2 * ["md/AG.xtc"]
    for longer in ([], ["--nanoseconds", "0.0004"]):
        assert cli.main([*command, "--temperature", "400", *longer]) == 1
        assert "md/AG.xtc belongs to another temperature; go on with what md/AG.json tells" in capsys.readouterr().err


def test_a_rollout_of_a_file_with_an_ion_says_how_to_remove_it(files, capsys):
    lines = [line for line in Path("top.pdb").read_text().splitlines() if line.startswith("ATOM")]
    ion = "HETATM  900 ZN    ZN B 201      30.000  30.000  30.000  1.00  0.00          ZN"
    Path("ion.pdb").write_text("\n".join([*lines, "TER", ion, "END", ""]))
    assert cli.main("rollout ion.pdb --nanoseconds 0.1 -o run".split()) == 1
    told = capsys.readouterr().err
    assert "holds ZN beside the protein (the first is residue ZN 201 of chain B)" in told and told.count("\n") == 1
    assert "`starmd prepare FILE`" in told and not Path("run").exists()
    assert cli.main("prepare ion.pdb -o start.pdb".split()) == 0
    assert cli.main("rollout start.pdb --nanoseconds 0.01 --stride 10 --no-relax -o run".split()) == 0


def test_models_lists_and_shows(capsys):
    assert cli.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*available_models(), *available_propagators()]
    assert all(len(line) <= 80 and len(line.split()) > 3 for line in lines)
    assert "3 to 9 residues" in lines[available_models().index("starmd-peptide")]
    assert cli.main(["models", "starmd-peptide"]) == 0
    assert "300.0" in capsys.readouterr().out


@pytest.mark.parametrize("name", [*available_models(), "elastic"])
def test_cards_begin_with_when_to_choose_the_model_and_fit_a_terminal(name):
    card = load_propagator(name).card if name == "elastic" else embedded_cards()[name]
    title, when, *_ = card.split("\n\n")
    assert title == f"# {name}" and when.startswith("For ") and "\n" not in when
    assert max(map(len, card.splitlines())) <= 80
    if name != "elastic":
        page = Path(openmm_starmd.__file__).parent / "models" / f"{name}.md"
        assert card == page.read_text(encoding="utf-8"), "the card in the weights is another"


@pytest.fixture
def quick_probe(monkeypatch):
    """`starmd info` on a machine where a jump takes 0.2 s, half of which goes to other jobs."""
    module = import_module("openmm_starmd.rollout.probe")
    monkeypatch.setattr(module, "seconds_a_jump", lambda model, topology, positions, **settings: (0.2, 0.1))


def test_info_tells_models_changes_and_speed(quick_probe, build_peptide, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    topology, positions = build_peptide("AVWGS")
    modeller = Modeller(topology, Quantity(positions.tolist(), nanometer))
    modeller.delete([atom for atom in topology.atoms() if atom.element.symbol == "H"])
    with open("heavy.pdb", "w") as file:
        PDBFile.writeFile(modeller.topology, modeller.positions, file)
    assert cli.main(["info", "heavy.pdb"]) == 0
    told = capsys.readouterr().out
    assert "heavy.pdb: 5 residues" in told and "added" in told and "hydrogen" in told
    assert re.search(r"● +starmd-peptide +knows", told)
    assert re.search(r"■ +starmd-peptide-fast +the model knows proteins of 4 residues, this has 5", told)
    assert "0.2 s a jump, 43,200 ns/day, 3 min for 100 ns" in told
    assert "86,400 ns/day" in told
    assert "starmd prepare heavy.pdb -o start.pdb" in told and "starmd rollout start.pdb --nanoseconds" in told
    assert len(told.splitlines()) <= 24


def following(told):
    """Commands that `starmd info` ends with."""
    return [line.strip() for line in told.partition("\nNext")[2].splitlines() if line.startswith("  starmd")]


def test_info_of_what_no_model_knows_names_what_is_left(quick_probe, capsys):
    assert cli.main("info ace-DWGR --stride 50 --temperature 302".split()) == 0
    told = capsys.readouterr().out
    assert "Nothing to prepare" in told and "a jump" not in told and "is capped and the" in told
    assert following(told) == [
        "starmd train, on MD of this molecule (see the documentation)",
        "starmd rollout ace-DWGR --model elastic --nanoseconds 100 --stride 50 --temperature 302 -o run",
    ]


@pytest.mark.parametrize(
    "given, wanted",
    [
        ("--stride 2000", "--stride 1000"),
        ("--temperature 310", "--stride 100"),
        ("--stride 5 --temperature 302", "--stride 10 --temperature 302"),
    ],
)
def test_info_of_settings_that_no_model_knows_gives_those_that_one_knows(quick_probe, capsys, given, wanted):
    """As the error of `choose_model` says; a tetrapeptide needs no training and has no fold."""
    assert cli.main(f"info DWGR {given}".split()) == 0
    told = capsys.readouterr().out
    assert "Next, with a stride and a temperature that starmd-peptide knows:" in told
    assert following(told) == [f"starmd rollout DWGR --nanoseconds 100 {wanted} -o run"]


def test_info_repeats_what_it_was_given(quick_probe, capsys):
    assert cli.main("info DWGR --stride 50 --temperature 298.15".split()) == 0
    (command,) = following(capsys.readouterr().out)
    assert command == "starmd rollout DWGR --nanoseconds 100 --stride 50 --temperature 298.15 -o run"


def test_info_of_one_residue_has_no_elastic_network(quick_probe, capsys):
    assert cli.main("info ace-A-nme --stride 500 --temperature 310".split()) == 0
    assert following(capsys.readouterr().out) == ["starmd rollout ace-A-nme --nanoseconds 100 --stride 240 -o run"]


def test_info_says_how_to_name_a_histidine_and_that_helps(quick_probe, build_peptide, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    topology, positions = build_peptide("DHGR")
    modeller = Modeller(topology, Quantity(positions.tolist(), nanometer))
    modeller.delete([atom for atom in topology.atoms() if atom.element.symbol == "H"])
    with open("dhgr.pdb", "w") as file:
        PDBFile.writeFile(modeller.topology, modeller.positions, file)
    assert cli.main("info dhgr.pdb".split()) == 0
    told = capsys.readouterr().out
    assert "name the residue HID in the file, and `starmd prepare` builds HID" in " ".join(told.split())
    assert following(told)[0] == (
        "starmd info dhgr.pdb --stride 100, once the residues are named HID in the file; or, with HIE,"
    )
    Path("named.pdb").write_text(Path("dhgr.pdb").read_text().replace("HIS", "HID"))
    assert cli.main("info named.pdb".split()) == 0
    told = capsys.readouterr().out
    assert re.search(r"● +starmd-peptide +knows this molecule", told) and "HID: named HID in the file" in told


def test_info_of_an_unfolded_chain_asks_for_a_fold(quick_probe, capsys):
    assert cli.main("info AKLVDEGHTPWQRSNAKLVD".split()) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "the start is not folded" in told and "a jump" not in told
    assert "starmd info FOLDED.pdb --stride 100: starmd-protein takes a folded structure of this molecule" in told
    assert "starmd rollout FOLDED.pdb --model elastic" in told


def test_the_probe_leaves_out_the_first_jump_and_counts_the_jumps_that_are_tried_again(peptide, monkeypatch):
    probe = import_module("openmm_starmd.rollout.probe")
    clock = iter([100.0, 103.0, 104.0])
    monkeypatch.setattr(probe.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(probe, "rollout", lambda *_, progress, **settings: [progress(n) for n in (1, 0, 1, 1)])
    wall, cpu = probe.seconds_a_jump("any", *peptide[:2], stride=10, temperature=300)
    assert wall == 2.0 and cpu >= 0


def test_rollout_of_a_sequence_starts_from_the_peptide_that_build_peptide_makes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = "rollout ace-AGS-nme --nanoseconds 0.01 --stride 10 --no-relax -o run".split()
    assert cli.main(command) == 0
    there, (expected, _) = PDBFile("run/topology.pdb").topology, build("AGS", True, True, seed=0)
    assert [(a.name, a.residue.name) for a in there.atoms()] == [(a.name, a.residue.name) for a in expected.atoms()]
    first = Path("run/replica0000.xtc").read_bytes()
    assert cli.main(command) == 0
    assert Path("run/replica0000.xtc").read_bytes() == first


@pytest.mark.parametrize(
    ("library", "command", "modules", "extra"),
    [
        ("lightning_fabric", "train top.pdb", "training.fitting training.card training.loop training.logs", "train"),
        ("deeptime", "evaluate --reference a.xtc --generated b.xtc", "evaluation.report", "analysis"),
    ],
)
def test_commands_without_a_library_name_the_extra(files, capsys, monkeypatch, library, command, modules, extra):
    known = tuple(f"openmm_starmd.{module}" for module in modules.split())
    known += ("openmm_starmd.evaluation.metrics",) if extra == "analysis" else ()
    for name in [name for name in sys.modules if name.startswith(known) or name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    assert cli.main(command.split()) == 1
    assert f'pip install "openmm-starmd[{extra}]"' in capsys.readouterr().err


def test_simulate_makes_a_trajectory(tmp_path, capsys):
    arguments = ["simulate", "AGA", "--nanoseconds", "0.01", "-o", str(tmp_path), "--frame-interval", "5"]
    assert cli.main([*arguments, "--platform", "Reference"]) == 0
    assert capsys.readouterr().out.strip().endswith("AGA.xtc")
    assert mdtraj.load(str(tmp_path / "AGA.xtc"), top=str(tmp_path / "AGA.pdb")).n_frames == 2


@pytest.mark.slow
def test_from_a_structure_to_trajectories(files, capsys):
    assert cli.main("prepare top.pdb -o start.pdb".split()) == 0
    assert "start.pdb: 3 residues" in capsys.readouterr().out
    command = "rollout start.pdb --nanoseconds 0.03 --stride 10 --replicas 2 -o run".split()
    assert cli.main(command) == 0
    paths = capsys.readouterr().out.split()
    assert [Path(path).name for path in paths] == ["replica0000.xtc", "replica0001.xtc"]
    first = [mdtraj.load(path, top="run/topology.pdb") for path in paths]
    assert [len(frames) for frames in first] == [3, 3]
    assert cli.main([*command, "--nanoseconds", "0.05"]) == 0
    again = [mdtraj.load(path, top="run/topology.pdb") for path in paths]
    assert [len(frames) for frames in again] == [5, 5]
    assert all(np.array_equal(a.xyz[:3], b.xyz) for a, b in zip(again, first, strict=True))
    assert cli.main([*command, "--dynamics-steps", "0", "-o", "minimised"]) == 0
    assert energy("minimised") < energy("run") - 20


def energy(folder: str) -> float:
    """Mean potential energy (kJ/mol) of a rollout."""
    topology = PDBFile(f"{folder}/topology.pdb").topology
    context = Context(peptide_system(topology), VerletIntegrator(0.001), Platform.getPlatform("CPU"))
    found = []
    for path in sorted(Path(folder).glob("*.xtc")):
        for positions in mdtraj.load(str(path), top=f"{folder}/topology.pdb").xyz:
            context.setPositions(positions)
            found.append(context.getState(energy=True).getPotentialEnergy()._value)
    return np.mean(found)


ROLLOUT = "rollout top.pdb --nanoseconds 0.06 --stride 10 --no-relax -o"


def test_a_terminated_rollout_loses_nothing(files, capsys, monkeypatch):
    assert cli.main(f"{ROLLOUT} whole".split()) == 0
    sample, handler, calls = Propagator.step, signal.getsignal(signal.SIGTERM), []

    def step(self, history, generator):
        calls.append(history.n_frames)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return sample(self, history, generator)

    monkeypatch.setattr(Propagator, "step", step)
    assert cli.main(f"{ROLLOUT} run".split()) == 130
    told = capsys.readouterr().err.strip()
    assert told.endswith("starmd: stopped; the same command goes on from here")
    assert signal.getsignal(signal.SIGTERM) is handler
    assert cli.main(f"{ROLLOUT} run".split()) == 0
    assert len(calls) == 7  # the fourth step was begun twice
    assert (files / "run/replica0000.xtc").read_bytes() == (files / "whole/replica0000.xtc").read_bytes()


@pytest.mark.slow
def test_a_rollout_by_the_workers_of_a_scheduler(files, capsys):
    distributed = pytest.importorskip("distributed")
    assert cli.main(f"{ROLLOUT} local --replicas 3".split()) == 0
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster:
        words = f"{ROLLOUT} spread --replicas 3 --batch-size 2 --scheduler".split()
        assert cli.main([*words, cluster.scheduler_address]) == 0
    there = {path.name: mdtraj.load(str(path), top="local/topology.pdb") for path in files.glob("local/*.xtc")}
    assert len(there) == 3
    for name, frames in there.items():
        spread = mdtraj.load(f"spread/{name}", top="spread/topology.pdb")
        np.testing.assert_allclose(spread.xyz, frames.xyz, atol=2e-3)
        assert spread.time.tolist() == [10.0 * k for k in range(1, 7)]


def test_without_dask_it_says_what_to_install(files, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.delitem(sys.modules, "openmm_starmd.rollout.cluster", raising=False)
    assert cli.main(f"{ROLLOUT} run --scheduler tcp://localhost:1".split()) == 1
    assert 'pip install "openmm-starmd[cluster]"' in capsys.readouterr().err
    assert not (files / "run").exists()


def test_commands_of_the_readme_exist(capsys):
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^starmd (\w+) (.*?)(?:#.*)?$", readme, re.MULTILINE)
    assert {command for command, _ in found} >= {"simulate", "evaluate"}
    for command, rest in found:
        cli.main([command, "--help"])
        known = capsys.readouterr().out
        for option in re.findall(r"(?<!\S)--?[a-z][a-z-]*", rest):
            assert f" {option} " in known, f"README.md: starmd {command} {option}"


def test_without_its_libraries_it_says_what_to_install():
    code = "import sys; sys.modules['typer'] = None; import openmm_starmd.cli"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1].startswith("ImportError: starmd needs typer and rich")
    assert 'pip install "openmm-starmd[cli' in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("content", [b"garbage\x00\x01 not a pdb\n", bytes(range(128, 256)) * 20, b"END\n"])
def test_rollout_of_what_is_no_pdb_file_is_one_line(content, tmp_path, capsys):
    (tmp_path / "garbage.pdb").write_bytes(content)
    assert cli.main(["rollout", str(tmp_path / "garbage.pdb"), "--nanoseconds", "1", "-o", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "garbage.pdb cannot be read as a PDB file" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_card_and_with_markup_in_its_name_is_shown(tiny_model, tmp_path, capsys):
    """Names such as [/b] would end the program in rich's own error."""
    model = copy.copy(tiny_model)
    model.name, model.card = "mine[/bold] [red]x", ""
    path = tmp_path / "model.safetensors"
    model.save(path)
    with safe_open(str(path), "pt") as file:
        metadata, weights = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    del metadata["card"]
    save_file(weights, str(path), metadata)
    assert cli.main(["models", str(path)]) == 0
    told = capsys.readouterr().out
    assert "mine[/bold] [red]x" in told and "no card" in told


def test_weights_are_readable_by_whom_the_umask_lets_read(tiny_model, tmp_path):
    before = os.umask(0o022)
    try:
        tiny_model.save(tmp_path / "model.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
