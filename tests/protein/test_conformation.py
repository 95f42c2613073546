import os
from itertools import combinations
from pathlib import Path

import mdtraj
import numpy as np
import pytest
import torch
from openmm.app import PDBFile
from scipy.spatial.distance import jensenshannon

from openmm_starmd.geometry.rigid import Rigid, exponential
from openmm_starmd.geometry.torsions import TWO_PI, measure_dihedral, wrap
from openmm_starmd.protein.conformation import Conformation, from_positions, to_positions
from openmm_starmd.protein.tokens import ResidueTokens

SHARED = Path(os.environ.get("OPENMM_STARMD_SHARED", Path(__file__).resolve().parents[3] / "shared"))
PEPTIDES = SHARED / "data" / "peptides" / "train"
PHI, PSI = 0, 1


def random_conformation(tokens, *lead, seed=0):
    """Frames anywhere, torsions over the whole circle, N-CA-C angles as in MD; float64."""
    g = torch.Generator().manual_seed(seed)
    shape = (*lead, tokens.n_residues)

    def normal(*channels):
        return torch.randn(*shape, *channels, generator=g, dtype=torch.float64)

    features = tokens.features
    torsions = (torch.rand(*shape, 6, generator=g, dtype=torch.float64) - 0.5) * features.torsion_period
    return Conformation(
        Rigid(exponential(2 * normal(3)), normal(3)), torsions * features.torsion_mask, 1.95 + 0.06 * normal()
    )


def inner_bonds(topology, tokens):
    """Pairs of bonded atoms of one token, but proline's N-CD, which closes the ring."""
    owner = dict(zip(tokens.protein_atoms.tolist(), tokens.owner.tolist(), strict=True))
    bonds = [(a, b) for a, b in topology.bonds() if a.index in owner and owner[a.index] == owner.get(b.index)]
    ring = [{"N", "CD"} == {a.name, b.name} and a.residue.name == "PRO" for a, b in bonds]
    return [(a.index, b.index) for (a, b), closing in zip(bonds, ring, strict=True) if not closing]


def handedness(positions, topology, tokens):
    """Scaled triple products of the bonds at every atom with three or more, (*, M)."""
    neighbours = {}
    for a, b in inner_bonds(topology, tokens):
        neighbours.setdefault(a, []).append(b)
        neighbours.setdefault(b, []).append(a)
    quads = [(centre, *three) for centre, around in neighbours.items() for three in combinations(sorted(around), 3)]
    centre, *arms = positions[..., torch.tensor(quads), :].unbind(-2)
    arms = [torch.nn.functional.normalize(arm - centre, dim=-1) for arm in arms]
    return (torch.linalg.cross(arms[0], arms[1]) * arms[2]).sum(-1)


def assert_same(one, other, tokens, length=1e-9, angle=1e-8):
    assert (one.frames.translations - other.frames.translations).abs().max() < length
    assert (one.frames.rotations - other.frames.rotations).abs().max() < angle
    assert (one.angles - other.angles).abs().max() < angle
    assert wrap(one.torsions - other.torsions, tokens.features.torsion_period).abs().max() < angle


@pytest.fixture
def protein(system):
    topology, positions = system
    return topology, torch.tensor(positions), ResidueTokens.from_topology(topology)


def test_atoms_take_the_conformation_they_are_given(protein):
    _, positions, tokens = protein
    conformation = random_conformation(tokens, 3)
    moved = to_positions(conformation, positions, tokens)
    assert moved.shape == (3, *positions.shape)
    assert_same(from_positions(moved, tokens), conformation, tokens)
    moved = to_positions(conformation.to(torch.float32), positions.float(), tokens)
    assert moved.dtype == torch.float32
    assert_same(from_positions(moved, tokens), conformation, tokens, length=1e-5, angle=1e-4)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_an_identity_jump_moves_no_atom(protein, dtype, tolerance):
    _, positions, tokens = protein
    positions = positions.to(dtype)
    moved = to_positions(from_positions(positions, tokens), positions, tokens)
    assert (moved - positions).abs().max() < tolerance


def test_there_and_back_again(protein):
    _, positions, tokens = protein
    away = to_positions(random_conformation(tokens), positions, tokens)
    back = to_positions(from_positions(positions, tokens), away, tokens)
    again = to_positions(random_conformation(tokens), back, tokens)
    # symmetric groups may come back with their ends exchanged, so compare what has no period of pi
    fixed = torch.ones(tokens.n_atoms, dtype=torch.bool)
    for group in tokens.levels[1:]:
        fixed[group.moved[tokens.features.torsion_period[group.owner, group.torsion] < 4]] = False
    torch.testing.assert_close(back[fixed], positions[fixed])
    torch.testing.assert_close(again[fixed], away[fixed])


def test_rotating_the_input_rotates_the_output(protein):
    _, positions, tokens = protein
    motion = Rigid(exponential(torch.tensor([0.3, -1.2, 2.0]).double()), torch.tensor([0.5, 2.0, -1.0]).double())
    conformation = random_conformation(tokens)
    rotated = Conformation(motion @ conformation.frames, conformation.torsions, conformation.angles)
    own, moved = tokens.protein_atoms, to_positions(conformation, positions, tokens)
    torch.testing.assert_close(to_positions(rotated, positions, tokens)[own], motion.apply(moved[own]))
    torch.testing.assert_close(to_positions(conformation, motion.apply(positions), tokens)[own], moved[own])
    measured, expected = from_positions(motion.apply(positions), tokens), from_positions(positions, tokens)
    torch.testing.assert_close(measured.torsions, expected.torsions)
    torch.testing.assert_close(measured.frames.rotations, (motion @ expected.frames).rotations)


def test_bonds_inside_a_token_keep_their_length(protein):
    topology, positions, tokens = protein
    a, b = torch.tensor(inner_bonds(topology, tokens)).unbind(-1)
    moved = to_positions(random_conformation(tokens, 2), positions, tokens)
    before, after = ((x[..., a, :] - x[..., b, :]).norm(dim=-1) for x in (positions, moved))
    torch.testing.assert_close(after, before.expand_as(after))


def test_every_centre_keeps_its_hand(protein):
    topology, positions, tokens = protein
    before = handedness(positions, topology, tokens)
    after = handedness(to_positions(random_conformation(tokens, 2), positions, tokens), topology, tokens)
    chiral = before.abs() > 0.4
    assert chiral.sum() >= tokens.n_residues
    assert (after.sign() == before.sign())[:, chiral].all()


def test_other_atoms_stay(protein):
    _, positions, tokens = protein
    moved = to_positions(random_conformation(tokens), positions, tokens)
    others = torch.ones(tokens.n_atoms, dtype=torch.bool)
    others[tokens.protein_atoms] = False
    assert torch.equal(moved[others], positions[others])


def test_amide_hydrogens_follow_the_preceding_carbonyl(build_peptide):
    topology, positions = build_peptide("AGKV", n_cap=True)
    tokens, positions = ResidueTokens.from_topology(topology), torch.tensor(positions)
    before, n, ca, c = tokens.torsion_atoms[:, PHI].unbind(-1)
    hydrogen = torch.tensor([a.index for a in topology.atoms() if a.name == "H" and a.residue.name != "ACE"])
    moved = to_positions(random_conformation(tokens, 5), positions, tokens)

    def offset(x):
        points = (x[..., i, :] for i in (before, n, ca, c))
        return measure_dihedral(*points) - measure_dihedral(*(x[..., i, :] for i in (hydrogen, n, ca, c)))

    assert wrap(offset(moved) - offset(positions)).abs().max() < 1e-8


def test_phi_is_free_behind_a_cap_only(build_peptide):
    topology, positions = build_peptide("AG", n_cap=True)
    tokens, positions = ResidueTokens.from_topology(topology), torch.tensor(positions)
    conformation = from_positions(positions, tokens)
    assert conformation.torsions[0, PHI] != 0 and conformation.torsions[1, PHI] == 0
    conformation.torsions[:, PHI] += 1.0
    moved = to_positions(conformation, positions, tokens)
    cap = [a.index for a in topology.atoms() if a.residue.name == "ACE" or a.residue.index == 1 and a.name == "H"]
    still = sorted(set(range(len(positions))) - set(cap))
    torch.testing.assert_close(moved[still], positions[still])
    assert (moved[cap] - positions[cap]).norm(dim=-1).min() > 0.01


def test_symmetric_groups_take_the_short_way(build_peptide):
    topology, positions = build_peptide("AFDE")
    tokens, positions = ResidueTokens.from_topology(topology), torch.tensor(positions)
    conformation = from_positions(positions, tokens)
    conformation.torsions[tokens.features.torsion_period < 4] += np.pi
    torch.testing.assert_close(to_positions(conformation, positions, tokens), positions)


def test_each_of_many_moves_as_if_alone(build_peptide):
    topology, positions = build_peptide("AKPF")
    tokens, positions = ResidueTokens.from_topology(topology), torch.tensor(positions)
    conformations = random_conformation(tokens, 2, 3)
    starts = to_positions(random_conformation(tokens, 2, 3, seed=1), positions, tokens)
    together = to_positions(conformations, starts, tokens)
    for i, j in np.ndindex(2, 3):
        torch.testing.assert_close(together[i, j], to_positions(conformations[i, j], starts[i, j], tokens))
        assert_same(from_positions(together, tokens)[i, j], conformations[i, j], tokens)


def test_arguments_are_left_alone(build_peptide):
    topology, positions = build_peptide("AK")
    tokens, positions = ResidueTokens.from_topology(topology), torch.tensor(positions)
    before, conformation = positions.clone(), random_conformation(tokens)
    torsions = conformation.torsions.clone()
    to_positions(conformation, positions, tokens)
    assert torch.equal(positions, before) and torch.equal(conformation.torsions, torsions)


def test_gradients_flow_to_frames_torsions_and_angles(build_peptide):
    topology, positions = build_peptide("AK", n_cap=True)
    tokens, positions = ResidueTokens.from_topology(topology), torch.tensor(positions)
    start = random_conformation(tokens)

    def moved(translations, torsions, angles):
        return to_positions(
            Conformation(Rigid(start.frames.rotations, translations), torsions, angles), positions, tokens
        )

    inputs = [x.clone().requires_grad_() for x in (start.frames.translations, start.torsions, start.angles)]
    assert torch.autograd.gradcheck(moved, inputs)


def test_stack_cat_and_index(build_peptide):
    tokens = ResidueTokens.from_topology(build_peptide("AK")[0])
    one, two = random_conformation(tokens, 3), random_conformation(tokens, 3, seed=1)
    stacked, joined = Conformation.stack([one, two], dim=1), Conformation.cat([one, two])
    assert stacked.shape == (3, 2, 2) and joined.shape == (6, 2)
    assert_same(stacked[:, 1], two, tokens)
    assert_same(joined[3:], two, tokens)


def divergence(one, other, period):
    """Jensen-Shannon divergence (bits) of two samples of an angle, 100 bins."""
    edges = np.linspace(-period / 2, period / 2, 101)
    return jensenshannon(np.histogram(one, edges)[0], np.histogram(other, edges)[0], base=2) ** 2


def backbone_dihedrals(tokens):
    """phi, psi (N-CA-C-N) and omega of a chain, (M, 4)."""
    n, ca, c = tokens.backbone.unbind(-1)
    phi = torch.stack([c[:-1], n[1:], ca[1:], c[1:]], -1)
    psi = torch.stack([n[:-1], ca[:-1], c[:-1], n[1:]], -1)
    omega = torch.stack([ca[:-1], c[:-1], n[1:], ca[1:]], -1)
    return torch.cat([phi, psi, omega])


def most_typical(frames, tokens):
    """The frame whose N-CA and CA-C bonds are nearest their mean: they are what a conformation does not carry."""
    n, ca, c = frames[:, tokens.backbone].unbind(2)
    lengths = torch.cat([(n - ca).norm(dim=-1), (c - ca).norm(dim=-1)], -1)
    return frames[((lengths - lengths.mean(0)) ** 2).sum(-1).argmin()]


@pytest.mark.skipif(not PEPTIDES.is_dir(), reason="no shared peptide trajectories (OPENMM_STARMD_SHARED)")
@pytest.mark.parametrize("name", ["WQDT", "RHAT", "WSWY", "TMFP", "EAKS", "LLCC"])
def test_true_md_keeps_its_torsion_distributions(name):
    pdb, trajectory = (str(PEPTIDES / f"{name}.{end}") for end in ("pdb", "xtc"))
    tokens = ResidueTokens.from_topology(PDBFile(pdb).topology)
    true = torch.tensor(mdtraj.load(trajectory, top=pdb).xyz, dtype=torch.float64)
    assert len(true) >= 800
    decoded = to_positions(from_positions(true, tokens), most_typical(true, tokens), tokens)

    one, other = (measure_dihedral(*x[:, backbone_dihedrals(tokens)].unbind(2)) for x in (true, decoded))
    assert wrap(one - other).square().mean().sqrt() < 0.006
    assert np.mean([divergence(*pair, TWO_PI) for pair in zip(one.T, other.T, strict=True)]) < 0.002

    one, other = (from_positions(x, tokens) for x in (true, decoded))
    for i, k in torch.nonzero(tokens.features.torsion_mask):
        period = tokens.features.torsion_period[i, k].item()
        assert divergence(one.torsions[:, i, k], other.torsions[:, i, k], period) < 1e-4
    assert (one.angles - other.angles).abs().max() < 1e-6
