"""Both sides of a comparison as arrays with a row a frame, in coordinates that were fitted to the reference."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import mdtraj
import numpy as np

from openmm_starmd.errors import TrajectoryError
from openmm_starmd.evaluation.metrics import contacts, dihedrals, filters, markov, shapes, slow_modes, structure
from openmm_starmd.evaluation.metrics.samples import subsample
from openmm_starmd.trajectories.sides import Side

PEPTIDE_RESIDUES = 20  # up to here tICA looks at torsions, beyond at distances of CA
N_STATES = 20
TICS = 4
LEAST_ATOMS = 4  # three lie in a plane, which mdtraj cannot superpose
FRAMES_A_FEATURE = 20  # fewer, and tICA finds slow modes that are not there
WISHED_LAG = 100.0  # ps
FILTERS = ("BioEmu's filter", "ConfDiff's filter of CA", "all atoms like MD")
LEAST_LAGS = 4  # so few lags are enough for distributions; kinetics of so short a reference count as unclear
LAGS_OF_LENGTH = 100  # the lag time is at most this part of the shorter side


@dataclass(frozen=True)
class Frames:
    """Consecutive frames of one trajectory; each array has a row a frame."""

    angles: np.ndarray  # (T, K): torsions, radian
    tics: np.ndarray  # (T, D): time-lagged independent components of the reference
    states: np.ndarray  # (T,) of int: k-means states of the reference
    plane: np.ndarray  # (T, 2): principal components of the reference, nm
    # (T, N, 3): CA (of fewer than four residues: N, CA, C, O, CB) superposed on the reference's mean, nm
    shape: np.ndarray
    gyration: np.ndarray  # (T,): radius of gyration of the heavy atoms, nm
    checks: np.ndarray  # (T, V): what each of `Projection.checks` finds
    contacts: np.ndarray  # (T, P) of bool: which of the side chains of `Projection.pairs` touch
    lag: int  # Frames of the common lag time
    core: int  # rows that belong to these frames; the rest are there for pairs of frames a lag apart

    def __len__(self) -> int:
        return len(self.states)

    def rows(self, rows: np.ndarray | slice, core: int | None = None) -> Frames:
        """Frames of some rows alone."""
        taken = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name not in ("lag", "core")}
        return replace(self, **taken, core=len(taken["states"]) if core is None else core)

    def own(self, name: str) -> np.ndarray:
        """One array without the rows that belong to the next piece."""
        return getattr(self, name)[: self.core]

    def pairs(self, name: str, lag: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of one array and those ``lag`` frames later, from every own frame on that has one."""
        values = getattr(self, name)
        n = max(0, min(self.core, len(values) - lag))
        return values[:n], values[lag : n + lag]


def split(trajectories: list[Frames], n: int, beyond: int) -> list[Frames]:
    """About ``n`` pieces of equal length, each with up to ``beyond`` rows of the next, never of another trajectory."""
    total, pieces = sum(map(len, trajectories)), []
    for frames in trajectories:
        parts = min(len(frames), max(1, round(n * len(frames) / total)))
        bounds = np.linspace(0, len(frames), parts + 1).astype(int)
        for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
            pieces.append(frames.rows(slice(begin, end + beyond), core=end - begin))
    return pieces


def join(trajectories: list[Frames]) -> Frames:
    """All frames of several trajectories, in a row; their order in time is lost at the joints."""
    names = [f.name for f in fields(Frames) if f.name not in ("lag", "core")]
    arrays = {name: np.concatenate([getattr(frames, name) for frames in trajectories]) for name in names}
    return Frames(**arrays, lag=trajectories[0].lag, core=sum(map(len, trajectories)))


def halves(trajectories: list) -> tuple[list, list]:
    """One half of trajectories (mdtraj's, Frames or arrays) and the other; of a single one its two halves in time."""
    middle = len(trajectories) // 2
    if middle:
        return trajectories[:middle], trajectories[middle:]
    only = trajectories[0]
    cut = only.rows if isinstance(only, Frames) else only.__getitem__
    return [cut(slice(0, len(only) // 2))], [cut(slice(len(only) // 2, None))]


def _joined(trajectories: list[mdtraj.Trajectory]) -> mdtraj.Trajectory:
    return mdtraj.Trajectory(np.concatenate([t.xyz for t in trajectories]), trajectories[0].topology)


def _longest(side: Side) -> float:
    """Length of the longest trajectory of a side, ps."""
    return max(t.n_frames for t in side.trajectories) * side.interval


def common_lag(reference: Side, generated: Side) -> tuple[float, str]:
    """Lag time, ps, that is a whole number of frames on both sides: about 100 ps, or the longer of their intervals.

    Where there is none of up to twenty frames to 5 %, at most a quarter of both sides, or the generated frames have no
    times, the lag time fits the reference alone, and a sentence says why kinetics cannot be scored (otherwise empty). A
    TrajectoryError says that no trajectory of the reference is four frames long.
    """
    if generated.interval is None:
        reason = f"{generated.untimed}; where frames follow one another, give the ps between them (--stride)"
        return _lag_alone(reference), reason
    lag = _lag(reference, generated)
    if lag is not None:
        return lag, ""
    longest = min(map(_longest, (reference, generated)))
    reason = (
        f"frames {reference.interval:g} ps apart (reference) and {generated.interval:g} ps apart (generated), in "
        f"pieces of at most {longest:g} ps, have no lag time in common that is {LEAST_LAGS} times shorter; save frames "
        "at multiples of one interval, or run longer pieces"
    )
    return _lag_alone(reference), reason


def _lag_alone(reference: Side) -> float:
    lag = _lag(reference, reference)
    if lag is None:
        raise TrajectoryError(
            f"The reference's trajectories have at most {max(t.n_frames for t in reference.trajectories)} frames: "
            f"expected one of at least {LEAST_LAGS}, to find its slow modes."
        )
    return lag


def _lag(one: Side, two: Side) -> float | None:
    long, short = max(one.interval, two.interval), min(one.interval, two.interval)
    longest = min(map(_longest, (one, two)))
    wished = min(WISHED_LAG, longest / LAGS_OF_LENGTH)
    for k in sorted(range(1, 21), key=lambda k: (abs(k * long - wished), k)):
        if abs(round(k * long / short) * short - k * long) <= 0.05 * k * long and LEAST_LAGS * k * long <= longest:
            return k * long
    return None


def _shape_atoms(topology: mdtraj.Topology) -> np.ndarray:
    alpha = [atom.index for atom in topology.atoms if atom.name == "CA"]
    few = [atom.index for atom in topology.atoms if atom.name in ("N", "CA", "C", "O", "CB")]
    found = np.array(alpha if len(alpha) >= LEAST_ATOMS else few)
    if len(found) < LEAST_ATOMS:
        raise TrajectoryError(
            f"Both sides share {len(found)} backbone atoms: expected at least {LEAST_ATOMS} to compare shapes by."
        )
    return found


class Projection:
    """Measures frames of both sides alike, in coordinates fitted to the reference, at a lag time (ps) of `common_lag`.

    ``torsions`` are names, periods and kinds (and the angles of the first reference trajectory), ``reference`` the
    reference itself as Frames, ``plane`` its principal plane. ``by_torsions`` tells whether tICA looks at torsions,
    else at distances of CA. It is fitted to all of the reference, or to its first half where that has few frames for so
    many features: MD against itself then shows what was only fitted. ``by_alpha`` tells whether shapes are those of CA.

    ``checks`` are the names of the checks of single frames. The first three are 1 where a frame passes BioEmu's filter,
    ConfDiff's, and all of `structure`; the others are the rates of `structure`, whose limits are those of the
    reference's first half (as of `halves`), so that its second half has not been seen. ``pairs`` (P, 2) are the
    residues whose side chains may touch.
    """

    def __init__(self, reference: Side, lag_time: float):
        self.lag_time = lag_time
        self.atoms = _shape_atoms(reference.topology)
        self.by_alpha = all(reference.topology.atom(int(i)).name == "CA" for i in self.atoms)
        measured = [self._measure(trajectory) for trajectory in reference.trajectories]
        self.torsions = dihedrals.measure_torsions(reference.trajectories[0][:1])
        self.by_torsions = bool(self.torsions.names) and reference.topology.n_residues <= PEPTIDE_RESIDUES + 2
        self.plane = shapes.fit_pca(np.concatenate([shape for _, shape in measured]))
        self.limits = structure.calibrate(_joined(halves(list(reference.trajectories))[0]))
        self.checks = (*FILTERS, *self.limits.thresholds)
        self.pairs = contacts.side_chain_pairs(_joined(list(reference.trajectories)))
        features = [self._features(*pair) for pair in measured]
        few = sum(map(len, features)) < FRAMES_A_FEATURE * features[0].shape[1]
        try:
            lag = max(1, round(lag_time / reference.interval))
            self.tica = slow_modes.fit_tica(halves(features)[0] if few else features, lag, TICS)
        except ValueError as error:
            raise TrajectoryError(f"The reference cannot be analysed: {error}.") from None
        tics = subsample(np.concatenate([self._tics(f) for f in features]))
        self.states = markov.fit_states(tics, max(2, min(N_STATES, len(tics) // 20)))
        self.reference = [
            self._frames(trajectory, pair, reference.interval)
            for trajectory, pair in zip(reference.trajectories, measured, strict=True)
        ]

    def frames(self, side: Side) -> list[Frames]:
        """Each trajectory of a side."""
        return [self._frames(t, self._measure(t), side.interval) for t in side.trajectories]

    def _measure(self, trajectory):
        angles = dihedrals.measure_torsions(trajectory).angles.astype(np.float32)
        return angles, trajectory.xyz[:, self.atoms]

    def _features(self, angles, shape):
        if self.by_torsions:
            return dihedrals.torsion_features(angles, self.torsions.periods.astype(np.float32))
        return slow_modes.ca_distances(shape, 3 if shape.shape[1] > 6 else 1)

    def _tics(self, features):
        tics = self.tica.transform(features)
        return np.pad(tics, ((0, 0), (0, max(0, 2 - tics.shape[1]))))

    def _frames(self, trajectory, measured, interval):
        angles, shape = measured
        tics = self._tics(self._features(angles, shape))
        return Frames(
            angles=angles,
            tics=tics.astype(np.float32),
            states=self.states.transform(tics),
            plane=self.plane.transform(shape).astype(np.float32),
            shape=shapes.superpose(shape, self.plane.mean),
            gyration=shapes.radius_of_gyration(trajectory.xyz),
            checks=self._checks(trajectory),
            contacts=contacts.side_chain_contacts(trajectory, self.pairs),
            lag=max(1, round(self.lag_time / (interval or self.lag_time))),
            core=len(angles),
        )

    def _checks(self, trajectory):
        found = structure.check_structure(trajectory, self.limits)
        columns = filters.bioemu_valid(trajectory), filters.ca_valid(trajectory), found.valid, *found.rates.values()
        return np.stack(columns, 1).astype(np.float32)
