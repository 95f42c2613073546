#!/usr/bin/env bash
# MDTraj 1.11.1: residues 100 and 100A of one name, written to a PDB file and read again, are one residue.
#
# What happens: a chain ALA 99, GLY 100, GLY 100A, TYR 100B, TYR 100C, ALA 101 (numbers with insertion codes, as in every
# antibody) is six residues for OpenMM and for MDTraj. MDTraj's save_pdb writes all its 24 atoms. Read again, the file has
# four residues: OpenMM's PDBFile keeps 16 of the 24 atoms, MDTraj keeps all, some residues with two backbones.
# Why: MDTraj's Topology keeps the number of a residue and no insertion code, so that neighbours get one number; readers tell
# residues apart by number and name. OpenMM takes atoms of a name that a residue has already for alternative locations and
# leaves them out, with no more than a warning about other neighbours, whose names differ.
#
# Seen with MDTraj 1.11.1.post2 and OpenMM 8.6.1 (Python 3.11, Linux):
#   before: OpenMM 6 residues, 24 atoms; MDTraj 6 residues, 24 atoms
#   after:  OpenMM 4 residues, 16 atoms; MDTraj 4 residues, 24 atoms
# The script exits with an error if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet mdtraj==1.11.1.post2 openmm==8.6.1 "numpy<3"
cat > "$folder/show.py" <<'PYTHON'
import warnings

import mdtraj
from openmm import Vec3, unit
from openmm.app import Element, PDBFile, Topology

CHAIN = [("ALA", "99", " "), ("GLY", "100", " "), ("GLY", "100", "A"), ("TYR", "100", "B"), ("TYR", "100", "C"),
         ("ALA", "101", " ")]
BACKBONE = {"N": (0.0, 0.0), "CA": (0.146, 0.0), "C": (0.199, 0.143), "O": (0.123, 0.238)}  # nm

topology, positions = Topology(), []
chain = topology.addChain("H")
for k, (name, number, code) in enumerate(CHAIN):
    residue = topology.addResidue(name, chain, number, code)
    for atom, (x, y) in BACKBONE.items():
        topology.addAtom(atom, Element.getBySymbol(atom[0]), residue)
        positions.append(Vec3(x, y, 0.35 * k))
with open("before.pdb", "w") as file:
    PDBFile.writeFile(topology, positions * unit.nanometer, file, keepIds=True)
warnings.simplefilter("ignore")
mdtraj.load("before.pdb").save_pdb("after.pdb")
seen = []
for name in ("before", "after"):
    one, other = PDBFile(f"{name}.pdb").topology, mdtraj.load(f"{name}.pdb").topology
    seen.append([one.getNumResidues(), one.getNumAtoms(), other.n_residues, other.n_atoms])
    print("{}: OpenMM {} residues, {} atoms; MDTraj {} residues, {} atoms".format(name, *seen[-1]))
assert seen == [[6, 24, 6, 24], [4, 16, 4, 24]], "this is not what was seen"
PYTHON
cd "$folder" && "$folder/env/bin/python" "$folder/show.py"
