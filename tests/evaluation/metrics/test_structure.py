"""Defects planted in made-up structures, one at a time."""

import mdtraj
import numpy as np
import pytest
from scipy.sparse.csgraph import shortest_path
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from openmm_starmd.evaluation.metrics import structure
from openmm_starmd.systems.build import build_peptide

SEQUENCE = "AKIPFTGS"  # peptide bonds before and after PRO, two centres in ILE and THR, none in GLY


def noisy(sequence, n=400, seed=0):
    """Peptide whose atoms shake by 0.003 nm, with hydrogens."""
    topology, positions = build_peptide(sequence, seed=2)
    rng = np.random.default_rng(seed)
    xyz = np.array(positions._value) + rng.normal(0, 0.003, (n, topology.getNumAtoms(), 3))
    return mdtraj.Trajectory(xyz.astype(np.float32), mdtraj.Topology.from_openmm(topology))


@pytest.fixture(scope="module")
def reference():
    trajectory = noisy(SEQUENCE)
    return trajectory.atom_slice(trajectory.topology.select("element != H"))


@pytest.fixture(scope="module")
def limits(reference):
    return structure.calibrate(reference)


@pytest.fixture
def frame(reference):
    """One frame, that of the mean positions, to plant a defect in."""
    return mdtraj.Trajectory(reference.xyz.mean(0, keepdims=True), reference.topology)


def atom(trajectory, residue, name):
    return next(a.index for a in trajectory.topology.residue(residue).atoms if a.name == name)


def turn(trajectory, first, second, moving, degrees):
    """Rotate atoms about the axis from one atom to another."""
    start, axis = trajectory.xyz[0, first], trajectory.xyz[0, second] - trajectory.xyz[0, first]
    rotation = Rotation.from_rotvec(np.radians(degrees) * axis / np.linalg.norm(axis))
    trajectory.xyz[0, moving] = rotation.apply(trajectory.xyz[0, moving] - start) + start


def raised(frame, limits):
    """Checks of one frame that are not 0."""
    return {name: rate[0] for name, rate in structure.check_structure(frame, limits).rates.items() if rate[0]}


def test_the_reference_passes_its_own_limits(reference, limits, frame):
    checks = structure.check_structure(reference, limits)
    assert set(checks.rates) == set(limits.thresholds) == set(checks.failed)
    assert len(checks.rates) == 8
    assert 0.9 < checks.valid.mean() <= 1
    for name, rate in checks.rates.items():
        assert rate.shape == (400,) and rate.mean() == pytest.approx(limits.reference[name])
        assert checks.failed[name].mean() <= 0.01
    assert checks.rates["bond outliers"].mean() < 0.001  # 4 sigma of a Gaussian: 6e-5
    assert limits.reference["Ramachandran outliers"] <= 0.0101
    assert raised(frame, limits) == {}


def test_a_stretched_bond(frame, limits):
    nz, ce = atom(frame, 1, "NZ"), atom(frame, 1, "CE")
    bond = frame.xyz[0, nz] - frame.xyz[0, ce]
    frame.xyz[0, nz] += 0.03 * bond / np.linalg.norm(bond)
    assert raised(frame, limits) == {"bond outliers": pytest.approx(1 / len(limits.terms.bonds))}
    assert not structure.check_structure(frame, limits).valid[0]


def test_a_bent_angle(frame, limits):
    nz, ce, cd = (atom(frame, 1, name) for name in ("NZ", "CE", "CD"))
    a, b = (frame.xyz[0, i] - frame.xyz[0, ce] for i in (nz, cd))
    frame.xyz[0, nz] = Rotation.from_rotvec(0.4 * np.cross(a, b) / np.linalg.norm(np.cross(a, b))).apply(a)
    frame.xyz[0, nz] += frame.xyz[0, ce]
    assert raised(frame, limits) == {"angle outliers": pytest.approx(1 / len(limits.terms.angles))}


def test_the_mirror_image_inverts_every_centre(frame, limits):
    frame.xyz[..., 2] *= -1
    assert raised(frame, limits)["inverted centres"] == 7 + 2  # seven residues with CB, two more in ILE and THR
    assert structure.check_structure(frame, limits).failed["inverted centres"].tolist() == [True]


@pytest.mark.parametrize("residue, swap", [(2, ("CG1", "CG2")), (5, ("OG1", "CG2")), (0, ("N", "C"))])
def test_one_inverted_centre(frame, limits, residue, swap):
    pair = [atom(frame, residue, name) for name in swap]
    frame.xyz[0, pair] = frame.xyz[0, pair[::-1]]
    assert raised(frame, limits)["inverted centres"] == 1


def test_a_rotamer_that_the_reference_never_had(frame, limits):
    ca, cb, og = (atom(frame, 7, name) for name in ("CA", "CB", "OG"))
    turn(frame, ca, cb, [og], 90)
    assert raised(frame, limits) == {"rotamer outliers": pytest.approx(1 / 6)}  # of K, I, P, F, T, S


def test_a_half_turn_of_a_ring_is_no_outlier(frame, limits):
    ring = [atom(frame, 4, name) for name in ("CD1", "CD2", "CE1", "CE2")]
    frame.xyz[0, ring] = frame.xyz[0, [ring[1], ring[0], ring[3], ring[2]]]
    assert "rotamer outliers" not in raised(frame, limits)


@pytest.mark.parametrize(
    "bond, degrees, expected",
    [
        (0, 180, {"cis peptides": 1}),
        (0, 45, {"twisted peptides": 1}),
        (0, 100, {"cis peptides": 1, "twisted peptides": 1}),
        (2, 180, {}),  # before PRO either is natural
        (3, 180, {"cis peptides": 1}),
    ],
)
def test_turned_peptide_bonds(frame, limits, bond, degrees, expected):
    c, n = atom(frame, bond, "C"), atom(frame, bond + 1, "N")
    after = [a.index for a in frame.topology.atoms if a.residue.index > bond]
    turn(frame, c, n, after, degrees)
    found = raised(frame, limits)
    assert {name: found[name] for name in found if "peptides" in name} == expected
    assert "bond outliers" not in found


def test_ramachandran_outlier_of_a_turned_psi(frame, limits):
    ca, c = atom(frame, 4, "CA"), atom(frame, 4, "C")
    after = [a.index for a in frame.topology.atoms if a.residue.index > 4] + [atom(frame, 4, "O")]
    turn(frame, ca, c, after, 120)
    assert raised(frame, limits)["Ramachandran outliers"] == pytest.approx(1 / 6)
    kinds = [kind for kind, _, _ in limits.terms.torsions["Ramachandran outliers"]]
    assert kinds == ["other", "before PRO", "PRO", "other", "other", "GLY"]


def test_clashes_are_counted_as_defined(frame, limits):
    frame.xyz[0] *= 0.55  # crowded
    n = frame.n_atoms
    graph = np.zeros((n, n))
    for a, b in frame.topology.bonds:
        graph[a.index, b.index] = 1
    apart = shortest_path(graph, directed=False, unweighted=True) > 3
    radii = np.array([{"C": 0.17, "N": 0.155, "O": 0.152}[a.element.symbol] for a in frame.topology.atoms])
    close = cdist(frame.xyz[0], frame.xyz[0]) < 0.8 * (radii[:, None] + radii)
    expected = np.triu(close & apart, 1).sum()
    assert expected > 10
    assert raised(frame, limits)["clash score"] == pytest.approx(1000 * expected / n)


def test_regions_hold_the_share_they_promise_and_wrap():
    rng = np.random.default_rng(1)
    angles = rng.normal([np.pi, 0.0], [0.4, 0.2], (50_000, 2))
    region = structure.Region.fit(angles, np.array([2 * np.pi, np.pi]))
    assert 0.005 < region.outside(angles).mean() <= 0.01
    assert 0.003 < region.outside(rng.normal([-np.pi, np.pi], [0.4, 0.2], (50_000, 2))).mean() < 0.015
    assert not region.outside(np.array([-np.pi, 0.0])) and region.outside(np.array([0.0, 0.0]))
    assert region.outside(np.array([np.pi, np.pi / 2])) and not region.outside(np.array([np.pi, 2 * np.pi]))


def test_regions_are_smoothed_across_the_seam():
    # two neighbours across it count for more than a lonely bin that is a little fuller than each of them
    bins = np.repeat([10, 0, 35, 22], [985, 5, 5, 6])
    region = structure.Region.fit(np.radians(10.0 * bins + 5)[:, None], np.array([2 * np.pi]))
    assert region.allowed[[10, 0, 35, 22]].tolist() == [True, True, True, False]


def test_hydrogens_change_nothing(reference, limits):
    everything = noisy(SEQUENCE)
    rates = structure.check_structure(everything, limits).rates
    for name, rate in structure.check_structure(reference, limits).rates.items():
        assert (rates[name] == rate).all()


def test_pieces_do_not_change_the_result(reference, limits, monkeypatch):
    whole = structure.check_structure(reference, limits).rates
    monkeypatch.setattr(structure, "_CHUNK", 7 * len(limits.terms.pairs))
    for name, rate in structure.check_structure(reference, limits).rates.items():
        assert (whole[name] == rate).all()


def test_a_trajectory_with_less_in_it_has_fewer_checks(reference):
    backbone = reference.atom_slice(reference.topology.select("name N CA C O CB"))
    limits = structure.calibrate(backbone)
    assert "rotamer outliers" not in limits.thresholds and "Ramachandran outliers" in limits.thresholds
    assert structure.check_structure(backbone, limits).valid.mean() > 0.9
    traces = reference.atom_slice(reference.topology.select("name CA"))
    assert structure.check_structure(traces, structure.calibrate(traces)).valid.mean() > 0.9
    glycine = reference.atom_slice(reference.topology.select("resname GLY"))
    found = structure.check_structure(glycine, structure.calibrate(glycine))
    assert set(found.rates) == {"bond outliers", "angle outliers"} and found.valid.mean() > 0.9
    single = traces.atom_slice([0])
    assert structure.check_structure(single, structure.calibrate(single)).valid.all()


def test_frames_that_are_no_numbers_are_not_valid(reference, limits):
    broken = mdtraj.Trajectory(reference.xyz[:5].copy(), reference.topology)
    broken.xyz[3, 7] = np.nan
    checks = structure.check_structure(broken, limits)
    assert np.isnan(checks.rates["clash score"]).tolist() == [False, False, False, True, False]
    assert not checks.valid[3] and checks.valid[[0, 1, 2, 4]].any()
    broken.xyz[:] = np.inf
    checks = structure.check_structure(broken, limits)
    assert set(checks.rates) == set(limits.thresholds) and not checks.valid.any()


def test_what_cannot_be_checked_says_so(reference, limits):
    with pytest.raises(ValueError, match="at least 10 frames .* found 9"):
        structure.calibrate(reference[:9])
    with pytest.raises(ValueError, match="found None instead of .7, .*residue, atom"):
        structure.check_structure(reference.atom_slice(range(reference.n_atoms - 1)), limits)
    bad = mdtraj.Trajectory(np.full_like(reference.xyz, np.nan), reference.topology)
    with pytest.raises(ValueError, match="no numbers"):
        structure.calibrate(bad)
