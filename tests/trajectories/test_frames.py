"""Files of the wrong kind: each is named with its frame and what to do, before anything is made of it."""

import warnings

import mdtraj
import numpy as np
import pytest

from openmm_starmd.errors import TrajectoryError
from openmm_starmd.trajectories.frames import check_atoms, check_sane, pieces, sane
from openmm_starmd.trajectories.sides import read_sides
from openmm_starmd.trajectories.times import frame_interval

N_FRAMES = 40


@pytest.fixture
def md(build_peptide):
    topology, positions = build_peptide("AHCW")
    xyz = positions + np.random.default_rng(3).normal(0, 0.005, (N_FRAMES, len(positions), 3))
    return mdtraj.Trajectory(xyz, mdtraj.Topology.from_openmm(topology), 7.0 * np.arange(1, N_FRAMES + 1))


def frames_of(path, topology):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sum(piece.n_frames for piece in pieces(path, topology, np.arange(topology.n_atoms), path.name))


@pytest.mark.parametrize("suffix", ["xtc", "dcd", "nc"])
@pytest.mark.parametrize("share", [0.55, 0.97])
@pytest.mark.filterwarnings("ignore:.*netCDF4")
def test_a_torn_file_is_named_with_its_first_torn_frame(md, tmp_path, suffix, share):
    path = tmp_path / f"md.{suffix}"
    md.save(str(path))
    assert frames_of(path, md.topology) == N_FRAMES
    data = path.read_bytes()
    cut = int(share * len(data)) + 3
    path.write_bytes(data[:cut])
    with pytest.raises(TrajectoryError, match=rf"md\.{suffix} is torn.*copy it again, or keep its first \d+") as error:
        check_atoms(path, md.topology)
        frames_of(path, md.topology)
    named = int(str(error.value).split("keep its first ")[1].split()[0])
    assert abs(named - share * N_FRAMES) <= 1.5
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:.*netCDF4")
def test_the_whole_frames_of_a_torn_file_are_kept_as_the_message_says(md, tmp_path):
    path = tmp_path / "md.xtc"
    md.save(str(path))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(TrajectoryError, match=f"n_frames={N_FRAMES - 1}"):
        frames_of(path, md.topology)
    with mdtraj.open(str(path)) as file:
        assert file.read_as_traj(md.topology, n_frames=N_FRAMES - 1).n_frames == N_FRAMES - 1


@pytest.mark.parametrize("atoms", [slice(None), 5], ids=["all", "one"])
def test_nan_in_an_xtc_file_comes_back_finite_and_is_refused_by_frame(md, tmp_path, atoms):
    md.xyz[13, atoms] = np.nan
    md.save(str(tmp_path / "md.xtc"))
    assert np.isfinite(mdtraj.load(str(tmp_path / "md.xtc"), top=md.topology).xyz).all()  # mdtraj says nothing
    with pytest.raises(TrajectoryError, match=r"md.xtc .*not sane in frame 13 .*keep the frames before frame 13"):
        frames_of(tmp_path / "md.xtc", md.topology)


def test_frames_that_no_molecule_can_have_are_not_sane():
    positions = np.random.default_rng(0).normal(0, 1, (6, 4, 3))
    positions[1, 2, 0], positions[2, 0, 1], positions[3] = np.nan, -2147483.75, 0.3
    positions[4] += 500  # far away, as unwrapped molecules are
    assert sane(positions).tolist() == [True, False, False, False, True, True]
    assert sane(positions[:1, :1]).tolist() == [True]  # a single atom is at one point
    with pytest.raises(TrajectoryError, match=r"frame 101 \(a coordinate of nan nm"):
        check_sane(positions, "x", 100)
    with pytest.raises(TrajectoryError, match=r"frame 0 \(all atoms at one point"):
        check_sane(positions[3:4], "x")


def test_atoms_are_counted_before_anything_is_read(md, tmp_path):
    """A topology of fewer atoms than the file: mdtraj takes the first ones in silence."""
    md.save(str(tmp_path / "md.xtc"))
    few = md.atom_slice(np.arange(50))
    assert frames_of(tmp_path / "md.xtc", few.topology) == N_FRAMES
    for topology in (few.topology, md.topology.join(few.topology)):
        with pytest.raises(
            TrajectoryError, match=f"has {md.n_atoms} atoms a frame, its topology has {topology.n_atoms}"
        ):
            check_atoms(tmp_path / "md.xtc", topology)


def test_a_side_with_another_number_of_atoms_is_refused(md, tmp_path):
    md.save(str(tmp_path / "md.xtc"))
    water = md.topology.copy()
    residue = water.add_residue("HOH", water.add_chain())
    water.add_atom("O", mdtraj.element.oxygen, residue)
    with pytest.raises(TrajectoryError, match=f"its topology has {md.n_atoms + 1}"):
        read_sides(md, tmp_path / "md.xtc", water)


def test_times_are_named_where_they_break():
    times = np.arange(1, 101) * 10.0
    assert frame_interval(times, "x", "") == 10
    again = np.concatenate([times[:60], times[:40]])
    with pytest.raises(TrajectoryError, match="frame 60 is at 10 ps, the frame before it at 600 ps"):
        frame_interval(again, "x", "")
    late = (1e7 + times).astype(np.float32)
    assert frame_interval(late, "x", "") == pytest.approx(10, rel=1e-2)


def with_gap(md, residue=1):
    """The protein without one residue in its middle, under the numbers that it had."""
    return md.atom_slice([a.index for a in md.topology.atoms if a.residue.index != residue])


def test_no_torsion_is_taken_across_a_gap_and_it_is_named(md):
    gapped = with_gap(md)
    assert len(mdtraj.compute_phi(gapped)[0]) == 2  # mdtraj's own, one of them across the gap
    reference, generated = read_sides(gapped, gapped)
    assert len(mdtraj.compute_phi(generated.trajectories[0])[0]) == 1
    assert reference.gaps == ("ALA1 and CYS3",)
    assert reference.topology.n_chains == 2 and reference.topology.n_atoms == generated.topology.n_atoms
    assert read_sides(md, md)[0].gaps == ()
    jumping = mdtraj.Trajectory(md.xyz.copy(), md.topology, md.time)
    jumping.xyz[:5, 30:] += 1.0  # broken in a few frames: no gap
    assert read_sides(jumping, md)[0].gaps == ()


def test_a_gap_in_ca_alone_is_named(md):
    alpha = with_gap(md, 2)
    alpha = alpha.atom_slice(alpha.topology.select("name CA"))
    alpha.xyz[:, 2:] += 1.0
    assert read_sides(alpha, alpha)[0].gaps == ("HIS2 and TRP4",)


@pytest.mark.parametrize("names", [{"ALA": "NALA", "TRP": "CTRP"}, {"HIS": "HSE", "CYS": "CYX"}])
def test_names_of_terminal_and_protonation_variants_are_canonical_before_mdtraj_sees_them(md, names):
    other = md.topology.copy()
    for residue in other.residues:
        residue.name = names.get(residue.name, residue.name)
    reference, _ = read_sides(mdtraj.Trajectory(md.xyz, other, md.time), md)
    assert [residue.name for residue in reference.topology.residues] == ["ALA", "HIS", "CYS", "TRP"]
