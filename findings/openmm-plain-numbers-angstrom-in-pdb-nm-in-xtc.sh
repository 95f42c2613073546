#!/usr/bin/env bash
# OpenMM 8.6.1: one array of plain numbers is angstrom to PDBFile and PDBxFile, and nanometre to all that surrounds them.
#
# What happens: an array without units goes to Context.setPositions, DCDFile, XTCFile and Modeller as nanometres, which is
# OpenMM's unit system. PDBFile.writeFile and PDBxFile.writeFile take the same array as angstrom. The file holds a molecule
# of a tenth of the size, every bond 0.01 nm long, and nothing is said; minimised, it becomes some other conformation.
# Why: the two writers convert a Quantity to angstrom and write anything else as it is, since the formats are in angstrom.
#
# Seen with OpenMM 8.6.1 (Python 3.11, Linux), for two atoms 1 nm apart, read back in nm:
#   Context 1.000, Modeller 1.000, DCDFile 1.000, XTCFile 1.000, PDBFile 0.100, PDBxFile 0.100
# The script exits with an error if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet openmm==8.6.1 mdtraj==1.11.1.post2 "numpy<3"
cat > "$folder/show.py" <<'PYTHON'
import mdtraj
import numpy as np
import openmm
from openmm import app, unit

topology, system = app.Topology(), openmm.System()
chain = topology.addChain()
for _ in range(2):
    topology.addAtom("O", app.element.oxygen, topology.addResidue("HOH", chain))
    system.addParticle(16.0)
plain = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])

context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform("Reference"))
context.setPositions(plain)
found = {"Context": context.getState(positions=True).getPositions(asNumpy=True)}
found["Modeller"] = app.Modeller(topology, plain).positions
with open("a.dcd", "wb") as file:
    app.DCDFile(file, topology, 0.002).writeModel(plain)
app.XTCFile("a.xtc", topology, 0.002).writeModel(plain)
for name, writer in {"a.pdb": app.PDBFile, "a.cif": app.PDBxFile}.items():
    with open(name, "w") as file:
        writer.writeFile(topology, plain, file)
found |= {f"{k}File": mdtraj.load(f"a.{k.lower()}", top="a.pdb").xyz[0] * unit.nanometer for k in ("DCD", "XTC")}
found |= {"PDBFile": app.PDBFile("a.pdb").positions, "PDBxFile": app.PDBxFile("a.cif").positions}


def apart(positions):
    points = np.array(positions.value_in_unit(unit.nanometer), float)
    return float(np.linalg.norm(points[1] - points[0]))


distances = {name: round(apart(positions), 3) for name, positions in found.items()}
print(", ".join(f"{name} {distance:.3f}" for name, distance in distances.items()))
assert distances == {"Context": 1, "Modeller": 1, "DCDFile": 1, "XTCFile": 1, "PDBFile": 0.1, "PDBxFile": 0.1}, distances
PYTHON
cd "$folder" && "$folder/env/bin/python" "$folder/show.py" 2> /dev/null
