"""Trajectory files, read in chunks: the protein's atoms alone, molecules whole.

What stands between a file and the encoder: which atoms are protein, whether frames have times, and the periodic box.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import mdtraj
import numpy as np
from openmm import unit
from openmm.app import Element, Modeller, PDBFile, Topology

from openmm_starmd.errors import StarMDError, TrajectoryError, UnsupportedTopologyError, first_line
from openmm_starmd.protein.residues import canonical_name
from openmm_starmd.protein.tokens import ResidueTokens
from openmm_starmd.trajectories.frames import check_whole_dcd, torn
from openmm_starmd.trajectories.sources import TrajectoryFile, open_mdcath

_CHUNK_ATOMS = 1_000_000  # positions of atoms that are in memory at a time
_DAMAGE = (OSError, RuntimeError, ValueError, KeyError, TypeError, IndexError, AttributeError, StopIteration, EOFError)
_BOND, _BOND_TO_HYDROGEN = 0.18, 0.13  # nm


class ProteinTrajectory:
    """The protein of one trajectory file.

    ``topology`` and ``tokens`` are those of the protein alone, caps included; water, ions and ligands are left out.
    ``has_times`` tells whether the file tells the times of its frames.

    An UnsupportedTopologyError refuses a file without a protein that residue tokens can describe. A StarMDError says
    that the file is damaged, or that topology and frames do not belong together.
    """

    def __init__(self, file: TrajectoryFile):
        self._file = file
        whole = _read_topology(file)
        try:
            atoms = ResidueTokens.from_topology(whole).protein_atoms.numpy()
            self.topology = _part(whole, atoms)
            self.tokens = ResidueTokens.from_topology(self.topology)
        except UnsupportedTopologyError as error:
            raise UnsupportedTopologyError(f"{file.topology or file.label}: {error}") from error
        self._atoms = atoms
        self._whole_topology = mdtraj.Topology.from_openmm(whole)
        self._mdtraj_topology = mdtraj.Topology.from_openmm(self.topology)
        n_atoms, self.has_times = _first_frame(file)
        if n_atoms != whole.getNumAtoms():
            raise StarMDError(
                f"{file.label} holds {n_atoms} atoms a frame, but {file.topology or 'its topology'} "
                f"{whole.getNumAtoms()}; both must describe the same atoms in the same order."
            )
        self._chunk = int(np.clip(_CHUNK_ATOMS // n_atoms, 1, 2000))

    def chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Positions (T, A, 3), nm, with molecules whole wherever the file has a periodic box, and times (T,), ps."""
        try:
            for trajectory in self._mdcath_chunks() if self._file.group else self._mdtraj_chunks():
                yield self._whole(trajectory).xyz, trajectory.time
        except (OSError, RuntimeError, ValueError) as error:
            raise _damaged(self._file, error) from error

    def _mdtraj_chunks(self) -> Iterator[mdtraj.Trajectory]:
        with _open(self._file.path) as file:
            own = self._file.path.suffix == ".h5"  # mdtraj takes no other topology for it
            while len(frames := file.read_as_traj(*() if own else (self._whole_topology,), n_frames=self._chunk)):
                cell = frames.unitcell_lengths, frames.unitcell_angles
                yield mdtraj.Trajectory(frames.xyz[:, self._atoms], self._mdtraj_topology, frames.time, *cell)

    def _mdcath_chunks(self) -> Iterator[mdtraj.Trajectory]:
        with open_mdcath(self._file.path) as file:
            replica = next(iter(file.values()))[self._file.group]
            coordinates = replica["coords"]
            box = np.array(replica["box"], np.float32) if "box" in replica else None
            for start in range(0, len(coordinates), self._chunk):
                angstrom = coordinates[start : start + self._chunk][:, self._atoms]
                positions = angstrom.astype(np.float32) / 10
                trajectory = mdtraj.Trajectory(positions, self._mdtraj_topology)
                if box is not None:
                    trajectory.unitcell_vectors = np.broadcast_to(box, (len(positions), 3, 3)).copy()
                yield trajectory

    @staticmethod
    def _whole(trajectory: mdtraj.Trajectory) -> mdtraj.Trajectory:
        """Bonds across the periodic boundary mended, and several molecules put beside each other."""
        if trajectory.unitcell_lengths is None or not (trajectory.unitcell_lengths > 0).all():
            return trajectory
        molecules = trajectory.topology.find_molecules()
        if len(molecules) == 1:
            return trajectory.make_molecules_whole(inplace=True)
        return trajectory.image_molecules(inplace=True, anchor_molecules=molecules, other_molecules=[])


def _open(path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that netCDF4 would be faster than scipy
        return mdtraj.open(str(path))


def _damaged(file: TrajectoryFile, error: Exception) -> StarMDError:
    if not file.group and file.path.suffix != ".h5":
        return TrajectoryError(torn(file.path, error))
    reason = first_line(error)
    return StarMDError(f"{file.label} is damaged or not what its name says ({reason}); leave it out, or write it anew.")


def _read_topology(file: TrajectoryFile) -> Topology:
    try:
        if file.group:
            with open_mdcath(file.path) as h5:
                pdb = PDBFile(StringIO(next(iter(h5.values()))["pdbProteinAtoms"][()].decode()))
        elif file.topology is not None:
            pdb = PDBFile(str(file.topology))
        else:
            with _open(file.path) as h5:
                return h5.topology.to_openmm()
    except _DAMAGE as error:
        raise StarMDError(
            f"The topology of {file.label} cannot be read from {file.topology or 'it'} ({error}); give a PDB file."
        ) from error
    _bond_lonely_atoms(pdb.topology, pdb.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
    return pdb.topology


def _bond_lonely_atoms(topology: Topology, positions: np.ndarray) -> None:
    """Bonds by distance inside protein residues for atoms that no template knows, such as CHARMM's caps."""
    bonded = {atom for bond in topology.bonds() for atom in bond}
    hydrogen = Element.getBySymbol("H")
    for residue in topology.residues():
        if not canonical_name(residue.name):
            continue
        atoms = [atom for atom in residue.atoms() if atom.element is not None]
        lonely = [atom for atom in atoms if atom not in bonded]
        done = set()
        for atom in lonely:
            done.add(atom)
            for other in atoms:
                hydrogens = [atom.element, other.element].count(hydrogen)
                reach = (_BOND, _BOND_TO_HYDROGEN, 0.0)[hydrogens]
                if other not in done and np.linalg.norm(positions[atom.index] - positions[other.index]) < reach:
                    topology.addBond(atom, other)


def _part(topology: Topology, atoms: np.ndarray) -> Topology:
    """Topology of some of the atoms."""
    if len(atoms) == topology.getNumAtoms():
        return topology
    kept = set(atoms.tolist())
    modeller = Modeller(topology, np.zeros((topology.getNumAtoms(), 3)) * unit.nanometer)
    modeller.delete([atom for atom in topology.atoms() if atom.index not in kept])
    return modeller.topology


def _first_frame(file: TrajectoryFile) -> tuple[int, bool]:
    """Atoms in a frame, and whether the file tells times."""
    check_whole_dcd(file.path)
    try:
        if file.group:
            with open_mdcath(file.path) as h5:
                return next(iter(h5.values()))[file.group]["coords"].shape[1], False
        with _open(file.path) as frames:
            frame = frames.read(n_frames=1)
    except _DAMAGE as error:
        raise _damaged(file, error) from error
    if file.path.suffix == ".dcd":
        return frame[0].shape[1], False
    return frame[0].shape[1], frame[1] is not None
