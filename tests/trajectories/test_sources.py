"""Trajectories from ordinary files and from two public data sets, and what is refused of them."""

import warnings

import mdtraj
import numpy as np
import pytest
import torch
from openmm import unit
from openmm.app import Element, Modeller, PDBFile, Topology

from openmm_starmd.errors import StarMDError
from openmm_starmd.protein.bond_graph import CAPPED
from openmm_starmd.protein.conformation import from_positions
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.systems import build_peptide
from openmm_starmd.training.dataset import TrajectoryDataset
from openmm_starmd.trajectories.encoding import encode_trajectory
from openmm_starmd.trajectories.sources import ATLAS, Files, Folder, MdCATH, source_from_table

h5py = pytest.importorskip("h5py")
FORMATS = ["xtc", "dcd", "trr", "nc", "h5"]


def positions_of(positions):
    return np.array(positions.value_in_unit(unit.nanometer))


def jitter(positions, n=6, seed=0):
    """Frames (n, A, 3), nm, of thermal noise about ``positions``."""
    x = positions + np.random.default_rng(seed).normal(0, 0.003, (n, *positions.shape))
    return x.astype(np.float32)


def save(path, topology, frames, interval=10.0, box=None, pdb=True):
    """``path`` (any format) and, beside it, NAME.pdb."""
    path.parent.mkdir(parents=True, exist_ok=True)
    trajectory = mdtraj.Trajectory(frames, mdtraj.Topology.from_openmm(topology), interval * np.arange(len(frames)))
    if box is not None:
        trajectory.unitcell_vectors = np.broadcast_to(box * np.eye(3), (len(frames), 3, 3)).copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy stands in for netCDF4
        trajectory.save(str(path))
    if pdb:
        with open(path.with_suffix(".pdb"), "w") as file:
            PDBFile.writeFile(topology, frames[0] * unit.nanometer, file, keepIds=True)


def only(source):
    (file,) = source.find()
    return encode_trajectory(file)


def assert_same_shape(found, topology, frames, atol=2e-3):
    """Frames relative to the first residue's, torsions and angles are those of ``frames``; XTC rounds to 0.001 nm."""
    expected = from_positions(torch.tensor(frames).double(), ResidueTokens.from_topology(topology))
    conformations = found.conformations[:]
    a, b = (c.frames[..., :1].inverse() @ c.frames for c in (conformations.to(torch.float64), expected))
    torch.testing.assert_close(a.translations, b.translations, atol=10 * atol, rtol=0)
    torch.testing.assert_close(a.rotations, b.rotations, atol=20 * atol, rtol=0)
    torch.testing.assert_close(conformations.angles.double(), expected.angles, atol=20 * atol, rtol=0)


@pytest.fixture(scope="module")
def peptide():
    topology, positions = build_peptide("AKF", seed=1)
    return topology, positions_of(positions)


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same_conformations(peptide, tmp_path, suffix):
    topology, frames = peptide[0], jitter(peptide[1])
    save(tmp_path / f"AKF.{suffix}", topology, frames)
    found = only(Folder(tmp_path, interval=10 if suffix == "dcd" else None))
    assert (found.name, found.sequence, found.n_frames, found.interval) == ("AKF", "AKF", 6, 10)
    assert_same_shape(found, topology, frames)


def test_an_hdf5_file_brings_its_own_topology(peptide, tmp_path):
    topology, frames = peptide[0], jitter(peptide[1])
    save(tmp_path / "AKF.h5", topology, frames, pdb=False)
    for source in (Folder(tmp_path), Files(tmp_path / "AKF.h5")):
        assert_same_shape(only(source), topology, frames)
    assert len(TrajectoryDataset(tmp_path / "AKF.h5").trajectories) == 1


def test_files_without_times_are_refused_unless_the_interval_is_given(peptide, tmp_path):
    topology, frames = peptide[0], jitter(peptide[1])
    save(tmp_path / "a" / "AKF.dcd", topology, frames)
    save(tmp_path / "b" / "AKF.pdb", topology, frames[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with mdtraj.formats.NetCDFTrajectoryFile(str(tmp_path / "b" / "AKF.nc"), "w") as file:
            file.write(frames * 10)
    for name in ("a", "b"):
        with pytest.raises(StarMDError, match=r"does not tell the times.*interval=10"):
            only(Folder(tmp_path / name))
        assert only(Folder(tmp_path / name, interval=2.5)).interval == 2.5


def test_a_given_interval_stands_above_the_times_in_the_file(peptide, tmp_path):
    save(tmp_path / "AKF.xtc", peptide[0], jitter(peptide[1]), interval=0)
    with pytest.raises(StarMDError, match="evenly"):
        only(Folder(tmp_path))
    assert only(Folder(tmp_path, interval=20)).interval == 20


def in_water(topology, positions):
    """The peptide between a ligand and water, so that its atoms do not come first."""
    ligand = Topology()
    residue = ligand.addResidue("LIG", ligand.addChain("L"))
    atoms = [ligand.addAtom(f"C{k}", Element.getBySymbol("C"), residue) for k in range(2)]
    ligand.addBond(*atoms)
    modeller = Modeller(ligand, np.array([[3.0, 0, 0], [3.15, 0, 0]]) * unit.nanometer)
    modeller.add(topology, positions * unit.nanometer)
    water = Topology()
    chain = water.addChain("W")
    for _ in range(2):
        residue = water.addResidue("HOH", chain)
        oxygen, *hydrogens = (water.addAtom(n, Element.getBySymbol(n[0]), residue) for n in ("O", "H1", "H2"))
        for hydrogen in hydrogens:
            water.addBond(oxygen, hydrogen)
    x = np.array([[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0]])
    modeller.add(water, np.concatenate([x + 4, x + 5]) * unit.nanometer)
    return modeller.topology, positions_of(modeller.positions)


@pytest.mark.parametrize("suffix", FORMATS)
def test_water_and_ligands_are_dropped(peptide, tmp_path, suffix):
    topology, positions = peptide
    whole, x = in_water(topology, positions)
    frames = jitter(x)
    save(tmp_path / f"AKF.{suffix}", whole, frames, interval=10)
    found = only(Folder(tmp_path, interval=10))
    assert_same_shape(found, topology, frames[:, 2 : 2 + len(positions)])
    for name, value in vars(ResidueTokens.from_topology(topology).features).items():
        assert value is None or torch.equal(getattr(found.features, name), value), name


def test_molecules_are_made_whole_where_there_is_a_box_and_refused_where_not(peptide, tmp_path):
    topology, frames = peptide[0], jitter(peptide[1])
    box = 1.0 + np.ptp(peptide[1], axis=0).max()
    drift = np.linspace(0, box, len(frames))[:, None, None]
    wrapped = (frames + drift) % box
    assert np.abs(wrapped - wrapped[:, :1]).max() > box / 2
    save(tmp_path / "box" / "AKF.xtc", topology, wrapped, box=box)
    save(tmp_path / "no_box" / "AKF.xtc", topology, wrapped)
    assert_same_shape(only(Folder(tmp_path / "box")), topology, frames)
    with pytest.raises(StarMDError, match=r"AKF\.xtc: bonds are broken.* of 6 frames.*whole"):
        only(Folder(tmp_path / "no_box"))


def test_chains_are_put_beside_each_other(peptide, tmp_path):
    modeller = Modeller(peptide[0], peptide[1] * unit.nanometer)
    modeller.add(peptide[0], (peptide[1] + [0, 0, 0.6]) * unit.nanometer)
    frames = jitter(positions_of(modeller.positions))
    hopping = frames.copy()
    hopping[3:, len(peptide[1]) :] += [5.0, 0, -5.0]
    save(tmp_path / "dimer.xtc", modeller.topology, hopping, box=5.0)
    assert_same_shape(only(Folder(tmp_path)), modeller.topology, frames)


def test_caps_inside_a_residue_are_bonded_by_distance(tmp_path):
    """As CHARMM writes them: ACE and NME are atoms of the first and the last residue."""
    built, positions = build_peptide("AK", n_cap=True, c_cap=True, seed=1)
    residues = list(built.residues())
    names = {"CH3": "CAY", "C": "CY", "O": "OY"}, {"N": "NT", "H": "HNT", "CH3": "CAT", "C": "CAT"}
    topology = Topology()
    chain, order = topology.addChain("A"), []
    for own, cap, renamed in ((residues[1], residues[0], names[0]), (residues[2], residues[3], names[1])):
        residue = topology.addResidue(own.name, chain)
        for atom in own.atoms():
            topology.addAtom(atom.name, atom.element, residue)
        for k, atom in enumerate(cap.atoms()):
            topology.addAtom(renamed.get(atom.name, f"HY{k}"), atom.element, residue)
        order += [atom.index for atom in [*own.atoms(), *cap.atoms()]]
    frames = jitter(positions_of(positions)[order])
    save(tmp_path / "AK.xtc", topology, frames)
    features = only(Folder(tmp_path)).features
    assert (features.n_end[0], features.c_end[-1]) == (CAPPED, CAPPED)


@pytest.fixture(scope="module")
def atlas(peptide, tmp_path_factory):
    folder = tmp_path_factory.mktemp("atlas")
    for k, name in enumerate(("1abc_A", "2xyz_B", "3two_A")):
        for replicate in (1, 2, 3):
            save(folder / name / f"{name}_prod_R{replicate}_fit.xtc", peptide[0], jitter(peptide[1], seed=k))
            (folder / name / f"{name}_prod_R{replicate}_fit.pdb").replace(folder / name / f"{name}.pdb")
    rows = ["name,seqres,release_date", "1abc_A,AKF,2017-04-30", "2xyz_B,AKF,2018-05-01", "9not_A,AKF,2010-01-01"]
    (folder / "split.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_atlas_has_three_replicates_a_protein(atlas):
    found = ATLAS(atlas).find()
    assert [f.name for f in found[:3]] == [f"1abc_A_prod_R{k}_fit" for k in (1, 2, 3)]
    assert len(found) == 9
    assert {f.temperature for f in found} == {300}
    assert encode_trajectory(found[0]).interval == 10


def test_atlas_is_split_by_list_and_release_date(atlas, caplog):
    split = atlas / "split.csv"

    def proteins(**cut_offs):
        return {f.topology.stem for f in ATLAS(atlas, split, **cut_offs).find()}

    assert proteins() == {"1abc_A", "2xyz_B"}
    assert "9not_A" in caplog.text
    assert proteins(released_before="2018-05-01") == {"1abc_A"}
    assert proteins(released_from="2018-05-01") == {"2xyz_B"}
    assert proteins(released_from="2017-05-01", released_before="2018-05-01") == set()


@pytest.mark.parametrize("text", ["id,release_date\na,2018-05-01\n", "name\na\n", "name,release_date\na,May 2018\n"])
def test_unfit_splits_are_refused(atlas, tmp_path, text):
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(StarMDError, match=r"split\.csv must be"):
        ATLAS(atlas, tmp_path / "split.csv", released_before="2020-01-01").find()


@pytest.fixture(scope="module")
def mdcath(peptide, tmp_path_factory):
    """Two temperatures of two replicas, wrapped into their box."""
    folder = tmp_path_factory.mktemp("mdcath")
    topology, positions = peptide
    box = 1.0 + np.ptp(positions, axis=0).max()
    with open(folder / "top.pdb", "w") as file:
        PDBFile.writeFile(topology, positions * unit.nanometer, file)
    with h5py.File(folder / "mdcath_dataset_1abcA00.h5", "w") as file:
        group = file.create_group("1abcA00")
        group["pdbProteinAtoms"] = (folder / "top.pdb").read_bytes()
        group["z"] = np.zeros(len(positions))
        for temperature in (320, 450):
            for replica in (0, 1):
                frames = (jitter(positions, seed=temperature + replica) + box / 2) % box
                group[f"{temperature}/{replica}/coords"] = 10 * frames
                group[f"{temperature}/{replica}/box"] = box * np.eye(3)
    return folder


def test_mdcath_is_in_angstrom_a_frame_a_nanosecond(mdcath, peptide):
    found = MdCATH(mdcath).find()
    assert [f.name for f in found] == [f"1abcA00_{t}_{r}" for t in (320, 450) for r in (0, 1)]
    trajectory = encode_trajectory(found[3])
    assert (trajectory.interval, trajectory.temperature) == (1000, 450)
    assert_same_shape(trajectory, peptide[0], jitter(peptide[1], seed=451), atol=1e-5)


def test_temperatures_are_not_mixed(mdcath, tmp_path):
    with pytest.raises(StarMDError, match=r"320, 450 K.*temperature=320"):
        TrajectoryDataset(MdCATH(mdcath))
    for cache in (None, tmp_path):
        chosen = TrajectoryDataset(MdCATH(mdcath), temperature=450, cache=cache)
        assert [t.name for t in chosen.trajectories] == ["1abcA00_450_0", "1abcA00_450_1"]
    first, second = (t.conformations[:].torsions for t in chosen.trajectories)
    assert not torch.equal(first, second)
    assert {f.temperature for f in MdCATH(mdcath, temperature=320).find()} == {320}


def test_mdcath_files_are_known_by_their_name_and_layout(mdcath, tmp_path):
    with pytest.raises(StarMDError, match="MdCATH"):
        Folder(mdcath).find()
    (tmp_path / "mdcath_dataset_x.h5").write_bytes(b"nothing")
    with pytest.raises(StarMDError, match="damaged"):
        MdCATH(tmp_path).find()


def test_two_trajectories_for_one_topology_are_refused(peptide, tmp_path):
    for suffix in ("xtc", "trr"):
        save(tmp_path / f"AKF.{suffix}", peptide[0], jitter(peptide[1]))
    with pytest.raises(StarMDError, match=r"AKF\.xtc and AKF\.trr"):
        Folder(tmp_path).find()


@pytest.mark.parametrize("suffix", FORMATS)
def test_damaged_files_are_refused_by_name(peptide, tmp_path, suffix):
    path = tmp_path / f"AKF.{suffix}"
    save(path, peptide[0], jitter(peptide[1]))
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(StarMDError, match=rf"AKF\.{suffix} .*(torn|damaged)"):
        only(Folder(tmp_path, interval=1))


def test_all_that_is_wrong_is_told_at_once(peptide, tmp_path):
    """A line for each fault, of all trajectories together."""
    topology, positions = peptide
    good = jitter(positions)
    repeated = good.copy()
    repeated[3] = repeated[2]
    mirrored = good * [-1, 1, 1]
    order = np.random.default_rng(0).permutation(len(positions))
    for name, frames in {
        "repeated": repeated,
        "mirrored": mirrored,
        "shuffled": good[:, order],
        "short": good[:2],
    }.items():
        save(tmp_path / f"{name}.xtc", topology, frames)
        save(tmp_path / f"{name}.pdb", topology, good[:1])
    both = mirrored.copy()
    both[5] = both[4]
    save(tmp_path / "both.xtc", topology, both)
    with pytest.raises(StarMDError) as error:
        TrajectoryDataset(tmp_path, n_frames=4, stride_range=(10, 100))
    lines = str(error.value).splitlines()[1:]
    assert len(lines) == 6
    expected = [
        ("both.xtc", "positions equal those of the frame before in 1 of 6 frames, the first of them frame 5"),
        ("both.xtc", "A:ALA 1, A:LYS 2, A:PHE 3 have D chirality"),
        ("mirrored.xtc", "D chirality"),
        ("repeated.xtc", "frame 3"),
        ("short", "2 frames at 10 ps"),
        ("shuffled.xtc", "other atoms or another order"),
    ]
    for line, (name, words) in zip(lines, expected, strict=True):
        assert name in line and words in line


def test_repeats_are_seen_where_two_chunks_meet(peptide, tmp_path, monkeypatch):
    frames = jitter(peptide[1])
    frames[2] = frames[1]
    save(tmp_path / "AKF.xtc", peptide[0], frames)
    monkeypatch.setattr("openmm_starmd.trajectories.reader._CHUNK_ATOMS", 2 * len(peptide[1]))
    with pytest.raises(StarMDError, match="1 of 6 frames, the first of them frame 2"):
        only(Folder(tmp_path))


def test_tables_describe_sources(tmp_path):
    assert source_from_table({"path": "md", "interval": 5}, tmp_path) == Folder(tmp_path / "md", 5)
    table = {"source": "atlas", "path": "/atlas", "split": "s.csv", "released_before": "2018-05-01"}
    found = source_from_table(table, tmp_path)
    assert found == ATLAS(type(tmp_path)("/atlas"), tmp_path / "s.csv", "2018-05-01")
    for bad, words in (
        ({"source": "zip", "path": "x"}, "folder, packed, files, atlas, mdcath"),
        ({"path": "x", "intervall": 5}, "intervall"),
        ({"source": "mdcath"}, "needs path"),
    ):
        with pytest.raises(ValueError, match=words):
            source_from_table(bad, tmp_path)
