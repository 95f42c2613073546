import math
from dataclasses import replace
from types import SimpleNamespace

import mdtraj
import numpy as np
import pytest
import torch
from openmm import unit
from openmm.app import PDBFile

from openmm_starmd.errors import StarMDError
from openmm_starmd.geometry.rigid import Rigid, exponential, superpose
from openmm_starmd.protein.conformation import Conformation, from_positions
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.systems import build_peptide
from openmm_starmd.training.dataset import TrajectoryDataset
from openmm_starmd.training.step_sizes import STEP_STRIDES, step_scales
from openmm_starmd.training.windows import aligned
from openmm_starmd.trajectories import encoding
from openmm_starmd.trajectories.times import frame_interval

N_FRAMES, INTERVAL = 121, 5.0


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def write(folder, name, topology, frames, times, done=False):
    """NAME.pdb and NAME.xtc of positions (T, A, 3), nm, at ``times``, ps."""
    folder.mkdir(exist_ok=True)
    with open(folder / f"{name}.pdb", "w") as file:
        PDBFile.writeFile(topology, frames[0] * unit.nanometer, file)
    with mdtraj.formats.XTCTrajectoryFile(str(folder / f"{name}.xtc"), "w") as file:
        file.write(np.asarray(frames, np.float32), time=np.asarray(times, np.float32))
    if done:
        (folder / f"{name}.done").touch()


@pytest.fixture(scope="module")
def peptides():
    """Topologies and positions (A, 3), nm: two lengths, and caps."""
    built = {
        "AKF": build_peptide("AKF", seed=1),
        "GPSD": build_peptide("GPSD", seed=2),
        "CAP": build_peptide("WVE", n_cap=True, c_cap=True, seed=3),
    }
    return {name: (top, np.array(x.value_in_unit(unit.nanometer))) for name, (top, x) in built.items()}


def swelling(positions, n_frames=N_FRAMES):
    """Frames that swell by 0.2 % each, tumble and drift: a clock that survives superposition."""
    x = torch.tensor(positions)
    turn = exponential(torch.randn(n_frames, 3, generator=generator(5), dtype=torch.float64))
    drift = torch.randn(n_frames, 1, 3, generator=generator(6), dtype=torch.float64)
    growth = 1 + 0.002 * torch.arange(n_frames, dtype=torch.float64)[:, None, None]
    return ((growth * (x - x.mean(0))) @ turn + drift).numpy()


def clock(conformations):
    """Number of the trajectory frame, from the size of a swelling conformation."""
    ca = conformations.frames.translations
    return (ca - ca.mean(-2, keepdim=True)).square().sum((-1, -2)).sqrt()


@pytest.fixture(scope="module")
def folder(peptides, tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    for name, (topology, positions) in peptides.items():
        write(path, name, topology, swelling(positions), INTERVAL * np.arange(1, N_FRAMES + 1))
    return path


@pytest.fixture(scope="module")
def dataset(folder):
    return TrajectoryDataset(folder)


def frame_numbers(trajectory, conformations):
    """Index (B, L) into the trajectory of each conformation (B, L, N)."""
    return (clock(conformations)[..., None] - clock(trajectory.conformations[:])).abs().argmin(-1)


def test_reads_systems_as_they_are(dataset, folder, peptides):
    assert [t.name for t in dataset.trajectories] == ["AKF", "CAP", "GPSD"]
    assert [t.sequence for t in dataset.trajectories] == ["AKF", "WVE", "GPSD"]
    assert {n: len(ts) for n, ts in dataset.lengths.items()} == {3: 2, 4: 1}
    for trajectory in dataset.trajectories:
        assert trajectory.interval == INTERVAL
        assert trajectory.n_frames == N_FRAMES
        assert trajectory.conformations[:].torsions.dtype == torch.float32
        topology, _ = peptides[trajectory.name]
        tokens = ResidueTokens.from_topology(topology)
        frames = mdtraj.load(folder / f"{trajectory.name}.xtc", top=folder / f"{trajectory.name}.pdb").xyz
        expected = from_positions(torch.tensor(frames[7]).double(), tokens)
        found = trajectory.conformations[7]
        torch.testing.assert_close(found.frames.translations.double(), expected.frames.translations, atol=1e-6, rtol=0)
        torch.testing.assert_close(found.frames.rotations.double(), expected.frames.rotations, atol=1e-6, rtol=0)
        torch.testing.assert_close(found.torsions.double(), expected.torsions, atol=1e-6, rtol=0)
    capped = dataset.trajectories[1].features
    assert (capped.n_end[0], capped.c_end[-1]) == (2, 2)


@pytest.mark.parametrize("n_frames", [2, 4])
def test_windows_come_from_one_trajectory_at_one_stride(dataset, n_frames):
    seen = set()
    for seed in range(12):
        batch = dataset.window_batch(6, n_frames, generator(seed), stride_range=(10, 100))
        n = batch.conformations.shape[-1]
        seen.add(n)
        assert batch.conformations.shape == (6, n_frames, n)
        assert batch.strides.shape == (6, n_frames)
        assert batch.features.residue_type.shape == (6, n)
        assert (batch.strides == batch.strides[:, :1]).all()
        for b in range(6):
            (source,) = [
                t for t in dataset.lengths[n] if torch.equal(t.features.residue_type, batch.features.residue_type[b])
            ]
            numbers = frame_numbers(source, batch.conformations[b])
            assert (numbers.diff().abs() * INTERVAL == batch.strides[b, 1:]).all()
            assert len(set(numbers.diff().sign().tolist())) == 1
            torsions = source.conformations[:].torsions[numbers]
            assert torch.equal(batch.conformations.torsions[b], torsions)
    assert seen == {3, 4}


def test_frames_are_superposed_on_their_predecessors(dataset):
    batch = dataset.window_batch(8, 4, generator(1), stride_range=(10, 100))
    centroids = batch.conformations.frames.translations.mean(-2)
    torch.testing.assert_close(centroids, torch.zeros_like(centroids), atol=1e-6, rtol=0)
    points = batch.conformations.backbone().flatten(-3, -2)
    left = superpose(points[:, 1:], points[:, :-1]).rotations
    torch.testing.assert_close(left, torch.eye(3).expand_as(left), atol=1e-4, rtol=0)
    # Uniform swelling only: superposed frames differ in size and in nothing else.
    rotations = batch.conformations.frames.rotations
    torch.testing.assert_close(rotations, rotations[:, :1].expand_as(rotations), atol=0.03, rtol=0)


def test_alignment_is_a_rigid_motion_of_every_frame():
    frames = Rigid(
        exponential(torch.randn(3, 5, 4, 3, generator=generator(), dtype=torch.float64)),
        torch.randn(3, 5, 4, 3, generator=generator(1), dtype=torch.float64),
    )
    angles = torch.full((3, 5, 4), 1.96, dtype=torch.float64)
    windows = Conformation(frames, torch.zeros(3, 5, 4, 6, dtype=torch.float64), angles)
    moved = aligned(windows)
    for before, after in ((windows, moved),):
        relative = [c.frames[..., :1].inverse() @ c.frames for c in (before, after)]
        torch.testing.assert_close(relative[0].rotations, relative[1].rotations)
        torch.testing.assert_close(relative[0].translations, relative[1].translations)
    assert torch.equal(moved.frames.rotations[:, 0], frames.rotations[:, 0])


def test_half_of_the_windows_run_backwards_and_starts_are_uniform(dataset):
    forward, middles = [], []
    short = dataset.lengths[4][0]
    for seed in range(60):
        batch = dataset.window_batch(32, 2, generator(seed), stride_range=(10, 10))
        if batch.conformations.shape[-1] == 4:
            numbers = frame_numbers(short, batch.conformations)
            forward.append(numbers[:, 1] > numbers[:, 0])
            middles.append(numbers.double().mean(1))
    forward, middles = torch.cat(forward).double(), torch.cat(middles)
    assert len(forward) > 300
    assert abs(forward.mean() - 0.5) < 4 * 0.5 / math.sqrt(len(forward))
    spread = (N_FRAMES - 2) / math.sqrt(12)
    assert abs(middles.mean() - (N_FRAMES - 1) / 2) < 4 * spread / math.sqrt(len(middles))
    assert middles.std() == pytest.approx(spread, rel=0.1)


def test_strides_are_log_uniform_within_what_there_is(dataset):
    strides = torch.cat([dataset.window_batch(64, 4, generator(s)).strides[:, 0] for s in range(30)]).double()
    longest = (N_FRAMES - 1) // 3 * INTERVAL
    assert strides.min() == 10
    assert strides.max() == longest
    assert ((strides / INTERVAL) % 1 == 0).all()
    logs = strides.log()
    low, high = math.log(10), math.log(longest)
    assert abs(logs.mean() - (low + high) / 2) < 4 * (high - low) / math.sqrt(12 * len(logs))
    assert logs.std() == pytest.approx((high - low) / math.sqrt(12), rel=0.06)


@pytest.mark.slow
def test_trajectories_come_in_proportion_to_the_root_of_their_frames(peptides, tmp_path):
    frames = {"AKF": N_FRAMES, "CAP": N_FRAMES // 4, "GPSD": N_FRAMES // 4}
    for name, n in frames.items():
        topology, positions = peptides[name]
        write(tmp_path, name, topology, swelling(positions, n), INTERVAL * np.arange(1, n + 1))
    dataset, n_draws = TrajectoryDataset(tmp_path), 900
    drawn = [dataset.window_batch(1, 2, generator(s)) for s in range(n_draws)]
    systems = [(b.conformations.shape[-1], int(b.features.n_end[0, 0])) for b in drawn]
    for system, share in (((3, 1), 1 / 2), ((3, 2), 1 / 4), ((4, 1), 1 / 4)):
        spread = math.sqrt(share * (1 - share) / n_draws)
        assert abs(systems.count(system) / n_draws - share) < 4 * spread


def test_the_same_seed_gives_the_same_batch(dataset):
    first, second, other = (dataset.window_batch(4, 3, generator(s)) for s in (3, 3, 4))
    assert torch.equal(first.conformations.frames.rotations, second.conformations.frames.rotations)
    assert torch.equal(first.strides, second.strides)
    assert not torch.equal(first.strides, other.strides)


def test_sequences_are_held_out_or_picked(folder):
    assert [t.name for t in TrajectoryDataset(folder, exclude=["WVE"]).trajectories] == ["AKF", "GPSD"]
    assert [t.name for t in TrajectoryDataset([folder], only=["WVE"]).trajectories] == ["CAP"]
    pair = folder / "AKF.pdb", folder / "AKF.xtc"
    assert [t.name for t in TrajectoryDataset([pair]).trajectories] == ["AKF"]
    with pytest.raises(StarMDError, match="YYY"):
        TrajectoryDataset(folder, only=["YYY"])


def test_grows_with_finished_simulations_only(peptides, tmp_path):
    times = INTERVAL * np.arange(9)
    for name, (topology, positions) in peptides.items():
        write(tmp_path, name, topology, swelling(positions, 9), times, done=name == "GPSD")
    dataset = TrajectoryDataset(tmp_path, exclude=["AKF"])
    assert [t.name for t in dataset.trajectories] == ["GPSD"]
    assert dataset.refresh() == []
    for name in ("AKF", "CAP"):
        (tmp_path / f"{name}.done").touch()
    assert dataset.refresh() == ["CAP"]
    assert [t.name for t in dataset.trajectories] == ["GPSD", "CAP"]


def test_cache_is_used_renewed_and_never_trusted_when_torn(peptides, tmp_path, monkeypatch):
    topology, positions = peptides["AKF"]
    data, cache = tmp_path / "data", tmp_path / "cache"
    write(data, "AKF", topology, swelling(positions, 9), INTERVAL * np.arange(9))
    fresh = TrajectoryDataset(data, cache=cache).trajectories[0]
    calls = []
    encode = encoding._encode
    monkeypatch.setattr(encoding, "_encode", lambda *a: calls.append(a) or encode(*a))
    cached = TrajectoryDataset(data, cache=cache).trajectories[0]
    assert not calls
    assert (cached.name, cached.sequence, cached.interval) == (fresh.name, fresh.sequence, fresh.interval)
    assert torch.equal(cached.conformations[:].frames.rotations, fresh.conformations[:].frames.rotations)
    for name, value in vars(fresh.features).items():
        assert value is None or torch.equal(getattr(cached.features, name), value)
    write(data, "AKF", topology, swelling(positions, 12), INTERVAL * np.arange(12))
    assert TrajectoryDataset(data, cache=cache).trajectories[0].n_frames == 12
    files = sorted(cache.iterdir())
    assert [file.suffix for file in files] == [".f32", ".json"]
    for file in files:
        file.write_bytes(file.read_bytes()[:200])
        assert TrajectoryDataset(data, cache=cache).trajectories[0].n_frames == 12
    assert len(calls) == 3
    assert sorted(cache.iterdir()) == files


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([5], "1 frame"),
        ([5, 10, 20, 25], "evenly"),
        ([5, 10, 10, 15], "evenly"),
        ([5, 5, 5], "evenly"),
        ([15, 10, 5], "evenly"),
        ([5, 10, math.nan], "evenly"),
    ],
)
def test_too_few_or_uneven_frames_are_refused(peptides, tmp_path, times, message):
    topology, positions = peptides["AKF"]
    write(tmp_path, "AKF", topology, swelling(positions, len(times)), times)
    with pytest.raises(StarMDError, match=message) as error:
        TrajectoryDataset(tmp_path)
    assert "AKF.xtc" in str(error.value)


def test_times_that_start_again_are_named_where_they_break(peptides, tmp_path):
    """A run that was restarted without `append` (mdtraj#1819)."""
    topology, positions = peptides["AKF"]
    times = [*(5.0 * np.arange(1, 251)), *(5.0 * np.arange(1, 51))]
    write(tmp_path, "AKF", topology, swelling(positions, 300), times)
    with pytest.raises(StarMDError, match="frame 250 is at 5 ps, the frame before it at 1250 ps"):
        TrajectoryDataset(tmp_path)


def test_single_precision_times_of_a_long_trajectory_are_even():
    times = (1e7 + 5.0 * np.arange(2000)).astype(np.float32)
    assert frame_interval(times, "long", "") == pytest.approx(5, rel=1e-3)


def test_files_that_do_not_belong_together_are_refused(peptides, tmp_path):
    topology, positions = peptides["AKF"]
    write(tmp_path, "AKF", topology, swelling(positions, 4), range(4))
    write(tmp_path, "AKF", topology, swelling(positions, 4), range(4))
    with mdtraj.formats.XTCTrajectoryFile(str(tmp_path / "AKF.xtc"), "w") as file:
        file.write(swelling(positions, 4)[:, 1:].astype(np.float32), time=np.arange(4.0, dtype=np.float32))
    with pytest.raises(StarMDError, match="atoms"):
        TrajectoryDataset(tmp_path)


def test_broken_molecules_are_refused(peptides, tmp_path):
    topology, positions = peptides["AKF"]
    frames = np.array(swelling(positions, 4))
    last = [a.index for a in topology.atoms() if a.residue.index == 2]
    frames[2, last] += 4.0
    write(tmp_path, "AKF", topology, frames, range(4))
    with pytest.raises(StarMDError, match="frame 2"):
        TrajectoryDataset(tmp_path)


@pytest.mark.parametrize("size", [0, 30, 900])
def test_truncated_trajectories_are_refused(peptides, tmp_path, size):
    topology, positions = peptides["AKF"]
    write(tmp_path, "AKF", topology, swelling(positions, 4), range(4))
    path = tmp_path / "AKF.xtc"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(StarMDError, match=r"AKF\.xtc (is torn|cannot be read: it is damaged)"):
        TrajectoryDataset(tmp_path)


def test_topologies_without_protein_are_refused_by_file(tmp_path):
    line = "HETATM    1  O   HOH A   1       0.000   0.000   0.000  1.00  0.00           O\nEND\n"
    (tmp_path / "water.pdb").write_text(line)
    (tmp_path / "water.xtc").touch()
    with pytest.raises(StarMDError, match=r"water\.pdb"):
        TrajectoryDataset(tmp_path)


def test_missing_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(StarMDError, match="No trajectory"):
        TrajectoryDataset(tmp_path)
    with pytest.raises(StarMDError, match="nowhere"):
        TrajectoryDataset(tmp_path / "nowhere")


def test_windows_longer_than_the_trajectory_are_refused(dataset):
    for n_frames, stride_range in ((200, (10, 1000)), (3, (400, 1000)), (2, (1, 2))):
        with pytest.raises(StarMDError, match="121 frames at 5 ps"):
            dataset.window_batch(2, n_frames, generator(), stride_range=stride_range)


def test_step_scales_of_a_known_walk(dataset):
    """Torsions and angles that take independent normal steps; frames that do nothing but tumble together."""
    n = 4001
    source = dataset.lengths[4][0]
    mask = source.features.torsion_mask
    walk = 0.05 * torch.randn(n, 4, 6, generator=generator(1)).cumsum(0) * mask
    angles = 1.96 + 0.01 * torch.randn(n, 4, generator=generator(2))
    tumbling = exponential(torch.randn(n, 1, 3, generator=generator(3)))
    first = source.conformations[0].frames
    frames = Rigid(tumbling @ first.rotations, (tumbling @ first.translations[..., None])[..., 0])
    known = replace(source, conformations=Conformation(frames, walk, angles), interval=10.0)
    scales = step_scales(SimpleNamespace(trajectories=[known]))
    assert scales.shape == (len(STEP_STRIDES), 9)
    # Angles jitter about one value, which turns the backbone points and so the superposition a little.
    assert (scales[:, :2] < 0.01).all()
    present = mask.any(0)
    assert present.any()
    assert not present.all()
    for k in range(8):
        expected = 0.05 * 2 ** (k / 2)
        torch.testing.assert_close(
            scales[k, 2:8][present], torch.full((int(present.sum()),), expected), rtol=0.25, atol=0
        )
        assert (scales[k, 2:8][~present] == 1).all()
    torch.testing.assert_close(scales[:, 8], torch.full((8,), 0.01 * math.sqrt(2)), rtol=0.05, atol=0)


def test_step_scales_take_the_short_way_round_the_period(dataset):
    source = next(t for t in dataset.trajectories if t.sequence == "AKF")
    period = source.features.torsion_period
    assert (period < 6).any()
    jumps = torch.arange(20)[:, None, None] * period * source.features.torsion_mask
    still = source.conformations[torch.zeros(20, dtype=torch.long)]
    flipped = Conformation(still.frames, still.torsions + jumps, still.angles)
    flipping = replace(source, conformations=flipped, interval=10.0)
    scales = step_scales(SimpleNamespace(trajectories=[flipping]))
    present = source.features.torsion_mask.any(0)
    assert (scales[:, 2:8][:, present] < 1e-4).all()


def test_step_scales_beyond_the_data_repeat_the_nearest_row(dataset):
    scales = step_scales(dataset)
    reach = (N_FRAMES - 1) * INTERVAL
    within = [k for k, stride in enumerate(STEP_STRIDES) if stride <= reach]
    assert len(within) < 8
    assert torch.equal(scales[-1], scales[within[-1]])
    assert (scales[1:6, 0] > 1.5 * scales[:5, 0]).all()  # swelling doubles with the stride
