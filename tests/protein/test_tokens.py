import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from openmm import unit
from openmm.app import Element, Modeller, Topology

from openmm_starmd.errors import UnsupportedTopologyError
from openmm_starmd.protein.bond_graph import BONDED, CAPPED, FREE
from openmm_starmd.protein.residues import RESIDUE_TYPES, TORSIONS, VARIANTS, variant_name
from openmm_starmd.protein.tokens import LEVELS, ResidueFeatures, ResidueTokens


def names_of(topology, indices):
    atoms = list(topology.atoms())
    return {atoms[i].name for i in indices}


def turning(tokens, name, token=None):
    """Atoms that turn with the angle or a torsion, of one token or of all."""
    torsion = TORSIONS.index(name) if name in TORSIONS else -1
    group = next(g for g, names in zip(tokens.levels, LEVELS, strict=True) if name in names)
    of_it = group.torsion == torsion
    return set(group.moved[of_it if token is None else of_it & (group.owner == token)].tolist())


def moved(topology, tokens, name, token):
    return names_of(topology, turning(tokens, name, token))


def phrase(name):
    return {BONDED: "bonded", FREE: "free", CAPPED: "capped"}[int(name)]


def ends(tokens):
    f = tokens.features
    return [(phrase(n), phrase(c)) for n, c in zip(f.n_end, f.c_end, strict=True)]


def test_every_protein_atom_has_one_owner_and_turns_with_it(system):
    topology, positions = system
    tokens = ResidueTokens.from_topology(topology)
    owner = torch.full((tokens.n_atoms,), -1)
    owner[tokens.protein_atoms] = tokens.owner
    assert tokens.n_atoms == len(positions)
    assert (tokens.protein_atoms.diff() > 0).all()
    assert (owner[tokens.backbone] == torch.arange(tokens.n_residues)[:, None]).all()
    assert set(tokens.heavy_atoms.tolist()) <= set(tokens.protein_atoms.tolist())
    for group in tokens.levels:
        assert (owner[group.moved] == group.owner).all()
        assert (owner[group.axis] == group.owner[:, None]).all()
        assert len(group.moved.unique()) == len(group.moved)


def test_what_turns_at_a_time_moves_no_bond_that_others_turn_about(system):
    _, *torsions = ResidueTokens.from_topology(system[0]).levels
    assert all(not torch.isin(group.axis, group.moved).any() for group in torsions)


def test_later_side_chain_groups_are_inside_earlier_ones(system):
    tokens = ResidueTokens.from_topology(system[0])
    groups = {name: turning(tokens, name) for name in ("angle", *TORSIONS)}
    assert [name for names in LEVELS for name in names if "chi" in name] == ["chi1", "chi2", "chi3", "chi4"]
    assert groups["chi1"] >= groups["chi2"] >= groups["chi3"] >= groups["chi4"]
    assert groups["angle"] > groups["phi"]
    assert not groups["angle"] & groups["psi"]
    assert not (groups["angle"] | groups["psi"]) & groups["chi1"]


def test_features_of_a_free_peptide(build_peptide):
    topology, _ = build_peptide("ACDEFGHIKL")
    tokens = ResidueTokens.from_topology(topology)
    f = tokens.features
    assert tokens.sequence == "ACDEFGHIKL"
    assert tokens.n_residues == 10
    assert [RESIDUE_TYPES[i] for i in f.residue_type] == [r.name for r in topology.residues()]
    assert f.residue_index.tolist() == list(range(10))
    assert f.chain_index.tolist() == [0] * 10
    assert ends(tokens) == [("free", "bonded"), *[("bonded", "bonded")] * 8, ("bonded", "free")]
    assert not f.torsion_mask[:, 0].any() and f.torsion_mask[:, 1].all()
    assert f.torsion_mask[:, 2:].sum(-1).tolist() == [0, 1, 2, 3, 2, 0, 2, 2, 4, 2]
    half = {(TORSIONS[k], tokens.sequence[i]) for i, k in torch.nonzero(f.torsion_period == math.pi)}
    assert half == {("psi", "L"), ("chi2", "D"), ("chi3", "E"), ("chi2", "F")}


def test_groups_follow_the_bonds(build_peptide):
    topology, _ = build_peptide("AKPFI")
    tokens = ResidueTokens.from_topology(topology)
    lys, pro, phe, ile = range(1, 5)
    assert moved(topology, tokens, "angle", 0) == {"N", "H", "H2", "H3"}
    assert moved(topology, tokens, "phi", 0) == set()
    assert moved(topology, tokens, "angle", lys) == {"N", "H"}
    assert moved(topology, tokens, "phi", lys) == {"H"}
    assert moved(topology, tokens, "psi", lys) == {"O"}
    assert moved(topology, tokens, "chi4", lys) == {"HE2", "HE3", "NZ", "HZ1", "HZ2", "HZ3"}
    assert moved(topology, tokens, "angle", pro) == {"N"}
    assert moved(topology, tokens, "phi", pro) == set()
    assert moved(topology, tokens, "chi2", pro) == {"HG2", "HG3", "CD", "HD2", "HD3"}
    assert moved(topology, tokens, "chi2", phe) == {f"{e}{p}" for e in "CH" for p in ("D1", "D2", "E1", "E2", "Z")}
    assert moved(topology, tokens, "chi1", ile) >= {"CG2", "HG21", "CD1", "HD13"}
    assert moved(topology, tokens, "chi2", ile) == {"HG12", "HG13", "CD1", "HD11", "HD12", "HD13"}
    assert moved(topology, tokens, "psi", ile) == {"O", "OXT"}


def test_caps_belong_to_their_neighbour(build_peptide):
    topology, _ = build_peptide("GA", n_cap=True, c_cap=True)
    tokens = ResidueTokens.from_topology(topology)
    assert tokens.sequence == "GA"
    assert len(tokens.protein_atoms) == topology.getNumAtoms()
    assert ends(tokens) == [("capped", "bonded"), ("bonded", "capped")]
    assert tokens.features.torsion_mask[:, 0].tolist() == [True, False]
    assert moved(topology, tokens, "phi", 0) == {"H", "C", "O", "CH3", "H1", "H2", "H3"}
    assert moved(topology, tokens, "psi", 1) == {"O", "N", "H", "C", "H1", "H2", "H3"}
    assert tokens.features.torsion_period[1, 1] == 2 * math.pi


def test_charmm_names_and_caps_give_the_same_tokens(build_system, build_peptide):
    charmm = ResidueTokens.from_topology(build_system("CHARMM names")[0])
    amber = ResidueTokens.from_topology(build_peptide("EHIK")[0])
    assert torch.equal(charmm.torsion_atoms, amber.torsion_atoms)
    for name, value in vars(charmm.features).items():
        assert value is None or torch.equal(value, getattr(amber.features, name)), name
    inside = ResidueTokens.from_topology(build_system("CHARMM caps inside residues")[0])
    beside = ResidueTokens.from_topology(build_peptide("KIR", True, True)[0])
    assert torch.equal(inside.torsion_atoms, beside.torsion_atoms)
    assert ends(inside) == ends(beside)
    assert all(torch.equal(a.moved, b.moved) for a, b in zip(inside.levels, beside.levels, strict=True))


def test_a_chain_break_ends_a_chain_inside(build_system):
    tokens = ResidueTokens.from_topology(build_system("chain break")[0])
    assert tokens.sequence == "ARKIL"
    assert ends(tokens)[1:3] == [("bonded", "free"), ("free", "bonded")]
    assert tokens.features.residue_index.tolist() == [0, 1, 4, 5, 6]
    assert (tokens.torsion_atoms[2, 0] == -1).all()


def test_several_chains_and_disulfides(build_system):
    tokens = ResidueTokens.from_topology(build_system("two chains, disulfides")[0])
    assert tokens.sequence == "CACMCGCT"
    assert tokens.features.chain_index.tolist() == [0] * 5 + [1] * 3
    assert tokens.features.residue_index.diff().tolist() == [1, 1, 1, 1, 2, 1, 1]
    assert tokens.disulfides == [(0, 2), (4, 6)]
    assert ends(tokens)[4:6] == [("bonded", "free"), ("free", "bonded")]


def test_company_is_passed_over(build_system):
    topology, _ = build_system("ligand, ion and water beside")
    tokens = ResidueTokens.from_topology(topology)
    assert tokens.sequence == "NQR"
    others = {a.index for a in topology.atoms() if a.residue.name in ("LIG", "NA", "HOH")}
    assert set(tokens.protein_atoms.tolist()) == set(range(topology.getNumAtoms())) - others


def test_labels_name_chain_residue_and_number(build_peptide):
    topology = deepcopy(build_peptide("GA")[0])
    assert ResidueTokens.from_topology(topology).residue_labels == ["A:GLY 1", "A:ALA 2"]
    next(topology.chains()).id = " "  # Amber's files and many others name no chain
    assert ResidueTokens.from_topology(topology).residue_labels == ["GLY 1", "ALA 2"]


def test_features_broadcast_against_frames(build_peptide):
    one, two = (ResidueTokens.from_topology(build_peptide(s)[0]).features for s in ("AKF", "GPS"))
    batch = ResidueFeatures.stack([one, two])
    assert batch.residue_type.shape == (2, 3)
    template = torch.zeros(2, 5, 3)
    assert batch.per_frame("torsion_mask", template).shape == (2, 1, 3, 6)
    assert batch.per_frame("torsion_period", template).dtype == torch.float32
    assert torch.equal(batch.per_frame("residue_type", template)[1, 0], two.residue_type)
    assert torch.equal(one.per_frame("torsion_mask", template)[0, 0], one.torsion_mask)
    assert one.expand(4).torsion_period.shape == (4, 3, 6)
    assert torch.equal(one.expand(4).per_frame("residue_type", torch.zeros(4, 5, 3))[3, 0], one.residue_type)


def chain_of(names, atoms=("N", "CA", "C", "O", "CB"), bonds=None, chain_id="B"):
    """Topology of residues with the given heavy atoms, numbered from 7; bonds are OpenMM's standard ones."""
    topology = Topology()
    chain = topology.addChain(chain_id)
    for number, name in enumerate(names, 7):
        residue = topology.addResidue(name, chain, str(number))
        for atom in atoms:
            topology.addAtom(atom, Element.getBySymbol(atom[0]), residue)
    topology.createStandardBonds()
    atoms = list(topology.atoms())
    for i, j in bonds or ():
        topology.addBond(atoms[i], atoms[j])
    return topology


def unbonded():
    topology = Topology()
    residue = topology.addResidue("ALA", topology.addChain("B"), "7")
    for atom in ("N", "CA", "C", "O", "CB"):
        topology.addAtom(atom, Element.getBySymbol(atom[0]), residue)
    return topology


REFUSED = {
    "no protein": (lambda: chain_of(["HOH"], ["O"]), ["no protein"]),
    "empty": (Topology, ["no protein"]),
    "unknown in the chain": (lambda: chain_of(["ALA", "MSE", "ALA"]), ["MSE 8 of chain B"]),
    "unknown at the end": (lambda: chain_of(["ALA", "ALA", "MSE"]), ["MSE 9 of chain B"]),
    "bonded ligand": (lambda: chain_of(["ALA", "HEM"], bonds=[(4, 9)]), ["HEM 8 of chain B", "ALA 7 of chain B"]),
    "missing backbone": (lambda: chain_of(["ALA"], ["N", "CA", "CB"]), ["ALA 7 of chain B", "C, O", "missing"]),
    "missing side chain": (lambda: chain_of(["LEU"]), ["LEU 7 of chain B", "CG, CD1", "missing"]),
    "two residues in one place": (
        lambda: chain_of(["SER"], ["N", "CA", "C", "O", "CB", "OG", "CG", "CD"]),
        ["SER 7 of chain B", "CG, CD", "two residues in one place"],
    ),
    "no bonds": (unbonded, ["ALA 7 of chain B", "createStandardBonds"]),
    "head to tail": (lambda: chain_of(["ALA"] * 3, bonds=[(0, 12)]), ["ALA 7 of chain B", "ALA 9 of chain B"]),
    "out of sequence": (lambda: chain_of(["ALA"] * 3, bonds=[(2, 10)]), ["C of residue ALA 7", "N of residue ALA 9"]),
    "crosslink": (lambda: chain_of(["ALA"] * 3, bonds=[(4, 14)]), ["CB of residue ALA 7", "CB of residue ALA 9"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_tokens_cannot_describe_is_refused_by_name(case):
    make, words = REFUSED[case]
    with pytest.raises(UnsupportedTopologyError) as error:
        ResidueTokens.from_topology(make())
    assert all(word in str(error.value) for word in words), str(error.value)


def without(topology, unwanted):
    """Topology without the atoms that ``unwanted`` picks."""
    modeller = Modeller(topology, np.zeros((topology.getNumAtoms(), 3)) * unit.nanometer)
    modeller.delete([atom for atom in topology.atoms() if unwanted(atom)])
    return modeller.topology


def renamed(topology, names):
    """Topology with other names of residues."""
    topology = deepcopy(topology)
    for residue in topology.residues():
        residue.name = names.get(residue.name, residue.name)
    return topology


def variants(topology):
    features = ResidueTokens.from_topology(topology).features
    return [variant_name(RESIDUE_TYPES[k], v) for k, v in zip(features.residue_type, features.variant, strict=True)]


def test_variants_come_from_hydrogens_whatever_the_names(build_system):
    topology = build_system("variants")[0]
    assert variants(topology) == "HID ALA HIE ASH LYN HIP GLH ALA".split()
    assert variants(renamed(topology, {"HIS": "HSP", "ASP": "ASPP"})) == variants(topology)
    assert variants(build_system("CHARMM names")[0]) == ["GLU", "HID", "ILE", "LYS"]


def test_disulfides_amides_and_uncharged_ends_are_variants(build_system, build_peptide):
    bridged = ResidueTokens.from_topology(build_system("two chains, disulfides")[0])
    assert [VARIANTS[k] for k in bridged.features.variant] == ["CYX" if x == "C" else "" for x in bridged.sequence]
    assert variants(build_system("amide")[0]) == ["TYR", "GLY", "PHE (amide cap)"]
    topology = build_peptide("CAK")[0]
    assert variants(without(topology, lambda x: x.name == "H3")) == ["CYS (neutral N end)", "ALA", "LYS"]
    assert variants(without(topology, lambda x: x.name == "HG" and x.residue.name == "CYS"))[0] == "CYM"
    assert variants(without(topology, lambda x: x.name in ("H3", "HG") and x.residue.name == "CYS"))[0] == "CYS (other)"


def test_plain_peptides_have_no_variant(build_system):
    for name in ("first ten types, free ends", "other ten types, capped", "PRO at both free ends", "no hydrogens"):
        assert not ResidueTokens.from_topology(build_system(name)[0]).features.variant.any(), name


def test_without_hydrogens_names_tell_the_variant(build_system):
    topology = without(build_system("variants")[0], lambda x: x.element.symbol == "H")
    assert not ResidueTokens.from_topology(topology).features.variant.any()
    topology = renamed(topology, {"HIS": "HSP", "ASP": "ASH"})
    assert variants(topology) == "HIP ALA HIP ASH LYS HIP GLU ALA".split()


def test_stored_features_without_variants_are_plain():
    zero = torch.zeros(2, 3, dtype=torch.int64)
    features = ResidueFeatures(zero, zero, zero, zero, zero, torch.ones(2, 3, 6, dtype=bool), torch.ones(2, 3, 6))
    assert features.variant.shape == (2, 3) and not features.variant.any()
    assert variant_name("ALA", 0) == "ALA"
