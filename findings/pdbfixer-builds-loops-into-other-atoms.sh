#!/usr/bin/env bash
# PDBFixer 1.12.0: missing residues inside a chain are built with atoms 0.04 to 0.08 nm from others without a bond to them.
#
# What happens: three residues of the villin structure that comes with OpenMM are taken out at three places in turn, and
# PDBFixer builds them again. It reports nothing, and all residues are there; but heavy atoms without a bond between them
# stand 0.042, 0.077 and 0.077 nm apart (bonded ones are 0.13 to 0.18 nm apart).
# Why: new atoms repel others by a potential that is finite at distance zero. PDBFixer looks for atoms nearer than 0.13 nm
# and then makes ten short runs of dynamics, but it goes on with the best of them whatever its nearest distance, minimises
# it once more in the soft potential, and does not look again.
#
# Seen with PDBFixer 1.12.0 and OpenMM 8.6.1 (Python 3.11, Linux), Reference platform, seed 1:
#   residues 10-12 taken out: 0.042 nm between CA of PHE and O of VAL
#   residues 19-21 taken out: 0.077 nm between CA of LEU and O of PRO
#   residues 22-24 taken out: 0.077 nm between C of LYS and O of LEU
# The script exits with an error if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet pdbfixer==1.12.0 openmm==8.6.1 "numpy<3"
cat > "$folder/show.py" <<'PYTHON'
import io
from pathlib import Path

import numpy as np
import openmm.app
from openmm import Platform, unit
from openmm.app import Modeller, PDBFile
from pdbfixer import PDBFixer

villin = PDBFile(str(Path(openmm.app.__file__).parent / "data" / "test.pdb"))
protein = [residue for residue in villin.topology.residues() if any(atom.name == "CA" for atom in residue.atoms())]
names = [residue.name for residue in protein]
found = []
for first in (9, 18, 21):
    kept = {residue.index for residue in protein} - set(range(first, first + 3))
    modeller = Modeller(villin.topology, villin.positions)
    modeller.delete([a for a in modeller.topology.atoms() if a.residue.index not in kept or a.element.symbol == "H"])
    text = io.StringIO()
    PDBFile.writeFile(modeller.topology, modeller.positions, text, keepIds=True)
    fixer = PDBFixer(pdbfile=io.StringIO(text.getvalue()))
    fixer.missingResidues = {(0, first): names[first : first + 3]}
    fixer.findMissingAtoms()
    fixer.platform = Platform.getPlatform("Reference")
    fixer.addMissingAtoms(seed=1)
    atoms = list(fixer.topology.atoms())
    x = np.array(fixer.positions.value_in_unit(unit.nanometer))
    distance = np.linalg.norm(x[:, None] - x[None], axis=-1) + 9 * np.eye(len(x))
    for a, b in fixer.topology.bonds():
        distance[a.index, b.index] = distance[b.index, a.index] = 9
    i, j = np.unravel_index(distance.argmin(), distance.shape)
    a, b = sorted((atoms[i], atoms[j]), key=lambda atom: atom.name)
    found.append(distance.min())
    print(f"residues {first + 1}-{first + 3} taken out: {distance.min():.3f} nm between {a.name} of {a.residue.name} and "
          f"{b.name} of {b.residue.name}")
assert max(found) < 0.11, "loops are built apart from other atoms now"
PYTHON
cd "$folder" && "$folder/env/bin/python" "$folder/show.py"
