#!/usr/bin/env bash
# OpenMM 8.6.1 reads DCY, the Protein Data Bank's name of D cysteine, as the nucleotide DC.
#
# What happens: in a PDB file of Gly-DCY-Gly (DCY is D cysteine in the Chemical Component Dictionary) the residue in the
# middle is called DC, deoxycytidine, after reading. Its neighbour DAL (D alanine) keeps its name. Programs that choose
# proteins by their residue names lose the residue, or take it for DNA.
# Why: pdbNames.xml of OpenMM lists DCY (and DAD, DGU) as other names of the nucleotides DC (DA, DG), and PDBFile and
# PDBxFile translate names without a look at the atoms.
#
# Seen with OpenMM 8.6.1 (Python 3.11, Linux):
#   DCY is read as DC with the atoms N, CA, CB, SG, C, O
#   DAL is read as DAL with the atoms N, CA, CB, C, O
# The script exits with an error if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet openmm==8.6.1 "numpy<3"
cat > "$folder/show.py" <<'PYTHON'
from io import StringIO

from openmm.app import PDBFile

PEPTIDE = """\
ATOM      1  N   GLY A   1      -3.324   1.517   0.000  1.00  0.00           N
ATOM      2  CA  GLY A   1      -3.978   2.820   0.000  1.00  0.00           C
ATOM      3  C   GLY A   1      -3.550   3.646  -1.208  1.00  0.00           C
ATOM      4  O   GLY A   1      -3.428   4.868  -1.124  1.00  0.00           O
HETATM    5  N   DCY A   2      -3.324   2.971  -2.330  1.00  0.00           N
HETATM    6  CA  DCY A   2      -2.909   3.641  -3.557  1.00  0.00           C
HETATM    7  CB  DCY A   2      -2.958   2.713  -4.770  1.00  0.00           C
HETATM    8  SG  DCY A   2      -4.689   2.417  -5.263  1.00  0.00           S
HETATM    9  C   DCY A   2      -1.531   4.274  -3.395  1.00  0.00           C
HETATM   10  O   DCY A   2      -1.291   5.388  -3.859  1.00  0.00           O
ATOM     11  N   GLY A   3      -0.629   3.555  -2.735  1.00  0.00           N
ATOM     12  CA  GLY A   3       0.726   4.044  -2.511  1.00  0.00           C
ATOM     13  C   GLY A   3       0.779   4.974  -1.303  1.00  0.00           C
ATOM     14  O   GLY A   3       0.617   4.537  -0.164  1.00  0.00           O
ATOM     15  OXT GLY A   3       0.991   6.187  -1.518  1.00  0.00           O
TER
END
"""

names = []
for name, atoms in (("DCY", "N CA C O CB SG"), ("DAL", "N CA C O CB")):
    lines = PEPTIDE.splitlines()
    kept = [line for line in lines if line[17:20] != "DCY" or line[12:16].strip() in atoms.split()]
    pdb = PDBFile(StringIO("\n".join(kept).replace("DCY", name)))
    residue = list(pdb.topology.residues())[1]
    print(f"{name} is read as {residue.name} with the atoms {', '.join(atom.name for atom in residue.atoms())}")
    names.append(residue.name)
assert names == ["DC", "DAL"], "the names are read in another way now"
PYTHON
"$folder/env/bin/python" "$folder/show.py"
