"""Frames are found where mdtraj has written them."""

import mdtraj
import numpy as np
import pytest

from openmm_starmd.trajectories.xtc import frame_ends


@pytest.fixture(params=[3, 9, 10, 50])
def trajectory(request, tmp_path):
    """File of 7 frames, and the byte where each of them ends; up to 9 atoms are not packed."""
    xyz = np.random.default_rng(0).normal(size=(7, request.param, 3)).astype(np.float32)
    path, ends = tmp_path / "x.xtc", []
    for k in range(1, 8):
        with mdtraj.formats.XTCTrajectoryFile(str(path), "w") as file:
            file.write(xyz[:k], time=10.0 * np.arange(k), step=5 * np.arange(k, dtype=np.int32))
        ends.append(path.stat().st_size)
    return path, ends


def test_steps_and_ends_of_all_frames(trajectory):
    path, ends = trajectory
    with open(path, "rb") as file:
        assert list(frame_ends(file)) == [(5 * k, end) for k, end in enumerate(ends)]
        assert list(frame_ends(file, ends[3])) == [(5 * k, ends[k]) for k in (4, 5, 6)]


def test_a_torn_frame_is_no_frame(trajectory):
    path, ends = trajectory
    for size in (ends[4] - 1, ends[3] + 60, ends[3] + 1):
        torn = path.read_bytes()[:size]
        other = path.with_name("torn.xtc")
        other.write_bytes(torn)
        with open(other, "rb") as file:
            assert [end for _, end in frame_ends(file)] == ends[:4]


def test_bytes_that_are_no_frame_are_told(trajectory):
    path, ends = trajectory
    content = bytearray(path.read_bytes())
    content[ends[1]] ^= 255
    path.write_bytes(content)
    with open(path, "rb") as file, pytest.raises(ValueError, match=f"no frame begins at byte {ends[1]}"):
        list(frame_ends(file))
