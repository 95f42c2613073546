"""`evaluate` reads what other generators write: every fixture is written by the rules of the tool's own writer."""

import json
import os
import pickle

import mdtraj
import numpy as np
import pytest
import torch

from openmm_starmd.errors import TrajectoryError
from openmm_starmd.evaluation import evaluate
from openmm_starmd.evaluation.scoring.causes import copies
from openmm_starmd.trajectories.sides import read_sides

RATE, N_FRAMES = 0.03, 750  # a frame
SLOWEST = "slowest timescale, ratio to MD"
KINETICS = "Kinetics are not scored: "
BACKBONE = ("N", "CA", "C", "O", "CB")


@pytest.fixture(scope="module")
def md(hopping):
    return hopping(RATE, 1, N_FRAMES)


@pytest.fixture(scope="module")
def generated(hopping):
    return hopping(RATE, 2, N_FRAMES)


@pytest.fixture
def pdb(md, tmp_path):
    """Topology of the reference, all atoms."""
    (tmp_path / "reference").mkdir()
    md[0].save_pdb(str(tmp_path / "reference" / "md.pdb"))
    return tmp_path / "reference" / "md.pdb"


def part(trajectory, names=None):
    """The atoms of these names, or all but hydrogens, without times."""
    kept = [a.index for a in trajectory.topology.atoms if (a.name in names if names else a.element.symbol != "H")]
    chosen = trajectory.atom_slice(kept)
    return mdtraj.Trajectory(chosen.xyz, chosen.topology)


def centred(trajectory):
    """Positions with the centre of every frame at the origin, superposed on frame 0: as most tools write them."""
    moved = mdtraj.Trajectory(trajectory.xyz - trajectory.xyz.mean(1, keepdims=True), trajectory.topology)
    return moved.superpose(moved, 0)


def platito(folder, trajectories, step="1", last=False):
    """PLaTITO: one tensor of CA in nm, the start in front, and the settings of the run as YAML."""
    runs = torch.from_numpy(np.stack([part(t, ("CA",)).xyz for t in trajectories]))
    runs = runs - runs.mean(2, keepdim=True)
    start = runs[:1, :1].expand(len(runs), -1, -1, -1)
    torch.save(runs[:, -1] if last else torch.cat([start, runs], 1), folder / "generated_coords.pt")
    if step:
        text = f"task_name: sample_platito\npdb_path: start.pdb\nnumber_of_trajectories: {len(runs)}\nstep: {step}\n"
        (folder / "config.yaml").write_text(text + f"number_of_steps: {runs.shape[1]}\ntemperature: 300\n")
    return folder / "generated_coords.pt"


ATOM_SITE = (
    "group_PDB type_symbol label_atom_id label_alt_id label_comp_id label_asym_id label_entity_id label_seq_id "
    "pdbx_PDB_ins_code auth_seq_id auth_comp_id auth_asym_id auth_atom_id pdbx_PDB_model_num Cartn_x Cartn_y Cartn_z id"
).split()


def write_cif(path, trajectory):
    """MmCIF by the rules of biotite: one loop of atoms in Angstrom, entities after it."""
    lines = ["data_topology", "#", "loop_", *(f"_atom_site.{name}" for name in ATOM_SITE)]
    for atom, (x, y, z) in zip(trajectory.topology.atoms, 10 * trajectory.xyz[0], strict=True):
        residue, chain = atom.residue, "AB"[atom.residue.chain.index]
        group = "HETATM" if residue.name == "LIG" else "ATOM"
        place = f"{residue.resSeq} {residue.name} {chain} {atom.name}"
        label = f"{atom.name} . {residue.name} {chain} {residue.chain.index + 1} {residue.resSeq}"
        lines.append(f"{group} {atom.element.symbol} {label} . {place} 1 {x:.3f} {y:.3f} {z:.3f} {atom.index + 1}")
    lines += ["#", "loop_", "_entity.id", "_entity.type", "1 polymer", "2 non-polymer", "#", ""]
    path.write_text("\n".join(lines))


def with_ligand(trajectory):
    """The trajectory and a ligand of one atom in a chain of its own."""
    topology = trajectory.topology.copy()
    topology.add_atom("C1", mdtraj.element.carbon, topology.add_residue("LIG", topology.add_chain(), 1))
    away = np.full((len(trajectory), 1, 3), 2.0, dtype=np.float32)
    return mdtraj.Trajectory(np.concatenate([trajectory.xyz, away], 1), topology)


def bioemu(folder, trajectory):
    """BioEmu: backbone and CB; independent samples, numbered by mdtraj."""
    samples = centred(part(trajectory, BACKBONE))
    samples[0].save_pdb(str(folder / "topology.pdb"))
    samples.save_xtc(str(folder / "samples.xtc"))
    return folder / "samples.xtc"


def bioemu2(folder, trajectory, lag=None):
    """BioEmu-2: heavy atoms and a ligand; numbered samples, or end points that all have the time of the lag, ns."""
    samples = with_ligand(centred(part(trajectory)))
    write_cif(folder / "topology.cif", samples)
    if lag:
        samples.time = np.full(len(samples), 1000.0 * lag)
    samples.save_xtc(str(folder / "samples.xtc"))
    return folder / "samples.xtc"


def confrover(folder, trajectory, mode="forward", stride=10):
    """ConfRover: heavy atoms, numbered frames, and the job as JSON; iid samples packed into one file."""
    case = folder / "case"
    case.mkdir(exist_ok=True)
    name = "case" if mode == "iid" else f"case_sample{len(list(case.glob('*.xtc')))}"
    frames = centred(part(trajectory))
    frames[0].save_pdb(str(case / f"{name}.pdb"))
    frames.save_xtc(str(case / f"{name}.xtc"))
    job = {"dataset": "d", "case_id": "case", "rep_id": 0, "task_mode": mode, "n_frames": len(frames)}
    job["stride_in_10ps"] = None if mode == "iid" else stride
    job = {f"case_sample{i}": job for i in range(len(frames))} if mode == "iid" else job
    (case / f"{name}.json").write_text(json.dumps(job, indent=4))
    return case / f"{name}.xtc"


def mdgen(folder, trajectory, xtc):
    """MDGen: heavy atoms, residues from 0, "MODEL 0" without columns; or that file read by mdtraj and saved as XTC."""
    frames, text = part(trajectory), ""
    for number, positions in enumerate(frames.xyz):
        text += f"MODEL {number}\n"
        for atom, (x, y, z) in zip(frames.topology.atoms, 10 * positions, strict=True):
            name = atom.name if len(atom.name) == 4 else f" {atom.name}"
            residue = f"{atom.residue.name:>3} A{atom.residue.index:>4}"
            line = f"ATOM  {atom.index + 1:>5} {name:<4} {residue}    {x:>8.3f}{y:>8.3f}{z:>8.3f}  1.00  0.00"
            text += f"{line}          {atom.element.symbol:>2}\n"
        text += f"TER   {len(positions) + 1:>5}      LEU A   3".ljust(80) + "\nENDMDL\n"
    (folder / "AVKW.pdb").write_text(text)
    if not xtc:
        return folder / "AVKW.pdb"
    loaded = mdtraj.load(str(folder / "AVKW.pdb"))
    loaded.superpose(loaded)
    loaded.save(str(folder / "AVKW.xtc"))
    loaded[0].save(str(folder / "AVKW.pdb"))
    return folder / "AVKW.xtc"


def named(evaluation):
    return {score.name for score in evaluation.scores}


def test_trajectories_of_platito_are_scored_by_their_ca(md, generated, pdb, tmp_path):
    """1 ns a step; the common start of all trajectories is no sample."""
    coarse = generated[::10]  # md is 100 ps a frame
    path = platito(tmp_path, [coarse[:30], coarse[30:60]])
    reference, other = read_sides(md, path, pdb)
    assert other.interval == 1000 and [t.n_frames for t in other.trajectories] == [30, 30]
    assert other.names == ("generated_coords.pt",) and copies(other) == (0, 0)
    kept = part(coarse[:60], ("CA",)).xyz
    kept = kept - kept.mean(1, keepdims=True)
    np.testing.assert_allclose(np.concatenate([t.xyz for t in other.trajectories]), kept, atol=1e-6)
    found = evaluate(md, path, pdb)
    assert found.settings["heavy atoms in common"] == 4 and found.settings["generated frames"] == 60
    assert found["two slowest modes (tICA-0,1)"].light in ("green", "unclear") and SLOWEST in named(found)
    assert "share CA alone: backbone torsions" in found.verdict and "by their CA alone" in found.verdict
    assert "frame 0 of each of the 2 trajectories" in found.settings["note"]


def test_the_step_of_platito_is_needed_for_kinetics_alone(md, generated, pdb, tmp_path):
    path = platito(tmp_path, [generated[::10]], step="")
    other = read_sides(md, path, pdb)[1]
    assert other.interval is None and "holds no times, and no config.yaml beside it" in other.untimed
    assert read_sides(md, path, pdb, stride=1000)[1].interval == 1000


def test_last_frames_of_platito_are_independent(md, generated, pdb, tmp_path):
    path = platito(tmp_path, [generated[i : i + 2] for i in range(0, 200, 2)], last=True)
    other = read_sides(md, path, pdb)[1]
    assert other.interval is None and "the last frames of 100 trajectories only" in other.untimed
    assert [t.n_frames for t in other.trajectories] == [100]


class Harm:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_code_in_a_file_of_tensors_is_not_run(md, pdb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(Harm(), tmp_path / "zip.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Harm()))
    for name in ("zip.pt", "pickle.pt"):
        with pytest.raises(TrajectoryError, match=name):
            read_sides(md, tmp_path / name, pdb)
    assert not (tmp_path / "ran").exists()


def test_tensors_that_are_no_trajectory_end_in_one_line(md, generated, pdb, tmp_path):
    path = tmp_path / "generated_coords.pt"
    for content, reason in (
        ({"coords": torch.zeros(2, 4, 3)}, "holds a dict"),
        (torch.zeros(30, 4), r"shape \(30, 4\)"),
        (torch.zeros(30, 4, 3, dtype=torch.long), "expected positions of CA"),
        (torch.rand(30, 5, 3), "holds 5 CA a frame, its topology has 4"),
        (torch.full((30, 4, 3), torch.nan), "not finite"),
    ):
        torch.save(content, path)
        with pytest.raises(TrajectoryError, match=reason) as error:
            read_sides(md, path, pdb)
        assert "\n" not in str(error.value)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(TrajectoryError, match="cannot be read as a tensor"):
        read_sides(md, path, pdb)
    with pytest.raises(TrajectoryError, match="give the topology of the protein"):
        read_sides(md, platito(tmp_path, [generated]))


def test_samples_of_bioemu_have_no_kinetics(md, generated, pdb, tmp_path):
    """Before, the numbers of the samples counted as ps."""
    found = evaluate(md, bioemu(tmp_path, generated), pdb)
    assert found.settings["heavy atoms in common"] == 4 * 5 and "backbone torsions" in named(found)
    assert KINETICS + "samples.xtc numbers its frames 0, 1, 2, ... in place of times" in found.verdict
    assert (
        "share the backbone and CB alone: side-chain torsions, side chains in contact, rotamer outliers"
        in found.verdict
    )
    assert "samples.xtc is read with topology.pdb beside it" in found.settings["note"]
    assert SLOWEST not in named(found)


def test_samples_of_bioemu_2_are_matched_among_ligands(md, generated, pdb, tmp_path):
    path = bioemu2(tmp_path, generated)
    for given in ({"topology": pdb}, {"generated_topology": tmp_path / "topology.cif"}):
        reference, other = read_sides(md, path, **given)
        assert other.interval is None and other.topology.n_atoms == generated.topology.select("element != H").size
    assert "numbers its frames" in other.untimed
    truth = centred(part(generated))
    order = [(a.residue.index, a.name) for a in truth.topology.atoms]
    for atom in other.topology.atoms:
        place = order.index((atom.residue.index, atom.name))
        np.testing.assert_allclose(other.trajectories[0].xyz[:, atom.index], truth.xyz[:, place], atol=2e-3)


def test_end_points_of_bioemu_2_have_no_times(md, generated, pdb, tmp_path):
    """All are at the time of their lag."""
    other = read_sides(md, bioemu2(tmp_path, generated, lag=1.0), pdb)[1]
    assert other.interval is None and other.untimed == "all frames of samples.xtc are at 1000 ps"


def test_topologies_by_mdtraj_are_read_and_times_of_bioemu_2_kept(md, generated, pdb, tmp_path):
    """`save_frames` of what `simulate_trajectory` gives: mdtraj writes the mmCIF, times are ps."""
    frames = centred(part(generated))
    frames.time = 100.0 * np.arange(len(frames))
    frames.save_xtc(str(tmp_path / "samples.xtc"))
    frames[0].save_cif(str(tmp_path / "topology.cif"), keepIds=False)
    reference, other = read_sides(md, tmp_path / "samples.xtc", pdb)
    assert other.interval == 100 and other.topology.n_atoms == frames.n_atoms


def test_trajectories_of_confrover_have_the_stride_of_their_job(md, generated, pdb, tmp_path):
    """Replicas from one start: its copies are no fault."""
    one, two = generated[:300], generated[[0, *range(300, N_FRAMES)]]
    paths = [confrover(tmp_path, t) for t in (one, two)]
    other = read_sides(md, paths, pdb)[1]
    assert other.interval == 100 and other.untimed == "" and copies(other) == (0, 0)
    assert read_sides(md, paths, pdb, stride=50)[1].interval == 50
    assert copies(read_sides(md, [paths[0], confrover(tmp_path, one)], pdb)[1]) == (len(one) - 1, len(one) + 1)


def test_independent_samples_of_confrover_have_no_times(md, generated, pdb, tmp_path):
    other = read_sides(md, confrover(tmp_path, generated, "iid"), pdb)[1]
    assert other.interval is None
    assert other.untimed == "case.json says that the samples of case.xtc are independent"


@pytest.mark.parametrize("xtc", [True, False], ids=["xtc", "pdb"])
def test_files_of_mdgen_are_read(md, generated, pdb, tmp_path, xtc):
    path = mdgen(tmp_path, generated[:400], xtc)
    other = read_sides(md, path, pdb)[1]
    assert other.n_frames == 400 and other.interval is None and other.untimed
    assert other.topology.n_atoms == generated.topology.select("element != H").size
    assert read_sides(md, path, pdb, stride=100)[1].interval == 100


def test_what_has_no_scores_is_in_the_terminal_the_json_and_the_page(md, generated, pdb, tmp_path, capsys):
    from openmm_starmd.cli import main

    md.save_xtc(str(tmp_path / "reference" / "md.xtc"))
    path = platito(tmp_path, [generated[::10]], step="")
    folder = tmp_path / "report"
    command = ["evaluate", "--reference", str(tmp_path / "reference" / "md.xtc"), "--generated", str(path)]
    main([*command, "--topology", str(pdb), "-o", str(folder)])
    printed = " ".join(capsys.readouterr().out.split())
    content = json.loads((folder / "metrics.json").read_text())
    assert len(content["unscored"]) == 3
    page, summary = ((folder / name).read_text() for name in ("report.html", "summary.md"))
    for sentence in content["unscored"]:
        assert sentence in printed and sentence in summary
        assert all(piece in page for piece in sentence.split("'"))


def test_times_of_steps_of_a_simulation_are_times(md, generated, pdb, tmp_path):
    """One ps between frames from 0 on, as GROMACS writes: the steps tell that it is no mere number of the frame."""
    path = tmp_path / "md.xtc"
    with mdtraj.formats.XTCTrajectoryFile(str(path), "w") as file:
        times = np.arange(len(generated), dtype=np.float32)
        file.write(generated.xyz, time=times, step=500 * np.arange(len(generated)))
    assert read_sides(md, path, pdb)[1].interval == 1
    generated[:].save_xtc(str(path))
    numbered = mdtraj.Trajectory(generated.xyz, generated.topology)
    numbered.save_xtc(str(path))
    assert read_sides(md, path, pdb)[1].interval is None
    with pytest.raises(TrajectoryError, match="numbers its frames.*--reference-stride"):
        read_sides(path, md, pdb)


def test_a_topology_beside_the_file_serves_where_the_given_one_is_of_others(md, generated, pdb, tmp_path):
    heavy = part(generated)
    heavy.time = 100.0 * np.arange(len(heavy))
    heavy.save_xtc(str(tmp_path / "run.xtc"))
    with pytest.raises(TrajectoryError, match="atoms a frame, its topology has"):
        read_sides(md, tmp_path / "run.xtc", pdb)
    heavy[0].save_pdb(str(tmp_path / "run.pdb"))
    assert "run.pdb" in read_sides(md, tmp_path / "run.xtc", pdb)[1].notes[0]
    assert "run.pdb" in read_sides(md, tmp_path / "run.xtc")[1].notes[0]
    with pytest.raises(TrajectoryError, match="atoms a frame, its topology has"):
        read_sides(md, tmp_path / "run.xtc", generated_topology=pdb)
