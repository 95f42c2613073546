"""Planted faults fail under their own names, and sound structures pass."""

from pathlib import Path

import mdtraj
import numpy as np
import pytest
import torch
from openmm import LangevinMiddleIntegrator, Platform, unit
from openmm.app import Modeller, PDBFile, Simulation

from openmm_starmd.geometry.rigid import Rigid
from openmm_starmd.geometry.torsions import rotate_about
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.protein.validity import RELAXED, STRAINED, check_positions
from openmm_starmd.systems import peptide_system

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


class Sample:
    """A protein to plant faults in: its atoms by (residue, name), its positions and what hangs on an atom."""

    def __init__(self, topology, positions):
        self.topology, self.tokens = topology, ResidueTokens.from_topology(topology)
        self.positions = torch.as_tensor(positions, dtype=torch.float64)
        self.atom = {(a.residue.index, a.name): a.index for a in topology.atoms()}
        self.beside = {a.index: set() for a in topology.atoms()}
        for a, b in topology.bonds():
            self.beside[a.index].add(b.index)
            self.beside[b.index].add(a.index)

    def side(self, start, *barred):
        """Atoms that bonds lead to from ``start`` without passing through the ``barred`` ones."""
        found, frontier = {start}, [start]
        while frontier:
            steps = self.beside[frontier.pop()] - found - set(barred)
            found |= steps
            frontier.extend(steps)
        return sorted(found)

    def shifted(self, atoms, vector):
        moved = self.positions.clone()
        moved[atoms] += torch.as_tensor(vector, dtype=torch.float64)
        return moved

    def turned(self, rest, end, angle=torch.pi):
        """Everything beyond the bond ``rest``-``end`` turned about it."""
        moved, far, angle = self.positions.clone(), self.side(end, rest), torch.tensor(angle, dtype=torch.float64)
        moved[far] = rotate_about(moved[far], moved[rest], moved[end] - moved[rest], angle)
        return moved

    def mirrored(self, atoms, *plane):
        """``atoms`` reflected through the plane of three others."""
        a, b, c = self.positions[list(plane)]
        normal = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=0)
        moved = self.positions.clone()
        moved[atoms] -= 2 * ((moved[atoms] - a) @ normal)[:, None] * normal
        return moved

    def failures(self, positions, before=None, limits=RELAXED):
        return check_positions(positions, self.tokens, before, limits).failures(())


@pytest.fixture
def sample(build_peptide):
    return lambda *args: Sample(*build_peptide(*args))


@pytest.fixture
def two_chains(build_peptide):
    """Function: two sequences -> Sample of both, the second 5 nm away, and its atoms."""

    def build(first, second, bond=()):
        modeller = Modeller(*(x if i == 0 else x * unit.nanometer for i, x in enumerate(build_peptide(first))))
        topology, positions = build_peptide(second)
        modeller.add(topology, (positions + [0.0, 0.0, 5.0]) * unit.nanometer)
        if bond:
            modeller.delete([a for a in modeller.topology.atoms() if a.name == "HG" and a.residue.name == "CYS"])
            modeller.topology.addBond(*(a for a in modeller.topology.atoms() if a.name == bond))
        made = Sample(modeller.topology, modeller.positions.value_in_unit(unit.nanometer))
        return made, [a.index for a in list(modeller.topology.chains())[1].atoms()]

    return build


def test_sound_proteins_are_valid(system):
    topology, positions = system
    tokens = ResidueTokens.from_topology(topology)
    expected = ["disulfide_breaks"] if tokens.disulfides else []  # the chains were put side by side, not bridged
    for dtype in (torch.float32, torch.float64):
        checked = check_positions(torch.tensor(positions, dtype=dtype), tokens)
        assert checked.valid.shape == ()
        assert checked.failures(()) == expected
        assert checked.passes_bioemu


def test_a_torn_chain_is_found_where_it_is_bonded(sample):
    s = sample("AGVDK")
    n, c = s.atom[3, "N"], s.atom[2, "C"]
    along, far = s.positions[n] - s.positions[c], s.side(n, c)
    along /= along.norm()
    assert s.failures(s.shifted(far, 0.06 * along)) == []
    assert s.failures(s.shifted(far, 0.08 * along)) == ["peptide_breaks"]
    assert s.failures(s.shifted(far, 0.4 * along)) == ["ca_breaks", "peptide_breaks"]


def test_a_chain_break_may_gape(build_system):
    s = Sample(*build_system("chain break"))
    assert s.failures(s.shifted(s.side(s.atom[2, "N"]), [5.0, 0.0, 0.0])) == []


@pytest.mark.parametrize("limits", [RELAXED, STRAINED])
def test_a_torn_bond_inside_a_residue_is_found(sample, limits):
    s = sample("AKP")
    for rest, end in ((s.atom[1, "CE"], s.atom[1, "NZ"]), (s.atom[2, "CG"], s.atom[2, "CD"])):
        along = s.positions[end] - s.positions[rest]
        for length, torn in ((limits.bond - 0.001, False), (limits.bond + 0.001, True)):
            moved = s.positions.clone()
            moved[end] = s.positions[rest] + length * along / along.norm()
            assert ("bond_breaks" in s.failures(moved, limits=limits)) is torn


@pytest.mark.parametrize("limits", [RELAXED, STRAINED])
def test_a_stretched_disulfide_is_found(two_chains, limits):
    s, second = two_chains("GC", "GC", bond="SG")
    here, there = s.atom[1, "SG"], s.atom[3, "SG"]
    for length, torn in ((0.205, False), (limits.disulfide - 0.001, False), (limits.disulfide + 0.001, True)):
        away = s.positions[here] - s.positions[s.atom[1, "CA"]]
        moved = s.shifted(second, s.positions[here] + length * away / away.norm() - s.positions[there])
        assert ("disulfide_breaks" in s.failures(moved, limits=limits)) is torn


def test_heavy_atoms_clash_below_one_angstrom(sample):
    s = sample("AGVDK")
    one, other = s.tokens.heavy_atoms[[3, -2]]
    for distance, clash in ((0.1005, False), (0.0995, True)):
        close = s.positions + 100  # away from the origin, where distances in float32 lose digits
        close[other] = close[one] + torch.tensor([distance, 0.0, 0.0])
        near = [a for a in s.tokens.heavy_atoms if a not in (one, other)]
        close[near] += 20
        for dtype in (torch.float32, torch.float64):
            checked = check_positions(close.to(dtype), s.tokens)
            assert bool(checked.clashes) is clash
            assert checked.close_contacts


def test_neighbours_clash_but_are_no_close_contact(sample):
    s = sample("AGVDK")
    ca, cb = s.atom[2, "CA"], s.atom[2, "CB"]
    inward = s.positions[ca] - s.positions[cb]
    moved = s.shifted(s.side(cb, ca), inward * (1 - 0.09 / inward.norm()))
    assert s.failures(moved, limits=STRAINED) == ["clashes"]
    assert not check_positions(moved, s.tokens).passes_bioemu


def test_strangers_in_close_contact_fail_once_relaxed(two_chains):
    s, second = two_chains("GK", "GK")
    ca, nz = s.positions[s.atom[1, "CA"]], s.positions[s.atom[1, "NZ"]]
    along = (nz - ca) / (nz - ca).norm()
    across = torch.linalg.cross(along, torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    half_turn = torch.tensor(torch.pi, dtype=torch.float64)
    opposite = rotate_about(s.positions[second], s.positions[s.atom[3, "NZ"]], across, half_turn)
    for distance, close in ((0.201, False), (0.199, True)):
        touching = s.positions.clone()  # both side chains head on
        touching[second] = opposite + nz + distance * along - s.positions[s.atom[3, "NZ"]]
        assert s.failures(touching) == ["close_contacts"] * close
        assert s.failures(touching, limits=STRAINED) == []
        assert check_positions(touching, s.tokens).passes_bioemu


def test_hydrogens_and_other_molecules_do_not_matter(build_system):
    s = Sample(*build_system("ligand, ion and water beside"))
    positions = s.positions.clone()
    for atom in s.topology.atoms():
        if atom.element.symbol == "H" or atom.residue.name in ("LIG", "NA", "HOH"):
            positions[atom.index] = positions[s.tokens.heavy_atoms[0]]
    assert s.failures(positions) == []


def test_close_ca_clash_unless_they_are_bonded(sample):
    s = sample("AGVDK")
    for here, there, distance, clash in ((0, 4, 0.305, False), (0, 4, 0.295, True), (1, 2, 0.25, False)):
        moved = s.positions.clone()
        moved[s.atom[there, "CA"]] = moved[s.atom[here, "CA"]] + torch.tensor([0.0, distance, 0.0])
        assert ("ca_clashes" in s.failures(moved)) is clash


@pytest.mark.parametrize("name", ["first ten types, free ends", "other ten types, capped", "PRO at both free ends"])
def test_every_residue_but_glycine_has_a_hand(build_system, name):
    s = Sample(*build_system(name))
    for residue in s.topology.residues():
        if residue.name in ("GLY", "ACE", "NME"):
            continue
        n, ca, c = (s.atom[residue.index, x] for x in ("N", "CA", "C"))
        reflected = s.mirrored(s.side(ca, n, c), n, ca, c)
        assert "inversions" in s.failures(reflected), residue
        assert "inversions" in s.failures(reflected, s.positions)
        assert "inversions" in s.failures(s.positions, reflected)
        assert "inversions" not in s.failures(reflected, reflected)


def test_a_mirrored_side_chain_fails_for_that_alone(sample):
    s = sample("GAG")
    n, ca, c = (s.atom[1, x] for x in ("N", "CA", "C"))
    reflected = s.mirrored(s.side(ca, n, c), n, ca, c)
    for limits in (RELAXED, STRAINED):
        assert s.failures(reflected, limits=limits) == ["inversions"]


@pytest.mark.parametrize("sequence", ["GIG", "GTG"])
def test_isoleucine_and_threonine_have_a_second_centre(sample, sequence):
    s = sample(sequence)
    n, ca, cb = (s.atom[1, x] for x in ("N", "CA", "CB"))
    reflected = s.mirrored(s.side(cb, ca), n, ca, cb)
    assert "inversions" in s.failures(reflected)
    assert "inversions" not in s.failures(reflected, reflected)


def test_a_protein_of_d_residues_may_stay_so(sample):
    s = sample("AIPTF")
    d = -s.positions
    assert s.failures(d) == ["inversions"]
    assert s.failures(d, d) == []
    assert s.failures(s.positions, d) == ["inversions"]


@pytest.mark.parametrize("name", ["other ten types, capped", "CHARMM caps inside residues", "PRO behind a cap"])
def test_every_peptide_bond_may_not_turn(build_system, name):
    s = Sample(*build_system(name))
    oxygen = {a.index for a in s.topology.atoms() if a.element.symbol == "O"}
    carbonyl = [a.index for a in s.topology.atoms() if a.name in ("C", "YC") and s.beside[a.index] & oxygen]
    amide = [a.index for a in s.topology.atoms() if a.name in ("N", "YN")]
    bonds = [(c, n) for c in carbonyl for n in amide if n in s.beside[c]]
    assert len(bonds) == len(s.tokens.peptide_planes) > 1
    proline = {s.atom[r.index, "N"] for r in s.topology.residues() if r.name == "PRO"}
    for c, n in bonds:
        cis = s.turned(c, n)
        assert "omega_flips" in s.failures(cis, s.positions)
        assert "omega_flips" in s.failures(s.positions, cis)
        assert "omega_flips" not in s.failures(cis, cis)
        assert ("omega_flips" in s.failures(cis)) is (n not in proline)
        for angle in (-1.4, 1.4):  # 80 degrees
            assert "omega_flips" not in s.failures(s.turned(c, n, angle), s.positions)


def test_a_turned_peptide_bond_fails_for_that_alone(sample):
    s = sample("GGG")
    for limits in (RELAXED, STRAINED):
        assert s.failures(s.turned(s.atom[1, "C"], s.atom[2, "N"]), limits=limits) == ["omega_flips"]


@pytest.mark.parametrize("ring", ["P", "H", "F", "Y", "W"])
def test_a_side_chain_threaded_through_a_ring_is_found(two_chains, ring):
    s, second = two_chains("GK", "G" + ring)
    assert len(s.tokens.rings) == (2 if ring == "W" else 1)
    ce, nz = s.positions[[s.atom[1, "CE"], s.atom[1, "NZ"]]]
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    def pierced(target, direction, share):
        """Whether it is with the second chain's ``target`` at a share of the bond CE-NZ, which has the direction."""
        point = ce + share * (nz - ce)
        bond = Rigid.from_three_points(point + random(3), point, point + nz - ce)
        local = Rigid.from_three_points(target + random(3), target, target + direction)
        moved = s.positions.clone()
        moved[second] = (bond @ local.inverse()).apply(s.positions[second])
        checked = check_positions(moved, s.tokens, limits=STRAINED)
        assert set(checked.failures(())) <= {"ring_piercings", "clashes", "ca_clashes"}
        return bool(checked.ring_piercings)

    whole = s.positions[s.tokens.rings.unique()].mean(0)
    for atoms in s.tokens.rings:
        corners = s.positions[list(dict.fromkeys(atoms.tolist()))]
        centre = corners.mean(0)
        normal = torch.linalg.svd(corners - centre)[2][2]
        edges = (corners + corners.roll(-1, 0)) / 2 - centre
        for edge in edges[edges @ (centre - whole) >= -1e-9]:  # not that between the two rings of TRP
            direction = normal + 0.3 * (random(3) - 0.5)
            inner = centre + 0.7 * random(1) * edge
            assert all(pierced(inner, direction, share) for share in (0.2, 0.5, 0.8))
            assert pierced(inner, -direction, 0.5)
            assert not pierced(inner, direction, 1.3)
            assert not pierced(centre + 1.4 * edge, direction, 0.5)


def test_what_is_not_finite_fails_for_that_alone(sample):
    s = sample("AGVDK")
    for value in (float("nan"), float("inf")):
        broken = s.positions.clone()
        broken[s.tokens.protein_atoms[-1]] = value
        assert s.failures(broken) == ["not_finite"]
        assert check_positions(broken, s.tokens).culprits(()) == {"not_finite": [[s.tokens.protein_atoms[-1]]]}
        assert not check_positions(broken, s.tokens).passes_bioemu


def noisy(s, scale, n=40):
    """Positions (n, A, 3) that are more and more disturbed."""
    noise = torch.randn(n, *s.positions.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return s.positions + torch.linspace(0, scale, n)[:, None, None] * noise


def fields(checked):
    return torch.stack([getattr(checked, name) for name in checked.offenders])


@pytest.mark.parametrize("limits", [RELAXED, STRAINED])
def test_many_are_checked_as_each_alone(sample, limits):
    s = sample("PIFKTWH", True, True)
    many = noisy(s, 0.08)
    many[7, s.tokens.heavy_atoms[0]] = float("nan")
    many = many.reshape(4, 10, -1, 3)
    for before in (None, s.positions, many.flip(0)):
        together = check_positions(many, s.tokens, before, limits)
        each = before is not None and before.shape == many.shape
        alone = [
            check_positions(many[i, j], s.tokens, before[i, j] if each else before, limits)
            for i in range(4)
            for j in range(10)
        ]
        assert torch.equal(fields(together).flatten(1), torch.stack([fields(x) for x in alone], 1))
        assert [together.failures((i, j)) for i in range(4) for j in range(10)] == [x.failures(()) for x in alone]
        assert torch.equal(together.valid.flatten(), torch.stack([x.valid for x in alone]))
    seen = fields(check_positions(many, s.tokens, s.positions, limits)).flatten(1).double().mean(1)
    assert (seen < 1).all() and (seen > 0).sum() > 4  # most checks speak, and none of them always


def test_atoms_to_blame_are_where_the_fault_was_planted(sample, two_chains):
    s = sample("AGVDK")
    atom = s.atom
    n, ca, cb, c = (atom[2, x] for x in ("N", "CA", "CB", "C"))
    along = s.positions[atom[3, "N"]] - s.positions[c]
    planted = [
        ("inversions", {ca}, s.mirrored(s.side(ca, n, c), n, ca, c)),
        ("omega_flips", {c, atom[3, "N"]}, s.turned(c, atom[3, "N"])),
        ("peptide_breaks", {c, atom[3, "N"]}, s.shifted(s.side(atom[3, "N"], c), along)),
        ("clashes", {ca, cb}, s.shifted(s.side(cb, ca), 0.95 * (s.positions[ca] - s.positions[cb]))),
    ]
    checked = check_positions(torch.stack([s.positions, *(moved for *_, moved in planted)])[:, None], s.tokens)
    for number, (kind, where, _) in enumerate(planted, 1):
        assert set(checked.culprits((number, 0))[kind][0]) == where
    assert checked.culprits((0, 0)) == {}


def test_no_frames_at_all_may_be_checked(sample):
    s = sample("FA")
    assert check_positions(s.positions[None][:0], s.tokens).valid.shape == (0,)


def test_neighbour_search_finds_what_all_pairs_show(sample):
    s = sample("PIFKTWHCY")
    heavy = s.tokens.heavy_atoms
    bonded = torch.zeros(2 * (len(s.positions),), dtype=torch.bool)
    for a, b in s.topology.bonds():
        bonded[a.index, b.index] = bonded[b.index, a.index] = True
    steps = (bonded | torch.eye(len(bonded), dtype=torch.bool))[heavy][:, heavy].double()
    strangers = torch.linalg.matrix_power(steps, 3) == 0
    many = noisy(s, 0.06, 200)
    distances = torch.cdist(many[:, heavy], many[:, heavy], compute_mode="donot_use_mm_for_euclid_dist")
    distances += 9 * torch.eye(len(heavy))
    ca = torch.cdist(*2 * (many[:, s.tokens.backbone[:, 1]],), compute_mode="donot_use_mm_for_euclid_dist")
    ca += 9 * (torch.eye(9) + torch.eye(9).roll(1, 0) + torch.eye(9).roll(1, 1))
    checked = check_positions(many, s.tokens)
    for found, expected in (
        (checked.clashes, (distances < 0.10).flatten(1).any(1)),
        (checked.close_contacts, ((distances < 0.20) & strangers).flatten(1).any(1)),
        (checked.ca_clashes, (ca < 0.30).flatten(1).any(1)),
    ):
        assert torch.equal(found, expected)
    assert 0.1 < checked.clashes.double().mean() < 0.9
    assert 0.1 < checked.close_contacts.double().mean() < 0.9


def test_motion_as_a_whole_changes_nothing_and_a_mirror_only_hands(sample):
    s = sample("PIFKTWH")
    many = noisy(s, 0.05)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(3)).double())[0]
    rotation *= torch.linalg.det(rotation)
    at_home = check_positions(many, s.tokens)
    assert torch.equal(fields(check_positions(many @ rotation + 7.0, s.tokens)), fields(at_home))
    mirrored = check_positions(-many, s.tokens)
    assert mirrored.inversions.all()
    same = mirrored.offenders.keys() - {"inversions"}
    assert all(torch.equal(getattr(mirrored, name), getattr(at_home, name)) for name in same)


@pytest.mark.slow
def test_dynamics_passes(sample):
    s = sample("PIFKTWHC", True, True)
    integrator = LangevinMiddleIntegrator(300.0, 1.0, 0.004)
    integrator.setRandomNumberSeed(1)
    platform = Platform.getPlatform("CPU")
    simulation = Simulation(s.topology, peptide_system(s.topology), integrator, platform, {"Threads": "1"})
    simulation.context.setPositions(s.positions.numpy())
    simulation.minimizeEnergy(maxIterations=50)
    simulation.context.setVelocitiesToTemperature(300.0, 1)
    frames = []
    for _ in range(60):
        simulation.step(25)
        frames.append(simulation.context.getState(positions=True).getPositions(asNumpy=True)._value)
    for before in (None, s.positions):
        assert check_positions(torch.tensor(np.stack(frames)), s.tokens, before).valid.all()


def shared_dynamics():
    """Names of peptides and Trp-cage with a PDB file and a trajectory."""
    peptides = [path.with_suffix("") for path in sorted(SHARED.glob("peptides/train/*.pdb"))]
    files = {path.name: (path.with_suffix(".pdb"), path.with_suffix(".xtc")) for path in peptides}
    trpcage = SHARED / "trajectories" / "trpcage"
    return files | {"trpcage": (trpcage / "1l2y_protein_top.pdb", trpcage / "1l2y_md.xtc")}


def test_shared_dynamics_passes():
    if not SHARED.is_dir():
        pytest.skip("no ../shared/data beside the repository")
    valid = []
    for structure, trajectory in shared_dynamics().values():
        topology = PDBFile(str(structure)).topology
        frames = mdtraj.load(str(trajectory), top=mdtraj.Topology.from_openmm(topology)).xyz
        frames = torch.from_numpy(frames)
        valid.append(check_positions(frames, ResidueTokens.from_topology(topology), frames[0]).valid)
    assert torch.cat(valid).double().mean() >= 0.999
