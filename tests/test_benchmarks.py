"""The benchmark scripts on tiny data: they run, resume, write what they promise, and their own arithmetic is right."""

import copy
import csv
import dataclasses
import importlib
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import mdtraj
import numpy as np
import pytest
import torch
from openmm import unit
from openmm.app import PDBFile
from scipy.signal import lfilter

pytest.importorskip("lightning_fabric")

from openmm_starmd.errors import StarMDError  # noqa: E402
from openmm_starmd.evaluation.metrics import dihedrals, samples  # noqa: E402
from openmm_starmd.model import available_models, load_model  # noqa: E402
from openmm_starmd.network.config import NetworkConfig  # noqa: E402
from openmm_starmd.protein.conformation import Conformation, from_positions, to_positions  # noqa: E402
from openmm_starmd.protein.displacement import tangent_noise  # noqa: E402
from openmm_starmd.protein.tokens import ResidueTokens  # noqa: E402

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
INTERVAL = 20.0  # ps
FRAMES = 400


@pytest.fixture(scope="module")
def script():
    """Import a benchmark by its name; they import each other as they do when they are run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module


@pytest.fixture(scope="module")
def embedded():
    return {name: load_model(name, "cpu") for name in available_models()}


UNWEIGHTED = {"ablations", "engines", "memory", "memory-domains", "relaxation"}  # trains its own; MD; MD; see the page


def test_no_benchmark_hides_a_module_of_the_recipes():
    """A script comes before the recipes on its own path, and both import modules by their bare names."""
    recipes = {path.stem for path in (FOLDER.parent / "recipes").rglob("*.py")}
    assert not recipes & {path.stem for path in FOLDER.glob("*.py")}


def test_results_of_the_same_command_and_weights_go_on_and_all_others_start_anew(script, embedded, tmp_path, capsys):
    common, stem = script("common"), tmp_path / "out"
    model = embedded["starmd-peptide"]
    facts = common.circumstances(model)
    assert common.results_so_far(stem, facts) == {}
    common.write(stem, "A table", facts, {}, {"row": {"score": 1.0}})
    assert common.results_so_far(stem, facts) == {"row": {"score": 1.0}} and not capsys.readouterr().err
    changed = copy.deepcopy(model)
    changed.denoiser.step_scales[0, 0] += 1e-6
    for other in (facts | {"command": "python benchmarks/other.py"}, common.circumstances(changed)):
        assert common.results_so_far(stem, other) == {}
        assert "out.json is of another run" in capsys.readouterr().err


def test_tables_name_their_weights_and_which_are_not_embedded(script, embedded):
    weights_of, old = script("common").weights_of, set()
    for path in sorted((FOLDER / "results").glob("*.json")):
        settings = json.loads(path.read_text())["settings"]
        if path.stem in UNWEIGHTED:
            continue
        today = ", ".join(weights_of(embedded[name]) for name in settings["model"].split(", "))
        assert f"- weights: {settings['weights']}" in path.with_suffix(".md").read_text(), path.name
        if settings["weights"] != today:
            assert "not embedded today" in settings["weights"], path.name
            old.add(path.stem)
    assert old == {"compare_md", "training", "training-copies"}


@pytest.fixture
def run(script, monkeypatch):
    """Run a benchmark by its command line; returns its module."""

    def main(name, *words):
        module = script(name)
        monkeypatch.setattr(sys, "argv", [str(FOLDER / f"{name}.py"), *map(str, words)])
        module.main()
        return module

    return main


def jitter(topology, positions, n_frames, seed):
    """Positions (T, A, 3): residues that move as an Ornstein-Uhlenbeck process with a memory of five frames."""
    tokens, start = ResidueTokens.from_topology(topology), torch.from_numpy(positions)
    first = Conformation.stack([from_positions(start, tokens)] * n_frames)
    scales = torch.tensor([0.002, 0.02, 0.3, 0.01], dtype=torch.float64)
    noise = tangent_noise(first.angles, tokens.features.torsion_mask, torch.Generator().manual_seed(seed))
    moves = {name: lfilter([0.6], [1, -0.8], value, axis=0) for name, value in vars(noise.scaled(scales)).items()}
    walk = type(noise)(**{name: torch.from_numpy(value) for name, value in moves.items()})
    return to_positions(walk.apply(first), start, tokens).numpy().astype(np.float32)


def save(folder, name, topology, xyz, interval, atoms=None, pdb=None):
    """NAME.xtc and its PDB file."""
    folder.mkdir(parents=True, exist_ok=True)
    times = interval * np.arange(1, len(xyz) + 1)
    trajectory = mdtraj.Trajectory(xyz, mdtraj.Topology.from_openmm(topology), times)
    trajectory = trajectory if atoms is None else trajectory.atom_slice(trajectory.topology.select(atoms))
    trajectory.save_xtc(str(folder / f"{name}.xtc"))
    trajectory[0].save_pdb(str(folder / f"{pdb or name}.pdb"))


@pytest.fixture(scope="module")
def peptides(build_peptide, tmp_path_factory):
    """Folder of NAME.pdb and NAME.xtc."""
    folder = tmp_path_factory.mktemp("peptides")
    for seed, sequence in enumerate(("SVA", "TAV")):
        topology, positions = build_peptide(sequence)
        save(folder, sequence, topology, jitter(topology, positions, FRAMES, seed), INTERVAL)
    return folder


def read(stem):
    text = Path(f"{stem}.md").read_text()
    return text, json.loads(Path(f"{stem}.json").read_text())


@pytest.mark.slow
def test_a_command_names_no_folders(script, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/a/b/x.py", "/c/d", "--e=/f/g", "--h", "i/j.csv", "DWGR", "-1.5"])
    assert script("common").command() == "python benchmarks/x.py d --e=g --h j.csv DWGR -1.5"


@pytest.mark.slow
def test_tables_and_json_hold_no_nan(script, tmp_path):
    common = script("common")
    rows = {"a": {"x": 1.0, "y": float("nan")}, "b": {"z": "word", "x": np.float32(0.5)}}
    lines = common.table(rows, "kind").splitlines()
    assert lines[0] == "| kind | x | y | z |"
    assert lines[2:] == ["| a | 1 |  |  |", "| b | 0.5 |  | word |"]
    common.write(tmp_path / "t", "Title", {"date": "today"}, {"One": "text"}, rows)
    assert (tmp_path / "t.md").read_text() == "# Title\n\n- date: today\n\n## One\n\ntext\n"
    assert json.loads((tmp_path / "t.json").read_text())["results"]["a"] == {"x": 1.0, "y": None}


@pytest.mark.slow
def test_compare_md_times_every_way(run, peptides, tmp_path):
    stem = tmp_path / "out"
    run("compare_md", "SVA", "GAGAGAGAGAG", "--minutes", 0, "--replicas", 2, "--reference", peptides, "--output", stem)
    text, written = read(stem)
    inside, outside = written["results"]["SVA"], written["results"]["GAGAGAGAGAG"]
    assert list(inside) == ["MD", "StarMDIntegrator", "StarMDIntegrator, no relaxation", "Propagator, 2 replicas"]
    for row, interval in zip(inside.values(), (10, *3 * [100]), strict=True):
        assert row["ns/day"] == pytest.approx(row["frames"] * interval / 1000 / row["wall time (s)"] * 86400)
    jump = inside["StarMDIntegrator"]
    phases = sum(jump[f"{phase} (ms)"] for phase in ("network", "backmapping", "relaxation", "other"))
    assert phases == pytest.approx(1000 * jump["wall time (s)"] / jump["frames"], rel=0.1)
    assert inside["StarMDIntegrator, no relaxation"]["relaxation (ms)"] < 0.1 * jump["relaxation (ms)"]
    assert 0 <= inside["Propagator, 2 replicas"]["JSD backbone"] <= 1
    assert not any(key.startswith(("JSD", "effective")) for row in outside.values() for key in row)
    assert "outside the model's domain" in text and str(tmp_path) not in text + json.dumps(written)


@pytest.mark.slow
def test_compare_md_counts_effective_samples(script, build_peptide, peptides):
    compare = script("compare_md")
    reference = mdtraj.load(str(peptides / "SVA.xtc"), top=str(peptides / "SVA.pdb"))
    what = SimpleNamespace(name="SVA", topology=build_peptide("SVA")[0], stride=100.0)
    options = SimpleNamespace(reference=peptides, seed=1)
    same = compare.Measurement([reference.xyz], INTERVAL, 3600.0)
    scorer = compare.Scorer(what, same, options)
    row = scorer(same, is_md=False)
    expected = samples.effective_samples(scorer.scorer.projection[:, 0])
    assert row["effective samples an hour"] == pytest.approx(expected, rel=1e-3)
    assert row["effective samples it rests on"] == pytest.approx(expected, rel=1e-3)
    assert row["JSD backbone"] == pytest.approx(0, abs=1e-6)
    short = compare.Measurement([reference.xyz[:40]], INTERVAL, 360.0)
    of_md = scorer(short, is_md=True)
    assert of_md["autocorrelation time (ps)"] == row["autocorrelation time (ps)"]
    assert of_md["effective samples an hour"] == pytest.approx(expected)  # a tenth of the frames in a tenth of the time
    without = compare.Scorer(what, same, SimpleNamespace(reference=None, seed=1))
    assert without(same, is_md=True).keys() == {k for k in row if not k.startswith("JSD")}


TINY = "--residues 5 --context 2 --steps 3 2 --replicas 2 --molecules GAGA --frames 2 --least 0.01 "
TINY += "--scan-residues 4 8 --scan-frames 1 2 --scan-replicas 1 2"


@pytest.mark.slow
def test_proteins_are_judged_beside_md_and_null_models(run, build_peptide, tmp_path):
    """What stands still keeps its start and never hops; MD again, here the reference itself, is perfect."""
    topology, positions = build_peptide("SVAGT")
    for k in (101, 102, 103, 104):
        save(tmp_path, f"SVAGT_{k}", topology, jitter(topology, positions, 40, (k - 101) // 2), INTERVAL)
    save(tmp_path, "OTHER_101", topology, jitter(topology, positions, 40, 9), INTERVAL)
    words = [tmp_path, "--names", "SVAGT_*", "--model", "elastic", "--stride", 2 * INTERVAL, "--jumps", 5]
    run("proteins", *words, "--output", tmp_path / "out")
    text, written = read(tmp_path / "out")
    assert list(written["results"]) == ["SVAGT"] and "## SVAGT, 4 replicas" in text
    columns = written["results"]["SVAGT"]
    again, model, elastic, frozen = (columns[name] for name in ("MD again", "model", "elastic", "frozen"))
    assert again["RMSF r"] == pytest.approx(1) and again["JSD Ramachandran"] == pytest.approx(0, abs=1e-9)
    assert frozen["hops, side chain"] == 0 and frozen["RMSD to start, last"] < 1e-6
    assert frozen["CA autocorrelation, 1"] == pytest.approx(1)
    assert again["steps, ratio"] == pytest.approx(1) == again["steps, principal, ratio"] and frozen["steps, ratio"] == 0
    assert model["jumps"] == 5 and {**model, "seconds a jump": 0} == {**elastic, "seconds a jump": 0}
    assert model["RMSD to start, last"] > 0.005


@pytest.mark.slow
def test_folds_are_followed_over_relaxed_jumps(run, build_peptide, tmp_path):
    """RMSD is to the minimised start, of the frames that were written; MD that has not moved is near it."""
    topology, positions = build_peptide("SVAGT")
    for replica in range(2):
        still = np.repeat(positions[None].astype(np.float32), 3, 0)
        save(tmp_path / "md", f"SVAGT_{replica}", topology, still, INTERVAL)
    with open(tmp_path / "SVAGT.pdb", "w") as file:
        PDBFile.writeFile(topology, positions * unit.nanometer, file)
    words = [tmp_path / "SVAGT.pdb", "--model", "elastic", "--jumps", 20, "--md-picoseconds", 0.4]
    words += ["--md", tmp_path / "md", "--frames", tmp_path / "frames"]
    run("folds", *words, "--output", tmp_path / "out")
    row = read(tmp_path / "out")[1]["results"]["SVAGT"]
    frames = mdtraj.load(tmp_path / "frames" / "SVAGT.xtc", top=tmp_path / "SVAGT.pdb")
    rmsd = mdtraj.rmsd(frames, mdtraj.load(tmp_path / "SVAGT.pdb"), atom_indices=frames.topology.select("name CA"))
    assert row["jumps"] == frames.n_frames == 20 and row["end"] == "done"
    assert row["RMSD, greatest"] == pytest.approx(rmsd.max(), abs=row["RMSD of MD"] + 1e-3)
    halves = rmsd[10:].mean() - rmsd[:10].mean()
    assert row["RMSD, drift"] == pytest.approx(2 * halves, abs=3 * row["error of the drift"] + 0.01)
    assert row["JSD of RMSD, MD halves"] == 0 < row["JSD of RMSD"]
    assert row["RMSD, greatest"] >= row["RMSD, first"] > 1e-3 and row["times plain MD"] > 0


@pytest.mark.slow
def test_a_protein_whose_first_jump_is_given_up_has_a_row(run, script, build_peptide, tmp_path, monkeypatch):
    def refused(advance, steps):
        raise StarMDError("given up\nafter all")

    monkeypatch.setattr(script("folds"), "seconds", refused)
    topology, positions = build_peptide("SVAGT")
    with open(tmp_path / "SVAGT.pdb", "w") as file:
        PDBFile.writeFile(topology, positions * unit.nanometer, file)
    run("folds", tmp_path / "SVAGT.pdb", "--model", "elastic", "--jumps", 4, "--output", tmp_path / "out")
    assert read(tmp_path / "out")[1]["results"]["SVAGT"] == {"residues": 5, "jumps": 0, "end": "given up after all"}


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs g++ on Linux")
@pytest.mark.slow
def test_engines_take_turns(run, build_peptide, tmp_path):
    """Ratios are those of the same round, and an engine beside itself is another column."""
    topology, positions = build_peptide("GA")
    with open(tmp_path / "GA.pdb", "w") as file:
        PDBFile.writeFile(topology, positions * unit.nanometer, file)
    engines = FOLDER.parent / "recipes" / "engines"
    words = [tmp_path / "GA.pdb", "--rounds", 2, "--seconds", 0.05, "--other", engines]
    run("engines", *words, "--output", tmp_path / "out")
    text, written = read(tmp_path / "out")
    result = written["results"]["GA"]
    assert result["atoms"] == topology.getNumAtoms() and len(result["ns a day"]) == 2
    ratios = sorted(turn["lanes"] / turn["OpenMM"] for turn in result["ns a day"])
    assert f"{np.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[1]:.1f})" in text and "lanes / other build" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="times the paper's proteins where there is a GPU")
@pytest.mark.slow
def test_speed_prints_every_figure(run, script, tmp_path):
    stem = tmp_path / "speed"
    run("speed", *TINY.split(), "--threads", 1, "--output", stem)
    text, written = read(stem)
    goals, phases = written["results"]["goals"], written["results"]["phases"]
    frame, step = (
        goals[f"paper size, 5 residues, {name}"] for name in ("euler-maruyama 3, s a frame", "s a denoising step")
    )
    assert frame["measured"] == pytest.approx(2 * step["measured"])  # the reference sampler is not called at the end
    memory = goals["cache, 1000 residues, 800 frames, GB"]
    assert memory["measured"] == pytest.approx(2 * 8 * 1000 * 800 * 256 * 2 / 1e9)
    assert memory["measured / goal"] == pytest.approx(memory["measured"] / memory["goal"])
    calls = load_model("starmd-peptide", "cpu").config.denoising_steps
    for row in phases.values():
        parts = [row[f"{name} (ms)"] for name in ("denoise", "encode", "conditions")]
        assert row["outside the network"] == pytest.approx(1 - sum(parts) / row["jump (ms)"])
        assert min(parts) > 0
        assert parts[0] == pytest.approx(
            row["call of the network (ms)"] * calls / (1 + (row is phases["2 replica(s)"]))
        )
    beside = written["results"]["against_md"]
    ways = ("no relaxation", "relaxed")
    assert list(beside) == [
        f"GAGA, stride 100 ps, {replicas} replica(s), {way}{model}"
        for model in ("", ", fast")
        for replicas in (1, 2)
        for way in ways
    ]
    for row in beside.values():
        assert row["x MD"] > 0 and (row["goal"] is None) == (row["x MD / goal"] is None)
    assert stem.with_suffix(".png").stat().st_size > 0
    assert script("speed").exponent([1, 2, 4, 8], [9.0, 2.0, 8.0, 32.0]) == pytest.approx(2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="takes minutes of the GPU where there is one")
@pytest.mark.filterwarnings("ignore:Outside the domain")
@pytest.mark.slow
def test_what_only_a_gpu_can_show_is_checked(run, script, peptides, tmp_path, monkeypatch):
    """Without one the same on the CPU: the table, and that a failure neither hides the rest nor goes unnoticed."""
    module, stem = script("gpu"), tmp_path / "gpu"
    words = ["--data", peptides, "--batches", 2, "--least", 0.01, "--output", stem]
    with pytest.raises(SystemExit):
        run("gpu", *words)  # no molecules

    def raises(options):
        return 1 / 0

    def fails(options):
        return {"one": module.verdict(0.1, 0.2), "two": module.verdict(float("nan"), 0.2)}

    monkeypatch.setitem(module.CHECKS, "sampling", (raises, fails))
    with pytest.raises(SystemExit, match="^not as it should be: raises; fails$"):
        run("gpu", *words, "--sections", "sampling", "training")
    text, written = read(stem)
    results = written["results"]
    assert results["raises"]["ZeroDivisionError"]["fine"] == "NO"
    assert [row["fine"] for row in results["fails"].values()] == ["yes", "NO"]
    assert {row["fine"] for row in results["recorded steps"].values()} == {"yes"}
    (row,) = results["batch sizes"].values()
    assert row["windows/s"] == pytest.approx(2000 / row["ms a step"])
    assert results["kernels"]["all"]["calls"] > 1000 and "| 2 windows |" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="takes minutes of the GPU where there is one")
@pytest.mark.filterwarnings("ignore:Outside the domain")
@pytest.mark.slow
def test_recorded_jumps_are_checked(run, tmp_path):
    run("gpu", "--sections", "sampling", "--output", tmp_path / "gpu")
    results = read(tmp_path / "gpu")[1]["results"]
    differences = [row["difference"] for row in results["jumps"].values()]
    assert differences[0] == 0 < min(differences[1:])  # the CPU and itself; others take other rooms
    assert len(results["host waits"]) == 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="takes minutes of the GPU where there is one")
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs g++ on Linux")
@pytest.mark.slow
def test_md_of_blocks_is_checked(run, script, tmp_path):
    module = script("gpu")  # which lets the scripts of recipes/ be imported
    (molecule,) = module.peptide_set.read(script("prepare_blocks").prepare("GAG", tmp_path))
    module.peptide_set.write(tmp_path / "set.npz", 2 * [molecule])
    words = ["--sections", "md", "--molecules", tmp_path / "set.npz", "--least", 0.01, "--output", tmp_path / "gpu"]
    run("gpu", *words)
    results = read(tmp_path / "gpu")[1]["results"]
    assert results["forces"]["GAG"]["difference"] == 0 and results["forces"]["GAG"]["atoms"] == len(molecule["mass"])
    ensemble, (rate,) = results["ensemble"]["GAG"], results["rate"].values()
    assert 0 < ensemble["difference"] < 5e-5 and 100 < ensemble["K"] < 600
    assert rate["ns/s"] == pytest.approx(2 * 0.004e-3 * 1e6 / rate["us a step"]) and rate["not finite"] == 0


ABLATIONS = ("full", "separable attention", "no context noise", "no stride", "one target a window")


@pytest.fixture
def window(script, peptides):
    """A dataset's batch of windows of 4 frames, and denoisers whose outputs are no longer zero."""
    ablations = script("ablations")
    dataset = ablations.TrajectoryDataset(peptides)
    batch = dataset.window_batch(3, 4, torch.Generator().manual_seed(1), (20.0, 600.0))

    def denoiser(kind):
        torch.manual_seed(0)
        made = kind(NetworkConfig(blocks=1, width=32, pair_width=8, heads=2))
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        made.step_scales.copy_(ablations.step_scales(dataset))
        return made

    return ablations, batch, denoiser


def captured(ablations, batch, loss):
    """Inputs and outputs of the denoiser when a loss is computed."""
    seen = {}

    class Spy(ablations.Denoiser):
        def forward(self, static, context, noisy):
            estimate, unit, log_odds = super().forward(static, context, noisy)
            seen.update(context=context, noisy=noisy, unit=unit)
            return estimate, unit, log_odds

    torch.manual_seed(0)
    spy = Spy(NetworkConfig(blocks=1, width=32, pair_width=8, heads=2))
    loss(spy, ablations.Process(ablations.ProcessConfig()), batch, torch.Generator().manual_seed(3))
    return seen


@pytest.mark.slow
def test_sequential_training_denoises_the_last_frame_of_a_cut_window(window):
    ablations, batch, _ = window
    seen = captured(ablations, batch, ablations.one_target)
    last, context = seen["noisy"].index.tolist(), seen["context"]
    assert last == [len(context.index)]
    before = context.conformation[:, last[0] - 1 : last[0]]
    assert torch.equal(seen["noisy"].previous.torsions, before.torsions)
    assert torch.equal(seen["noisy"].stride, batch.strides[:, last[0] : last[0] + 1])
    assert captured(ablations, batch, ablations.all_targets)["noisy"].index.tolist() == [1, 2, 3]


@pytest.mark.slow
def test_a_model_without_stride_cannot_tell_strides(window):
    ablations, batch, denoiser = window
    process = ablations.Process(ablations.ProcessConfig())

    def terms(module, stride):
        same = ablations.Batch(batch.features, batch.conformations, torch.full_like(batch.strides, stride))
        return ablations.all_targets(module, process, same, torch.Generator().manual_seed(2))[0]

    told, untold = denoiser(ablations.Denoiser), denoiser(ablations.Strideless)
    assert terms(told, 100.0) != terms(told, 400.0)
    assert terms(untold, 100.0) == terms(untold, 400.0) == terms(told, 100.0)
    sizes = untold.step_size(torch.tensor([40.0, 400.0]))
    assert torch.equal(sizes[0], sizes[1]) and torch.equal(sizes[0], told.step_size(torch.tensor(100.0)))


@pytest.mark.slow
def test_errors_are_compared_in_the_units_of_the_stride(window):
    ablations, batch, denoiser = window
    inputs = captured(ablations, batch, ablations.all_targets)
    told, untold = denoiser(ablations.Denoiser), denoiser(ablations.Strideless)
    static = told.static_inputs(batch.features)
    estimate, unit, _ = told(static, inputs["context"], inputs["noisy"])
    common = ablations.CommonUnits(told)(static, inputs["context"], inputs["noisy"])
    assert all(torch.equal(a, b) for a, b in zip(vars(common[1]).values(), vars(unit).values(), strict=True))
    assert torch.equal(common[0].torsion, estimate.torsion)
    of_untold = ablations.CommonUnits(untold)(static, inputs["context"], inputs["noisy"])[1]
    assert torch.equal(of_untold.translation, unit.translation)
    assert not torch.equal(untold(static, inputs["context"], inputs["noisy"])[1].translation, unit.translation)


@pytest.mark.filterwarnings("ignore:Outside the domain")
@pytest.mark.slow
def test_ablations_train_judge_and_resume(run, script, peptides, tmp_path, monkeypatch, capsys):
    words = ["--data", peptides, "--validation", "TAV", "--steps", 2, "--batch", 2, "--jumps", 20]
    words += ["--output", tmp_path / "out"]
    module = script("ablations")
    monkeypatch.setattr(module.TrainingConfig, "validation_batches", 1)
    run("ablations", *words, "--variants", "full", "torsion regression")
    _, written = read(tmp_path / "out")
    full, regression = written["results"]["full"], written["results"]["torsion regression"]
    assert set(written["results"]) == {"full", "torsion regression", "MD halves", "frozen"}
    assert not (tmp_path / "out_no_stride").exists()
    assert full["CPU seconds of training"] > 0 and full["validation loss"] > 0
    assert regression["torsion"] is None and regression["validation loss"] is None and regression["translation"] > 0
    assert all(0 <= row[q] <= 1 for row in (full, regression) for q in module.QUALITY)
    monkeypatch.setattr(module, "measure", lambda *whatever: 1 / 0)
    run("ablations", *words, "--variants", "full")
    assert read(tmp_path / "out")[1]["results"] == written["results"]
    with pytest.raises(ZeroDivisionError):
        run("ablations", *words, "--variants", *ABLATIONS)
    with pytest.raises(SystemExit, match="was made with"):
        run("ablations", *words, "--seed", 5)


@pytest.mark.slow
def test_quality_holds_ten_short_jumps_against_a_long_one(run, script, peptides, tmp_path, monkeypatch):
    monkeypatch.setattr(script("quality"), "STARTS", 60)
    run("quality", peptides, "--frames", 24, "--replicas", 4, "--output", tmp_path / "out")
    model = json.loads((tmp_path / "out.json").read_text())["mean"]["model"]
    itself, other = model["stride consistency, turns of itself"], model["stride consistency, turns"]
    assert 0 < itself < 1 and 0.5 * itself < other < 1
    assert 0 < model["hop rate in one jump"] < 1 and 0 < model["hop rate in ten short jumps"] < 1


@pytest.mark.slow
def test_quality_holds_jumps_from_md_frames_against_md(script, peptides, monkeypatch):
    quality = script("quality")
    reference = quality.Reference.load(next(peptides.glob("*.pdb")))
    scorer, xyz = quality.Scorer(reference, 100.0, 0), reference.trajectory.xyz

    def jump_as_md(model, tokens, starts, stride, steps, seed):
        index = [int(np.abs(xyz - start).sum((1, 2)).argmin()) for start in starts.astype(np.float32)]
        return torch.as_tensor(xyz[np.array(index) + scorer.lag])[:, None]

    monkeypatch.setattr(quality, "jump", jump_as_md)
    monkeypatch.setattr(dihedrals, "HOP", 0.3)  # these residues only jitter
    of_md, of_model = quality.from_md(reference, None, scorer, SimpleNamespace(stride=100.0))
    assert of_md["hop rate from MD frames"] > 0
    assert of_model["hop rate from MD frames"] == pytest.approx(of_md["hop rate from MD frames"])
    assert of_model["hop rate from MD frames, difference"] == pytest.approx(0, abs=1e-12)


@pytest.mark.slow
def test_quality_tells_hops_of_backbone_and_side_chains_apart(script, peptides):
    quality = script("quality")
    scorer = quality.Scorer(quality.Reference.load(next(peptides.glob("*.pdb"))), 100.0, 0)
    angles = np.zeros((8, len(scorer.backbone)))
    angles[1::2, ~scorer.backbone] = 2.0
    rates = scorer.rates([angles])
    assert (rates["hop rate, backbone"], rates["hop rate, side chain"]) == (0, 1)
    assert rates["hop rate"] == pytest.approx((~scorer.backbone).mean()) and 0 < rates["hop rate"] < 1


@pytest.mark.slow
def test_quality_scores_contacts_where_there_are_any(script):
    quality = script("quality")
    touching, expected = np.array([[True, False], [False, False]]), np.array([[0.2, 0.2]])
    assert quality.contact_scores(touching, expected) == {
        "side-chain contacts": pytest.approx(0.25),
        "side-chain contacts, difference": pytest.approx(0.25),
    }
    assert all(np.isnan(value) for value in quality.contact_scores(touching[:, :0], expected[:, :0]).values())


@pytest.mark.slow
def test_relaxation_splits_energies_by_kind_of_force(script, build_peptide, tmp_path):
    relaxation, (topology, x) = script("relaxation"), build_peptide("SVA")
    molecule = relaxation.simulate("SVA", topology, x, 5, 0.1, 0.2, tmp_path)
    parts = molecule.parts(molecule.frames)
    assert parts.shape == (5, 4) and (np.abs(parts) > 1e-3).all()
    np.testing.assert_allclose(parts.sum(1), molecule.energies, rtol=1e-5)
    row = relaxation.against_md(molecule.frames, molecule)
    assert [row[f"{kind} (sd)"] for kind in ("bonds", "angles", "torsions", "all else")] == pytest.approx(4 * [0])


@pytest.mark.slow
def test_quality_asks_no_stride_that_the_model_does_not_know(script):
    options = SimpleNamespace(stride=50.0)
    model = SimpleNamespace(domain=SimpleNamespace(min_stride=10.0))
    assert script("quality").consistency(None, model, None, options) == {}


@pytest.mark.slow
def test_samplers_are_scored_beside_the_interval_of_the_first(run, peptides, tmp_path, monkeypatch):
    words = [peptides, "--frames", 24, "--replicas", 4, "--rows", "ancestral 4", "multistep 2", "multistep 2 churn 0.5"]
    words.append("starmd-peptide-fast 4")
    module = run("samplers", *words, "--output", tmp_path / "out")
    _, written = read(tmp_path / "out")
    rows = written["results"]
    assert list(rows) == ["low", "high", "ancestral 4", "multistep 2", "multistep 2 churn 0.5", "starmd-peptide-fast 4"]
    assert rows["starmd-peptide-fast 4"]["JSD backbone"] != rows["ancestral 4"]["JSD backbone"]
    assert rows["multistep 2"]["JSD backbone"] != rows["multistep 2 churn 0.5"]["JSD backbone"]
    assert all(rows["low"][name] <= rows["high"][name] for name in module.SCORES)
    assert any(rows["low"][name] < rows["high"][name] for name in module.SCORES)
    assert rows["ancestral 4"]["outside"] == 0
    few = rows["multistep 2"]
    assert few["calls"] == 2 and few["CPU ms a frame"] > 0
    inside = [rows["low"][name] <= few[name] <= rows["high"][name] for name in module.SCORES]
    assert few["outside"] == inside.count(False)
    assert (tmp_path / "out.png").stat().st_size > 1000
    monkeypatch.setattr(module, "Sampled", lambda *whatever: 1 / 0)
    run("samplers", *words, "--output", tmp_path / "out")
    assert read(tmp_path / "out")[1]["results"] == rows
    with pytest.raises(ZeroDivisionError):
        run("samplers", *words, "multistep 3", "--output", tmp_path / "out")


@pytest.mark.slow
def test_windows_are_scored_beside_the_interval_of_the_first(run, peptides, tmp_path):
    labels = ["3", "1", "full"]
    run("context", peptides, "--frames", 24, "--replicas", 2, "--rows", *labels, "--output", tmp_path / "out")
    _, written = read(tmp_path / "out")
    rows = written["results"]
    assert list(rows) == ["low", "high", *labels] and rows["3"]["outside"] == 0
    assert len({rows[label]["JSD backbone"] for label in labels}) == 3
    assert written["settings"]["frames of a run"] == 12


@pytest.mark.slow
def test_throughput_stands_beside_that_of_md_and_resumes(run, tmp_path, monkeypatch):
    words = ["GAG", "--frames", 2, "--seconds", 0.1, "--output", tmp_path / "out", "--replicas", 1, 2]
    module = run("throughput", *words)
    text, written = read(tmp_path / "out")
    rows = written["results"]
    assert list(rows) == ["1", "2"] and text.count("\n## ") == len(module.MODES)
    for row in rows.values():
        for name, mode in module.MODES.items():
            cell, cores = row[name], mode.workers
            day = cell["frames/s"] * 0.1 * 86400
            assert cell["ns/day"] == pytest.approx(day)
            assert cell["x MD"] == pytest.approx(day / cell["MD beside it, ns/day"] / cores)
            assert 0 < cell["CPU ms a frame"] * cell["frames/s"] < 1100 * cores
    assert (tmp_path / "out.png").stat().st_size > 1000
    monkeypatch.setattr(module, "measure", lambda *whatever: 1 / 0)
    run("throughput", *words)
    with pytest.raises(ZeroDivisionError):
        run("throughput", *words, 4)


@pytest.mark.slow
def test_drift_is_found_and_measured_per_thousand_jumps(script):
    long_horizon = script("long_horizon")
    noise = np.random.default_rng(0).normal(0, 0.1, 2000)
    steady = long_horizon.Series(noise, 5).drift(10)
    rising = long_horizon.Series(noise + 0.001 * np.arange(2000), 5).drift(10)  # 0.001 in 5 jumps
    assert steady["p"] > 0.05 and rising["p"] < 1e-6
    assert rising["slope per 1,000 jumps"] == pytest.approx(0.2 + steady["slope per 1,000 jumps"])
    assert rising["standard error"] == pytest.approx(steady["standard error"])
    assert long_horizon.Series(np.arange(20.0), 1).windows(10) == pytest.approx(np.arange(0.5, 20, 2))


@pytest.mark.slow
def test_a_long_run_is_read_in_windows(run, peptides, tmp_path):
    lines = ['#"Step","Retries","Energy After Relaxation (kJ/mole)"']
    lines += [f"{10 * (k + 1)},{10 * (k >= 20)},{-k}" for k in range(40)]
    (tmp_path / "soak.csv").write_text("\n".join(lines) + "\n")
    words = ["SVA", "--trajectory", peptides / "SVA.xtc", "--table", tmp_path / "soak.csv", "--reference", peptides]
    module = run("long_horizon", *words, "--output", tmp_path / "out")
    _, written = read(tmp_path / "out")
    rows = written["results"]
    accepted = [rows["accepted conformations"][f"window {k}"] for k in range(1, 11)]
    assert accepted == pytest.approx([1.0] * 5 + [0.5] * 5)
    assert rows["energy (kJ/mol)"]["slope per 1,000 jumps"] == pytest.approx(-100)
    size = [rows["radius of gyration (nm)"][f"window {k}"] for k in range(1, 11)]
    assert np.mean(size) == pytest.approx(rows["radius of gyration (nm)"]["MD"], rel=1e-5)
    reference = module.Reference.load(peptides / "SVA.pdb")
    scorer = module.Scorer(reference, 100.0, 1)
    third = scorer.divergences(scorer.angles[80:120])
    assert {q: rows[q]["window 3"] for q in module.DIVERGENCES} == pytest.approx(third)
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="at least 2000 frames for 1000 windows; found 400"):
        run("long_horizon", *words, "--windows", 1000, "--output", tmp_path / "out")
    with pytest.raises(SystemExit, match="Expected TAVS.pdb"):
        run("long_horizon", "TAVS", *words[1:], "--output", tmp_path / "out")


@pytest.mark.slow
def test_a_long_run_is_made_as_soak_makes_it(run, tmp_path):
    words = ["GAG", "--jumps", 4, "--windows", 2, "--output", tmp_path / "out"]
    run("long_horizon", *words)
    rows = read(tmp_path / "out")[1]["results"]
    assert set(rows) == {"valid frames", "radius of gyration (nm)"}  # four jumps leave no line in the table
    assert rows["valid frames"]["window 2"] == 1.0


@pytest.mark.slow
def test_soak_counts_what_a_run_left(run, tmp_path):
    run("soak", "GAG", "--jumps", 10, "--output", tmp_path / "out")
    text, written = read(tmp_path / "out")
    found = written["results"]
    assert (found["jumps of this process"], found["frames"], found["valid frames (%)"]) == (10, 10, 100)
    retries = int(next(csv.DictReader((tmp_path / "out.csv").open()))["Retries"])
    assert found["accepted conformations (%)"] == pytest.approx(1000 / (10 + retries))
    assert "- command: python benchmarks/soak.py GAG --jumps 10 --output out" in text


@pytest.fixture(scope="module")
def atlas(build_peptide, tmp_path_factory):
    """Two chains in ATLAS's layout, 100 ps a frame, a split, and generated trajectories: R2 itself, and CA alone."""
    folder = tmp_path_factory.mktemp("atlas")
    topology, positions = build_peptide("AVSGLWTA")
    for name in ("1abc_A", "2def_B"):
        for k in (1, 2):
            xyz = jitter(topology, positions, 984, 10 * k)
            save(folder / "md" / name, f"{name}_prod_R{k}_fit", topology, xyz, 100.0, pdb=name)
    save(folder / "made", "1abc_A", topology, xyz[::12], 7.0)
    save(folder / "made", "2def_B", topology, jitter(topology, positions, 50, 3), 7.0, atoms="name CA")
    dates = {"1abc_A": "2019-05-01", "2def_B": "2021-02-03", "3old_A": "2019-04-30", "4new_C": "2020-01-01"}
    (folder / "split.csv").write_text("name,seqres,release_date\n" + "".join(f"{n},A,{d}\n" for n, d in dates.items()))
    return folder


@pytest.mark.slow
def test_atlas_scores_chains_and_resumes(run, script, atlas, tmp_path, monkeypatch):
    words = [atlas / "md", "--split", atlas / "split.csv", "--generated", atlas / "made", "--output", tmp_path / "out"]
    run("atlas", *words)
    text, written = read(tmp_path / "out_100ns")
    chains = written["results"]["chains"]
    assert list(chains) == ["1abc_A", "2def_B"] and "4new_C: ChainError: expected 4new_C.pdb" in text
    assert "chains: 2 of 3 in the split" in text
    same, backbone = chains["1abc_A"], chains["2def_B"]
    assert same["generated"] == pytest.approx(same["MD R2"], abs=1e-4)  # PDB files round to 0.0001 nm, XTC to 0.001
    assert same["generated"]["frames"] == 80 and backbone["generated"]["frames"] == 50
    assert "all-atom valid" in same["MD R2"] and "all-atom valid" not in backbone["MD R2"]
    frozen, shuffled = same["frozen"], same["shuffled"]
    assert frozen["tICA correlation"] == frozen["RMSF r"] == 0
    assert frozen["PCA recall"] < 0.1 < 0.4 < same["MD R2"]["PCA recall"] < shuffled["PCA recall"]
    assert frozen["PCA JSD"] > 0.8 > same["MD R2"]["PCA JSD"]
    chain = script("atlas").Chain(atlas / "md", "1abc_A", "100ns")
    ordered = chain.score(chain.coarse)
    for name in ("PCA JSD", "PCA recall", "tICA-0 JSD", "RMSF r"):
        assert shuffled[name] == pytest.approx(ordered[name], rel=1e-3)
    assert ordered["VAMP-2 difference"] == 0 < shuffled["VAMP-2 difference"]
    mean = written["results"]["mean"]["PCA JSD"]["MD R2"]
    assert mean["mean"] == pytest.approx(np.mean([c["MD R2"]["PCA JSD"] for c in chains.values()]))
    assert mean["low"] <= mean["mean"] <= mean["high"]
    monkeypatch.setattr(script("atlas"), "examine", lambda *whatever: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("atlas", *words)  # 4new_C is tried again
    assert set(read(tmp_path / "out_100ns")[1]["results"]["chains"]) == {"1abc_A", "2def_B"}


@pytest.mark.slow
def test_a_trajectory_of_atlas_against_itself(script, atlas):
    module = script("atlas")
    chain = module.Chain(atlas / "md", "1abc_A", "100ns")
    assert (chain.step, chain.lag, chain.coarse.trajectory.n_frames) == (12, 12, 80)
    row = chain.score(module.Candidate(chain.load(1, 1)[:960:12]))
    assert row["VAMP-2 difference"] == pytest.approx(0, abs=1e-6)
    everything = chain.score(module.Candidate(chain.load(1, 1)))
    assert everything["RMSF r"] == pytest.approx(1)
    for name, value in {"PCA JSD": 0, "PCA recall": 1, "tICA-0 JSD": 0, "tICA-0,1 JSD": 0}.items():
        assert everything[name] == pytest.approx(value, abs=1e-6)
    assert 0 < row["PCA recall"] < 1
    ca = module.Candidate(chain.load(1, 1)).ca
    assert chain.wander[[0, 2]] == pytest.approx(module.rmsd_against_lag(ca, [12, 36]))
    assert chain.score(chain.coarse.taking(np.zeros(80, int)))["tICA-0 JSD"] > 0.8
    assert module.Chain(atlas / "md", "1abc_A", "1us").coarse.trajectory.n_frames == 40


@pytest.mark.filterwarnings("ignore:Outside the domain")
@pytest.mark.slow
def test_atlas_makes_trajectories_by_a_model(run, script, atlas, tmp_path, monkeypatch):
    monkeypatch.setitem(script("atlas").TASKS, "100ns", (6, 1200.0))
    words = [atlas / "md", "--split", atlas / "split.csv", "--generated", tmp_path / "made", "--after", "2021-01-01"]
    run("atlas", *words, "--model", "starmd-peptide", "--output", tmp_path / "out")
    made = mdtraj.load(str(tmp_path / "made" / "2def_B.xtc"), top=str(tmp_path / "made" / "2def_B.pdb"))
    assert made.time == pytest.approx(1200.0 * np.arange(1, 7))
    row = read(tmp_path / "out_100ns")[1]["results"]["chains"]["2def_B"]["generated"]
    assert row["frames"] == 6 and 0 <= row["all-atom valid"] <= 1


@pytest.mark.slow
def test_a_profile_is_the_correlation_of_each_distance(script):
    rng = np.random.default_rng(1)
    series, other = rng.normal(size=(2, 500))
    distances = np.stack([3 - 2 * series, other, np.full(500, 1.0)], 1)
    found = script("atlas").profile(distances, series)
    assert found == pytest.approx([1, abs(np.corrcoef(series, other)[0, 1]), 0])


@pytest.mark.slow
def test_the_ways_of_teacher_forcing_have_one_loss_and_gradient(script):
    training = script("training")
    config = training.ModelConfig(NetworkConfig(blocks=2, width=32, pair_width=8, heads=2, attention_layers=2))
    windows, found = training.random_windows(2, 4, 5), {}
    for name, way in training.WAYS.items():
        denoiser = training.untrained(config)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in denoiser.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        loss = training.step(way(denoiser), config, windows)
        found[name] = loss, [parameter.grad for parameter in denoiser.parameters()]
    (loss, gradients), (other, others) = found["block-causal"], found["sequential"]
    assert any(gradient.abs().max() > 1e-2 for gradient in gradients)
    torch.testing.assert_close(other, loss, rtol=1e-4, atol=0)
    for a, b in zip(others, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_the_cost_of_training_is_measured(run, tmp_path):
    stem = tmp_path / "out"
    run("training", "--shapes", "3,2", "--copies", "3,2", "--grid", "32,4", "--repeats", 1, "--output", stem)
    text, written = read(stem)
    (passes,), (memory,) = (written["results"][key].values() for key in ("ways", "memory"))
    times = [passes[f"{name} (ms a frame)"] for name in ("sequential", "block-causal")]
    assert passes["ratio"] == pytest.approx(times[0] / times[1])
    assert 0.9 * memory["kept (MB)"] > memory["checkpointed (MB)"] > 1
    (copies,) = written["results"]["noisy copies"].values()
    assert copies["ratio"] == pytest.approx(copies["8 (ms a denoised frame)"] / copies["1 (ms a denoised frame)"])
    assert "| 3 residues, 2 windows |" in text and "| 32 residues, 4 frames |" in text


@pytest.mark.parametrize("broken", [0.0, 0.5])
def test_the_imbalance_of_jumps_is_told_beyond_its_noise(script, broken):
    """Poisson counts whose rates there and back have the ratio exp(broken)."""
    there = np.triu(np.ones((12, 12)), 1)
    rates = 400 * np.exp(0.5 * broken * (there - there.T))
    chi2, beyond = script("bias").imbalance(np.random.default_rng(1).poisson(rates).astype(float))
    assert beyond == pytest.approx(broken, abs=0.06)
    assert (0.7 < chi2 < 1.4) if not broken else chi2 > 4


def test_moments_under_a_bias_are_reweighted(script):
    """A normal variable under a linear bias of b kT moves by -b times its variance and keeps its spread."""
    bias = script("bias")
    values = np.random.default_rng(2).normal(size=40_000)
    assert bias.moments(values, np.exp(-0.5 * values)) == pytest.approx([-0.5, 1.0], abs=0.03)


def autoregressive(*coefficients, replicas=8, length=1000, seed=1):
    """Runs (T, F) of x(n+1) = sum over k of A_k x(n-k) + noise, of unit variance."""
    rng, runs = np.random.default_rng(seed), []
    for _ in range(replicas):
        x = rng.normal(size=(length + 100, len(coefficients[0])))
        for t in range(len(coefficients), len(x)):
            x[t] += sum(np.array(a) @ x[t - 1 - k] for k, a in enumerate(coefficients))
        runs.append(x[100:])
    spread = np.concatenate(runs).std(0)
    return [x / spread for x in runs]


@pytest.mark.parametrize("second", [0.0, 0.3])
def test_memory_is_the_partial_autocorrelation(script, second):
    """Of x(n+1) = 0.5 x(n) + b x(n-1) + noise two frames explain b^2 of what one leaves, and more frames nothing."""
    memory, runs = script("memory"), autoregressive([[0.5]], [[second]])
    tasks = [memory.Task(np.array([0]), {"own": np.array([0])})]
    first, *more = memory.gains(memory.prediction(runs, tasks, 1)["own"], np.arange(8))
    rho = 0.5 / (1 - second)
    assert first == pytest.approx(rho**2, abs=0.04)
    assert more == pytest.approx(3 * [100 * second**2], abs=1.5)
    terms = memory.kernel_shares(runs, tasks, 1)["own"][0]
    rest = second * (1 - rho**2)
    assert terms == pytest.approx([rho**2, rest**2, (rho * rest) ** 2 if second else 0, 0, 0, 0], abs=0.03)


def test_what_is_left_out_becomes_memory(script):
    """A Markov process of two variables has memory where one of them is not looked at, and none where both are."""
    memory, runs = script("memory"), autoregressive([[0.0, 0.6], [0.0, 0.9]])
    tasks = [memory.Task(np.array([0]), {"own": np.array([0]), "neighbours": np.array([0, 1])})]
    gains = {k: memory.gains(v, np.arange(8)) for k, v in memory.prediction(runs, tasks, 1).items()}
    terms = {k: v[0] for k, v in memory.kernel_shares(runs, tasks, 1).items()}
    assert gains["own"][3] > 3 > 0.5 > abs(gains["neighbours"][1])
    assert terms["own"][1] > 0.003 > 5 * abs(terms["neighbours"][1])
    assert gains["neighbours"][0] > gains["own"][0]


@pytest.mark.slow
def test_memory_of_trajectories(run, peptides, tmp_path):
    run("memory", peptides / "SVA", "--strides", 20, 100, "--output", tmp_path / "out")
    text, written = read(tmp_path / "out")
    names = [f"SVA, torsions, 20 ps: {known}" for known in ("own", "residue", "neighbours")]
    assert list(written["results"]) == names and f"| {names[0]} |" in text  # 100 ps: runs are too short
    value, low, high = np.array(written["results"][names[0]]["gain"])
    assert low[0] <= value[0] <= high[0] and value[0] > 0.2  # residues forget within five frames
    assert (tmp_path / "out.png").exists()


def test_a_surface_is_judged_by_its_bins_of_phi_and_psi(script, peptides):
    """The reference's own surface has no error, whatever its number of frames, and its mirror has one."""
    molecule = script("enhanced").Molecule(peptides / "SVA")
    assert molecule.residue == "VAL2" and molecule.error(molecule.reference / 7) == pytest.approx(0)
    assert molecule.error(molecule.reference.T) > 5


def test_hills_lie_where_the_run_has_been(script, peptides, monkeypatch):
    """The surface of Metadynamics has the axes of the reference: it is deepest where phi and psi have been."""
    enhanced = script("enhanced")
    monkeypatch.setattr(enhanced, "PACE", enhanced.PICOSECOND)
    molecule = enhanced.Molecule(peptides / "SVA")
    carbon, phi = molecule.md.topology.select("resid 0 and name CA")[0], molecule.quartets[0]
    molecule.quartets = [carbon, *phi[:3]], phi  # omega, which is flat, and phi, which is not
    biased = enhanced.Biased(molecule, 1)
    biased.advance()
    here = np.argwhere(molecule.counts([enhanced.positions_of(biased.simulation)]))[0]
    found = np.unravel_index(biased.density().argmax(), (enhanced.BINS, enhanced.BINS))
    apart = np.abs([here - found, here - found[::-1]]) % enhanced.BINS
    right, exchanged = np.minimum(apart, enhanced.BINS - apart).max(1)
    assert right <= 1 < 3 < exchanged


@pytest.mark.slow
def test_methods_take_turns_until_their_time_is_spent(run, script, peptides, tmp_path, monkeypatch):
    enhanced = script("enhanced")
    less = {"STARTS": 4, "REPLICAS": 4, "EQUILIBRATION": 0.2, "DOUBLINGS": 1, "EXPLORING": 0.0, "LEAST_JUMPS": 3}
    for name, value in less.items():
        monkeypatch.setattr(enhanced, name, value)
    words = [peptides / "SVA", "--folder", tmp_path, "--seconds", 3, "--repeats", 1, "--output", tmp_path / "out"]
    run("enhanced", *words)
    text, written = read(tmp_path / "out")
    curves = written["results"]["curves"]["SVA"]
    assert list(curves) == list(enhanced.METHODS) and "## SVA, phi and psi of VAL2" in text
    _, errors, nanoseconds = np.moveaxis(np.array([runs[0] for runs in curves.values()], dtype=float), -1, 0)
    assert (np.diff(nanoseconds) >= 0).all() and (nanoseconds[:, -1] > 0).all()
    assert (errors[:4] > 0).all() and (tmp_path / "out.png").exists()  # so short a swarm can fail
    monkeypatch.setattr(enhanced, "race", None)
    run("enhanced", *words)  # the repeat lies in the folder
    assert read(tmp_path / "out")[1]["results"] == written["results"]


class Shortsighted(torch.nn.Module):
    """A denoiser that is told the last frame alone, whatever the number of past frames."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser, self.config, self.static_inputs = denoiser, denoiser.config, denoiser.static_inputs

    def forward(self, static, context, noisy):
        last = context.frame(len(context.index) - 1)
        return self.denoiser(static, dataclasses.replace(last, previous=last.conformation), noisy)


@pytest.mark.slow
def test_what_past_frames_bring_is_told_apart_from_noise(script, window, peptides, tmp_path):
    """Whoever sees one frame only gains nothing from others, to the last bit; who sees them all has another loss."""
    past, (ablations, _, denoiser) = script("past_frames"), window
    dataset = past.TrajectoryDataset(peptides, cache=tmp_path)
    made, config = denoiser(ablations.Denoiser), load_model("starmd-peptide", "cpu").config
    config = dataclasses.replace(config, network=made.config)
    found = past.losses(Shortsighted(made), config, dataset, 40.0, 3, 2)
    np.testing.assert_allclose(found, np.repeat(found[:, :1], 4, 1), rtol=1e-5)
    np.testing.assert_allclose(past.gains(found)[1:], 0, atol=1e-3)
    whole = past.losses(made, config, dataset, 40.0, 3, 2)
    assert np.ptp(whole, axis=1).min() > 1e-4
    np.testing.assert_allclose(past.gains(np.array([[2.0, 1.0, 3.0, 2.0]])), [2, 50, -50, 0])
    mean, low, high = past.by_seeds(np.array([1.0, 2.0, 3.0]))
    assert (mean, high - mean, mean - low) == pytest.approx((2, 2.484, 2.484), rel=1e-3)


@pytest.mark.slow
def test_past_frames_of_embedded_and_trained_networks(run, script, peptides, tmp_path, monkeypatch):
    past = script("past_frames")
    monkeypatch.setattr(past, "VALIDATION", peptides)
    monkeypatch.setattr(past, "STRIDES", dict.fromkeys(past.STRIDES, (40.0, 80.0)))
    material = past.Material(past.Folder(peptides), peptides, (40.0, 80.0), windows=2, steps=2)
    monkeypatch.setattr(past, "materials", lambda: {"peptides": material})
    words = ["--folder", tmp_path / "pieces", "--batches", 2, "--size", 2, "--domains", "--train", "peptides"]
    words += ["--seeds", 2, "--output", tmp_path / "out"]
    run("past_frames", *words)
    text, written = read(tmp_path / "out")
    shown = {title: [row for row in rows if "40 ps" in row] for title, rows in written["results"].items()}
    assert shown["Embedded models"] == ["starmd-peptide, tetrapeptides, 40 ps"] and "## Trained apart" in text
    names = [
        f"peptides, {of}" for of in ("joint, 40 ps", "separable, 40 ps", "joint minus separable, 40 ps, % of the loss")
    ]
    assert shown["Trained apart"] == names
    monkeypatch.setattr(past, "losses", None)
    monkeypatch.setattr(past, "train", None)
    run("past_frames", *words)
    assert read(tmp_path / "out")[1]["results"] == written["results"]


def hops(rate, n_states, starts, length, seed):
    """States (len(starts), length) of a chain on a line that goes to each neighbour with a rate."""
    steps = np.random.default_rng(seed).choice([-1, 0, 1], (len(starts), length), p=[rate, 1 - 2 * rate, rate])
    states = [np.asarray(starts)]
    for step in steps.T[1:]:
        states.append((states[-1] + step).clip(0, n_states - 1))
    return np.stack(states, 1)


@pytest.mark.slow
def test_short_md_is_worth_as_much_plain_md_as_it_has_nanoseconds(script):
    """Pieces of one chain as long together as its plain run save nothing; half of the width would take four times."""
    refine = script("refine")
    from openmm_starmd.refinement.estimation import estimate

    result = estimate(list(hops(0.3, 6, np.arange(6).repeat(50), 200, 1)), refine.INTERVAL, lag=2 * refine.INTERVAL)
    assert result.judged
    found = {}
    for n in (300, 75):
        rows = refine.compare(result, list(hops(0.3, 6, np.arange(6).repeat(n // 6 + 1)[:n], 200, 2)), starts=0)
        assert next(iter(rows)) == "slowest timescale ns"
        assert all(row["intervals overlap"] == "yes" for row in rows.values())
        found[n] = {quantity: row["saved"] for quantity, row in rows.items()}
    assert all(0.4 < saved < 2.5 for by_row in found.values() for saved in by_row.values()), found
    plain = list(hops(0.3, 6, np.arange(6).repeat(20), 200, 2))
    result = estimate(list(hops(0.3, 6, [0, 3], 20, 1)), refine.INTERVAL, lag=2 * refine.INTERVAL)
    assert not result.judged
    for row in refine.compare(result, plain, starts=0).values():
        assert row["refined"] == refine.CANNOT and "saved" not in row
    result = estimate(
        list(hops(0.3, 6, np.arange(6), 200, 1)), refine.INTERVAL, lag=2 * refine.INTERVAL, precision=1.01
    )
    for row in refine.compare(result, plain, starts=0).values():
        assert row["refined"].startswith(f"{refine.CANNOT}: ") and row["saved"] > 0


@pytest.mark.slow
def test_a_refined_run_stands_beside_plain_md_and_resumes(run, script, tmp_path, monkeypatch):
    """Molecular dynamics is made up here: residues that move as an Ornstein-Uhlenbeck process."""
    refine, made = script("refine"), []

    def moves(system, positions, nanoseconds, equilibration, seed):
        made.append(len(positions))
        frames = round(1000 * nanoseconds / len(positions) / refine.INTERVAL)
        topology, _ = refine.minimized_peptide("ace-A-nme", 1)
        return np.stack([jitter(topology, x, frames, 10 * seed + k) for k, x in enumerate(np.asarray(positions))])

    monkeypatch.setattr(refine, "plain_md", moves)
    words = ["--folder", tmp_path / "data", "--molecules", "ace-A-nme", "--reference-ns", 6.4, "--swarm-ns", 3.2]
    words += ["--starts", 8]
    words += ["--jumps", 20, "--replicas", 2, "--output", tmp_path / "out"]
    run("refine", *words)
    text, written = read(tmp_path / "out")
    found = written["results"]["ace-A-nme"]
    assert made == [16, 8, 8]
    assert (found["reference, ns"], found["swarm, ns"]) == (pytest.approx(6.4), pytest.approx(3.2))
    assert "slowest timescale ns" in found["rows"] and "## ace-A-nme" in text
    assert found["verdict"] in text and f"From one basin: {found['from one basin']}" in text
    assert not any("saved" in row for row in found["its rows"].values())
    run("refine", *words)
    assert len(made) == 3 and read(tmp_path / "out")[1]["results"] == written["results"]
    run("refine", *words, "--swarm-ns", 6.4)  # MD of another length is made; the reference is that of before
    assert made[3:] == [8, 8] and read(tmp_path / "out")[1]["results"]["ace-A-nme"]["swarm, ns"] == pytest.approx(6.4)
