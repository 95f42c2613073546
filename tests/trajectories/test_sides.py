"""Every layout of files ends as the same atoms in the same order; every misfit ends as one line."""

import mdtraj
import numpy as np
import pytest

from openmm_starmd.errors import TrajectoryError
from openmm_starmd.trajectories.matching import heavy_atoms, protein_sequence
from openmm_starmd.trajectories.sides import MIN_FRAMES, read_sides

N_FRAMES = 40


def simulated(build_peptide, sequence="AHCW", **options):
    """A trajectory whose frames are the built peptide with small displacements; times 7, 14, ... ps."""
    topology, positions = build_peptide(sequence, **options)
    xyz = positions + np.random.default_rng(3).normal(0, 0.005, (N_FRAMES, len(positions), 3))
    return mdtraj.Trajectory(xyz, mdtraj.Topology.from_openmm(topology), 7.0 * np.arange(1, N_FRAMES + 1))


@pytest.fixture
def md(build_peptide):
    return simulated(build_peptide)


@pytest.fixture
def pdb(md, tmp_path):
    md[0].save_pdb(str(tmp_path / "top.pdb"))
    return tmp_path / "top.pdb"


def named_positions(trajectory):
    """Positions by residue index and atom name, whatever the order."""
    return {(atom.residue.index, atom.name): trajectory.xyz[:, atom.index] for atom in trajectory.topology.atoms}


def shuffled_atoms(topology, names):
    """The topology with atoms in random order within residues, other numbers and names; and the order."""
    other, order = mdtraj.Topology(), []
    chain = other.add_chain()
    for residue in topology.residues:
        copy = other.add_residue(names.get(residue.name, residue.name), chain, residue.resSeq + 100)
        for i in np.random.default_rng(residue.index).permutation(residue.n_atoms):
            atom = residue.atom(int(i))
            other.add_atom(atom.name, atom.element, copy)
            order.append(atom.index)
    return other, order


def assert_same(reference, generated, source, atol=2e-3):
    """Both sides hold the positions that ``source`` has under the same names."""
    truth = named_positions(source)
    for side in (reference, generated):
        joined = np.concatenate([t.xyz for t in side.trajectories])
        for atom in side.topology.atoms:
            assert np.abs(joined[:, atom.index] - truth[atom.residue.index, atom.name]).max() < atol


@pytest.mark.parametrize("suffix", ["xtc", "trr", "nc", "dcd", "h5", "pdb"])
@pytest.mark.filterwarnings("ignore:.*netCDF4")
def test_every_format_gives_the_same_heavy_atoms(md, pdb, tmp_path, suffix):
    path = tmp_path / f"md.{suffix}"
    md.save(str(path))
    stride = 7.0 if suffix in ("dcd", "pdb") else None
    reference, generated = read_sides(md, path, None if suffix in ("h5", "pdb") else pdb, stride=stride)
    assert reference.n_frames == generated.n_frames == N_FRAMES
    assert generated.interval == reference.interval == 7.0
    assert generated.names == (f"md.{suffix}",)
    assert "H" not in {atom.element.symbol for atom in generated.topology.atoms}
    assert generated.topology.n_atoms == md.topology.select("element != H").size
    assert_same(reference, generated, md)


def test_several_files_a_side(md, pdb, tmp_path):
    for i in range(2):
        md[20 * i : 20 * i + 20].save(str(tmp_path / f"{i}.xtc"))
    reference, generated = read_sides([tmp_path / "0.xtc", tmp_path / "1.xtc"], md, pdb)
    assert [t.n_frames for t in reference.trajectories] == [20, 20]
    assert_same(reference, generated, md)


def test_order_of_atoms_protonation_numbers_water_and_hydrogens_do_not_matter(md, build_peptide):
    other = simulated(build_peptide, variants={1: "HIE"})
    shuffled, order = shuffled_atoms(other.topology, {"HIS": "HIE", "CYS": "CYX"})
    water = mdtraj.Topology()
    solvent = water.add_residue("HOH", water.add_chain())
    for name, symbol in (("O", "O"), ("H1", "H"), ("H2", "H")):
        water.add_atom(name, mdtraj.element.Element.getBySymbol(symbol), solvent)
    shuffled = water.join(shuffled)
    xyz = np.concatenate([np.zeros((N_FRAMES, 3, 3)), other.xyz[:, order]], 1)
    reference, generated = read_sides(md, mdtraj.Trajectory(xyz, shuffled, other.time))
    assert [r.name for r in generated.topology.residues] == ["ALA", "HIS", "CYS", "TRP"]
    assert [r.resSeq for r in generated.topology.residues] == [r.resSeq for r in md.topology.residues]
    assert generated.topology.n_atoms == md.topology.select("element != H").size
    assert_same(read_sides(md, md)[0], reference, md)
    truth = named_positions(other)
    for atom in generated.topology.atoms:
        assert np.allclose(generated.trajectories[0].xyz[:, atom.index], truth[atom.residue.index, atom.name])


def test_what_one_side_lacks_is_left_out_on_both(md, build_peptide):
    capped = simulated(build_peptide, n_cap=True, c_cap=True)
    reference, generated = read_sides(capped, md)
    names = {(a.residue.name, a.name) for a in generated.topology.atoms}
    assert reference.topology == generated.topology
    assert ("TRP", "O") in names and ("TRP", "OXT") not in names
    assert not {"ACE", "NME"} & {residue for residue, _ in names}
    both, _ = read_sides(capped, capped)
    assert [r.name for r in both.topology.residues] == ["ACE", "ALA", "HIS", "CYS", "TRP", "NME"]
    assert len(mdtraj.compute_phi(both.trajectories[0])[0]) == 4


def test_charmm_names_of_the_terminus_are_those_of_amber(md):
    charmm = md.topology.copy()
    for atom in charmm.residue(3).atoms:
        atom.name = {"O": "OT1", "OXT": "OT2"}.get(atom.name, atom.name)
    assert (4.0, "O") in heavy_atoms(charmm)
    assert (
        read_sides(md, mdtraj.Trajectory(md.xyz, charmm, md.time))[1].topology.n_atoms
        == len(md.topology.select("element != H")) - 1
    )


def test_several_chains_stay_apart(md):
    pair = mdtraj.Trajectory(np.concatenate([md.xyz, md.xyz + 3], 1), md.topology.join(md.topology), md.time)
    reference, _ = read_sides(pair, pair)
    assert protein_sequence(reference.topology) == ["ALA", "HIS", "CYS", "TRP"] * 2
    assert reference.topology.n_chains == 2
    peptide_bonds = [b for b in reference.topology.bonds if {b[0].name, b[1].name} == {"C", "N"}]
    assert len(peptide_bonds) == 6


def test_a_protein_cut_by_the_periodic_box_is_mended(md):
    box = np.full((N_FRAMES, 3), 4.0)
    angles = np.full((N_FRAMES, 3), 90.0)
    cut = mdtraj.Trajectory(np.mod(md.xyz - md.xyz.mean((0, 1)), 4.0), md.topology, md.time, box, angles)
    assert np.ptp(cut.xyz, axis=1).max() > 3.5
    _, generated = read_sides(md, cut)
    assert np.ptp(generated.trajectories[0].xyz, axis=1).max() < 2.5


# layouts of other programs' output, made here


def test_layout_of_confrover_and_mdgen(md, pdb, tmp_path):
    """XTC of heavy atoms beside a PDB of the same atoms; the reference has all atoms."""
    heavy = md.atom_slice(md.topology.select("element != H"))
    heavy.save(str(tmp_path / "sample.xtc"))
    heavy[0].save(str(tmp_path / "sample.pdb"))
    md.save(str(tmp_path / "md.xtc"))
    sides = read_sides(tmp_path / "md.xtc", tmp_path / "sample.xtc", pdb, generated_topology=tmp_path / "sample.pdb")
    assert_same(*sides, md)


def test_layout_of_alphafolding(md, pdb, tmp_path):
    """One PDB with a model a frame, heavy atoms."""
    md.atom_slice(md.topology.select("element != H")).save(str(tmp_path / "sample.pdb"))
    md.save(str(tmp_path / "md.xtc"))
    assert_same(*read_sides(tmp_path / "md.xtc", tmp_path / "sample.pdb", pdb, stride=7), md)


def test_layout_of_bioemu(md, pdb, tmp_path):
    """samples.xtc and topology.pdb of N, CA, C, O, CB only."""
    part = md.atom_slice([a.index for a in md.topology.atoms if a.name in ("N", "CA", "C", "O", "CB")])
    part.save(str(tmp_path / "samples.xtc"))
    part[0].save(str(tmp_path / "topology.pdb"))
    sides = read_sides(md, tmp_path / "samples.xtc", pdb, generated_topology=tmp_path / "topology.pdb")
    assert sides[0].topology.n_atoms == 4 * 5
    assert_same(*sides, md)


# misfits


def with_frame(md, frame, value):
    broken = mdtraj.Trajectory(md.xyz.copy(), md.topology, md.time)
    broken.xyz[frame, 0] = value
    return broken


def test_each_misfit_is_one_line(md, pdb, build_peptide, tmp_path):
    md.save(str(tmp_path / "md.xtc"))
    md.save(str(tmp_path / "md.dcd"))
    (tmp_path / "junk.xtc").write_bytes(b"this is no trajectory" * 20)
    (tmp_path / "empty.xtc").write_bytes(b"")
    (tmp_path / "junk.pdb").write_text("nothing\n")
    solvated = simulated(build_peptide, "AHCWG")
    solvated[0].save_pdb(str(tmp_path / "other.pdb"))
    uneven = mdtraj.Trajectory(md.xyz, md.topology, np.where(np.arange(N_FRAMES) < 20, md.time, md.time + 50))
    back = mdtraj.Trajectory(md.xyz, md.topology, md.time[::-1])
    half = mdtraj.Trajectory(md.xyz, md.topology, md.time / 2)
    alpha = md.atom_slice(md.topology.select("not (name CA and resid 2)"))
    misfits = {
        "no file .*nowhere.xtc": (md, tmp_path / "nowhere.xtc", pdb),
        "no file .*nowhere.pdb": (md, tmp_path / "md.xtc", tmp_path / "nowhere.pdb"),
        "empty.xtc is empty": (md, tmp_path / "empty.xtc", pdb),
        "junk.xtc cannot be read": (md, tmp_path / "junk.xtc", pdb),
        "junk.pdb.* (cannot be read as a topology|holds no protein)": (md, tmp_path / "md.xtc", tmp_path / "junk.pdb"),
        "coordinates only": (md, tmp_path / "md.xtc"),
        "no times.*--reference-stride": (tmp_path / "md.dcd", md, pdb),
        r"differ from residue 5 on: the reference has 4 residues \(AHCW\)": (md, solvated),
        f"1 frame, expected at least {MIN_FRAMES}": (md, md[:1], None),
        "not finite .* frame 13 ": (md, with_frame(md, 13, np.nan)),
        "not finite .* frame 1 ": (with_frame(md, 1, np.inf), md),
        "not evenly spaced in time: frame 20 is at 197 ps, the frame before it at 140 ps": (md, uneven),
        "not evenly spaced in time: frame 1 is at 273 ps, the frame before it at 280 ps": (md, back),
        "different times between frames .3.5 and 7 ps.": (md, [md, half]),
        "No generated trajectory": (md, []),
        "Residue 3 of the protein has no CA": (md, alpha),
    }
    for message, sources in misfits.items():
        with pytest.raises(TrajectoryError, match=message) as found:
            read_sides(*sources)
        assert "\n" not in str(found.value)
    with pytest.raises(TrajectoryError, match="positive, finite number of ps"):
        read_sides(md, md, stride=-1)


def test_wrong_topology_tells_both_counts(md, tmp_path, pdb):
    heavy = md.atom_slice(md.topology.select("element != H"))
    heavy.save(str(tmp_path / "heavy.xtc"))
    with pytest.raises(TrajectoryError, match=f"has {heavy.n_atoms} atoms a frame, its topology has {md.n_atoms}"):
        read_sides(md, tmp_path / "heavy.xtc", pdb)


def test_a_stride_replaces_the_times_of_the_file(md):
    assert read_sides(md, md, stride=100.0, reference_stride=10)[1].interval == 100.0
    assert read_sides(md, md, reference_stride=10)[0].interval == 10
