"""The generator of peptide MD: right chemistry, right energy, resumable without lost or doubled frames."""

import json
import sys
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import mdtraj
import numpy as np
import pytest
import torch
from openmm import Context, LocalEnergyMinimizer, Platform, VerletIntegrator, unit
from openmm.app import ForceField, HBonds, NoCutoff, PDBFile

from openmm_starmd.errors import HistoryError, StarMDError
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.protein.validity import check_positions
from openmm_starmd.systems import build_peptide, peptide_system
from openmm_starmd.training.simulate import coverage_sequences, simulate
from openmm_starmd.training.tiled_system import TiledSystem

module = sys.modules["openmm_starmd.training.simulate"]  # the package's attribute of that name is the function

PEPTIDES = [("ACDEFGHIKLMN", False, False), ("PQRSTVWY", True, True), ("WPWP", False, True), ("AGV", True, False)]


def dihedral(a, b, c, d):
    n1, n2 = np.cross(b - a, c - b), np.cross(c - b, d - c)
    return np.degrees(np.arctan2(np.dot(np.cross(n1, n2), (c - b) / np.linalg.norm(c - b)), np.dot(n1, n2)))


def context_of(topology, positions, system=None):
    context = Context(system or peptide_system(topology), VerletIntegrator(0.001), Platform.getPlatform("Reference"))
    context.setPositions(positions)
    return context


def energy(context):
    return context.getState(energy=True).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)


def positions_of(context):
    return context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer)


@pytest.mark.parametrize("sequence, n_cap, c_cap", PEPTIDES)
def test_builds_trans_l_peptides_that_minimise_to_negative_energy(sequence, n_cap, c_cap):
    topology, positions = build_peptide(sequence, n_cap, c_cap, seed=5)
    names = [r.name for r in topology.residues()]
    assert (names[0] == "ACE") == n_cap and (names[-1] == "NME") == c_cap
    assert len(names) == len(sequence) + n_cap + c_cap
    context = context_of(topology, positions)
    LocalEnergyMinimizer.minimize(context, 10, 300)
    assert energy(context) < 0
    x = positions_of(context)
    residues = [{a.name: x[a.index] for a in r.atoms()} for r in topology.residues()]
    amino_acids = [r for r, name in zip(residues, names, strict=True) if name not in ("ACE", "NME")]
    for residue in amino_acids:
        if "CB" in residue:  # L: the improper N-C-CB seen from CA is positive
            n, c, cb = (residue[k] - residue["CA"] for k in ("N", "C", "CB"))
            assert np.dot(np.cross(n, c), cb) > 0
    for first, second in pairwise(amino_acids):
        assert abs(dihedral(first["CA"], first["C"], second["N"], second["CA"])) > 140
        assert np.linalg.norm(first["C"] - second["N"]) < 0.15


@pytest.mark.parametrize("sequence, n_cap, c_cap", PEPTIDES)
def test_energy_is_that_of_obc2_xml(sequence, n_cap, c_cap):
    topology, positions = build_peptide(sequence, n_cap, c_cap, seed=1)
    own = context_of(topology, positions)
    LocalEnergyMinimizer.minimize(own, 10, 100)
    reference = ForceField("amber14/protein.ff14SB.xml", "implicit/obc2.xml").createSystem(
        topology, nonbondedMethod=NoCutoff, constraints=HBonds
    )
    assert energy(own) == pytest.approx(energy(context_of(topology, positions_of(own), reference)), rel=1e-6)


def test_hydrogens_weigh_four_and_are_constrained():
    topology, _ = build_peptide("AC", seed=1)
    system = peptide_system(topology)
    hydrogens = [a.index for a in topology.atoms() if a.element.symbol == "H"]
    masses = [system.getParticleMass(i).value_in_unit(unit.dalton) for i in hydrogens]
    assert np.allclose(masses, 4)
    assert system.getNumConstraints() == len(hydrogens)


def test_the_seed_fixes_the_positions():
    first, second, other = (np.array(build_peptide("SPHV", seed=s)[1]._value) for s in (1, 1, 2))
    assert np.array_equal(first, second)
    assert np.abs(first - other).max() > 0.05


@pytest.mark.parametrize("sequence", ["", "AXA", "acd"])
def test_unknown_letters_are_named(sequence):
    with pytest.raises(StarMDError, match="one-letter codes"):
        build_peptide(sequence)


def test_a_block_puts_every_residue_type_once_in_every_position():
    sequences = coverage_sequences(length=5, blocks=3, seed=2)
    assert len(sequences) == 60
    for position in range(5):
        assert set(Counter(s[position] for s in sequences).values()) == {3}


def test_what_is_within_one_residue_of_the_excluded_is_passed_over():
    everything = coverage_sequences(4, 2, seed=3)
    s = everything[7]
    for near in (s, "W" + s[1:] if s[0] != "W" else "A" + s[1:], s[:2] + s[3:], s[:2] + "K" + s[2:]):
        kept = coverage_sequences(4, 2, seed=3, exclude=[near])
        assert s not in kept and len(kept) >= 38
    swapped = s[1] + s[0] + s[2:]
    assert s in coverage_sequences(4, 2, seed=3, exclude=[swapped])


class Killed(BaseException):
    pass


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(module, "EQUILIBRATION_STEPS", 50)
    return {"frame_interval": 0.1, "checkpoint_interval": 0.0004, "seed": 9}


def test_a_killed_run_continues_bit_for_bit(tmp_path, monkeypatch, short):
    simulate(["ace-AG-nme"], tmp_path / "whole", 0.0014, **short)
    save, calls = module._save, []

    def dies(run, simulation):
        calls.append(simulation.currentStep)
        if len(calls) == 3:
            raise Killed  # eight frames are in the file, the checkpoint knows of four
        save(run, simulation)

    monkeypatch.setattr(module, "_save", dies)
    with pytest.raises(Killed):
        simulate(["ace-AG-nme"], tmp_path / "killed", 0.0014, **short)
    assert not (tmp_path / "killed" / "ACE_AG_NME.done").exists()
    monkeypatch.setattr(module, "_save", save)
    simulate(["ace-AG-nme"], tmp_path / "killed", 0.0014, **short)
    whole, killed = ((tmp_path / f / "ACE_AG_NME.xtc").read_bytes() for f in ("whole", "killed"))
    assert killed == whole


def tiled_of(*sequences):
    molecules = [build_peptide(sequence, seed=5) for sequence in sequences]
    return TiledSystem([(topology, np.array(positions._value)) for topology, positions in molecules]), molecules


def test_molecules_of_a_crowd_have_the_forces_that_they_have_alone():
    tiled, molecules = tiled_of("ACD", "WG", "PQRST", "GG", "MAVE")
    together = context_of(tiled.topology, tiled.positions, peptide_system(tiled.topology, tiled.cutoff))
    forces = together.getState(forces=True).getForces(asNumpy=True)._value
    for atoms, (topology, positions) in zip(tiled.parts, molecules, strict=True):
        alone = context_of(topology, positions).getState(forces=True).getForces(asNumpy=True)._value
        assert np.abs(forces[atoms] - alone).max() < 1e-6 * np.abs(alone).max()


def test_a_crowd_that_has_spread_returns_to_its_places_with_every_molecule_as_it_is():
    tiled, _ = tiled_of("ACD", "WG", "PQRST")
    moved = tiled.positions.copy()
    for k, atoms in enumerate(tiled.parts):
        moved[atoms] += k - 1.0
    assert np.abs(tiled.in_place(moved) - tiled.positions).max() < 1e-12


def test_molecules_that_drift_are_put_back_in_the_simulation():
    tiled, _ = tiled_of("AG", "SG")
    run = SimpleNamespace(temperature=300.0, run_seed=1, platform="CPU")
    simulation = module._new_simulation(run, tiled)
    simulation.context.setPositions(tiled.positions)
    simulation.context.setVelocities(np.full_like(tiled.positions, 5.0))  # nm/ps
    positions = module._advance(tiled, simulation, 50)
    for x in (positions, positions_of(simulation.context)):
        for atoms in tiled.parts:
            assert x[atoms].mean(0) == pytest.approx(tiled.positions[atoms].mean(0), abs=1e-4)


def test_trajectories_made_together_are_those_of_their_molecules_and_resume(tmp_path, monkeypatch, short):
    monkeypatch.setattr(module, "RETURN_STEPS", 20)
    names = ["AG", "GAV", "SG"]
    simulate(names, tmp_path / "whole", 0.0012, together=2, **short)
    simulate(names, tmp_path / "part", 0.0006, together=2, **short)
    simulate(names, tmp_path / "part", 0.0012, together=2, **short)
    for name in names:
        found = mdtraj.load(str(tmp_path / "whole" / f"{name}.xtc"), top=str(tmp_path / "whole" / f"{name}.pdb"))
        assert found.time == pytest.approx(0.1 * np.arange(1, 13), abs=1e-5)
        bonds = mdtraj.compute_distances(found, [[a.index, b.index] for a, b in found.topology.bonds])
        assert bonds.max() < 0.2
        assert (tmp_path / "part" / f"{name}.xtc").read_bytes() == (tmp_path / "whole" / f"{name}.xtc").read_bytes()
    with pytest.raises(StarMDError, match="AG.chk goes on with AG, GAV together, not AG; give the same molecules"):
        simulate(["AG"], tmp_path / "part", 0.002, **short)


def test_a_longer_second_call_extends_and_times_are_even(tmp_path, short):
    simulate(["GA"], tmp_path, 0.0006, **short)
    first = mdtraj.load(str(tmp_path / "GA.xtc"), top=str(tmp_path / "GA.pdb"))
    simulate(["GA"], tmp_path, 0.0012, **short)
    second = mdtraj.load(str(tmp_path / "GA.xtc"), top=str(tmp_path / "GA.pdb"))
    assert np.allclose(second.time, 0.1 * np.arange(1, 13), atol=1e-5)
    assert np.array_equal(second.xyz[:6], first.xyz)
    assert PDBFile(str(tmp_path / "GA.pdb")).topology.getNumAtoms() == second.n_atoms


def test_a_pdb_file_is_simulated_and_continued(tmp_path, short):
    topology, positions = build_peptide("GSA", c_cap=True, seed=1)
    with open(tmp_path / "mine.pdb", "w") as file:
        PDBFile.writeFile(topology, positions, file)
    for nanoseconds in (0.0004, 0.0008):
        assert simulate([str(tmp_path / "mine.pdb")], tmp_path / "md", nanoseconds, **short) == ["mine"]
    trajectory = mdtraj.load(str(tmp_path / "md" / "mine.xtc"), top=str(tmp_path / "md" / "mine.pdb"))
    assert trajectory.n_frames == 8 and trajectory.n_atoms == topology.getNumAtoms()
    with pytest.raises(StarMDError, match="absent.pdb"):
        simulate([str(tmp_path / "absent.pdb")], tmp_path / "md", 0.0004, **short)
    before = (tmp_path / "mine.pdb").read_bytes()
    with pytest.raises(StarMDError, match="overwritten"):
        simulate([str(tmp_path / "mine.pdb")], tmp_path, 0.0004, **short)
    assert (tmp_path / "mine.pdb").read_bytes() == before


def save_peptide(path, sequence, seed=1):
    path.parent.mkdir(exist_ok=True)
    topology, positions = build_peptide(sequence, seed=seed)
    with open(path, "w") as file:
        PDBFile.writeFile(topology, positions, file)
    return str(path)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "change, told",
    [
        ({"temperature": 400}, "another temperature;"),
        ({"frame_interval": 0.2}, "another frame interval;"),
        ({"seed": 10}, "another seed;"),
        ({"platform": "Reference"}, "another platform;"),
        ({"temperature": 310, "seed": 10}, "another temperature and seed;"),
        ({"start": ("GA", 2)}, "another start;"),
        ({"start": ("AG", 1)}, "another molecule and start;"),
    ],
    ids=str,
)
def test_frames_of_other_settings_are_neither_returned_nor_gone_on_with(tmp_path, short, change, told):
    save_peptide(tmp_path / "GA.pdb", "GA")
    assert simulate([str(tmp_path / "GA.pdb")], tmp_path / "md", 0.0004, **short) == ["GA"]
    before, change = contents(tmp_path / "md"), dict(change)
    file = tmp_path / "GA.pdb"
    if start := change.pop("start", None):
        file = save_peptide(tmp_path / "sub" / "GA.pdb", *start)
    for nanoseconds in (0.0004, 0.0008):
        with pytest.raises(HistoryError, match=f"md/GA.xtc belongs to {told}.*md/GA.json.*another output folder"):
            simulate(["AGS", str(file)], tmp_path / "md", nanoseconds, **short | change)
        assert contents(tmp_path / "md") == before  # AGS, which stands before it, is not made either


def test_a_structure_that_is_written_anew_is_the_same_start(tmp_path, short):
    """OpenMM writes the day into a PDB file."""
    file = save_peptide(tmp_path / "GA.pdb", "GA")
    simulate([file], tmp_path / "md", 0.0004, **short)
    before = contents(tmp_path / "md")
    (tmp_path / "GA.pdb").write_text("REMARK   1 CREATED TOMORROW\n" + (tmp_path / "GA.pdb").read_text())
    assert simulate([file], tmp_path / "md", 0.0004, **short) == ["GA"]
    assert contents(tmp_path / "md") == before


def test_the_settings_stand_beside_the_frames(tmp_path, short):
    simulate(["ace-GA"], tmp_path, 0.0002, temperature=310 * unit.kelvin, **short)
    found = json.loads((tmp_path / "ACE_GA.json").read_text())
    assert found["temperature"] == 310 and found["frame interval"] == 0.1 and found["seed"] == 9
    assert found["molecule"] == "ACE_GA" and "ff14SB" in found["force field"]


def test_frames_without_settings_are_left_alone(tmp_path, short):
    """As in folders of earlier versions."""
    simulate(["GA"], tmp_path, 0.0004, **short)
    (tmp_path / "GA.json").unlink()
    before = contents(tmp_path)
    with pytest.raises(HistoryError, match=r"GA.xtc has no GA.json.*earlier version.*another output folder"):
        simulate(["GA"], tmp_path, 0.0004, **short)
    for damage in ("{", "[1]"):
        (tmp_path / "GA.json").write_text(damage)
        with pytest.raises(HistoryError, match=r"GA.json is damaged"):
            simulate(["GA"], tmp_path, 0.0004, **short)
    (tmp_path / "GA.json").unlink()
    assert contents(tmp_path) == before


def test_frames_are_not_written_over_by_another_system(tmp_path, short):
    simulate(["AG", "GA"], tmp_path, 0.0002, together=2, **short)
    before = contents(tmp_path)
    assert simulate(["GA"], tmp_path, 0.0002, **short) == ["GA"]
    for molecules in (["GA"], ["GA", "AG"]):
        with pytest.raises(HistoryError, match=r"(AG|GA).xtc cannot be gone on with, because .*GA.chk is not there"):
            simulate(molecules, tmp_path, 0.0004, together=2, **short)
    assert contents(tmp_path) == before


def test_lost_frames_are_missed(tmp_path, short):
    simulate(["GA"], tmp_path, 0.0004, **short)
    (tmp_path / "GA.xtc").write_bytes((tmp_path / "GA.xtc").read_bytes()[:-1])
    with pytest.raises(StarMDError, match="GA.xtc lacks frames"):
        simulate(["GA"], tmp_path, 0.0008, **short)


def test_two_molecules_of_one_name_are_refused(tmp_path, short):
    first, second = save_peptide(tmp_path / "GA.pdb", "GA"), save_peptide(tmp_path / "sub" / "GA.pdb", "AG")
    for molecules, replicas in (([first, second], 1), (["GA", first], 1), (["GA", "GA_2.pdb"], 2), (["GA", "GA"], 1)):
        with pytest.raises(StarMDError, match=r"would both be written to .*md/GA(_2)?.xtc; give them different names"):
            simulate(molecules, tmp_path / "md", 0.0002, replicas=replicas, **short)
    assert not (tmp_path / "md").exists()


@pytest.mark.parametrize(
    "change, told",
    [
        ({"nanoseconds": 0.00004}, "4e-05 ns hold no frame interval of 0.1 ps"),
        ({"nanoseconds": np.inf}, "nanoseconds must be above 0 ns and finite; got inf ns"),
        ({"nanoseconds": 1e308}, "1e[+]308 ns hold more than 2,147,483,647 times the frame interval"),
        ({"nanoseconds": 1e4}, "2,500,000,000 time steps, but an XTC file counts 2,147,483,647"),
        ({"frame_interval": 0}, "frame_interval must be above 0 ps and finite; got 0 ps"),
        ({"frame_interval": np.nan}, "frame_interval must be above 0 ps and finite; got nan ps"),
        ({"frame_interval": 0.001}, "frame_interval must be at least the time step of 0.004 ps"),
        ({"checkpoint_interval": 0}, "checkpoint_interval must be above 0 ns"),
        ({"temperature": -300}, "temperature must be above 0 K and finite; got -300 K"),
        ({"temperature": np.inf}, "temperature must be above 0 K"),
        ({"replicas": 0}, "replicas must be an integer"),
        ({"processes": 0}, "processes must be an integer"),
        ({"together": 1.5}, "together must be an integer"),
        ({"seed": -1}, "seed must be an integer"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_simulated_make_no_files(tmp_path, short, change, told):
    with pytest.raises(ValueError, match=told):
        simulate(["GA"], tmp_path / "md", **{"nanoseconds": 0.0004} | short | change)
    assert not (tmp_path / "md").exists()


def test_replicas_differ_and_more_of_them_keep_the_first(tmp_path, short):
    assert simulate(["GA"], tmp_path, 0.0004, **short) == ["GA"]
    before = (tmp_path / "GA.xtc").read_bytes()
    names = simulate(["GA"], tmp_path, 0.0004, replicas=3, **short)
    assert names == ["GA", "GA_2", "GA_3"]
    found = [(tmp_path / f"{name}.xtc").read_bytes() for name in names]
    assert found[0] == before and len(set(found)) == 3


def test_failures_are_named_and_the_others_are_made(tmp_path, short):
    with pytest.raises(StarMDError, match="AX"):
        simulate(["AX", "GA"], tmp_path, 0.0002, **short)
    assert (tmp_path / "GA.done").exists()


@pytest.mark.slow
def test_a_residue_that_minimisation_turns_into_its_mirror_image_is_built_anew(tmp_path, monkeypatch):
    """SEWMNFICFNRN with this seed: the first structure ends up with D-ASN."""
    monkeypatch.setattr(module, "EQUILIBRATION_STEPS", 10)
    simulate(["SEWMNFICFNRN"], tmp_path, 0.001, frame_interval=0.5)
    pdb = PDBFile(str(tmp_path / "SEWMNFICFNRN.pdb"))
    positions = torch.tensor(pdb.getPositions(asNumpy=True)._value)
    assert check_positions(positions, ResidueTokens.from_topology(pdb.topology)).failures(()) == []
