"""One trajectory of reference MD: its files, and the settings that they belong to."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from openmm import unit
from openmm.app import PDBFile, Topology

from openmm_starmd.errors import HistoryError, StarMDError, require
from openmm_starmd.files import write_json
from openmm_starmd.systems.molecule import read_pdb
from openmm_starmd.systems.peptide import file_name, minimized_peptide, sound_minimum
from openmm_starmd.systems.run_settings import differing, hash_of_molecule, hash_of_positions
from openmm_starmd.trajectories.times import frames_in
from openmm_starmd.trajectories.xtc import LAST_STEP
from openmm_starmd.units import positiveIn, wholeNumber

TIME_STEP = 0.004  # ps
FRICTION = 1.0  # 1/ps
UNITS = {
    "nanoseconds": unit.nanoseconds,
    "frame_interval": unit.picoseconds,
    "checkpoint_interval": unit.nanoseconds,
    "temperature": unit.kelvin,
}
PHYSICS = f"ff14SB and OBC2, {FRICTION:g}/ps, {1000 * TIME_STEP:g} fs"


def seed_of(name: str, seed: int) -> int:
    """A seed of a trajectory's own, positive and 31 bits wide as OpenMM wants it."""
    return zlib.crc32(f"{seed}:{name}".encode()) % (2**31 - 1) + 1


@dataclass(frozen=True)
class SimulationRun:
    """One trajectory to make or to continue: NAME.pdb, NAME.xtc, NAME.json, NAME.chk and NAME.done in ``output``.

    A ValueError refuses settings that cannot be simulated, or written.
    """

    molecule: str  # one-letter codes, or the name of a PDB file to start from
    output: Path
    nanoseconds: float
    frame_interval: float  # ps
    checkpoint_interval: float  # ns
    temperature: float  # K
    seed: int
    platform: str
    replica: int = 1

    def __post_init__(self):
        for name, target in UNITS.items():
            object.__setattr__(self, name, positiveIn(name, getattr(self, name), target))
        object.__setattr__(self, "seed", wholeNumber("seed", self.seed))
        require(
            self.frame_interval >= TIME_STEP,
            f"frame_interval must be at least the time step of {TIME_STEP:g} ps; got {self.frame_interval:g} ps",
        )
        require(
            self.total_steps <= LAST_STEP,
            f"{self.nanoseconds:g} ns are {self.total_steps:,} time steps, but an XTC file counts {LAST_STEP:,}; make "
            "them in parts",
        )

    @property
    def frame_steps(self) -> int:
        """Time steps between frames."""
        return round(self.frame_interval / TIME_STEP)

    @property
    def total_steps(self) -> int:
        """Time steps of the trajectory; a ValueError says that it holds no frame."""
        return frames_in(self.nanoseconds, self.frame_interval, "frame_interval") * self.frame_steps

    @property
    def structure(self) -> Path | None:
        """The PDB file to start from, if the molecule is one."""
        return Path(self.molecule) if self.molecule.lower().endswith(".pdb") else None

    @property
    def name(self) -> str:
        """NAME of the files."""
        molecule = self.structure.stem if self.structure else file_name(self.molecule)
        return molecule + (f"_{self.replica}" if self.replica > 1 else "")

    def path(self, suffix: str) -> Path:
        """One of the files."""
        return self.output / f"{self.name}.{suffix}"

    @property
    def run_seed(self) -> int:
        """Seed of start, velocities and noise."""
        return seed_of(self.name, self.seed)

    @property
    def finished(self) -> bool:
        """True if the trajectory is there in its length."""
        done = self.path("done")
        return done.exists() and float(done.read_text() or "inf") >= self.nanoseconds - 1e-9

    @property
    def frame_bytes(self) -> int:
        """Bytes of the trajectory; 0 where there is none."""
        return self.path("xtc").stat().st_size if self.path("xtc").exists() else 0

    @property
    def begun(self) -> bool:
        """True if the trajectory has frames, or a checkpoint to go on from."""
        return self.frame_bytes > 0 or self.path("chk").exists()

    def start(self) -> tuple[Topology, np.ndarray]:
        """Topology and minimised positions (A, 3), nm, to start from."""
        if self.structure:
            pdb = self._read()
            return sound_minimum(self.name, [(pdb.topology, pdb.positions)])
        return minimized_peptide(self.molecule, self.run_seed)

    def _read(self) -> PDBFile:
        """The PDB file to start from."""
        if self.structure.resolve() == self.path("pdb").resolve():
            raise StarMDError(
                f"{self.structure} would be overwritten by the start of its MD; name another output folder"
            )
        return read_pdb(self.structure)

    @property
    def _settings(self) -> dict:
        """Settings that the trajectory is made with, the content of NAME.json."""
        start = {"molecule": file_name(self.molecule), "start": "built"}
        if self.structure:
            pdb = self._read()
            start = {"molecule": hash_of_molecule(pdb.topology), "start": hash_of_positions(pdb.positions)}
        return start | {
            "temperature": self.temperature,
            "frame interval": self.frame_interval,
            "seed": self.seed,
            "platform": self.platform,
            "force field": PHYSICS,
        }

    def note_settings(self) -> None:
        """Write NAME.json."""
        write_json(self._settings, self.path("json"))

    def refuse_other_settings(self) -> None:
        """Raise HistoryError where NAME.json tells other settings, or is not there."""
        note, xtc = self.path("json"), self.path("xtc")
        if not note.exists():
            raise HistoryError(
                f"{xtc} has no {note.name} that tells what it was made with, its temperature and seed: it is of an "
                "earlier version. It can be read as it is; name another output folder for new MD."
            )
        try:
            found = dict(json.loads(note.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise HistoryError(f"{note} is damaged ({error}); restore it, or name another output folder.") from error
        if others := differing(found, self._settings):
            raise HistoryError(
                f"{xtc} belongs to another {others}; go on with what {note} tells, or name another output folder."
            )
