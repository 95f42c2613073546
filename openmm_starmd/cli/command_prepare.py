"""``starmd prepare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def prepare(
    structure: Annotated[Path, typer.Argument(help="PDB or mmCIF file.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="PDB or mmCIF (.cif) file to write.")] = Path(
        "prepared.pdb"
    ),
    ph: Annotated[float, typer.Option("--ph", help="Decides about hydrogens that the file does not tell.")] = 7.0,
    disulfides: Annotated[bool, typer.Option(help="Bond close sulfur atoms of CYS, or keep all as thiols.")] = True,
) -> None:
    """Make a structure ready for implicit solvent: hydrogens and missing atoms added, all but protein removed.

    Every change is printed with its residues.
    """
    from openmm.app import PDBFile, PDBxFile

    from openmm_starmd.files import check_output_file, replacing
    from openmm_starmd.systems import prepare as run

    check_output_file(output)
    topology, positions, changes = run(structure, ph=ph, disulfides=disulfides)
    writer = PDBxFile if output.suffix == ".cif" else PDBFile
    long_names = sorted({chain.id for chain in topology.chains() if len(chain.id) > 1})
    if writer is PDBFile and long_names:
        changes.append(f"renamed the chains {', '.join(long_names)}, as the PDB format has one letter: use -o NAME.cif")
    with replacing(output) as partial, open(partial, "w", encoding="utf-8") as file:
        writer.writeFile(topology, positions, file, keepIds=True)
    for change in changes:
        print(change)
    print(f"{output}: {topology.getNumResidues()} residues, {topology.getNumAtoms()} atoms")
