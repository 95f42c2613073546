#!/usr/bin/env bash
# OpenMM 8.6.1: Modeller.addHydrogens makes a histidine without a hydrogen bond HID (proton on ND1).
#
# What happens: the histidine of Gly-His-Gly has no partner for a hydrogen bond. At pH 7 addHydrogens puts the proton on
# ND1. In water free histidine and histidine in peptides bear it on NE2 about four times as often, and Amber's tleap
# chooses NE2 (HIE) for the name HIS.
# Why: addHydrogens looks for an acceptor near each nitrogen and says HIE only where one is found at NE2; the default is
# HID. Nothing is printed, so simulations by OpenMM and by Amber of one file differ in their tautomers.
#
# Seen with OpenMM 8.6.1 (Python 3.11, Linux):
#   chosen: HID; hydrogens of the ring: HD1, HD2, HE1
# The script exits with an error if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet openmm==8.6.1 "numpy<3"
cat > "$folder/show.py" <<'PYTHON'
from io import StringIO

from openmm import Platform
from openmm.app import Modeller, PDBFile

PEPTIDE = """\
ATOM      1  N   GLY A   1       3.324   1.517   0.000  1.00  0.00           N
ATOM      2  CA  GLY A   1       3.978   2.820   0.000  1.00  0.00           C
ATOM      3  C   GLY A   1       3.550   3.646  -1.208  1.00  0.00           C
ATOM      4  O   GLY A   1       3.428   4.868  -1.124  1.00  0.00           O
ATOM      5  N   HIS A   2       3.324   2.971  -2.330  1.00  0.00           N
ATOM      6  CA  HIS A   2       2.909   3.641  -3.557  1.00  0.00           C
ATOM      7  CB  HIS A   2       2.993   2.629  -4.714  1.00  0.00           C
ATOM      8  CG  HIS A   2       4.382   2.056  -4.875  1.00  0.00           C
ATOM      9  ND1 HIS A   2       4.782   0.795  -4.438  1.00  0.00           N
ATOM     10  CE1 HIS A   2       6.108   0.732  -4.633  1.00  0.00           C
ATOM     11  NE2 HIS A   2       6.556   1.882  -5.168  1.00  0.00           N
ATOM     12  CD2 HIS A   2       5.479   2.736  -5.342  1.00  0.00           C
ATOM     13  C   HIS A   2       1.531   4.274  -3.395  1.00  0.00           C
ATOM     14  O   HIS A   2       1.291   5.388  -3.859  1.00  0.00           O
ATOM     15  N   GLY A   3       0.629   3.555  -2.735  1.00  0.00           N
ATOM     16  CA  GLY A   3      -0.726   4.044  -2.511  1.00  0.00           C
ATOM     17  C   GLY A   3      -0.779   4.974  -1.303  1.00  0.00           C
ATOM     18  O   GLY A   3      -0.617   4.537  -0.164  1.00  0.00           O
ATOM     19  OXT GLY A   3      -0.991   6.187  -1.518  1.00  0.00           O
TER
END
"""

pdb = PDBFile(StringIO(PEPTIDE))
modeller = Modeller(pdb.topology, pdb.positions)
chosen = modeller.addHydrogens(pH=7.0, platform=Platform.getPlatform("Reference"))[1]
residue = list(modeller.topology.residues())[1]
ring = sorted(atom.name for atom in residue.atoms() if atom.name[:2] in ("HD", "HE"))
print(f"chosen: {chosen}; hydrogens of the ring: {', '.join(ring)}")
assert chosen == "HID" and ring == ["HD1", "HD2", "HE1"], "the default is another one now"
PYTHON
"$folder/env/bin/python" "$folder/show.py"
