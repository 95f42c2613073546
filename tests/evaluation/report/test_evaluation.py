"""`evaluate` on trajectories whose differences are known: what is put in comes out."""

import json
import math

import mdtraj
import numpy as np
import pytest

from openmm_starmd.errors import TrajectoryError
from openmm_starmd.evaluation import evaluate
from openmm_starmd.evaluation.scoring.projection import common_lag
from openmm_starmd.evaluation.scoring.scores import UNCLEAR
from openmm_starmd.trajectories.sides import Side

pytestmark = pytest.mark.usefixtures("few_draws")
RATE = 0.03  # a frame


@pytest.fixture(scope="module")
def md(hopping):
    return hopping(RATE, 1)


@pytest.fixture(scope="module")
def same(md, hopping):
    return evaluate(md, hopping(RATE, 2))


@pytest.fixture(scope="module")
def faster(md, hopping):
    return evaluate(md, hopping(4 * RATE, 3))


def frames_of(trajectory, rows):
    return mdtraj.Trajectory(trajectory.xyz[rows], trajectory.topology, 100.0 * np.arange(1, len(rows) + 1))


def test_another_run_of_the_same_process_is_as_good_as_md(same):
    assert {s.light for s in same.scores} <= {"green", "unclear", "none"}
    assert "Distributions: within MD's own error." in same.verdict
    assert "within MD's own error" in same.verdict.split("Kinetics")[1]
    assert "No frame is broken" in same.verdict
    ratio = same["slowest timescale, ratio to MD"]
    assert ratio.low < ratio.value < ratio.high and 0.5 < ratio.value < 2


def test_a_faster_process_is_called_faster(faster):
    ratio = faster["slowest timescale, ratio to MD"]
    assert ratio.value == pytest.approx(math.log(1 - 2 * RATE) / math.log(1 - 8 * RATE), rel=0.4)
    assert ratio.light == "amber"
    assert "x too fast" in faster.verdict
    assert faster["backbone torsions"].light == "green"


def test_a_trajectory_scores_perfectly_against_itself(md):
    itself = evaluate(md, md)
    for name in ("backbone torsions", "side-chain torsions", "two slowest modes (tICA-0,1)", "shape (PC1-PC2)"):
        assert itself[name].value == pytest.approx(0, abs=1e-9)
    assert itself["slowest timescale, ratio to MD"].value == pytest.approx(1)
    assert itself["recall of shapes"].value == 1
    for name in ("decorrelation, difference", "VAMP-2, difference", "RMSD against lag, difference"):
        assert itself[name].value == pytest.approx(0, abs=1e-9)


def test_null_models_score_what_the_columns_of_null_models_say(md):
    frozen = evaluate(md, frames_of(md, np.zeros(len(md), dtype=int)))
    for score in frozen.scores:
        if score.group == "distributions" and not math.isnan(score.frozen):
            assert score.value == pytest.approx(score.frozen, abs=1e-6), score.name
    assert math.isnan(frozen["slowest timescale, ratio to MD"].value)
    assert "Kinetics: cannot be judged" in frozen.verdict and "not those of MD" in frozen.verdict
    shuffled = evaluate(md, frames_of(md, np.random.default_rng(5).permutation(len(md))))
    assert shuffled["backbone torsions"].value == pytest.approx(0, abs=1e-9)
    ratio = shuffled["slowest timescale, ratio to MD"]
    assert ratio.light == "red" and ratio.value == pytest.approx(ratio.shuffled, abs=0.05)


def test_broken_frames_are_counted(md, hopping):
    broken = hopping(RATE, 2)
    broken.xyz[100:250] *= 1.6  # a tenth of them
    found = evaluate(md, broken)
    assert found["sound frames (BioEmu's filter)"].value == pytest.approx(0.9)
    assert "10 % of frames broken" in found.verdict


def test_intervals_between_frames_are_taken_into_account(md, same, hopping):
    generated = hopping(RATE, 2)
    coarse = evaluate(md, generated[4::5])
    assert coarse.settings["lag time (ps)"] == 500 and same.settings["lag time (ps)"] == 100
    assert 0.5 < coarse["slowest timescale, ratio to MD"].value < 2
    wrong = evaluate(md, generated, stride=400)  # the same frames, said to be four times as far apart
    assert wrong["slowest timescale, ratio to MD"].value > 2
    assert wrong["backbone torsions"].value == pytest.approx(same["backbone torsions"].value)


def test_how_a_side_is_cut_into_files_does_not_matter_to_single_frames(md, same, hopping):
    generated = hopping(RATE, 2)
    cut = evaluate(md, [generated[:400], generated[400:]])
    for name in ("backbone torsions", "two slowest modes (tICA-0,1)", "recall of shapes", "rotamer outliers"):
        assert cut[name].value == pytest.approx(same[name].value, abs=1e-9)


def test_several_reference_files_are_replicates_of_each_other(md, same, hopping):
    found = evaluate([md, hopping(RATE, 2)], hopping(RATE, 3))
    assert found["side-chain torsions"].oracle == pytest.approx(same["side-chain torsions"].value, rel=1e-6)


def test_a_reference_that_never_hops_back_is_too_short(hopping, md):
    away = md.xyz[np.linalg.norm(md.xyz - md.xyz[0], axis=(1, 2)) > 0.5][:600]
    slow = hopping(0.0, 1, 1200)
    slow.xyz[600:] = away
    found = evaluate(slow, md)
    assert "Too little data to judge" in found.verdict
    assert found["two slowest modes (tICA-0,1)"].light == "unclear"


def test_numbers_of_frames_are_no_times(md):
    counted = mdtraj.Trajectory(md.xyz[:200], md.topology, np.arange(200.0))  # as mdtraj saves what has no times
    found = evaluate(md, counted)
    assert "Kinetics are not scored: trajectory 1 numbers its frames 0, 1, 2, ... in place of times" in found.verdict
    assert found.settings["generated interval (ps)"] is None
    assert evaluate(md, counted, stride=100).settings["generated interval (ps)"] == 100


@pytest.mark.parametrize("names", [("N", "CA", "C", "O", "CB"), ("CA",)], ids=["BioEmu", "CA only"])
def test_scores_of_atoms_that_are_not_there_are_absent(md, hopping, names):
    generated = hopping(RATE, 2)
    part = generated.atom_slice([atom.index for atom in generated.topology.atoms if atom.name in names])
    found = {score.name for score in evaluate(md, part).scores}
    assert "side-chain torsions" not in found and "rotamer outliers" not in found
    assert ("backbone torsions" in found) == (len(names) > 1)
    assert {"shape (PC1-PC2)", "slowest timescale, ratio to MD", "sound frames (BioEmu's filter)"} <= found


def test_results_are_written(same, tmp_path, without_pictures):
    page = same.write(tmp_path / "new" / "folder")
    assert page.name == "report.html" and page.stat().st_size < 5e6
    content = json.loads((page.parent / "metrics.json").read_text())
    assert content["verdict"] == same.verdict
    assert [row["name"] for row in content["scores"]] == [score.name for score in same.scores]
    assert content["settings"]["reference frames"] == 1500
    summary = (page.parent / "summary.md").read_text()
    assert same.verdict in summary and all(score.name in summary for score in same.scores)
    assert summary.count("\n| ") >= len(same.scores)
    with pytest.raises(KeyError, match="backbone torsions"):
        same["no such score"]


def test_references_that_cannot_be_used_are_refused_in_one_line(md):
    still = frames_of(md, np.zeros(100, dtype=int))
    with pytest.raises(TrajectoryError, match="does not move"):
        evaluate(still, md)
    with pytest.raises(ValueError, match="temperature"):
        evaluate(md, md, temperature=0)


def test_a_reference_of_a_few_lags_can_judge_distributions_only(md):
    found = evaluate(md[:100], md, stride=100, reference_stride=5)
    assert found.settings["lag time (ps)"] == 100
    assert found["backbone torsions"].value < 0.5
    assert found["slowest timescale, ratio to MD"].light == UNCLEAR


@pytest.mark.parametrize(
    ("reference", "generated", "expected"),
    [(10.0, 100.0, 100.0), (100.0, 10.0, 100.0), (10.0, 10.0, 100.0), (1200.0, 1200.0, 1200.0), (80.0, 120.0, 240.0)],
)
def test_common_lag_is_a_whole_number_of_frames(reference, generated, expected):
    sides = [Side((range(20_000),), interval, ("x",)) for interval in (reference, generated)]
    for side in sides:
        object.__setattr__(side, "trajectories", (type("T", (), {"n_frames": 20_000})(),))
    assert common_lag(*sides) == (expected, "")
