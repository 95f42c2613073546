"""Molecules on the command line: a PDB file, or a sequence."""

from __future__ import annotations

from pathlib import Path

from openmm.app import PDBFile, Topology

from openmm_starmd.errors import StarMDError, first_line
from openmm_starmd.protein.length_unit import backbone_of, refuse_wrong_unit
from openmm_starmd.systems.build import THREE_LETTER
from openmm_starmd.systems.peptide import minimized_peptide, split_caps


def is_file(molecule: str) -> bool:
    """True if a molecule is given as a file: one that exists, or a name that no sequence has."""
    return "." in molecule or "/" in molecule or Path(molecule).is_file()


def read_or_build(molecule: str, seed: int = 0) -> tuple[Topology, object]:
    """Topology and positions (A, 3), nm, of a PDB file, or of a minimised peptide of one-letter codes.

    Caps stand about the codes as in ``"ace-DWGR-nme"``; the seed is that of `build_peptide`. A StarMDError says that
    the file cannot be read, or that the sequence holds letters that are no standard residue.
    """
    if not is_file(molecule):
        if not set(split_caps(molecule)[0]) <= set(THREE_LETTER):
            codes = "".join(THREE_LETTER)
            raise StarMDError(
                f"{molecule!r} is neither a file that is there nor a sequence of the one-letter codes {codes}, with or "
                "without caps as in ace-DWGR-nme"
            )
        return minimized_peptide(molecule, seed)
    pdb = read_pdb(Path(molecule))
    return pdb.topology, pdb.positions


def read_pdb(path: Path) -> PDBFile:
    """Read a PDB file; a StarMDError of one line says what is wrong with one that cannot be read."""
    if not path.is_file():
        raise StarMDError(f"there is no file {path}")
    try:
        pdb = PDBFile(str(path))
        if pdb.topology.getNumAtoms():
            refuse_wrong_unit(pdb.getPositions(asNumpy=True)._value, backbone_of(pdb.topology))
            return pdb
        reason = "it holds no atoms"
    except StarMDError as error:
        raise StarMDError(f"{path}: {error}") from None
    except Exception as error:  # OpenMM's parser raises what it happens to raise
        reason = first_line(error)
    raise StarMDError(f"{path} cannot be read as a PDB file ({reason}); `starmd prepare` reads PDB and mmCIF files")
