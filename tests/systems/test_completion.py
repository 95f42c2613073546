"""What is built is as nature has it, and chains end at their gaps."""

import os
from pathlib import Path

import numpy as np
import openmm
import pytest
import torch
from openmm import unit
from openmm.app import Modeller, PDBFile
from scipy.spatial import cKDTree

from openmm_starmd.errors import UnsupportedTopologyError
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.protein.validity import check_positions
from openmm_starmd.systems import build_peptide, prepare

PROTEINS = Path(__file__).resolve().parents[2] / "benchmarks" / "validation" / "proteins"
FAULTS = (
    Path(os.environ.get("STARMD_SHARED", Path(__file__).resolve().parents[2] / "../shared")) / "data/structures/faults"
)


def is_heavy(atom):
    return atom.element.symbol != "H"


def natural(topology, positions):
    """Whether residues are L, peptide bonds trans and whole, and no ring is pierced."""
    x = torch.tensor(np.array(positions.value_in_unit(unit.nanometer)))
    validity = check_positions(x[None], ResidueTokens.from_topology(topology))
    return not {"inversions", "omega_flips", "peptide_breaks", "ring_piercings"} & set(validity.failures(0))


@pytest.mark.parametrize("names", [{"N", "CA", "C", "O"}, {"N", "CA", "C", "O", "CB"}])
def test_side_chains_are_built_with_natural_centres(write, peptide, names):
    path = write(peptide("DTHIKWRYEV", keep=lambda atom: atom.name in names | {"OXT"}))
    topology, positions, changes = prepare(path)
    assert natural(topology, positions)
    assert any(change.startswith("built") and "THR 2" in change for change in changes)


@pytest.mark.parametrize(
    "lost, renamed, told", [("OG", "HG ", "built OG of SER 2"), ("CB OG", "HG ", "built CB, OG of")]
)
def test_hydrogens_make_way_for_the_atoms_that_are_built(write, peptide, lost, renamed, told):
    """Programs that cut a side chain off put hydrogens in the place of its atoms."""
    path = write(peptide("ASA", keep=lambda atom: atom.residue.name != "SER" or atom.name not in lost.split()))
    path.write_text(path.read_text().replace(f" {renamed} SER", " HB1 SER"))
    topology, positions, changes = prepare(path)
    assert topology.getNumAtoms() == built_whole("ASA") and natural(topology, positions)
    assert any(change.startswith(told) for change in changes)


def built_whole(sequence):
    return build_peptide(sequence, seed=1)[0].getNumAtoms()


def test_a_centre_without_a_hand_is_refused(write, peptide):
    """Minimisation would make it L or D, and nobody would know which."""
    modeller = peptide("AKA", keep=is_heavy)
    x = np.array(modeller.positions._value)
    n, ca, c, cb = (
        next(a.index for a in modeller.topology.atoms() if (a.residue.index, a.name) == (2, name))
        for name in ("N", "CA", "C", "CB")
    )
    normal = np.cross(x[n] - x[ca], x[c] - x[ca])
    normal /= np.linalg.norm(normal)
    for share, known in ((0.5, True), (0.9, False)):
        y = x.copy()
        y[cb] -= share * np.dot(x[cb] - x[ca], normal) * normal
        modeller.positions = y * unit.nanometer
        if known:
            prepare(write(modeller))
        else:
            with pytest.raises(UnsupportedTopologyError, match="CA of residue ALA 3 of chain A lie in a plane"):
                prepare(write(modeller))


def test_what_is_built_is_the_same_every_time(write, peptide):
    path = write(peptide("DTHIK", keep=lambda atom: atom.name in ("N", "CA", "C", "O")))
    first, second = (np.array(prepare(path)[1]._value) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def seqres(path, sequence, chain="A"):
    lines = path.read_text()
    path.write_text(f"SEQRES   1 {chain}{len(sequence.split()):>5}  {sequence}\n{lines}")


def test_a_loop_that_the_sequence_names_is_built_of_l_residues_and_trans_bonds(write, peptide):
    path = write(peptide("AKTVIEA", keep=lambda atom: is_heavy(atom) and atom.residue.id not in "345"))
    seqres(path, "ALA LYS THR VAL ILE GLU ALA")
    topology, positions, changes = prepare(path)
    assert [r.name for r in topology.residues()] == "ALA LYS THR VAL ILE GLU ALA".split()
    assert "built the residues THR 3, VAL 4, ILE 5 of chain A" in changes
    assert natural(topology, positions)


@pytest.mark.parametrize("first", [4, 8, 12])
def test_a_loop_is_built_beside_what_is_there_and_not_in_it(tmp_path, first):
    """Three residues of Trp-cage are built anew: heavy atoms that are not bonded stay apart, and the file is ready."""
    pdb = PDBFile(str(PROTEINS / "2JOF_101.pdb"))
    names = [residue.name for residue in pdb.topology.residues()]
    modeller = Modeller(pdb.topology, pdb.positions)
    lost = range(first, first + 3)
    modeller.delete([atom for atom in modeller.topology.atoms() if not is_heavy(atom) or atom.residue.index in lost])
    with open(tmp_path / "gap.pdb", "w") as file:
        for k in range(0, len(names), 13):
            file.write(f"SEQRES{k // 13 + 1:4d} A{len(names):5d}  {' '.join(names[k : k + 13])}\n")
        PDBFile.writeFile(modeller.topology, modeller.positions, file, keepIds=True)
    topology, positions, changes = prepare(tmp_path / "gap.pdb")
    assert any(change.startswith("built the residues") for change in changes) and natural(topology, positions)
    heavy = [atom for atom in topology.atoms() if is_heavy(atom)]
    x = np.array(positions.value_in_unit(unit.nanometer))[[atom.index for atom in heavy]]
    bonded = {frozenset((a.index, b.index)) for a, b in topology.bonds()}
    near = [(heavy[i], heavy[j]) for i, j in cKDTree(x).query_pairs(0.19)]
    assert [(a, b) for a, b in near if frozenset((a.index, b.index)) not in bonded] == []
    with open(tmp_path / "whole.pdb", "w") as file:
        PDBFile.writeFile(topology, positions, file, keepIds=True)
    assert prepare(tmp_path / "whole.pdb")[2] == []


def test_what_cannot_be_built_naturally_is_refused(write, peptide, monkeypatch):
    monkeypatch.setattr("openmm_starmd.systems.completion._with_natural_geometry", lambda fixer, skeleton, x: x)
    monkeypatch.setattr("openmm_starmd.systems.completion._Skeleton.wrong", lambda skeleton, x: [0])
    with pytest.raises(UnsupportedTopologyError, match="missing at ALA 1 of chain A could not be built with L"):
        prepare(write(peptide("AKA", keep=is_heavy)))


def test_a_chain_ends_at_a_gap_whatever_is_built_elsewhere(write, peptide):
    gap = peptide("AAGGGAA", keep=lambda atom: is_heavy(atom) and atom.residue.id not in "345")
    alone = prepare(write(gap))
    other = peptide("AKAA", keep=lambda atom: atom.name in ("N", "CA", "C", "O"))
    next(other.topology.chains()).id = "B"
    both = Modeller(gap.topology, gap.positions)
    both.add(other.topology, [x + openmm.Vec3(0, 0, 5) for x in other.positions._value] * unit.nanometer)
    beside = prepare(write(both))
    for topology, _, changes in (alone, beside):
        (change,) = (change for change in changes if "gap" in change)
        assert "nm between ALA 2 of chain A and ALA 6 of chain A, with charged ends" in change
        first, second = list(topology.chains())[:2]
        assert {"OXT"} <= {a.name for a in first.atoms()} and {"H2", "H3"} <= {a.name for a in second.atoms()}
    x = np.array(beside[1]._value)
    assert max(np.linalg.norm(x[a.index] - x[b.index]) for a, b in beside[0].bonds()) < 0.25


def test_a_gap_that_its_missing_residues_cannot_span_is_not_closed(write, peptide):
    modeller = peptide("AKTVA", keep=lambda atom: is_heavy(atom) and atom.residue.id != "3")
    x = modeller.positions._value
    far = [atom.residue.index > 1 for atom in modeller.topology.atoms()]
    modeller.positions = [p + openmm.Vec3(17, 0, 0) * moved for p, moved in zip(x, far, strict=True)] * unit.nanometer
    path = write(modeller)
    seqres(path, "ALA LYS THR VAL ALA")
    topology, _, changes = prepare(path)
    assert topology.getNumChains() == 2
    assert any("gap of 17" in change or "gap of 16" in change for change in changes)


@pytest.mark.skipif(not FAULTS.is_dir(), reason="the folder of structures is absent")
@pytest.mark.parametrize(
    "name, words",
    [
        ("gap_two_chains.pdb", "gap of 0.96 nm between ALA 59 of chain B and TRP 64 of chain B"),
        ("heavy_atoms_missing.pdb", "built CB, CG, CD, OE1, OE2 of GLU 2 of chain A"),
        ("modified_residue_inside_chain.pdb", "CRO 2 of chain A is bonded to the backbone"),
        ("protonation_names_without_hydrogens.pdb", "HIS 2 of chain A became HIP"),
        ("staple_link.pdb", "LINK bonds CE of residue NLE 2 of chain A to CE of residue NLE 2 of chain B"),
    ],
)
def test_what_went_wrong_in_silence_is_right_or_refused(name, words):
    try:
        topology, positions, changes = prepare(FAULTS / name)
        assert natural(topology, positions)
    except UnsupportedTopologyError as error:
        changes = [str(error)]
    assert any(words in change for change in changes), changes
