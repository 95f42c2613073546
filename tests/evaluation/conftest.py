"""A made protein whose kinetics are known: it hops between two conformers."""

import mdtraj
import numpy as np
import pytest

N_FRAMES = 1500


@pytest.fixture(scope="module")
def few_draws():
    """Intervals from a third of the draws, for tests that ask what a whole evaluation says, not how wide it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("openmm_starmd.evaluation.scoring.scores.N_RESAMPLES", 30)
        yield


@pytest.fixture
def without_pictures(monkeypatch):
    """Pages without their pictures, which take most of their time."""
    monkeypatch.setattr("openmm_starmd.evaluation.report.page._picture", lambda *_: "")


@pytest.fixture(scope="session")
def hopping(build_peptide):
    """Function (rate, seed, n_frames=1500, interval=100.0, noise=0.004) -> trajectory of all atoms of AVKW.

    The chain leaves each of two conformers with the probability ``rate`` a frame, so its slowest timescale is
    -1 / ln(1 - 2 rate) frames; every atom has independent noise (nm).
    """
    topology, one = build_peptide("AVKW")
    topology = mdtraj.Topology.from_openmm(topology)
    two = mdtraj.Trajectory(one[None].copy(), topology)
    for kind, angle in (("psi", 2.0), ("phi", 1.0), ("chi1", 2.1)):
        quartet = getattr(mdtraj, f"compute_{kind}")(two)[0][1]
        two.xyz[0] = turned(two.xyz[0], topology, quartet, angle)
    two = two.superpose(mdtraj.Trajectory(one[None], topology)).xyz[0]

    def make(rate, seed, n_frames=N_FRAMES, interval=100.0, noise=0.004):
        rng = np.random.default_rng(seed)
        states = np.cumsum(rng.random(n_frames) < rate) % 2
        xyz = np.where(states[:, None, None] == 0, one, two) + rng.normal(0, noise, (n_frames, *one.shape))
        return mdtraj.Trajectory(xyz, topology, interval * np.arange(1, n_frames + 1))

    return make


def turned(positions, topology, quartet, angle):
    """Positions (A, 3) with everything beyond the middle bond of a torsion turned about it."""
    _, b, c, _ = quartet
    neighbours = {atom.index: set() for atom in topology.atoms}
    for x, y in topology.bonds:
        if {x.index, y.index} != {b, c}:
            neighbours[x.index].add(y.index)
            neighbours[y.index].add(x.index)
    beyond, todo = {c}, [c]
    while todo:
        new = neighbours[todo.pop()] - beyond
        beyond |= new
        todo += new
    moved = sorted(beyond)
    axis = positions[c] - positions[b]
    axis = axis / np.linalg.norm(axis)
    arm = positions[moved] - positions[c]
    along = (arm @ axis)[:, None] * axis
    rotated = along + np.cos(angle) * (arm - along) + np.sin(angle) * np.cross(axis, arm)
    result = positions.copy()
    result[moved] = rotated + positions[c]
    return result
