"""Side chains that clash are turned apart; everything else stays where it is."""

from pathlib import Path

import pytest
import torch
from openmm.app import PDBFile

from openmm_starmd.protein.clashes import resolve_clashes
from openmm_starmd.protein.conformation import Conformation, from_positions, to_positions
from openmm_starmd.protein.residues import TORSIONS
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.protein.validity import check_positions

TRP_CAGE = Path(__file__).resolve().parents[2] / "benchmarks" / "validation" / "proteins" / "2JOF_101.pdb"
CHI1 = TORSIONS.index("chi1")


@pytest.fixture(scope="module")
def native():
    """Tokens and positions (A, 3), nm, of Trp-cage, which has a packed core and four prolines."""
    pdb = PDBFile(str(TRP_CAGE))
    positions = torch.tensor(pdb.getPositions(asNumpy=True)._value, dtype=torch.float64)
    return ResidueTokens.from_topology(pdb.topology), positions


@pytest.fixture(scope="module")
def shaken(native):
    """24 conformations (24, 20) with 0.6 rad of noise on their side chains, but those of proline, and the atoms."""
    tokens, positions = native
    conformation = from_positions(positions.expand(24, -1, -1), tokens)
    noise = 0.6 * torch.randn(conformation.torsions.shape, generator=torch.Generator().manual_seed(3)).double()
    noise *= tokens.features.torsion_mask
    noise[..., :CHI1], noise[:, prolines(tokens)] = 0, 0
    conformation = Conformation(conformation.frames, conformation.torsions + noise, conformation.angles)
    return conformation, positions.expand(24, -1, -1)


@pytest.fixture(scope="module")
def resolved(native, shaken):
    """Conformations whose side chains were turned apart, and their atoms."""
    return resolve_clashes(*shaken, native[0])


def prolines(tokens):
    return torch.tensor([letter == "P" for letter in tokens.sequence])


def contacts(atoms, tokens):
    return check_positions(atoms, tokens).close_contacts


def test_clashing_side_chains_are_turned_apart_and_nothing_else_moves(native, shaken, resolved):
    tokens, _ = native
    conformation, old = shaken
    before = to_positions(conformation, old, tokens)
    resolved, after = resolved
    assert contacts(before, tokens).sum() >= 12 and not contacts(after, tokens).any()
    torch.testing.assert_close(after, to_positions(resolved, old, tokens), rtol=0, atol=0)
    turns = resolved.torsions - conformation.torsions
    assert (turns[..., :CHI1] == 0).all() and (turns[:, prolines(tokens)] == 0).all()
    assert turns.abs().max() < 2 and turns.square().mean().sqrt() < 0.2  # rad; the noise was 0.6
    fixed = torch.cat([tokens.backbone.flatten(), tokens.oxygen])
    torch.testing.assert_close(after[:, fixed], before[:, fixed], rtol=0, atol=1e-12)
    first, second = tokens.inner_bonds.T
    lengths = [torch.linalg.vector_norm(x[:, first] - x[:, second], dim=-1) for x in (before, after)]
    torch.testing.assert_close(*lengths, rtol=0, atol=1e-9)


def test_conformations_without_clashes_stay_as_they_are_to_the_last_bit(native, shaken, resolved):
    tokens, positions = native
    conformation, old = shaken
    sound = ~contacts(to_positions(conformation, old, tokens), tokens)
    assert sound.any()
    resolved, _ = resolved
    assert torch.equal(resolved.torsions[sound], conformation.torsions[sound])
    assert not torch.equal(resolved.torsions[~sound], conformation.torsions[~sound])
    start = from_positions(positions[None], tokens)
    resolved, atoms = resolve_clashes(start, positions[None], tokens)
    assert resolved.torsions is start.torsions
    assert torch.equal(atoms, to_positions(start, positions[None], tokens))


def test_company_does_not_change_what_becomes_of_a_conformation(native, shaken, resolved):
    tokens, _ = native
    conformation, old = shaken
    resolved, atoms = resolved
    for k in (0, 5):
        alone, own = resolve_clashes(conformation[k : k + 1], old[k : k + 1], tokens)
        assert torch.equal(alone.torsions[0], resolved.torsions[k]) and torch.equal(own[0], atoms[k])


def test_what_is_not_finite_is_left_to_the_checks(native, shaken, resolved):
    tokens, _ = native
    conformation, old = shaken
    broken = conformation.map(lambda x: x[:4].clone())
    broken.torsions[0, 3] = float("nan")
    _, atoms = resolve_clashes(broken, old[:4], tokens)
    assert check_positions(atoms, tokens).not_finite[0]
    assert torch.equal(atoms[1:], resolved[1][1:4])
