import pytest
import torch

from openmm_starmd.protein import validity
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.protein.validity import check_positions


@pytest.fixture
def peptide(build_peptide):
    topology, positions = build_peptide("AGVDK")
    return ResidueTokens.from_topology(topology), torch.tensor(positions)


def shift(positions, tokens, first, vector):
    """Tokens from ``first`` on moved as a body."""
    moved = positions.clone()
    moved[tokens.protein_atoms[tokens.owner >= first]] += torch.tensor(vector, dtype=positions.dtype)
    return moved


def test_sound_proteins_are_valid(system):
    topology, positions = system
    tokens = ResidueTokens.from_topology(topology)
    for dtype in (torch.float32, torch.float64):
        checked = check_positions(torch.tensor(positions, dtype=dtype), tokens)
        assert checked.valid.shape == ()
        assert checked.failures(()) == []
        assert not checked.ca_clashes


def test_a_torn_chain_is_found_where_it_is_bonded(peptide, build_system):
    tokens, positions = peptide
    n, c = positions[tokens.backbone[3, 0]], positions[tokens.backbone[2, 2]]
    along = (n - c) / (n - c).norm()
    assert check_positions(shift(positions, tokens, 3, (0.06 * along).tolist()), tokens).failures(()) == []
    stretched = check_positions(shift(positions, tokens, 3, (0.08 * along).tolist()), tokens)
    assert stretched.failures(()) == ["peptide_breaks"]
    torn = check_positions(shift(positions, tokens, 3, (0.4 * along).tolist()), tokens)
    assert torn.failures(()) == ["ca_breaks", "peptide_breaks"]


def test_a_chain_break_may_gape(build_system):
    topology, positions = build_system("chain break")
    tokens = ResidueTokens.from_topology(topology)
    apart = shift(torch.tensor(positions), tokens, 2, [5.0, 0.0, 0.0])
    assert check_positions(apart, tokens).valid


def test_heavy_atoms_clash_below_one_angstrom(peptide):
    tokens, positions = peptide
    one, other = tokens.heavy_atoms[[3, -2]]
    for distance, clash in ((0.1005, False), (0.0995, True)):
        close = positions.clone()
        close[other] = close[one] + torch.tensor([distance, 0.0, 0.0]).double()
        close[tokens.heavy_atoms] += 100  # away from the origin, where distances in float32 lose digits
        near = [a for a in tokens.heavy_atoms if a not in (one, other)]
        close[near] = positions[near] + 120
        for dtype in (torch.float32, torch.float64):
            assert ("clashes" in check_positions(close.to(dtype), tokens).failures(())) is clash


def test_hydrogens_and_other_molecules_do_not_clash(build_system):
    topology, positions = build_system("ligand, ion and water beside")
    tokens, positions = ResidueTokens.from_topology(topology), torch.tensor(positions)
    heavy = tokens.heavy_atoms[0]
    for atom in topology.atoms():
        if atom.element.symbol == "H" or atom.residue.name in ("LIG", "NA", "HOH"):
            positions[atom.index] = positions[heavy]
    assert check_positions(positions, tokens).valid


def test_close_ca_are_told_but_do_not_decide(peptide):
    tokens, positions = peptide
    first, last = tokens.backbone[[0, -1], 1]
    moved = positions.clone()
    moved[last] = moved[first] + torch.tensor([0.0, 0.2, 0.0]).double()
    checked = check_positions(moved, tokens)
    assert checked.ca_clashes
    assert "ca_clashes" not in checked.failures(())


def test_what_is_not_finite_fails_for_that_alone(peptide):
    tokens, positions = peptide
    for value in (float("nan"), float("inf")):
        broken = positions.clone()
        broken[tokens.protein_atoms[-1]] = value
        assert check_positions(broken, tokens).failures(()) == ["not_finite"]


def test_many_are_checked_as_each_alone(peptide, monkeypatch):
    tokens, positions = peptide
    torn = shift(positions, tokens, 2, [1.0, 0.0, 0.0])
    squeezed = positions.clone()
    squeezed[tokens.heavy_atoms] *= 0.5
    nan = positions.clone()
    nan[tokens.heavy_atoms[0]] = float("nan")
    many = torch.stack([positions, torn, squeezed, nan, positions, squeezed]).reshape(2, 3, -1, 3)
    expected = check_positions(many, tokens)
    assert expected.valid.tolist() == [[True, False, False], [False, True, False]]
    for chunk in (1, 50, 5000):
        monkeypatch.setattr(validity, "_CHUNK", chunk)
        checked = check_positions(many, tokens)
        assert torch.equal(checked.clashes, expected.clashes)
        assert all(
            checked.failures((i, j)) == check_positions(many[i, j], tokens).failures(())
            for i in (0, 1)
            for j in range(3)
        )
