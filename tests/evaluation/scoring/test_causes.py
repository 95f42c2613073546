"""The headline names what is wrong with a file as a whole, and what cannot be judged is not green."""

import math

import mdtraj
import numpy as np
import pytest

from openmm_starmd.errors import TrajectoryError
from openmm_starmd.evaluation import evaluate
from openmm_starmd.evaluation.metrics.slow_modes import fit_tica
from openmm_starmd.evaluation.scoring.causes import causes, copies
from openmm_starmd.evaluation.scoring.scores import UNCLEAR
from openmm_starmd.trajectories.sides import read_sides

pytestmark = pytest.mark.usefixtures("few_draws")
RATE = 0.03  # a frame
SLOWEST = "slowest timescale, ratio to MD"


@pytest.fixture(scope="module")
def md(hopping):
    return hopping(RATE, 1)


@pytest.fixture
def generated(hopping):
    return hopping(RATE, 2)


def changed(trajectory, xyz, topology=None):
    return mdtraj.Trajectory(xyz, topology or trajectory.topology, trajectory.time[: len(xyz)])


def found_in(md, generated):
    return " ".join(causes(*read_sides(md, generated)))


ALPHA = ("CA",)
ALL = ()


def part(trajectory, names):
    if not names:
        return trajectory
    return trajectory.atom_slice([atom.index for atom in trajectory.topology.atoms if atom.name in names])


@pytest.mark.parametrize("names", [ALL, ALPHA], ids=["all atoms", "CA only"])
def test_wrong_units_are_named(md, generated, names):
    md, generated = part(md, names), part(generated, names)
    assert found_in(md, generated) == ""
    assert "ten times too large: Angstrom" in found_in(md, changed(generated, 10 * generated.xyz))
    assert "ten times too small" in found_in(md, changed(generated, generated.xyz / 10))
    with pytest.raises(TrajectoryError, match="reference.*ten times too large"):
        found_in(changed(md, 10 * md.xyz), generated)


def test_another_order_of_atoms_is_named(md, generated):
    order = np.random.default_rng(0).permutation(generated.n_atoms)
    assert "another order" in found_in(md, changed(generated, generated.xyz[:, order]))
    exploded = generated.xyz + np.random.default_rng(0).normal(0, 0.4, generated.xyz.shape)
    assert "another order" not in found_in(md, changed(generated, exploded))


def test_a_mirror_image_is_named(md, generated):
    mirror = generated.xyz * np.array([1, 1, -1])
    assert "mirror image" in found_in(md, changed(generated, mirror))
    found = evaluate(md, changed(generated, mirror))
    assert found["inverted centres per frame"].light == "red"
    assert found.verdict.startswith("The generated coordinates are a mirror image")
    assert "No frame is broken" not in found.verdict


def test_copied_frames_are_counted_on_both_sides(md, generated):
    twice = changed(generated, np.concatenate([generated.xyz[:700], generated.xyz[:600]]))
    assert "600 of 1,300 generated frames are copies of earlier ones (the first is frame 700)" in found_in(md, twice)
    assert "600 of 1,300 reference frames are copies" in found_in(twice, generated)
    assert copies(read_sides(md, generated)[1]) == (0, 0)


def test_broken_side_chains_are_in_the_headline(md, generated):
    """Atoms in each other's place, CA and peptide bonds whole."""
    names = [atom.name for atom in generated.topology.atoms]
    ring = next(i for i, atom in enumerate(generated.topology.atoms) if atom.name == "CH2")
    generated.xyz[:, ring] = generated.xyz[:, names.index("CB")] + np.array([0.11, 0, 0])
    found = evaluate(md, generated)
    assert found["sound frames (BioEmu's filter)"].value == 1
    assert "No frame is broken" not in found.verdict and "Frames are not like MD's: " in found.verdict
    assert "100 %" in found.verdict or "clashes" in found.verdict


def test_a_wholly_broken_trajectory_is_told_in_plain_numbers(md, generated):
    verdict = evaluate(md, changed(generated, 10 * generated.xyz)).verdict
    assert verdict.startswith("The generated coordinates are ten times too large") and "100 % of frames" in verdict
    assert not any(word in verdict for word in ("nan", "inf ", "e+"))


def in_one_well(hopping, md, which, seed):
    """Frames of one of the two conformers, not moving to the other."""
    start = hopping(0.0, seed, 750)
    if which:
        far = md.xyz[np.linalg.norm(md.xyz - md.xyz[0], axis=(1, 2)) > 0.5][:1]
        start.xyz += far - start.xyz[:1]
    return start


def test_replicas_stuck_in_two_basins_cannot_be_judged(hopping, md):
    """PyEMMA#928."""
    stuck = [in_one_well(hopping, md, which, 10 + which) for which in (0, 1)]
    found = evaluate(md, stuck)
    assert found["backbone torsions"].value < 0.2  # both basins, about as often as MD
    for name in (SLOWEST, "first passage times, ratio to MD"):
        assert math.isnan(found[name].value) and found[name].light == UNCLEAR
    assert found["connected share of the transitions"].value == pytest.approx(0.5, abs=0.01)
    assert (
        "Kinetics: cannot be judged: the states of the generated trajectories do not reach each other" in found.verdict
    )
    assert "50 %" in found.verdict and "within MD's own error" not in found.verdict.split("Kinetics")[1]
    assert "the reference do not reach" in evaluate(stuck, md).verdict


def test_pieces_shorter_than_any_lag_are_scored_without_kinetics(md):
    """PyEMMA#101: MD's own frames in pieces."""
    pieces = [md[i : i + 3] for i in range(0, 1500, 25)]
    found = evaluate(md, pieces)
    assert SLOWEST not in {score.name for score in found.scores}
    assert found["backbone torsions"].light == "green" and "red" not in {score.light for score in found.scores}
    assert "Kinetics are not scored" in found.verdict and "faster" not in found.verdict


def test_pieces_shorter_than_the_lag_are_named_and_the_rest_is_scored(md, hopping):
    """The lag of coarse MD is longer than one piece, and another is long enough."""
    long, short = hopping(RATE, 2, 1000, interval=100.0), hopping(RATE, 3, 3, interval=100.0)
    found = evaluate(md[::5], [long, short])
    assert found.settings["lag time (ps)"] == 500
    assert "1 of 2 generated trajectories are no longer than the lag time of 500 ps" in found.settings["note"]
    assert 0.3 < found[SLOWEST].value < 3


def test_frames_without_times_are_scored_without_kinetics(md, generated, tmp_path, without_pictures):
    generated.save(str(tmp_path / "samples.dcd"))
    generated[0].save(str(tmp_path / "top.pdb"))
    found = evaluate(md, tmp_path / "samples.dcd", tmp_path / "top.pdb")
    assert found["backbone torsions"].light == "green" and SLOWEST not in {score.name for score in found.scores}
    assert "Kinetics are not scored: the files hold no times" in found.verdict
    assert SLOWEST in {s.name for s in evaluate(md, tmp_path / "samples.dcd", tmp_path / "top.pdb", stride=100).scores}
    found.to_html(tmp_path / "report.html")
    assert "without times" in (tmp_path / "report.html").read_text()


def test_atoms_that_are_missing_are_named(md, generated):
    verdict = evaluate(md, part(generated, ALPHA)).verdict
    assert "Not scored, because the two sides share CA alone: backbone torsions" in verdict


def test_features_of_small_scale_are_not_dropped():
    """Deeptime leaves out whatever varies by less than 1e-6: nm of a stiff protein, say."""
    rng = np.random.default_rng(0)
    slow = np.cumsum(rng.random(4000) < 0.01) % 2
    features = np.stack([slow + rng.normal(0, 0.1, 4000), rng.normal(0, 1, 4000), np.full(4000, 2.0)], 1)
    for scale in (1.0, 1e-4, 1e4):
        small = features * np.array([scale, 1.0, 1.0])
        tic = fit_tica(small, 5, 1).transform(small)[:, 0]
        assert abs(np.corrcoef(tic, slow)[0, 1]) > 0.95
    with pytest.raises(ValueError, match="does not move"):
        fit_tica(np.ones((100, 3)), 5)
