#!/usr/bin/env bash
# PDBFixer 1.12.0 gives an L peptide a D lysine when it builds the missing side chain.
#
# What happens: Gly-Lys-Gly in an alpha helix (phi -60, psi -45 degrees, trans peptide bonds) holds only the backbone of
# its lysine. addMissingAtoms builds CB and the rest on the wrong side of CA: the residue becomes D, without a word.
# Why: `_overlayPoints` fits the template of the residue to the backbone by the singular value decomposition of Kabsch,
# but does not look at the determinant. The best fit of N, CA, C and O may then be a reflection (determinant -1), and the
# atoms that are built are the mirror image of the template. Force field terms that would turn the centre back are absent.
# The same happens to serine and threonine in a strand (phi -70, psi 150), while serine in the helix comes out L.
#
# Seen with pdbfixer 1.12.0 and OpenMM 8.6.1 (Python 3.11, Linux):
#   determinant of the rotation: -1.0
#   LYS 2: (N-CA) x (C-CA) . (CB-CA) = -1.7e-03 nm^3, D
#   SER 2: (N-CA) x (C-CA) . (CB-CA) = 2.6e-03 nm^3, L
# The script exits with an error if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet openmm==8.6.1 pdbfixer==1.12.0 "numpy<3"
cat > "$folder/show.py" <<'PYTHON'
from io import StringIO

import numpy as np
from openmm import Platform, unit
from pdbfixer import PDBFixer
from pdbfixer.pdbfixer import _overlayPoints

HELIX = """\
ATOM      1  N   GLY A   1       0.000   0.000   0.000  1.00  0.00           N
ATOM      2  CA  GLY A   1       1.458   0.000   0.000  1.00  0.00           C
ATOM      3  C   GLY A   1       2.000   1.400   0.000  1.00  0.00           C
ATOM      4  O   GLY A   1       2.925   1.712   0.750  1.00  0.00           O
ATOM      5  N   XXX A   2       1.426   2.252  -0.843  1.00  0.00           N
ATOM      6  CA  XXX A   2       1.857   3.641  -0.942  1.00  0.00           C
ATOM      7  C   XXX A   2       1.698   4.359   0.394  1.00  0.00           C
ATOM      8  O   XXX A   2       2.597   5.080   0.826  1.00  0.00           O
ATOM      9  N   GLY A   3       0.553   4.155   1.037  1.00  0.00           N
ATOM     10  CA  GLY A   3       0.274   4.782   2.323  1.00  0.00           C
ATOM     11  C   GLY A   3       1.304   4.367   3.368  1.00  0.00           C
ATOM     12  O   GLY A   3       1.808   5.205   4.116  1.00  0.00           O
ATOM     13  OXT GLY A   3       1.609   3.156   3.429  1.00  0.00           O
TER      14      GLY A   3
END
"""


def atoms_of(residue, positions):
    x = positions.value_in_unit(unit.nanometer)
    return {atom.name: x[atom.index] for atom in residue.atoms()}


def hand(name):
    fixer = PDBFixer(pdbfile=StringIO(HELIX.replace("XXX", name)))
    fixer.platform = Platform.getPlatform("Reference")
    fixer.findMissingResidues()
    fixer.findMissingAtoms()
    fixer.addMissingAtoms(seed=1)
    built = atoms_of(list(fixer.topology.residues())[1], fixer.positions)
    x = {atom: np.array(position) for atom, position in built.items()}
    value = np.dot(np.cross(x["N"] - x["CA"], x["C"] - x["CA"]), x["CB"] - x["CA"])
    print(f"{name} 2: (N-CA) x (C-CA) . (CB-CA) = {value:.1e} nm^3, {'L' if value > 0 else 'D'}")
    return value


fixer = PDBFixer(pdbfile=StringIO(HELIX.replace("XXX", "LYS")))
template = fixer.templates["LYS"]
own = atoms_of(list(fixer.topology.residues())[1], fixer.positions)
ideal = atoms_of(next(template.topology.residues()), template.positions)
names = ["N", "CA", "C", "O"]
_, rotation, _ = _overlayPoints([own[k] for k in names], [ideal[k] for k in names])
determinant = np.linalg.det(rotation)
print(f"determinant of the rotation: {determinant:.1f}")
assert round(determinant) == -1, "the rotation is no reflection any more"
assert hand("LYS") < -1e-3, "the lysine is L now"
assert hand("SER") > 1e-3, "the serine is D now"
PYTHON
"$folder/env/bin/python" "$folder/show.py"
