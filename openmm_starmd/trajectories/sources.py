"""Sources of trajectories: a folder, single files, ATLAS and mdCATH.

A source is a small value with a ``find`` that lists what is there without reading a frame. In Python it is written as
it stands here; in a TOML file as a table, such as ``{source = "atlas", path = "atlas", split = "atlas.csv"}``.
"""

from __future__ import annotations

import csv
import logging
import os
from collections import Counter
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path

from openmm_starmd.errors import StarMDError, extra
from openmm_starmd.trajectories import compact
from openmm_starmd.trajectories.packed import SUFFIX as ENCODED

SUFFIXES = (".xtc", ".dcd", ".trr", ".nc", ".h5")
"""Formats that are read; an HDF5 file may hold its own topology."""

_MDCATH = "mdcath_dataset_"
_MDCATH_INTERVAL = 1000.0  # ps between its frames
_ATLAS_TEMPERATURE = 300.0  # K

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrajectoryFile:
    """One trajectory that can be read."""

    name: str
    path: Path  # file of the frames
    topology: Path | None = None  # PDB file; None where ``path`` holds the topology, too
    group: str = ""  # where in an mdCATH file the frames are, such as ``"320/0"``; empty in any other
    temperature: float | None = None  # K, where it is known
    interval: float | None = None  # ps between frames; None where the file tells

    @property
    def label(self) -> str:
        """Name in errors."""
        return f"{self.path} ({self.group})" if self.group else str(self.path)

    @property
    def sources(self) -> list[Path]:
        """The files that it is made from."""
        return [self.path] if self.topology is None else [self.topology, self.path]

    @property
    def place(self) -> tuple[Path, str]:
        """Place of its frames, whatever its name is."""
        return self.path.resolve(), self.group

    def precomputed(self, kind: str) -> Path:
        """File of its precomputed features, NAME.single.npy or NAME.pair.npy beside the topology."""
        return (self.topology or self.path).with_suffix(f".{kind}.npy")


def _folder(path, what: str) -> Path:
    path = Path(path)
    if not path.is_dir():
        raise StarMDError(f"Trajectories are read from folders of {what}, but {path} is no folder.")
    return path


@dataclass(frozen=True)
class Folder:
    """Folder of NAME.pdb + NAME.xtc, .dcd, .trr, .nc or .h5, and of mdtraj's NAME.h5 with their own topology.

    The folder ``encoded`` of a training run is one, too: its NAME.f32 and NAME.json are what training needs of
    trajectories, ready to be taken to another machine.

    Where the folder holds any NAME.done, simulations are under way in it and only the finished ones are listed.

    Parameters
    ----------
    path : path
    interval : float, optional
        ps between frames, for files that do not tell.
    temperature : float, optional
        K.
    """

    path: str | os.PathLike
    interval: float | None = None
    temperature: float | None = None

    def find(self) -> list[TrajectoryFile]:
        """Its trajectories, sorted by name."""
        folder = _folder(self.path, "NAME.pdb + NAME.xtc (.dcd, .trr, .nc, .h5)")
        found = {}
        for pdb in sorted(folder.glob("*.pdb")):
            frames = [pdb.with_suffix(s) for s in SUFFIXES if pdb.with_suffix(s).exists()]
            if len(frames) > 1:
                names = " and ".join(path.name for path in frames)
                raise StarMDError(f"{names} both belong to {pdb}; leave one of them, or give files one by one.")
            if frames:
                found[pdb.stem] = (frames[0], pdb)
        for path in sorted(folder.glob("*.h5")):
            if path.name.startswith(_MDCATH):
                raise StarMDError(
                    f"{path} is named as mdCATH's files are; name the source: MdCATH({str(folder)!r}), or in TOML "
                    f'{{source = "mdcath", path = "{folder}"}}.'
                )
            found.setdefault(path.stem, (path, None))
        for path in sorted(folder.glob(f"*{ENCODED}")):
            found.setdefault(path.stem, (path, None))
        if any(folder.glob("*.done")):
            found = {name: files for name, files in found.items() if (folder / f"{name}.done").exists()}
        return [
            TrajectoryFile(name, *found[name], temperature=self.temperature, interval=self.interval)
            for name in sorted(found)
        ]


@dataclass(frozen=True)
class Packed:
    """Folder of trajectories in 16 bits a number (`openmm_starmd.trajectories.compact`).

    Parameters
    ----------
    path : path
    temperature : float, optional
        K.
    """

    path: str | os.PathLike
    temperature: float | None = None

    def find(self) -> list[TrajectoryFile]:
        """Its trajectories; of several replicas of a molecule each is NAME_REPLICA."""
        index, found = _folder(self.path, "index.npz + length_N.npy") / compact.INDEX, []
        rows = compact.rows(index)
        counts = Counter(str(row["name"]) for row in rows for _ in row["replica"])
        for number, row in enumerate(rows):
            for place, replica in enumerate(row["replica"].tolist()):
                name = str(row["name"])
                name = f"{name}_{replica}" if counts[name] > 1 else name
                found.append(TrajectoryFile(name, index, None, f"{number}/{place}", self.temperature))
        return found


@dataclass(frozen=True)
class Files:
    """One trajectory by its files.

    Parameters
    ----------
    topology : path, optional
        PDB file; needless for mdtraj's HDF5.
    trajectory : path
    interval : float, optional
        ps between frames, for a file that does not tell.
    temperature : float, optional
        K.
    """

    trajectory: str | os.PathLike
    topology: str | os.PathLike | None = None
    interval: float | None = None
    temperature: float | None = None

    def find(self) -> list[TrajectoryFile]:
        """The trajectory."""
        path, topology = Path(self.trajectory), None if self.topology is None else Path(self.topology)
        for needed in (path, topology):
            if needed is not None and not needed.is_file():
                raise StarMDError(f"There is no file {needed}.")
        if path.suffix not in SUFFIXES:
            raise StarMDError(f"{path} is none of the formats {', '.join(SUFFIXES)}; convert it.")
        if topology is None and path.suffix != ".h5":
            raise StarMDError(f"{path} holds no topology; give a PDB file with it.")
        return [TrajectoryFile(path.stem, path, topology, temperature=self.temperature, interval=self.interval)]


@dataclass(frozen=True)
class ATLAS:
    """Folder of ATLAS: NAME/NAME.pdb and its replicates NAME/NAME_prod_R1_fit.xtc (or NAME_R1.xtc), at 300 K.

    Vander Meersche et al., Nucleic Acids Research 52, D384 (2024).

    Parameters
    ----------
    path : path
    split : path, optional
        CSV file with a column ``name``: only the proteins that it lists are read.
    released_before, released_from : date or ISO string, optional
        Only proteins whose ``release_date`` in the split lies before one day, or not before one.
    """

    path: str | os.PathLike
    split: str | os.PathLike | None = None
    released_before: date | str | None = None
    released_from: date | str | None = None

    def find(self) -> list[TrajectoryFile]:
        """All replicates, sorted by name."""
        folder = _folder(self.path, "ATLAS (NAME/NAME.pdb)")
        pdbs = {p.stem: p for p in sorted(folder.glob("*/*.pdb")) if p.stem == p.parent.name}
        chosen = list(pdbs) if self.split is None else self._chosen()
        absent = [name for name in chosen if name not in pdbs]
        if absent:
            logger.warning("%s names %d proteins that %s lacks: %s", self.split, len(absent), folder, ", ".join(absent))
        found = []
        for pdb in (pdbs[name] for name in sorted(set(chosen) - set(absent))):
            replicates = sorted(pdb.parent.glob(f"{pdb.stem}_prod_R*_fit.xtc"))
            for path in replicates or sorted(pdb.parent.glob(f"{pdb.stem}_R*.xtc")):
                found.append(TrajectoryFile(path.stem, path, pdb, temperature=_ATLAS_TEMPERATURE))
        return found

    def _chosen(self) -> list[str]:
        """Names that the split lists within the cut-offs."""
        cut_offs = {k: getattr(self, k) for k in ("released_before", "released_from") if getattr(self, k)}
        try:
            with open(self.split, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            before, since = (_day(cut_offs.get(k)) for k in ("released_before", "released_from"))
            days = [_day(row["release_date"]) if cut_offs else None for row in rows]
            return [
                row["name"]
                for row, day in zip(rows, days, strict=True)
                if (before is None or day < before) and (since is None or day >= since)
            ]
        except (KeyError, ValueError, OSError) as error:
            raise StarMDError(
                f"The split {self.split} must be a CSV file with a column name and, for cut-offs, a column "
                f"release_date of days such as 2018-05-01 ({type(error).__name__}: {error})."
            ) from error


def _day(value: date | str | None) -> date | None:
    return date.fromisoformat(value) if isinstance(value, str) else value


@dataclass(frozen=True)
class MdCATH:
    """Folder of mdCATH's mdcath_dataset_DOMAIN.h5, or one such file; a frame a ns.

    Mirarchi, Giorgino, De Fabritiis, Scientific Data 11, 1299 (2024). In a file: group DOMAIN with ``pdbProteinAtoms``
    and groups TEMPERATURE/REPLICA that hold ``coords`` (T, A, 3), Angstrom, and ``box`` (3, 3), nm.

    Parameters
    ----------
    path : path
    temperature : float, optional
        K; the only one to read (320, 348, 379, 413 or 450).
    """

    path: str | os.PathLike
    temperature: float | None = None

    def find(self) -> list[TrajectoryFile]:
        """All replicas of all domains, sorted by file, temperature and number."""
        path = Path(self.path)
        files = [path] if path.is_file() else sorted(_folder(path, "mdCATH").glob(f"{_MDCATH}*.h5"))
        return [found for file in files for found in self._replicas(file)]

    def _replicas(self, path: Path) -> list[TrajectoryFile]:
        try:
            with open_mdcath(path) as file:
                code = next(iter(file))
                groups = [f"{t}/{r}" for t in file[code] if t.isdigit() for r in file[code][t]]
        except (OSError, KeyError, StopIteration, TypeError) as error:
            raise StarMDError(f"{path} is damaged or not in mdCATH's layout ({error}); fetch it anew.") from error
        found = []
        for group in sorted(groups, key=lambda g: tuple(map(int, g.split("/")))):
            temperature = float(group.split("/")[0])
            if self.temperature in (None, temperature):
                name = f"{code}_{group.replace('/', '_')}"
                found.append(TrajectoryFile(name, path, None, group, temperature, _MDCATH_INTERVAL))
        return found


def open_mdcath(path: Path):
    """An mdCATH file, as `h5py.File`."""
    with extra("train", "Reading mdCATH"):
        import h5py
    return h5py.File(path, "r")


Source = Folder | Packed | Files | ATLAS | MdCATH
_BY_NAME = {"folder": Folder, "packed": Packed, "files": Files, "atlas": ATLAS, "mdcath": MdCATH}
_PATHS = ("path", "split", "topology", "trajectory")


def as_source(source) -> Source:
    """The source that a path (a folder, or mdtraj's HDF5) or a pair (topology, trajectory) stands for."""
    if isinstance(source, tuple):
        return Files(topology=source[0], trajectory=source[1])
    if isinstance(source, str | os.PathLike):
        return Files(source) if Path(source).is_file() else Folder(source)
    return source


def source_from_table(table: dict, base: Path) -> Source:
    """The source that a table of a TOML file describes; its paths are relative to ``base``.

    A ValueError says which key of its kind is missing, or is none of it.
    """
    values = dict(table)
    kind = _BY_NAME.get(values.pop("source", "folder"))
    if kind is None:
        raise ValueError(f"source must be one of {', '.join(_BY_NAME)}, not {table['source']!r}.")
    known = [field.name for field in fields(kind)]
    unknown = sorted(values.keys() - set(known))
    if unknown:
        raise ValueError(f"{kind.__name__} has no setting {', '.join(unknown)}; it has {', '.join(known)}.")
    if known[0] not in values:
        raise ValueError(f"{kind.__name__} needs {known[0]}.")
    return kind(**{name: base / value if name in _PATHS else value for name, value in values.items()})
